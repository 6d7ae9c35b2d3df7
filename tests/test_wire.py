"""Whatever comes off the wire is read without an error, within bounds."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import wire

ANYTHING = st.one_of(st.none(), st.binary(max_size=64), st.text(max_size=64))


@given(ANYTHING)
def test_nothing_raises(written: bytes | str | None) -> None:
    whole, finite, moment = (
        wire.parse_int(written),
        wire.parse_float(written),
        wire.parse_iso_time(written),
    )
    assert whole is None or 0 <= whole < 10**wire.MAX_DIGITS
    assert finite is None or math.isfinite(finite)
    assert moment is None or moment.utcoffset() == timedelta(0)
    wire.parse_position(written)


@given(st.integers(0, 10**wire.MAX_DIGITS - 1))
def test_our_own_numbers_come_back(number: int) -> None:
    assert wire.parse_int(str(number)) == wire.parse_int(str(number).encode()) == number


@pytest.mark.parametrize(
    "written",
    [
        "",
        "-1",
        "+1",
        " 1",
        "1_000",
        "1.0",
        "٣",
        "²",
        "9" * 19,
        "9" * 4_000,
        "9" * 5_000,
        b"\xff",
        None,
    ],
    ids=lambda written: repr(written)[:12] + str(len(written or "")),
)
def test_what_is_no_whole_number(written: bytes | str | None) -> None:
    assert wire.parse_int(written) is None


@pytest.mark.parametrize("written", ["0", b"7", str(wire.MAX_PARTITION)])
def test_the_number_of_a_partition(written: bytes | str) -> None:
    assert wire.parse_partition(written) == int(written)


@pytest.mark.parametrize("written", [str(wire.MAX_PARTITION + 1), "9" * 11, "-1", "", None])
def test_what_no_partition_can_have_for_a_number(written: str | None) -> None:
    assert wire.parse_partition(written) is None
    assert wire.parse_position(f"topic/{written}/0") is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_our_own_floats_come_back(number: float) -> None:
    assert wire.parse_float(repr(number)) == number


@pytest.mark.parametrize("written", ["nan", "inf", "-Infinity", "1e999", "", "x", "٣", "1" * 99])
def test_what_is_no_finite_number(written: str) -> None:
    assert wire.parse_float(written) is None


@given(st.floats() | st.integers(-(1 << 128), 1 << 128))
def test_every_number_of_seconds_is_a_time(seconds: float) -> None:
    found = wire.utc_from_seconds(seconds)
    assert wire.EARLIEST_TIME <= found <= wire.LATEST_TIME
    assert found.utcoffset() == timedelta(0)


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_a_time_of_our_own_comes_back(moment: datetime) -> None:
    assert abs(wire.utc_from_seconds(moment.timestamp()) - moment) < timedelta(microseconds=100)
    assert wire.parse_iso_time(moment.isoformat()) == moment


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        (math.nan, wire.EPOCH),
        (math.inf, wire.LATEST_TIME),
        (-math.inf, wire.EARLIEST_TIME),
        (3e11, wire.LATEST_TIME),  # the Redis entry ID 300000000000000-0: the year 11476
        (wire.LAST_SECOND, wire.LATEST_TIME.replace(microsecond=0)),
        (wire.FIRST_SECOND, wire.EARLIEST_TIME),
        (1 << 100, wire.LATEST_TIME),
    ],
)  # fmt: skip
def test_a_time_beyond_the_calendar_is_its_edge(seconds: float, found: datetime) -> None:
    assert wire.utc_from_seconds(seconds) == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("2013-01-01T05:17:00", datetime(2013, 1, 1, 5, 17, tzinfo=timezone.utc)),
        ("2013-01-01T05:17:00+02:00", datetime(2013, 1, 1, 3, 17, tzinfo=timezone.utc)),
        (b"2013-01-01T05:17:00Z", datetime(2013, 1, 1, 5, 17, tzinfo=timezone.utc)),
        ("0001-01-01T00:00:00+14:00", wire.EARLIEST_TIME),
        ("9999-12-31T23:59:59-14:00", wire.LATEST_TIME),
        ("10000-01-01T00:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("9" * 5_000, None),
        (b"\xff\xfe", None),
        ("", None),
    ],
)  # fmt: skip
def test_iso(written: bytes | str, found: datetime | None) -> None:
    assert wire.parse_iso_time(written) == found


@given(st.binary(max_size=200), st.integers(3, 50))
def test_text_is_bounded_and_keeps_what_is_not_utf_8(data: bytes, limit: int) -> None:
    whole = wire.text(data)
    assert whole.encode("utf-8", "surrogateescape") == data
    cut = wire.shorten(data, limit)
    assert len(cut) <= limit
    assert cut == wire.shorten(whole, limit)
    assert cut == whole if len(whole) <= limit else cut.endswith("...")


@given(st.text(min_size=1, max_size=20), st.integers(0, 99), st.integers(0, (1 << 128) - 1))
def test_a_place_comes_back(topic: str, partition: int, offset: int) -> None:
    written = f"{topic}/{partition}/{offset}".encode("utf-8", "surrogatepass")
    found = wire.parse_position(written)
    assert found is not None
    assert found[1:] == (partition, offset)


@pytest.mark.parametrize(
    "written", [b"", b"a/b/c", b"a/1", b"/1/2", b"a/-1/2", b"a/1/" + b"9" * 5_000]
)
def test_what_is_no_place(written: bytes) -> None:
    assert wire.parse_position(written) is None
