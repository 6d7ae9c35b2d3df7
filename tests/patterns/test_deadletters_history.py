"""Looking at dead letters is bounded, and passes over those that were dealt with: reads are
counted."""

from __future__ import annotations

import logging
import threading
from uuid import uuid4

import pytest

from streams.letters import GROUP, TOPIC
from streams.log.protocol import Log
from streams.message import Record
from streams.patterns import DeadLetterManager
from streams.patterns.deadletters import manager
from streams.patterns.deadletters.redriving import Letters
from tests.conformance.stage import Stage
from tests.patterns.counting import counting

pytestmark = pytest.mark.anyio


def filled(log: Log, topic: str, count: int) -> None:
    """Letters, of which the first one is of another group."""
    log.create(topic, 1)
    told = threading.Event()

    def headers(number: int) -> list[tuple[str, bytes | None]]:
        return [(GROUP, b"other" if number == 0 else b"billing"), (TOPIC, b"orders")]

    records = [Record(b"%d" % n, b"k", f"id-{n}", headers(n)) for n in range(count)]
    log.append(topic, records, lambda _: told.set())
    assert told.wait(30)


async def test_letters_that_were_dealt_with_are_not_read_again(stage: Stage) -> None:
    """Also where an old one waits before all of them."""
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_000)
    log = counting(stage.anchor)
    letters = Letters(log, name)
    assert letters.set_aside(wanted=lambda row: row.batch.id(row.index) != "id-0") == 1_999
    log.reset()
    assert letters.waiting() == 1
    assert log.records == 1
    log.reset()
    rows = letters.rows(everything=True)
    assert sum(1 for _ in rows) == 2_000
    rows.close()
    assert log.records == 2_000
    # Where many are picked out here and there, no more readers are opened than that is worth.
    filled(stage.anchor, f"{name}-b", 300)
    others = Letters(log, f"{name}-b")
    others.set_aside(wanted=lambda row: int(row.batch.values[row.index] or b"") % 3 == 0)
    log.reset()
    assert others.waiting() == 200
    assert log.calls["reader"] <= 17


async def test_looking_for_letters_is_bounded_and_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"dead-{uuid4().hex[:8]}"
    filled(stage.anchor, name, 2_500)
    log = counting(stage.anchor)
    letters = Letters(log, name)
    rows = letters.rows(most=100)
    assert sum(1 for _ in rows) == 100
    assert rows.cut
    rows.close()
    assert log.records <= 1_000, "a batch"
    rows = letters.rows(most=2_500)
    assert sum(1 for _ in rows) == 2_500
    assert not rows.cut
    rows.close()
    log.reset()
    _, end = log.bounds(name, 0)
    last = log.back(name, 0, end, 1)
    (row,) = (rows := letters.at(0, last))
    assert row.batch.id(row.index) == "id-2499"
    assert log.records == 1
    rows.close()
    assert list(letters.at(0, end)) == []
    assert list(letters.at(7, 0)) == []

    monkeypatch.setattr(manager, "LOOKED_AT", 50)
    async with stage.app().connected() as app:
        found = DeadLetterManager(app, name)
        with caplog.at_level(logging.WARNING, "streams"):
            assert await found.get_dead_letters(filter=lambda letter: letter.id == "id-60") == []
            assert "only the oldest 50 dead letters were looked at" in caplog.text
            caplog.clear()
            assert len(await found.get_dead_letters(10)) == 10
            assert not caplog.text
