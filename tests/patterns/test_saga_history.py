"""What one saga costs does not grow with all that were: the records that are read are counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from uuid import uuid4

import msgspec
import pytest

from streams import ConfigError, Dedup, Flow
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.message import Record
from streams.patterns import SagaOrchestrator, SagaStep, UnknownSaga
from streams.patterns.saga import durable_sagas
from streams.patterns.saga.journal import FIRST_LOOK, LOOK_GROWTH, Journal
from streams.patterns.saga.journal_entry import JournalEntry, StoredEntry, abandon_entry
from streams.patterns.saga.recent_sagas import RecentSagas
from tests.conformance.stage import Stage
from tests.patterns.counting import Counting, counting

pytestmark = pytest.mark.anyio

KEEP = 200
"""Entries of a partition among which a saga is looked for, in these tests."""

PARTITIONS = 2


class Trip(msgspec.Struct):
    n: int = 0


async def nothing(trip: Trip) -> None:
    return None


def history(log: Log, topic: str, sagas: range) -> None:
    """Sagas that have ended; of each, the last entry is left."""
    told = threading.Event()
    context, plan = msgspec.Raw(b"{}"), (("pay",),)
    for first in sagas[::500]:
        records: list[Record] = []
        for number in range(first, min(first + 500, sagas.stop)):
            begun = StoredEntry(saga=f"old-{number}", context=context, plan=plan, at=1.0)
            entry = begun.next_entry(2.0, status="completed", stage=1, done=("pay",))
            data = msgspec.json.encode(entry)
            records.append(Record(data, entry.saga.encode(), entry.message_id))
        told.clear()
        log.append(topic, records, lambda _: told.set())
        assert told.wait(30)


def orchestrator(stage: Stage, name: str, *, steps: bool) -> SagaOrchestrator[Trip]:
    saga: SagaOrchestrator[Trip] = SagaOrchestrator(
        stage.app(),
        name,
        context=Trip,
        partitions=PARTITIONS,
        dedup=Dedup(window=50),
        flow=Flow(commit=0.05, drain=0.3),
    )
    return saga.add_step(SagaStep("pay", nothing)) if steps else saga


@pytest.mark.parametrize("ended", [1_000, 6_000])
async def test_a_saga_is_looked_up_among_what_is_new(
    stage: Stage, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much is read with few sagas in the journal as with many."""
    name = f"saga-{uuid4().hex[:8]}"
    monkeypatch.setattr(durable_sagas, "MIN_INDEXED_ENTRIES", KEEP)
    back, front = orchestrator(stage, name, steps=True), orchestrator(stage, name, steps=False)
    assert back._durable is not None
    assert front._durable is not None
    counted: list[Counting] = []

    def opened(*arguments: object) -> Counting:
        counted.append(Counting(open_log(*arguments)))  # type: ignore[arg-type]
        return counted[-1]

    async with back._durable._app:
        await asyncio.to_thread(history, stage.anchor, f"{name}.saga", range(ended))
        monkeypatch.setattr("streams.runtime.open_log", opened)
        async with front._durable._app.connected():
            (log,) = counted
            begun = await front.execute(Trip(), id="new-0")
            assert begun == Trip()
            first = KEEP + KEEP // 4
            assert log.records <= first + 20, "the first look is bounded"
            log.reset()
            for number in range(1, 11):
                await front.execute(Trip(), id=f"new-{number}")
            # Three entries each, read once by who waits and once by who looks up.
            assert log.records <= PARTITIONS * first + 10 * 2 * 3 * 2
            log.reset()
            again = await front.execute(Trip(99), id="new-0")
            assert again == Trip()
            assert log.records <= PARTITIONS * 40, "only what is new was read"
            log.reset()
            assert await front.execute(Trip(99), id="new-0") == Trip()
            assert (await front.status("new-0")).status == "completed"
            assert log.records <= 4
            assert "append" not in log.calls, "an end that is known is not written down again"


async def test_looking_at_sagas_is_bounded_and_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"saga-{uuid4().hex[:8]}"
    saga = orchestrator(stage, name, steps=False)
    assert saga._durable is not None
    app = saga._durable._app
    async with app.connected():
        await saga.start(Trip(), id="live")
        await asyncio.to_thread(history, stage.anchor, f"{name}.saga", range(300))
        log = counting(app.log)
        app.runtime.log = log
        with caplog.at_level(logging.WARNING, "streams"):
            found = await saga.list("completed", newest=20)
        assert log.records == PARTITIONS * 20
        assert len(found) == PARTITIONS * 20
        assert "only the last 20 entries" in caplog.text
        log.reset()
        with pytest.raises(UnknownSaga, match="among the last 20 entries of a partition"):
            await saga.status("live", newest=20)
        assert log.records == PARTITIONS * 20
        caplog.clear()
        assert [each.id for each in await saga.list(newest=None)] == ["live"]
        assert [each.id for each in await saga.list()] == ["live"]
        assert not caplog.text
        log.reset()
        journal = Journal(app.log, name)
        left = await asyncio.to_thread(
            journal.append_command, "live", lambda last: abandon_entry(last, 1.0)
        )
        assert left.status == "abandoned"
        assert log.records <= 301 + 1, "the whole journal once, and the answer"
        log.reset()
        await asyncio.to_thread(history, stage.anchor, f"{name}.saga", range(300, 400))
        with pytest.raises(UnknownSaga):
            await asyncio.to_thread(
                journal.append_command, "live", lambda last: abandon_entry(last, 1.0), 20
            )
        assert log.records == PARTITIONS * 20
        for wrong in (0, -1, True, "all"):
            with pytest.raises(ConfigError, match="newest="):
                await saga.list(newest=wrong)  # type: ignore[arg-type]


