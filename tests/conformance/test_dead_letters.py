"""**dead letters**: what cannot be handled is kept whole, and stops nothing."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec
import pytest

from streams import (
    ConfigError,
    DeadLetters,
    Message,
    ProcessorDied,
    Reject,
    Retry,
    StreamsError,
)
from streams.derived_records import ERROR_BYTES, ERROR_PREFIX
from streams.message import REDRIVE, Record
from tests.conformance.stage import QUICK, Stage


class Departed(msgspec.Struct, tag="departed"):
    tail: str
    delay: int


class Cancelled(msgspec.Struct, tag="cancelled"):
    tail: str


async def test_a_letter_holds_everything(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, bytes, partitions=3)

    def fail(value: bytes, message: Message[bytes]) -> None:
        raise ValueError("what went wrong")

    app.processor(topic, group=stage.group, retry=Retry(attempts=1), flow=QUICK)(
        stage.recorder(fail)
    )
    value = b"\x00\xff not UTF-8"
    async with app:
        position = await topic.publish(value, key="k", id="m1", headers={"h": "v", "ce_type": "t"})
        await stage.committed(app)
        (letter,) = await stage.letters(app)
    assert letter.raw.value == value
    assert (letter.key, letter.id) == ("k", "m1")
    headers = letter.headers
    assert (headers["h"], headers["ce_type"]) == ("v", "t")
    assert headers["__streams.errors.exception"] == "builtins.ValueError"
    assert headers["__streams.errors.message"] == "what went wrong"
    assert "raise ValueError" in headers["__streams.errors.stacktrace"]
    assert headers["__streams.errors.topic"] == topic.name
    assert headers["__streams.errors.partition"] == str(position.partition)
    assert headers["__streams.errors.offset"] == stage.anchor.format_offset(position.offset)
    assert headers["__streams.errors.attempts"] == "1"
    assert headers["__streams.errors.group"] == stage.group


async def test_error_headers_are_bounded_and_the_end_of_the_traceback_is_kept(
    stage: Stage,
) -> None:
    app = stage.app()
    topic = stage.topic(app)

    def fail(value: int, message: Message[int]) -> None:
        def deeper(n: int) -> None:
            if n == 0:
                raise ValueError("x" * 100_000)
            deeper(n - 1)

        deeper(300)

    app.processor(topic, group=stage.group, retry=Retry(attempts=1), flow=QUICK)(
        stage.recorder(fail)
    )
    async with app:
        await topic.publish(1)
        await stage.committed(app)
        (letter,) = await stage.letters(app)
    size = sum(
        len(name) + len(value or b"")
        for name, value in letter.raw.headers
        if name.startswith(ERROR_PREFIX)
    )
    assert size <= ERROR_BYTES
    assert letter.headers["__streams.errors.stacktrace"].endswith("x\n")


async def test_the_log_line_of_a_poison_message_says_where_it_is_wrong(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    app = stage.app()
    topic = stage.topic(app, Departed, partitions=1)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    with caplog.at_level("WARNING", logger="streams"):
        async with app:
            poison = Record(b'{"type":"departed","tail":5,"delay":1}', b"k", "m1")
            await app.publisher.publish(topic.name, poison)
            await stage.committed(app)
            (letter,) = await stage.letters(app)
    said = letter.headers["__streams.errors.message"]
    assert topic.name in said
    assert "at $.tail (json)" in said
    (line,) = [each.getMessage() for each in caplog.records if "dead letter" in each.getMessage()]
    assert line.endswith(f"DecodeError({said!r})")


async def test_one_poison_message_never_stops_its_partition(stage: Stage) -> None:
    """1,000 corrupt, truncated, deep and oversized payloads: each one letter, bytes intact.

    In memory so many: the codec is the same everywhere. On the others enough for several batches.
    """
    count = 1_000 if stage.case.name == "memory" else 250
    random = Random(20130101)
    app = stage.app()
    topic = stage.topic(app, Departed | Cancelled, partitions=1)
    handled: list[str] = []

    @app.processor(topic, group=stage.group, concurrency=32, flow=QUICK)
    async def handle(event: Departed | Cancelled) -> None:
        handled.append(event.tail)

    sound = msgspec.json.encode(Departed("N1", 2))
    poison = {f"bad{n}": hostile(sound, n, random) for n in range(count)}
    async with app:
        records = [
            Record(value, b"k%d" % (n % 9), id) for n, (id, value) in enumerate(poison.items())
        ]
        for n in range(0, count, 25):
            records.insert(n * 2 if n else 0, topic.record(Departed(f"good{n}", 1), key="k0"))
        for start in range(0, len(records), 50):
            await app.publisher.publish_many(topic.name, records[start : start + 50])
        await stage.committed(app)
        letters = await stage.letters(app)
    assert len(handled) == count // 25
    assert len(letters) == count
    assert {letter.id: letter.raw.value for letter in letters} == poison


def hostile(sound: bytes, number: int, random: Random) -> bytes:
    """Bytes that no Departed or Cancelled was ever encoded to."""
    kind = number % 6
    if kind == 0:
        return sound[: random.randrange(len(sound))]
    if kind == 1:
        broken = bytearray(sound)
        broken[random.randrange(2)] = random.choice(b"]}\x00\xff")
        return bytes(broken)
    if kind == 2:
        return b"[" * random.randrange(1_000, 20_000)
    if kind == 3:
        return b'{"type":"departed","tail":"N1","delay":"%d"}' % number
    if kind == 4:
        return b'{"type":"diverted%d"}' % number
    return random.randbytes(random.randrange(1, 200)) + b"\xff"


async def test_a_declared_dead_letter_topic_has_as_many_partitions_as_its_source(
    stage: Stage,
) -> None:
    app = stage.app()
    name = f"{stage.topic_name}.{stage.group}.dead"
    letters = app.topic(name, bytes)  # before its source
    topic = stage.topic(app, partitions=3)
    app.processor(topic, group=stage.group)(lambda value: None)
    app.processor(letters, group="readers")(lambda value: None)
    again = app.topic(f"{name}.readers.dead", bytes)  # of what its reader cannot handle
    async with app.connected():
        assert app.log.describe_topic(letters.name).partitions == 3
        assert app.log.describe_topic(again.name).partitions == 3


async def test_larger_than_the_bound_is_a_letter(stage: Stage) -> None:
    from stream_codecs import Json

    app = stage.app()
    topic = stage.topic(app, dict, partitions=1, codec=Json(max_size=1_000))
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        big = b'{"x":"' + b"y" * 10_000 + b'"}'
        await app.publisher.publish(topic.name, Record(big, b"k", "big"))
        await stage.committed(app)
        (letter,) = await stage.letters(app)
    assert letter.raw.value == big


@pytest.mark.parametrize(("unknown", "letters"), [("dead", 1), ("skip", 0)])
async def test_an_unknown_tag_follows_the_topic(stage: Stage, unknown: Any, letters: int) -> None:
    app = stage.app()
    topic = stage.topic(app, Departed | Cancelled, partitions=1, unknown=unknown)
    tails: list[str] = []

    @app.processor(topic, group=stage.group, flow=QUICK)
    def handle(event: Departed | Cancelled) -> None:
        tails.append(event.tail)

    async with app:
        await app.publisher.publish(topic.name, Record(b'{"type":"diverted"}', b"k", "new"))
        await topic.publish(Cancelled("N1"), key="k")
        await stage.committed(app)
        assert len(await stage.letters(app)) == letters
    assert tails == ["N1"]


async def test_a_tombstone_reaches_only_who_declared_it(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, Cancelled, partitions=1)
    nullable = app.topic(topic.name, Cancelled | None)
    plain: list[Any] = []
    both: list[Any] = []
    app.processor(topic, group=stage.group, flow=QUICK)(plain.append)
    app.processor(nullable, group=f"{stage.group}-2", flow=QUICK)(both.append)
    async with app:
        await nullable.publish(None, key="k")
        await nullable.publish(Cancelled("N1"), key="k")
        await stage.until(lambda: len(both) == 2 and plain)
        await stage.committed(app)
        assert await stage.letters(app) == []
    assert plain == [Cancelled("N1")]
    assert both == [None, Cancelled("N1")]


async def test_the_source_waits_until_the_letter_is_written(stage: Stage) -> None:
    """The dead letter topic is unreachable: the source is not settled; then it recovers."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def fail(value: int, message: Message[int]) -> None:
        if value == 0:
            raise Reject("no")

    app.processor(topic, group=stage.group, concurrency=4, flow=QUICK)(stage.recorder(fail))
    dead = DeadLetters().name(topic.name, stage.group)
    async with app:
        append, down = app.log.append, True

        def refuse(name: str, records: Any, done: Any) -> None:
            if name == dead and down:
                from streams import Unavailable

                done([Unavailable("the dead letter topic is unreachable")] * len(records))
            else:
                append(name, records, done)

        app.log.append = refuse  # type: ignore[method-assign, assignment]
        (first, *_) = await stage.publish(topic, 0, 1, key="k")
        await stage.publish(topic, *range(2, 10), key=str)
        await stage.handled(8)
        assert 1 not in stage.seen.values, "the key was overtaken"
        await stage.until(lambda: stage.places(app)[0].progress)
        assert stage.places(app)[0].position <= first.offset
        down = False
        await stage.committed(app)
        assert len(await stage.letters(app)) == 1
    assert stage.seen.values[-1] == 1


