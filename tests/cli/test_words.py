"""Places, durations and values between text and meaning."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.offset_arguments import OFFSET_HELP, parse_offsets
from tests.cli.conftest import Run, Shell


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("earliest", "earliest"),
        ("Beginning", "earliest"),
        ("end", "latest"),
        ("1041", "1041"),
        ("1700000000000-0", "1700000000000-0"),
        ("-5", -5),
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2013-01-05T10:00Z", datetime(2013, 1, 5, 10, tzinfo=timezone.utc)),
        (
            "2013-01-05 10:00:00.5-05:00",
            datetime(2013, 1, 5, 10, 0, 0, 500_000, timezone(timedelta(hours=-5))),
        ),
        ("0/1041,3/latest", {0: "1041", 3: "latest"}),
        ("2/1700000000000-7", {2: "1700000000000-7"}),
    ],
)
def test_a_place_is_read_as_it_is_written(text: str, meaning: object) -> None:
    assert parse_offsets(text, "--to", "orders") == meaning


@given(st.text(max_size=12) | st.from_regex(r"[-0-9/,.:TZsmhd]{1,12}", fullmatch=True))
def test_whatever_is_written_is_a_place_or_misused(text: str) -> None:
    with suppress(UsageError):
        assert parse_offsets(text, "--to", "orders") is not None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_JSON, st.sampled_from([None, 2]))
def test_a_json_value_is_shown_without_loss(value: Any, indent: int | None) -> None:
    data = json.dumps(value, indent=indent).encode()
    line = output.json_bytes(output.value_json(data))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"value": value}


@given(st.binary(max_size=40))
def test_any_value_can_be_had_back(data: bytes) -> None:
    found = json.loads(output.json_bytes(output.value_json(data)))
    (name,) = found
    if name == "base64":
        assert base64.b64decode(found["base64"]) == data
    elif name == "text":
        assert found["text"].encode() == data
    else:
        assert found["value"] == json.loads(data)


def test_durations_on_the_command_line(shell: Shell, run: Run) -> None:
    assert run("topics", "create", "orders", "--keep-for", "1d12h").status == 0
    (topic,) = run("topics", "ls", "--json").json
    assert topic["retention"]["seconds"] == 129_600.0
    assert run("tail", "orders", "--from", "2h30m").status == 0
    assert run("replay", "orders", "--start", "2h30m", "--end", "1h15m").status == 0
    refused = run("tail", "orders", "--from", "30m2h")
    assert refused.status == 2
    assert "2h30m" in refused.err
    assert "2h30m" in OFFSET_HELP
