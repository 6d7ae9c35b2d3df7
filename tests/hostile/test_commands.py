"""One bad record never blinds a command: what can be listed is, whatever stands beside it."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from streams import derived_records
from streams.cli import output
from tests.hostile.commands import command, lists
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written

DIGITS = b"9" * 5_000
YEAR_11476 = 300_000_000_000_000


@pytest.mark.only("kafka", "redis")
def test_a_name_that_is_no_text_and_a_time_beyond_the_calendar(stage: Ground) -> None:
    topic = stage.topic_name
    stage.create(topic)
    stage.write(
        topic,
        [
            Written(b"1", b"k", [(b"ce_id", b"a")]),
            Written(b"2", b"k", [(b"ce_id", b"b"), (b"na\xffme", b"1")]),
            Written(b"3", b"k", [(b"ce_id", b"c")], YEAR_11476),
            Written(
                b"4", b"\xff\x00", [(b"ce_id", b"\xff\x00"), (b"\x1b[31m", b"\x1b[0m")], YEAR_11476
            ),
        ],
    )
    for words in (["tail", topic, "--json"], ["replay", topic]):
        found = command(stage.url, *words)
        assert found.status == 0, found
        assert [each["value"] for each in found.documents] == [1, 2, 3, 4]
        assert found.documents[2]["time"] == "9999-12-31T23:59:59.999Z"
        assert "\\xff" in json.dumps(found.documents[1]["headers"])
    plain = command(stage.url, "tail", topic)
    assert plain.status == 0
    assert plain.out.count("\n") == 4


def test_letters_whose_headers_make_no_sense(stage: Ground) -> None:
    dead = f"{stage.topic_name}.{stage.group}.dead"
    stage.create(dead)
    names = [
        derived_records.ERROR_ATTEMPTS, derived_records.ERROR_OFFSET,
        derived_records.ERROR_PARTITION, derived_records.ERROR_TIME,
        derived_records.ERROR_EXCEPTION,
        derived_records.ERROR_MESSAGE, derived_records.ERROR_STACKTRACE, "streams_redrive",
        derived_records.ORIGIN,
        derived_records.FIRST_FAILED, derived_records.FIRST_ERROR, derived_records.EDITED,
    ]  # fmt: skip
    stage.write(
        dead,
        [
            Written(b"%d" % n, b"k", [(b"ce_id", b"m%d" % n), (name.encode(), DIGITS)])
            for n, name in enumerate(names)
        ],
    )
    listed = lists(stage.url, "dead", "ls", stage.group, stage.topic_name).documents[0]
    assert [each["id"] for each in listed] == [f"m{n}" for n in range(len(names))]
    assert listed[0]["attempts"] is None
    for each in listed:
        whole = lists(stage.url, "dead", "show", stage.group, stage.topic_name, each["id"])
        assert whole.documents[0]["id"] == each["id"]
    place = (stage.group, stage.topic_name)
    every = ("--error", "", "--key", "k", "--since", "2013-01-01T00:00Z")
    counted = lists(stage.url, "dead", "retry", *place, *every, "--dry-run").documents[0]
    assert counted["matching"] == len(names)
    for which in (listed[0]["place"], listed[1]["id"]):
        done = command(stage.url, "dead", "edit", *place, which, "--value", "x", "--json")
        assert done.documents[0]["edited"] == 1
    done = command(stage.url, "dead", "retry", *place, "--key", "k", "--yes", "--json")
    assert done.documents[0]["retried"] == len(names) - 2


def test_saga_entries_that_make_no_sense(stage: Ground) -> None:
    name = f"saga-{uuid4().hex[:8]}"
    stage.create(f"{name}.saga")
    good = {"saga": "good", "context": {"n": 1}, "plan": [["pay"]], "at": 1.7e9}
    odd: list[bytes] = [
        json.dumps({**good, "saga": "late", "at": 1e300}).encode(),
        json.dumps({**good, "saga": "early", "at": -1e300, "due": 1e300}).encode(),
        b'{"saga":"deep","context":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"saga":"large","context":{"n":1e999}}',
        b'{"saga":"counted","context":{},"n":' + DIGITS + b"}",
        b"[" * 50_000,
        b"\xff",
    ]
    values: list[Any] = [json.dumps(good).encode(), *odd]
    stage.write(
        f"{name}.saga",
        [
            Written(value, key, [(b"ce_id", b"%s/0" % key)])
            for value, key in zip(
                values,
                [b"good", b"late", b"early", b"deep", b"large", b"counted", b"x", b"y"],
                strict=True,
            )
        ],
    )
    listed = lists(stage.url, "saga", "ls", name).documents[0]
    assert "good" in {each["id"] for each in listed}
    for each in listed:
        assert lists(stage.url, "saga", "status", name, each["id"]).documents[0]["id"] == each["id"]


def test_places_that_are_too_long(stage: Ground) -> None:
    """What stands on a command line is bounded, too, and refused in one line."""
    stage.create(stage.topic_name)
    for option, place in (
        ("--from", "9" * 5_000), ("--from", "-" + "9" * 5_000), ("--from", "9" * 500 + "d"),
        ("--from", "2013-01-05T10:00Z" + "0" * 5_000),
    ):  # fmt: skip
        found = command(stage.url, "tail", stage.topic_name, option, place)
        assert found.status == 2, found
        assert found.err.count("\n") == 1
        assert len(found.err) < 400
    found = command(stage.url, "tail", stage.topic_name, "--from", "0001-01-01T00:00:00+14:00")
    assert found.status == 0, found


@pytest.mark.only("memory")
def test_a_row_that_cannot_be_shown_is_named(
    stage: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it may be that nobody thought of: it is named, and the others are listed."""
    topic = stage.topic_name
    stage.create(topic)
    stage.write(topic, [Written(b"1"), Written(b"2"), Written(b"3")])
    real = output.bytes_text

    def readable(data: bytes | None) -> str | None:
        if data == b"2":
            raise ZeroDivisionError("nobody thought of it")
        return real(data)

    monkeypatch.setattr(output, "bytes_text", readable)
    found = command(stage.url, "tail", topic)
    assert found.status == 0
    assert [line.split()[-1] for line in found.out.splitlines()] == ["1", "3"]
    assert f"{topic}/0/1: cannot be shown: ZeroDivisionError: nobody thought of it" in found.err