async def test_what_is_put_back_is_handled_again_by_this_group_alone(stage: Stage) -> None:
    app, mended = stage.app(), asyncio.Event()
    topic = stage.topic(app)

    def fail(value: int, message: Message[int]) -> None:
        if not mended.is_set():
            raise Reject("not yet")

    other: list[int] = []
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(fail))
    app.processor(topic, group=f"{stage.group}-2", flow=QUICK)(other.append)
    async with app:
        await topic.publish(1, key="k", id="m1")
        await stage.committed(app)
        (letter,) = await stage.letters(app)
        mended.set()
        retry = DeadLetters().retry(topic.name, stage.group)
        kept = [
            (name, value)
            for name, value in letter.raw.headers
            if name != "ce_id" and not name.startswith(ERROR_PREFIX)
        ]
        record = Record(letter.raw.value, b"k", letter.id, [*kept, (REDRIVE, b"1")])
        await app.publisher.publish(retry, record)
        await stage.handled(1)
        await stage.until(lambda: other)
    assert stage.seen.values == [1]
    assert other == [1]


async def test_a_letter_is_written_once_however_often_its_message_dies(stage: Stage) -> None:
    """The letter's ID is the source's, so a crash between letter and commit doubles nothing."""
    from tests.conformance.test_at_least_once import rewind

    letters: list[Message[Any]] = []
    for _ in range(2):
        app = stage.app()
        topic = stage.topic(app)

        def fail(value: int, message: Message[int]) -> None:
            raise Reject("no")

        app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(fail))
        async with app:
            if not stage.seen.attempts:
                await topic.publish(1, key="k", id="m1")
            await stage.committed(app)
            letters = await stage.letters(app)
        await asyncio.to_thread(rewind, stage)
    assert {letter.id for letter in letters} == {"m1"}
    assert stage.seen.attempts[1] == [1, 1]