async def test_one_saga_is_looked_for_from_the_end(stage: Stage) -> None:
    """Whoever asks where it stands, or sends it a command, reads what was written since."""
    name = f"saga-{uuid4().hex[:8]}"
    saga = orchestrator(stage, name, steps=False)
    assert saga._durable is not None
    async with saga._durable._app.connected():
        await asyncio.to_thread(history, stage.anchor, f"{name}.saga", range(3_000))
        await saga.start(Trip(), id="live")
        log = counting(stage.anchor)
        journal = Journal(log, name)
        for command in (
            lambda last: last.next_entry(1.0, status="stopped", stood="running"),
            lambda last: abandon_entry(last, 2.0),
        ):
            log.reset()
            await asyncio.to_thread(journal.append_command, "live", command)
            assert log.records <= PARTITIONS * FIRST_LOOK + 1
        log.reset()
        assert (await asyncio.to_thread(journal.latest, "live")).entry.status == "abandoned"
        assert log.records <= PARTITIONS * FIRST_LOOK
        await asyncio.to_thread(history, stage.anchor, f"{name}.saga", range(3_000, 4_000))
        log.reset()
        assert (await asyncio.to_thread(journal.latest, "live")).entry.n == 2
        assert log.records <= PARTITIONS * FIRST_LOOK * LOOK_GROWTH


def test_what_was_written_too_late_is_told_from_what_counts_however_far_apart() -> None:
    log = open_log(f"memory://{uuid4().hex}")
    log.create_topic("trips.saga", 1)
    journal = Journal(log, "trips")
    begun = StoredEntry(saga="a", context=msgspec.Raw(b"{}"), plan=(("pay",), ("ship",)), at=1.0)
    second = begun.next_entry(2.0, stage=1, done=("pay",))
    third = second.next_entry(3.0, status="completed", stage=2, done=("pay", "ship"))

    def append(*entries: JournalEntry) -> None:
        records = [Record(msgspec.json.encode(each), b"a", each.message_id) for each in entries]
        log.append("trips.saga", records, lambda _: None)

    append(begun, second)
    history(log, "trips.saga", range(3_000))
    append(third)
    found = journal.latest("a")
    assert (found.entry.n, found.position.offset) == (2, 3_002)
    history(log, "trips.saga", range(3_000, 6_000))
    append(second)  # by an owner that stood still
    found = journal.latest("a")
    assert (found.entry.n, found.position.offset) == (2, 3_002)
    log.close()


def test_what_was_written_too_late_makes_nobody_forgotten() -> None:
    """Entries that do not count take nobody's place, so a saga is found as long as deduplication
    may remember that it was started."""
    log = open_log(f"memory://{uuid4().hex}")
    log.create_topic("trips.saga", 1)
    journal, recent = Journal(log, "trips"), RecentSagas(20)
    history(log, "trips.saga", range(30))
    late = StoredEntry(saga="old-29", context=msgspec.Raw(b"{}"), plan=(("pay",),), at=1.0)
    again = Record(msgspec.json.encode(late), b"old-29", "x")
    junk = Record(b"{}", b"old-29", "y")
    log.append("trips.saga", [again, junk] * 2_000, lambda _: None)
    for _ in range(2):
        recent.catch_up(journal, 0)
        assert recent.find("old-10") is not None
        assert recent.find("old-9") is None
        found = recent.find("old-29")
        assert found is not None
        assert (found.number, found.has_ended, found.position.offset) == (1, True, 29)
        log.append("trips.saga", [again, junk] * 200, lambda _: None)
    history(log, "trips.saga", range(30, 31))
    recent.catch_up(journal, 0)
    assert recent.find("old-10") is None
    assert recent.find("old-11") is not None
    log.delete_topic("trips.saga")
    log.create_topic("trips.saga", 1)
    history(log, "trips.saga", range(100, 101))
    recent.catch_up(journal, 0)
    assert recent.find("old-100") is not None
    assert recent.find("old-11") is None
    log.close()
