"""However a processor runs, the same messages come to the same end.

One random script (keys, IDs that recur, and for each message what its handler does at each
attempt) is run through every kind of executor: the fast path and the general one, threads and
loop, one by one and in batches, with and without a place for results. A few lines say what must
become of it; nothing but the order between keys may depend on how it was run.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import BatchError, Message, Reject, Retry, RetryAfter, Streams
from streams.message import Record
from streams.testing import Clock, harness
from tests.engine.support import runs

ATTEMPTS = 3


class Step(NamedTuple):
    """One message of a script."""

    key: str | None
    twin: int
    """Messages of one key with the same number share their ID; 0: an ID of its own."""
    kind: str
    """``value``, ``reject_undecodable`` (cannot be decoded), ``tombstone`` or ``filtered``."""
    acts: tuple[str, ...]
    """What its handler does at each attempt, ``ok`` after the last."""


class Outcome(NamedTuple):
    """What became of a script."""

    by_key: dict[str | None, list[int]]
    """Messages whose handler succeeded, in order; sorted where no order is promised."""
    dead: Counter[tuple[int, int]]
    """Dead letters: message and attempts."""
    handled: int
    filtered: int
    duplicates: int
    results: Counter[int]


class Way(NamedTuple):
    """One way to run a processor."""

    asynchronous: bool = False
    concurrency: int = 1
    batch: int | None = None
    whole: bool = False
    """A batch that fails does not say whose fault it was."""
    to: bool = False
    exactly_once: bool = False
    suspends: bool = True
    """An async handler gives up the loop."""
    filters: bool = True
    """It has a filter, which keeps an async one off the fast path."""


STEPS = st.lists(
    st.builds(
        Step,
        key=st.sampled_from(["a", "b", "c", None]),
        twin=st.sampled_from([0, 0, 0, 1, 2]),
        kind=st.sampled_from(["value"] * 6 + ["poison", "tombstone", "filtered"]),
        acts=st.lists(st.sampled_from(["ok", "fail", "after", "reject"]), max_size=ATTEMPTS).map(
            tuple
        ),
    ),
    min_size=1,
    max_size=20,
)

# Out of order a message leaves the processor for the delay topic: that has a suite of its own.
WAYS = [
    Way(),
    Way(to=True),
    Way(concurrency=4),
    Way(concurrency=4, to=True),
    Way(batch=4),
    Way(batch=4, whole=True),
    Way(batch=4, to=True, whole=True),
    Way(batch=3, concurrency=3),
    Way(asynchronous=True),
    Way(asynchronous=True, concurrency=8),
    Way(asynchronous=True, concurrency=8, to=True),
    Way(asynchronous=True, batch=4),
    Way(asynchronous=True, batch=4, concurrency=3, whole=True),
    Way(asynchronous=True, filters=False),
    Way(asynchronous=True, suspends=False, filters=False),
    Way(to=True, exactly_once=True),
    Way(to=True, exactly_once=True, concurrency=4),
    Way(to=True, exactly_once=True, batch=4, whole=True),
    Way(asynchronous=True, to=True, exactly_once=True, filters=False),
    Way(asynchronous=True, to=True, exactly_once=True, filters=False, suspends=False),
    Way(asynchronous=True, to=True, exactly_once=True, filters=False, concurrency=8),
]


def expected(steps: list[Step], way: Way) -> Outcome:
    by_key: dict[str | None, list[int]] = defaultdict(list)
    dead: Counter[tuple[int, int]] = Counter()
    seen: set[tuple[str | None, int]] = set()
    filtered = duplicates = 0
    for at, step in enumerate(steps):
        if step.twin and (step.key, step.twin) in seen:
            duplicates += 1
            continue
        seen.add((step.key, step.twin))
        if step.kind == "poison":
            dead[at, 1] += 1
        elif step.kind != "value":
            filtered += 1
        else:
            end = attempts(step)
            if end is None:
                by_key[step.key].append(at)
            else:
                dead[at, end] += 1
    handled = sum(map(len, by_key.values()))
    results = Counter(at for values in by_key.values() for at in values)
    return Outcome(dict(by_key), dead, handled, filtered, duplicates, results)


def attempts(step: Step) -> int | None:
    """After how many attempts it is dead-lettered; None: it is handled."""
    for attempt in range(1, ATTEMPTS + 1):
        act = step.acts[attempt - 1] if attempt <= len(step.acts) else "ok"
        if act == "ok":
            return None
        if act == "reject":
            return attempt
    return ATTEMPTS


def records(steps: list[Step]) -> list[Record]:
    bodies: dict[str, Callable[[int], bytes | None]] = {
        "value": lambda at: b"%d" % at,
        "filtered": lambda at: b"%d" % (at + 1_000),
        "poison": lambda at: b"{%d" % at,
        "tombstone": lambda at: None,
    }
    return [
        Record(
            bodies[step.kind](at),
            None if step.key is None else step.key.encode(),
            f"{step.key}-{step.twin}" if step.twin else f"own-{at}",
        )
        for at, step in enumerate(steps)
    ]


async def run(steps: list[Step], way: Way, *, at_once: bool) -> Outcome:
    app, clock = Streams("memory://"), Clock()
    topic, out = app.topic("t", int, partitions=1), app.topic("out", int)
    by_key: dict[str | None, list[int]] = defaultdict(list)
    called: Counter[tuple[int, int]] = Counter()

    def fails(message: Message[int]) -> Exception | None:
        at, attempt = message.value, message.attempt
        called[at, attempt] += 1
        acts = steps[at].acts
        act = acts[attempt - 1] if attempt <= len(acts) else "ok"
        if act == "ok":
            by_key[message.key].append(at)
            return None
        return {"fail": OSError("fail"), "after": RetryAfter(1), "reject": Reject()}[act]

    def one(value: int, message: Message[int]) -> int:
        error = fails(message)
        if error is not None:
            raise error
        return value

    def many(values: list[int], messages: list[Message[int]]) -> list[int]:
        if way.whole and len(values) > 1:
            broken = [
                message
                for message in messages
                if steps[message.value].acts[:1] not in ((), ("ok",))
            ]
            if broken:
                raise OSError("somebody's fault")
        errors = {at: fails(message) for at, message in enumerate(messages)}
        failed = {at: error for at, error in errors.items() if error is not None}
        if failed:
            raise BatchError(failed)
        return values

    async def one_async(value: int, message: Message[int]) -> int:
        if way.suspends:
            await asyncio.sleep(0)
        return one(value, message)

    async def many_async(values: list[int], messages: list[Message[int]]) -> list[int]:
        await asyncio.sleep(0)
        return many(values, messages)

    plain: Any = one if way.batch is None else many
    suspending: Any = one_async if way.batch is None else many_async
    processor = app.processor(
        topic,
        group="g",
        concurrency=way.concurrency,
        batch=way.batch,
        filter=(lambda value: value < 1_000) if way.filters else None,
        to=out if way.to else None,
        exactly_once=way.exactly_once,
        retry=Retry(attempts=ATTEMPTS, delay=1, cap=1),
    )(suspending if way.asynchronous else plain)
    if at_once:
        processor.pause()
    async with harness(app, clock=clock) as h:
        await app.publisher.publish_many("t", records(steps))
        processor.resume()
        while True:
            await h.settled()
            stats = app.stats().processors[processor.name]
            if not stats.in_flight:
                break
            clock.advance(2)
        letters = await h.dead(topic, group="g")
        results = Counter(message.value for message in await h.messages(out))
    if way.batch is None:
        assert set(called.values()) <= {1}  # no attempt was made twice
    for key in by_key:
        # A batch handler that names one message says that those behind it are done.
        if key is None or (way.batch is not None and not way.whole):
            by_key[key].sort()
    dead = Counter(
        (
            int(letter.headers["__streams.errors.offset"]),
            int(letter.headers["__streams.errors.attempts"]),
        )
        for letter in letters
    )
    assert stats.dead_letters == dead.total()
    return Outcome(dict(by_key), dead, stats.handled, stats.filtered, stats.duplicates, results)


@pytest.mark.parametrize("way", WAYS, ids=str)
@runs(12)
@given(steps=STEPS, at_once=st.booleans())
def test_every_way_comes_to_the_same_end(way: Way, steps: list[Step], at_once: bool) -> None:
    if not way.filters:
        steps = [
            step._replace(kind="tombstone") if step.kind == "filtered" else step for step in steps
        ]
    found = asyncio.run(run(steps, way, at_once=at_once))
    wanted = expected(steps, way)
    if not way.to:
        wanted = wanted._replace(results=Counter())
    assert found == wanted
