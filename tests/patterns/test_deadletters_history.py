"""Looking at dead letters is bounded, and passes over those that were dealt with: reads are
counted."""

from __future__ import annotations

import logging
import threading
from uuid import uuid4

import pytest

from streams.cli.command_errors import CommandFailed
from streams.cli.dead.show import _find_dead_letter
from streams.derived_records import ERROR_GROUP, ERROR_TOPIC
from streams.errors import NotFound
from streams.log.protocol import Log
from streams.message import Record
from streams.patterns import DeadLetterManager
from streams.patterns.deadletters import manager, redriving
from streams.patterns.deadletters.redriving import DeadLetterTopic
from tests.conformance.stage import Stage
from tests.patterns.counting import counting

pytestmark = pytest.mark.anyio


def filled(log: Log, topic: str, count: int) -> None:
    """Letters, of which the first one is of another group."""
    log.create_topic(topic, 1)
    told = threading.Event()

    def headers(number: int) -> list[tuple[str, bytes | None]]:
        return [(ERROR_GROUP, b"other" if number == 0 else b"billing"), (ERROR_TOPIC, b"orders")]

    records = [Record(b"%d" % n, b"k", f"id-{n}", headers(n)) for n in range(count)]
    log.append(topic, records, lambda _: told.set())
    assert told.wait(30)


async def test_letters_that_were_dealt_with_are_not_read_again(stage: Stage) -> None:
    """Also where an old one waits before all of them."""
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_000)
    log = counting(stage.anchor)
    letters = DeadLetterTopic(log, name)
    assert letters.purge(matches=lambda row: row.batch.id(row.index) != "id-0") == 1_999
    log.reset()
    assert letters.count_waiting() == 1
    assert log.records == 1
    log.reset()
    rows = letters.rows(everything=True)
    assert sum(1 for _ in rows) == 2_000
    rows.close()
    assert log.records == 2_000
    # Where many are picked out here and there, no more readers are opened than that is worth.
    filled(stage.anchor, f"{name}-b", 300)
    others = DeadLetterTopic(log, f"{name}-b")
    others.purge(matches=lambda row: int(row.batch.values[row.index] or b"") % 3 == 0)
    log.reset()
    assert others.count_waiting() == 200
    assert log.calls["reader"] <= 17


async def test_a_letter_that_does_not_wait_is_looked_for_among_the_newest(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "RESOLVED_LIMIT", 100)
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_000)
    log = counting(stage.anchor)
    letters = DeadLetterTopic(log, name)
    letters.purge(matches=lambda row: row.id not in ("id-0", "id-1999"))
    log.reset()
    assert letters.select_named(["id-1999"]).count == 1
    assert log.records == 2, "those that wait"
    for wanted, said in (
        ("id-1950", "'id-1950' was put back or set aside already"),
        ("id-7", "no letter 'id-7' waits, nor is it one of the newest"),
        ("id-x", "no letter 'id-x' waits, nor is it one of the newest"),
    ):
        log.reset()
        with pytest.raises(NotFound, match=said):
            letters.select_named([wanted])
        assert log.records <= 2 + 100
    monkeypatch.undo()
    with pytest.raises(NotFound, match="'id-7' was put back or set aside already"):
        letters.select_named(["id-7"])
    with pytest.raises(NotFound, match="there is no letter 'id-x'"):
        letters.select_named(["id-x"])


def test_a_letter_is_shown_without_reading_all_that_were_dealt_with(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "RESOLVED_LIMIT", 100)
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_000)
    DeadLetterTopic(stage.anchor, name).purge(matches=lambda row: row.id != "id-1999")
    log = counting(stage.anchor)
    for wanted, most in (("id-1999", 1), ("id-1950", 1 + 100)):
        log.reset()
        assert _find_dead_letter(log, "billing", "orders", wanted, name)["id"] == wanted
        assert log.records <= most
    log.reset()
    waits = "no dead letter 'id-7' waits, nor is it one of the newest"
    with pytest.raises(CommandFailed, match=waits):
        _find_dead_letter(log, "billing", "orders", "id-7", name)
    assert log.records <= 1 + 100


async def test_looking_for_letters_is_bounded_and_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_500)
    log = counting(stage.anchor)
    letters = DeadLetterTopic(log, name)
    rows = letters.rows(scan_limit=100)
    assert sum(1 for _ in rows) == 100
    assert rows.is_truncated
    rows.close()
    assert log.records <= 100 + 1_000, "what was wanted, and a batch"
    rows = letters.rows(scan_limit=2_500)
    assert sum(1 for _ in rows) == 2_500
    assert not rows.is_truncated
    rows.close()
    log.reset()
    _, end = log.watermarks(name, 0)
    last = log.offset_before(name, 0, end, 1)
    (row,) = (rows := letters.row_at(0, last))
    assert row.batch.id(row.index) == "id-2499"
    assert log.records == 1
    rows.close()
    assert list(letters.row_at(0, end)) == []
    assert list(letters.row_at(7, 0)) == []

    monkeypatch.setattr(manager, "SCAN_LIMIT", 50)
    async with stage.app().connected() as app:
        found = DeadLetterManager(app, name)
        with caplog.at_level(logging.WARNING, "streams"):
            assert await found.get_dead_letters(filter=lambda letter: letter.id == "id-60") == []
            assert "only the oldest 50 dead letters were checked" in caplog.text
            caplog.clear()
            assert len(await found.get_dead_letters(10)) == 10
            assert not caplog.text
