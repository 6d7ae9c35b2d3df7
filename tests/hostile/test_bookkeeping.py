"""What the toolkit keeps beside the topics, damaged or forged: where groups are, who belongs to
them, what topics are like, claims, and the names that others give to their groups."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from redis import Redis

from stream_codecs import DecodeError
from streams import Message, Streams, StreamsError
from streams.engine.progress import encode
from streams.log.protocol import Committed
from streams.log.redis.keys import PartitionKeys, members_key, topic_key, topics_key
from streams.patterns import IdempotencyStore, IdempotentProcessor
from tests.conformance.logs import LEASE, Case
from tests.conformance.stage import QUICK
from tests.hostile import kafka_wire
from tests.hostile.commands import command, lists
from tests.hostile.generate import NUMBERS, TEXTS, any_text, pick
from tests.hostile.ground import Ground
from tests.hostile.test_suite import made
from tests.processing.support import until
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis as OwnRedis

pytestmark = pytest.mark.anyio

GROUPS = 16
"""As many groups read the topic at once, each with a damage of its own."""

MESSAGES = 20
"""Messages in the topic before anybody reads it."""

FIELDS = st.lists(any_text(), min_size=1, max_size=3).map(b",".join)


def forged() -> st.SearchStrategy[Committed]:
    """Positions and progress that a group may have, or not."""
    position = st.integers(0, MESSAGES + 3) | pick([2**31, 2**53, 2**62])
    ranges = st.lists(st.integers(0, 200), min_size=2, max_size=6, unique=True).map(sorted)

    @st.composite
    def build(draw: st.DrawFn) -> Committed:
        at, numbers = draw(position), draw(ranges)
        pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
        settled = [(at + 1 + low, at + 1 + high) for low, high in pairs]
        written = encode(at, draw(st.integers(0, at)), settled).progress
        cut = draw(st.integers(0, len(written)))
        odd = draw(pick(["", "~", "9" * 50, "\u0663", " ", "AAAA", "-", "z" * 3_000]))
        how = draw(st.integers(0, 3))
        text = [written, written[:cut] + odd, odd, written[:cut] + odd + written[cut:]][how]
        return Committed(at, text[:4_000])

    return build()


@contextmanager
def reading(stage: Ground, groups: list[str]) -> Iterator[tuple[Streams, dict[str, set[int]]]]:
    """An app with a processor for each of these groups, and what each of them handled."""
    app = stage.app()
    topic = stage.topic(app, int, partitions=1)
    seen: dict[str, set[int]] = {group: set() for group in groups}

    def processor(group: str) -> None:
        async def handle(value: int, message: Message[int]) -> None:
            seen[group].add(value)

        handle.__name__ = f"handle_{group}"
        app.processor(topic, group=group, flow=QUICK)(handle)

    for group in groups:
        processor(group)
    yield app, seen


def fill(stage: Ground) -> None:
    stage.create(stage.topic_name)
    values = [kafka_wire.Written(b"%d" % n, b"k%d" % (n % 5)) for n in range(MESSAGES)]
    stage.write(stage.topic_name, values)


async def test_positions_that_make_no_sense(stage: Ground) -> None:
    """Whatever is committed, what is published from then on is handled, or health says why not."""
    fill(stage)
    groups = [f"{stage.group}-{n}" for n in range(GROUPS)]
    first, _ = stage.anchor.watermarks(stage.topic_name, 0)
    places = dict(zip(groups, made(forged(), GROUPS), strict=False))
    for group, place in places.items():
        stage.anchor.initialize_offsets(group, stage.topic_name, {0: first})
        stage.anchor.reset_offsets(
            group, stage.topic_name, {0: place._replace(position=first + place.position)}
        )
    wanted = set(range(1_000, 1_010))
    with reading(stage, groups) as (app, seen):
        async with app:

            def begun() -> bool:
                health = app.health().processors
                return all(
                    each.partitions or not health[name].ok
                    for name, each in app.stats().processors.items()
                )

            # What is settled, as a place says, is held against the log as it is when that is read:
            # what is published before could be settled, and nobody could tell.
            await until(begun)
            for value in sorted(wanted):
                await app.topics[stage.topic_name].publish(value, key=f"k{value}")

            def stuck() -> dict[str, Committed]:
                found = zip(app.processors, app.health().processors.values(), strict=True)
                well = {processor.group for processor, each in found if each.ok}
                return {
                    group: places[group]
                    for group in groups
                    if not seen[group] >= wanted and group in well
                }

            with suppress(AssertionError):
                await until(lambda: not stuck())
            # Each goes on, or health says that it does not.
            assert not stuck()
    for group in groups[:3]:
        lists(stage.url, "groups", "show", group)


# -- Redis


@pytest.fixture
def alone(case: Case, lifetime: Lifetime) -> Iterator[Ground]:
    """A server of the test's own. What lists all groups asks for each, and on the session's server
    there are those of every test."""
    settings = f"lease={LEASE:g}" if case.name == "redis" else ""
    patient = {"broker.session.timeout.ms": "120000"}  # nobody kills it
    with Kafka(lifetime, config=patient) if case.name == "kafka" else OwnRedis(lifetime) as own:
        opened = Ground(case, f"{own.url}?{settings}".rstrip("?"))
        yield opened
        opened.close()


@contextmanager
def server(stage: Ground) -> Iterator[Redis]:
    place = urlsplit(stage.url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        yield redis


def hashes(stage: Ground) -> dict[bytes, list[bytes]]:
    """The keys of a group's and a topic's hashes, and their fields."""
    part = PartitionKeys(stage.topic_name, 0, 1)
    row = ["owner", "epoch", "until", "position", "progress", "version", "read", "window", "floor"]
    return {
        part.group_key(stage.group): [name.encode() for name in row],
        members_key(stage.group): [b"somebody", b"\xff", b"m" * 300],
        topics_key(stage.group): [stage.topic_name.encode(), b"\xff"],
        topic_key(stage.topic_name): [b"partitions", b"seconds", b"messages", b"most"],
    }


@pytest.mark.short_lease  # an owner that does not exist has the partition until its lease is over
@pytest.mark.only("redis")
@pytest.mark.parametrize("examples", [12, pytest.param(100, marks=pytest.mark.faults)])
async def test_rows_of_redis_that_make_no_sense(alone: Ground, examples: int) -> None:
    """A damaged hash ends in an error of ours or in nothing at all, and the group goes on."""
    stage = alone
    fill(stage)
    kinds = hashes(stage)
    damage = st.tuples(pick(list(kinds)), st.integers(0, 8), FIELDS | pick(NUMBERS + TEXTS))
    problems: list[str] = []
    for key, at, value in made(damage, examples):
        field = kinds[key][at % len(kinds[key])]
        with server(stage) as redis:
            before: dict[Any, Any] = redis.hgetall(key)
            redis.hset(key, field, value)
        what = f"HSET {key!r} {field!r} {value[:40]!r}"
        for words in (["groups", "ls"], ["groups", "show", stage.group], ["topics", "ls"]):
            try:
                command(stage.url, *words)
            except AssertionError as error:
                problems.append(f"{what}: streams {' '.join(words)}: {str(error)[:300]}")
        try:
            with reading(stage, [stage.group]) as (app, seen):
                async with asyncio.timeout(60):
                    async with app:
                        await app.topics[stage.topic_name].publish(7_000, key="k")
                        await until(
                            lambda seen=seen, app=app: (
                                7_000 in seen[stage.group]  # type: ignore[misc]
                                or not app.health().ok
                            )
                        )
        except StreamsError:
            pass  # one line that says what is wrong
        except BaseException as error:
            problems.append(f"{what}: {error!r} from {error.__cause__!r}")
        with server(stage) as redis:
            redis.delete(key)
            if before:
                redis.hset(key, mapping=before)
    assert not problems, "\n".join(problems)


@pytest.mark.only("redis")
async def test_claims_that_make_no_sense(stage: Ground) -> None:
    """A claim that is damaged is none, or its caller is told in an error of ours."""
    name = f"claims-{uuid4().hex[:8]}"
    fields = [b"token", b"until", b"fingerprint", b"value"]
    row = st.dictionaries(
        pick(fields), FIELDS | pick([*NUMBERS, b"=1", b"!{}", b"!", b"="]), min_size=1
    )

    async def operation() -> int:
        return 1

    problems: list[str] = []
    async with IdempotencyStore(stage.url, name=name) as store:
        processor = IdempotentProcessor(store, wait=False)
        for number, damaged in enumerate(made(row, 60)):
            key = f"key-{number}"
            assert await processor.process(f"{key}-good", operation) == 1
            with server(stage) as redis:
                # SCAN may give a key twice.
                (good,) = set(redis.scan_iter(f"streams:claims:{name}:*{key}-good", 1_000))
                place = good.removesuffix(b"-good")
                redis.hset(place, mapping=dict[Any, Any](damaged))
            try:
                await asyncio.wait_for(processor.process(key, operation), 20)
            except (StreamsError, DecodeError):
                pass
            except BaseException as error:
                problems.append(f"{damaged!r}: {error!r}")
    assert not problems, "\n".join(problems)


# -- Kafka


@pytest.mark.only("kafka")
def test_groups_that_others_named(alone: Ground) -> None:
    """Kafka takes any bytes for the name of a group, and any for what is committed."""
    stage = alone
    fill(stage)
    broker = urlsplit(stage.url).netloc
    run = uuid4().hex[:8].encode()
    stage.anchor.initialize_offsets(stage.group, stage.topic_name, {0: 0})
    for name in (b"g\xff" + run, b"a b/c\n" + run, b"\x1b[31m" + run, b"g" * 3_000 + run):
        kafka_wire.commit(broker, name, stage.topic_name, {0: (3, b"\xff\xfe")})
    listed = lists(stage.url, "groups", "ls", "--all").documents[0]
    assert stage.group in {each["group"] for each in listed}