def test_only_known_places_in_a_name() -> None:
    with pytest.raises(StreamsError, match=r"only \{topic\} and \{group\}"):
        DeadLetters("{stage}.dead")


@pytest.mark.parametrize("batch", [None, 10])
async def test_a_program_that_cannot_work_is_nobodys_dead_letter(
    stage: Stage, batch: int | None
) -> None:
    """``message.transaction`` where there is none, or with ``to=``, ends the processor at once."""
    app, calls = stage.app(), list[int]()
    topic = stage.topic(app, partitions=1)
    # A log that has transactions has none together with `to=`.
    to = (
        app.topic(f"{topic.name}-out", int, partitions=1)
        if stage.case.can("transactions")
        else None
    )

    async def use(value: Any, message: Any) -> None:
        calls.append(value)
        first = message[0] if isinstance(message, list) else message
        first.transaction.execute("SELECT 1")

    retry = Retry(attempts=5, delay=0, never=(ValueError,))
    app.processor(topic, group=stage.group, batch=batch, to=to, retry=retry, flow=QUICK)(use)
    with pytest.raises(ProcessorDied, match="has none here") as died:
        async with app:
            await stage.publish(topic, *range(5), key="k")
            await asyncio.Event().wait()
    assert isinstance(died.value.__cause__, ConfigError)
    assert len(calls) == 1
    async with app.connected():
        assert await stage.letters(app) == []
        (place,) = stage.places(app).values()
        first, _ = stage.anchor.watermarks(topic.name, 0)
        assert place.position == first
