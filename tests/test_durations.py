"""Durations as people write them, read in one way on the command line and in URLs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import wire
from streams.cli.command_errors import UsageError
from streams.cli.offset_arguments import parse_duration, parse_offset
from streams.errors import ConfigError
from streams.log.redis.settings import read_settings as read_redis
from streams.log.sqlite.settings import read_settings as read_sqlite
from streams.log.url import read_url as read_url
from streams.log.url import redact

CASES = [
    ("90s", 90.0),
    ("15m", 900.0),
    ("2h", 7_200.0),
    ("2h30m", 9_000.0),
    ("2h 30m", 9_000.0),
    (" 1d12h ", 129_600.0),
    ("1.5h", 5_400.0),
    ("1m1.5s", 61.5),
    ("250ms", 0.25),
    ("1s250ms", 1.25),
    ("5m250ms", 300.25),
    ("1w2d3h4m5s6ms", 788_645.006),
]
NONE = ("", "h", "2", "30m2h", "2h2h", "1.5h30m", "2h30", "-2h", "2 hours", "1e3s", "2H", "٣s")


@pytest.mark.parametrize(("text", "seconds"), CASES)
def test_what_is_one(text: str, seconds: float) -> None:
    assert wire.parse_duration(text) == pytest.approx(seconds)
    assert wire.parse_seconds(text) == wire.parse_duration(text)
    assert parse_duration(text, "--keep-for") == wire.parse_duration(text)
    assert parse_offset(text, "--from") == timedelta(seconds=wire.parse_duration(text) or 0)


@pytest.mark.parametrize("text", NONE)
def test_what_is_none(text: str) -> None:
    assert wire.parse_duration(text) is None
    with pytest.raises(UsageError, match="2h30m"):
        parse_duration(text, "--keep-for")


@given(
    st.dictionaries(st.sampled_from(list(wire.DURATION_UNITS)), st.integers(0, 10**9), min_size=1)
)
def test_any_number_of_units_in_order(parts: dict[str, int]) -> None:
    ordered = {unit: parts[unit] for unit in wire.DURATION_UNITS if unit in parts}
    text = "".join(f"{number}{unit}" for unit, number in ordered.items())
    total = sum(number * wire.DURATION_UNITS[unit] for unit, number in ordered.items())
    assert wire.parse_duration(text) == pytest.approx(total)
    if len(ordered) > 1:
        backwards = "".join(f"{number}{unit}" for unit, number in reversed(ordered.items()))
        assert wire.parse_duration(backwards) is None


@given(st.text(max_size=300) | st.from_regex(r"[0-9.smhdw ]{0,300}", fullmatch=True))
def test_whatever_is_given_it_never_raises(text: str) -> None:
    found = wire.parse_seconds(text)
    assert found is None or isinstance(found, float)


# -- where they are read


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("0.5m", 30.0), ("1m30s", 90.0)])
def test_in_urls(text: str, seconds: float) -> None:
    redis = f"redis://h?lease={text}&once=2h30m&timeout=20s&wait_timeout=1500ms&socket_timeout=2s"
    _, opened = read_url(redis, None, None)
    found = read_redis(opened)
    assert found.terms.lease == seconds
    assert (found.dedup_seconds, found.append_timeout, found.wait_timeout) == (9_000.0, 20.0, 1.5)
    assert found.connection["socket_timeout"] == 2.0
    assert redact("redis://h?lease=2h30m") == "redis://h?lease=2h30m"
    _, opened = read_url(f"sqlite:///x.db?lease={text}&timeout={text}", None, None)
    sqlite = read_sqlite(opened)
    assert (sqlite.terms.lease, sqlite.write_timeout) == (seconds, seconds)


@pytest.mark.parametrize("text", ["soon", "2h30", "30m2h", "nan", "inf", "-1"])
def test_what_is_none_in_a_url_says_what_is(text: str) -> None:
    for url, reader in (
        (f"redis://h?timeout={text}", read_redis),
        (f"sqlite:///x.db?timeout={text}", read_sqlite),
    ):
        _, opened = read_url(url, None, None)
        with pytest.raises(ConfigError, match="90s or 2h30m"):
            reader(opened)
    _, opened = read_url("sqlite:///x.db?max_record=2h", None, None)
    with pytest.raises(ConfigError, match="greater than 0 is needed"):
        read_sqlite(opened)


def test_no_second_parser() -> None:
    root = Path(__file__).parents[1] / "streams"
    units = [path.name for path in root.rglob("*.py") if "604_800" in path.read_text()]
    assert units == ["wire.py"]
