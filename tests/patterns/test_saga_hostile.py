"""Whatever somebody writes to a saga's journal: it loops for nobody, and hides nobody's saga."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_codecs import DecodeError
from streams import Reject, Retry, Streams
from streams.clock import SYSTEM
from streams.message import Record
from streams.patterns import SagaError, SagaOrchestrator, SagaStep, StepCall, UnknownSaga
from streams.patterns.saga.contexts import EncodedContexts
from streams.patterns.saga.engine import SagaEngine
from streams.patterns.saga.entry_validation import invalid_reason
from streams.patterns.saga.journal import Journal
from streams.patterns.saga.journal_decoder import EntryDecoder
from streams.patterns.saga.journal_entry import (
    JournalEntry,
    StoredEntry,
    abandon_entry,
    resume_entry,
)
from streams.testing import harness
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio


class Trip(msgspec.Struct):
    did: list[str] = []


def forged(key: str | None, value: Mapping[str, Any] | bytes, id: str | None = None) -> Record:
    """A record as anybody may write it, under any key and any message ID."""
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Record(data, None if key is None else key.encode(), id or str(uuid4()))


async def nothing(trip: Trip) -> None:
    return None


@asynccontextmanager
async def trips(*names: str) -> AsyncIterator[tuple[SagaOrchestrator[Trip], Any]]:
    """A durable saga of steps that do nothing, on a log in memory, and its harness."""
    app = Streams("memory://")
    saga: SagaOrchestrator[Trip] = SagaOrchestrator(app, "trips", context=Trip, partitions=1)
    for name in names:
        saga.add_step(SagaStep(name, nothing, nothing))
    async with harness(app) as h:
        yield saga, h


RUNNING: dict[str, Any] = {"saga": "f", "context": {}, "plan": [["pay"]]}

IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a stage behind the plan": {"stage": 1},
    "a stage far behind the plan": {"n": 9, "stage": 9},
    "a stage before the plan": {"stage": -1},
    "a negative number": {"n": -1},
    "a number without end": {"n": 10**30},
    "more stages than transitions": {"plan": [["pay"], ["ship"]], "stage": 1, "done": ["pay"]},
    "a group without steps": {"plan": [[], ["pay"]]},
    "a step twice": {"plan": [["pay"], ["pay"]]},
    "a step without a name": {"plan": [[""]]},
    "a step at hand that is done": {"n": 1, "done": ["pay"]},
    "a step that never was is done": {"n": 1, "done": ["fly"]},
    "attempts without end": {"n": 1, "attempts": {"pay": -(10**12)}},
    "attempts of another step": {"n": 1, "attempts": {"fly": 1}},
    "made in the year 11476": {"at": 3e11},
    "made after the end of time": {"at": 1e300},
    "made before 1970": {"at": -1.0},
    "due never": {"n": 1, "at": 1e9, "due": 2e11},
    "due before 1970": {"due": -5.0},
    "done without having been": {"n": 1, "status": "completed"},
    "completed without a plan": {"n": 1, "status": "completed", "plan": []},
    "backward without a failure": {"n": 1, "status": "compensating", "done": ["pay"]},
    "nothing left to be undone": {
        "n": 1, "status": "compensating", "failure": {"step": "pay", "kind": "E"},
    },
    "failed, and nothing failed": {
        "n": 1, "status": "failed", "failure": {"step": "pay", "kind": "E"},
    },
    "stopped, and never stood": {"n": 1, "status": "stopped"},
    "stopped while it was over": {"n": 1, "status": "stopped", "stood": "completed"},
    "an ID that is no line of text": {"saga": "f\n\x1b[2J"},
    "no ID": {"saga": ""},
    "a failure that says too much": {
        "n": 1, "attempts": {"pay": 1}, "last": [{"step": "pay", "kind": "E" * 2000}],
    },
}  # fmt: skip


@pytest.mark.parametrize("what", IMPOSSIBLE)
async def test_an_impossible_entry_is_a_dead_letter_and_counts_for_nobody(what: str) -> None:
    value = {**RUNNING, **IMPOSSIBLE[what]}
    async with trips("pay", "ship") as (saga, h):
        topic = h.app.topics["trips.saga"]
        await h.app.publisher.publish(topic.name, forged(value["saga"], value))
        await h.settled()
        _, end = h.log.watermarks("trips.saga", 0)
        assert end == 1, "something followed on it"
        (letter,) = await h.dead(topic, "trips")
        said = letter.headers["__streams.errors.message"]
        assert "\n" not in said
        assert "trips.saga" in said
        with pytest.raises(UnknownSaga):
            await saga.status(value["saga"])
        assert await saga.list() == []
        assert await saga.execute(Trip()) == Trip()  # and the others go on


REAL = (b'{"saga":"s","context":{"did":[]}}', "s/0")

HIDING: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "another key": ("t", {"saga": "s", "n": 7, "context": {}, "status": "running"}, "x"),
    "no key": (None, {"saga": "s", "n": 7, "context": {}, "status": "running"}, "x"),
    "another key, and the ID of the entry that follows": (
        "t", {"saga": "s", "n": 1, "context": {}, "plan": [["pay"]]}, "s/1",
    ),
    "nothing that can be read, and the ID of the entry that follows": ("s", {"saga": 7}, "s/1"),
    "an impossible end": (
        "s", {"saga": "s", "n": 9, "context": {}, "plan": [["pay"]], "status": "completed"}, "s/9",
    ),
    "an impossible stage": ("s", {"saga": "s", "n": 9, "context": {}, "stage": 12}, "s/9"),
}  # fmt: skip


@pytest.mark.parametrize("what", HIDING)
@pytest.mark.parametrize("early", [True, False])
async def test_a_record_that_does_not_count_hides_no_saga(what: str, early: bool) -> None:
    """Wherever it stands, read by its owner, by who takes the partition over, and by people."""
    key, value, id = HIDING[what]
    app = Streams("memory://")
    calls: list[str] = []

    async def pay(trip: Trip, call: StepCall) -> None:
        calls.append(call.saga_id)
        trip.did.append("pay")

    saga: SagaOrchestrator[Trip] = SagaOrchestrator(app, "trips", context=Trip, partitions=1)
    saga.add_step(SagaStep("pay", pay, nothing))
    async with harness(app) as h:
        saga_processor = next(each for each in app.processors if each.group == "trips")
        saga_processor.pause()
        topic = app.topics["trips.saga"]
        real = Record(REAL[0], b"s", REAL[1])
        records = [real, forged(key, value, id)]
        for record in reversed(records) if early else records:
            await app.publisher.publish(topic.name, record)
        found = await saga.status("s")
        assert (found.status, found.steps) == ("running", ())
        assert [each.id for each in await saga.list()] == ["s"]
        saga_processor.resume()
        await h.settled()
        assert len(await h.dead(topic, "trips")) == 1
        assert (await saga.status("s")).status == "completed"
        assert await saga.execute(Trip(), id="s") == Trip(["pay"])
    assert calls == ["s"]


async def test_commands_pass_over_what_does_not_count(stage: Stage) -> None:
    name = f"saga-{uuid4().hex[:8]}"
    app = stage.app()
    saga: SagaOrchestrator[Trip] = SagaOrchestrator(app, name, context=Trip, partitions=1)
    async with app.connected():
        topic = app.topics[f"{name}.saga"]
        await saga.start(Trip(), id="s")
        for key, value, id in HIDING.values():
            await app.publisher.publish(topic.name, forged(key, value, id))
        left = await saga.abandon("s", "by hand")
        assert (left.status, left.reason) == ("abandoned", "by hand")
        assert (await saga.status("s")).status == "abandoned"
        assert (await asyncio.to_thread(Journal(app.log, name).latest, "s")).entry.n == 1


# -- any entry that can be decoded ----------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
ATTEMPTS = 3


def course() -> SagaEngine:
    """Four steps of which some fail at their first calls, and some for good; nothing waits."""
    made = SagaEngine(
        "any", EncodedContexts(Trip, "any"), lambda: SYSTEM, compensate_cancelled=False
    )
    calls = count()

    async def act(trip: Trip, call: StepCall) -> None:
        if next(calls) % 3:
            raise Reject("no more") if call.step == "c" else ValueError(call.step)

    retry = Retry(attempts=ATTEMPTS, delay=0.0)
    steps = [
        SagaStep(
            name, act, act, retry=retry, compensation_retry=retry, compensate_failed=name == "d"
        )
        for name in NAMES
    ]
    made.add_steps(steps[:1])
    made.add_steps(steps[1:3])
    made.add_steps(steps[3:])
    return made


MOST = 2 + 2 * len(NAMES) * ATTEMPTS
"""Transitions of a saga of so many steps, at most: each attempt of each step and compensation,
writing the plan down, and a stop."""

numbers = st.integers(-2, 6) | st.integers(-(10**20), 10**20)
moments = st.sampled_from([0.0, 1.0, 1.7e9, -1.0, 1e300]) | st.floats(
    allow_nan=False, allow_infinity=False
)
names = st.sampled_from([*NAMES, "e", ""])
failures = st.fixed_dictionaries(
    {"step": names, "kind": st.text(max_size=3)}, optional={"attempts": numbers}
)
statuses = st.sampled_from(
    ["running", "compensating", "completed", "compensated", "failed", "stopped", "abandoned"]
)
plans = st.sampled_from([[["a"], ["b", "c"], ["d"]], [["a"]], [["b", "c"]], [], [["e"]], [[]]])
changes = st.fixed_dictionaries(
    {},
    optional={
        "n": numbers,
        "status": statuses,
        "plan": plans | st.lists(st.lists(names, max_size=3), max_size=4),
        "stage": numbers,
        "done": st.lists(names, max_size=4),
        "attempts": st.dictionaries(names, numbers, max_size=3),
        "last": st.lists(failures, max_size=3),
        "due": moments,
        "failure": failures,
        "uncompensated": st.lists(failures, max_size=3),
        "error": st.text(max_size=3),
        "stood": statuses,
        "at": moments,
    },
)

DECODER = EntryDecoder("any.saga")


@cache
def written() -> list[dict[str, Any]]:
    """Entries that the engine wrote, of sagas that ended in several ways."""
    found: list[dict[str, Any]] = []

    async def run() -> None:
        engine = course()
        for _ in range(12):
            entry: JournalEntry = StoredEntry(saga="s", context=msgspec.Raw(b"{}"), at=1.0)
            while not entry.has_ended:
                entry = await engine.advance(entry, {})
                found.append(msgspec.json.decode(msgspec.json.encode(entry)))

    asyncio.run(run())
    return found


nearly = st.deferred(
    lambda: st.builds(lambda real, other: {**real, **other}, st.sampled_from(written()), changes)
)
"""What the engine wrote, with some fields changed."""


async def transitions(engine: SagaEngine, entry: JournalEntry) -> int:
    """How many entries follow on this one, until the saga has ended."""
    for number in range(MOST + 1):
        if entry.has_ended:
            return number
        following = await engine.advance(entry, {})
        engine.check_progress(entry, following)
        assert following.n == entry.n + 1
        if following.n < 10**9:
            assert invalid_reason(following) == "", f"{invalid_reason(following)}: {following}"
        entry = following
    raise AssertionError(f"it goes on: {entry}")


entries = st.builds(
    lambda id, other: {"saga": id, "context": {}, **other},
    st.sampled_from(["s", "s", "s", "", "\n"]),
    changes,
)


@given(entries | nearly)
@example({"saga": "f", "context": {}, "plan": [["a"]], "stage": 1})
@example({"saga": "f", "context": {}, "plan": [["a"]], "attempts": {"a": -(10**12)}})
def test_any_entry_that_can_be_decoded_ends_after_a_bounded_number(entry: dict[str, Any]) -> None:
    value = msgspec.json.encode(entry)
    try:
        found = DECODER.decode_entry(entry["saga"].encode(), value)
    except DecodeError:
        return
    assert asyncio.run(transitions(course(), found)) <= MOST
    if not found.is_final:
        assert invalid_reason(abandon_entry(found, found.at)) == ""
    if found.status in ("stopped", "failed"):
        again = resume_entry(found, found.at)
        assert invalid_reason(again) == ""
        assert asyncio.run(transitions(course(), again)) <= MOST


@given(st.integers(0, 2 * MOST), st.data())
def test_whatever_the_engine_writes_it_reads_again(stop: int, data: st.DataObject) -> None:
    """Whoever is given any of its entries goes on as the one who wrote it would have."""
    engine = course()

    async def run() -> None:
        entry: JournalEntry = StoredEntry(saga="s", context=msgspec.Raw(b"{}"), at=1.0)
        for number in range(4 * MOST):
            read = DECODER.decode_entry(b"s", msgspec.json.encode(entry))
            assert read == entry or bytes(read.context) == bytes(entry.context)
            if number == stop and not entry.is_final:
                entry = abandon_entry(entry, entry.at)
            elif entry.status in ("stopped", "failed") and data.draw(st.booleans()):
                entry = resume_entry(entry, entry.at)
            elif entry.has_ended:
                return
            else:
                entry = await engine.advance(read, {})

    asyncio.run(run())


def test_an_entry_that_leads_nowhere_is_refused_by_the_engine_itself() -> None:
    """Also if it was believed: nothing follows that is not nearer to an end."""
    engine = SagaEngine(
        "any", EncodedContexts(Trip, "any"), lambda: SYSTEM, compensate_cancelled=False
    )

    async def fails(trip: Trip) -> None:
        raise ValueError

    engine.add_steps([SagaStep("a", fails, retry=Retry(attempts=3, delay=0.0))])
    context = msgspec.Raw(b"{}")
    looping = JournalEntry(saga="s", context=context, plan=(("a",),), attempts={"a": -(10**9)})
    with pytest.raises(SagaError, match="entry 0 leads to no progress"):
        asyncio.run(transitions(engine, looping))
    behind = JournalEntry(saga="s", context=context, plan=(("a",),), stage=1)
    assert asyncio.run(engine.advance(behind, {})).has_ended
