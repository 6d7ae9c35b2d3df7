"""Retries that hold up nothing, and those that keep order and the count, on every log."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streams import BatchError, Flow, Message, Retry, RetryAfter, Streams
from streams.derived_records import first_position
from streams.engine.progress import encode_progress
from streams.errors import Unavailable
from streams.log.protocol import Committed
from streams.message import Headers, Position
from streams.replay import reset
from streams.retries.attempt_log import COPY, DELAYED, delay_topic
from streams.retries.records import entry_key, entry_record, retry_entry_id
from streams.testing import Clock
from tests.conformance.records import append, record
from tests.conformance.stage import QUICK, Stage, keys_of_all_partitions
from tests.patterns.keeping import until

LOOSE = Retry(attempts=3, delay=0.005, cap=0.01, in_order=False)


async def test_it_leaves_its_key_queue_and_its_attempts_survive_a_restart(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    topic = stage.topic(first, partitions=1)
    retry = Retry(attempts=3, delay=0.005, in_order=False)
    never = asyncio.Event()

    def later(value: int, message: Message[int]) -> Any:
        if value != 0:
            return None
        if message.attempt == 1:
            raise RetryAfter(0.3)
        return never.wait()  # this life is long enough to see it come back, and too short to end

    flow = Flow(commit=0.05, drain=0.0)
    first.processor(topic, group=stage.group, retry=retry, flow=flow, concurrency=4)(
        stage.recorder(later)
    )
    async with first:
        await stage.publish(topic, 0, 1, 2, key="k", id=None)
        await stage.handled(2)
        await stage.committed(first)  # it holds up no position while it waits
    assert stage.seen.values == [1, 2]
    assert stage.seen.attempts[0] in ([1], [1, 2])
    topic = stage.topic(second, partitions=1)
    seen: list[Message[int]] = []

    @second.processor(topic, group=stage.group, retry=retry, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        seen.append(message)
        stage.seen.handled.append((message.key, value))
        assert (message.key, message.topic) == ("k", f"{topic.name}.{stage.group}.retry")
        if message.attempt == 2:
            raise ConnectionError("once more")

    async with second:
        await stage.until(lambda: len(seen) == 2, "it came back twice")
        assert await stage.letters(second) == []
    assert [message.attempt for message in seen] == [2, 3]
    assert len({message.id for message in seen}) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_last_attempt_ends_in_the_dead_letters(stage: Stage, asynchronous: bool) -> None:
    app, lock = stage.app(), threading.Lock()
    topic = stage.topic(app, partitions=2)
    attempts: list[int] = []

    def plain(value: int, message: Message[int]) -> None:
        with lock:
            attempts.append(message.attempt)
        raise ConnectionError("always")

    async def later(value: int, message: Message[int]) -> None:
        plain(value, message)

    handler: Any = later if asynchronous else plain
    app.processor(topic, group=stage.group, retry=LOOSE, flow=QUICK)(handler)
    async with app:
        await topic.publish(5, key="k", id="m5", headers={"color": "red"})
        letters: list[Message[Any]] = []
        while not letters:
            letters = await stage.letters(app)
        (letter,) = letters
    assert attempts == [1, 2, 3]
    assert (letter.id, letter.key, letter.raw.value) == ("m5", "k", b"5")
    assert letter.headers["__streams.errors.attempts"] == "3"
    assert letter.headers["color"] == "red"
    assert not any(name.startswith("streams_delay") for name in letter.headers)


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_of_a_batch_only_what_failed_leaves(stage: Stage, asynchronous: bool) -> None:
    app, lock = stage.app(), threading.Lock()
    topic = stage.topic(app, partitions=1)
    done: list[int] = []
    attempts: dict[int, list[int]] = {}

    def plain(values: list[int], messages: list[Message[int]]) -> None:
        wrong: dict[int, Exception] = {}
        with lock:
            for index, message in enumerate(messages):
                attempts.setdefault(message.value, []).append(message.attempt)
                if message.value % 5 == 0 and message.attempt < 3:
                    wrong[index] = ConnectionError("not yet")
                else:
                    done.append(message.value)
        if wrong:
            raise BatchError(wrong)

    async def later(values: list[int], messages: list[Message[int]]) -> None:
        plain(values, messages)

    handler: Any = later if asynchronous else plain
    app.processor(topic, group=stage.group, batch=10, retry=LOOSE, flow=QUICK)(handler)
    async with app.connected():
        await stage.publish(topic, *range(20), key="k")
    async with app:
        await stage.until(lambda: len(done) == 20, "all done")
        await stage.committed(app)
        assert await stage.letters(app) == []

        def counted() -> tuple[int, int]:
            stats = app.stats().processors[handler.__name__]
            return stats.handled, stats.retries

        await stage.until(lambda: counted() == (20, 8), "counted")
    assert sorted(done) == list(range(20))
    assert all(tries == ([1, 2, 3] if value % 5 == 0 else [1]) for value, tries in attempts.items())


async def test_in_order_and_durable_keeps_the_key_and_the_count(stage: Stage) -> None:
    retry = Retry(attempts=4, delay=0.005, cap=0.01, durable=True)
    first, second = stage.app(), stage.app()
    topic = stage.topic(first, partitions=1)
    never = asyncio.Event()

    def twice(value: int, message: Message[int]) -> Any:
        if value == 0:
            if message.attempt == 3:
                return never.wait()  # until the life ends
            raise ConnectionError("no")
        return None

    flow = QUICK.__class__(commit=0.05, drain=0.0)
    first.processor(topic, group=stage.group, concurrency=2, retry=retry, flow=flow)(
        stage.recorder(twice)
    )
    async with first:
        await stage.publish(topic, 0, 1, key="k")
        await stage.until(lambda: stage.seen.attempts[0] == [1, 2, 3], "two attempts failed")
    topic = stage.topic(second, partitions=1)

    def always(value: int, message: Message[int]) -> None:
        if value == 0:
            raise ConnectionError("no")

    second.processor(topic, group=stage.group, concurrency=2, retry=retry, flow=QUICK)(
        stage.recorder(always)
    )
    async with second:
        await stage.handled(1)
        await stage.committed(second)
        (letter,) = await stage.letters(second)
    assert stage.seen.attempts[0] == [1, 2, 3, 3, 4]
    assert stage.seen.values == [1]
    assert letter.headers["__streams.errors.attempts"] == "4"


async def test_a_note_about_a_message_that_is_yet_to_come_is_a_strangers(stage: Stage) -> None:
    """It was written before there was such a message, and would hide whichever comes there."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    retry = Retry(attempts=2, delay=0.005, durable=True)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder())
    async with app.connected():
        first = await topic.publish(0, key="k")
    async with app:  # so that the group has progress, without which no note counts
        await stage.handled(1)
        await stage.committed(app)
    forge_notes(stage, *(first.offset + n for n in range(1, 5)))
    async with app:
        await stage.publish(topic, 1, key="k")
        await stage.handled(2)


@pytest.mark.parametrize("copy", ["none", "of another message", "beyond the end", "a mark"])
async def test_a_note_without_a_copy_hides_no_message(stage: Stage, copy: str) -> None:
    """That a message waits elsewhere is believed only if it is found there."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, retry=LOOSE, flow=QUICK)(stage.recorder())
    async with app.connected():
        (before,) = await stage.publish(topic, 0, id="m0")
    async with app:
        await stage.handled(1)
        await stage.committed(app)
    delay = delay_topic(topic.name, stage.group)
    async with app.connected():
        (after,) = await stage.publish(topic, 1, id="m1")
    (own, other) = [entry_key(retry_entry_id(first, 1)) for first in first_positions(stage, 2)][
        ::-1
    ]
    entry = entry_record(record(b"0", id="m0"), f"{topic.name}.{stage.group}.retry", 1 << 59)
    entry.key = other if copy == "of another message" else own
    if copy == "a mark":
        entry = record(None, own, headers=[("streams_delay", b"delivered")])
    (found,) = append(stage.anchor, delay, [entry])
    assert isinstance(found, Position)
    if copy == "beyond the end":
        found = found._replace(offset=found.offset + 1)
    headers = [] if copy == "none" else [(COPY, str(found).encode())]
    forge_notes(stage, before.offset, after.offset, headers=headers)
    async with app:
        await stage.handled(2)
    assert stage.seen.values == [0, 1]


async def test_no_note_says_that_a_message_waits_whose_copy_is_not_in_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A life ends between the two, as a kill or a partition without a leader may have it."""
    first, second = stage.app(), stage.app()
    topic = stage.topic(first, partitions=1)

    def always(value: int, message: Message[int]) -> None:
        if value == 0:
            raise ConnectionError("no")

    flow = Flow(commit=0.05, drain=0.0)
    first.processor(topic, group=stage.group, retry=LOOSE, flow=flow)(stage.recorder(always))
    async with first:
        await stage.publish(topic, 1, key="k")
        await stage.committed(first)
        asked, written = threading.Event(), first.log.append

        def refuse_copies(name: str, records: Any, on_appended: Any) -> None:
            if not name.endswith(".delay"):
                written(name, records, on_appended)
                return
            asked.set()
            on_appended([Unavailable("no leader")] * len(records))

        monkeypatch.setattr(first.log, "append", refuse_copies)
        await stage.publish(topic, 0, key="k")
        await stage.until(asked.is_set, "its copy was refused")
        await stage.publish(topic, 2, key="j")  # after whatever was to be written at once with it
        await stage.handled(2)
    topic = stage.topic(second, partitions=1)
    second.processor(topic, group=stage.group, retry=LOOSE, flow=QUICK)(stage.recorder())
    async with second:
        await stage.until(lambda: 0 in stage.seen.values, "it was handled")


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("how", ["reset", "another tool", "deleted"])
async def test_what_is_handled_again_on_purpose_begins_with_its_first_attempt(
    stage: Stage, how: str, durable: bool
) -> None:
    retry = Retry(attempts=3, delay=0.005, cap=0.01, in_order=durable, durable=durable)
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def twice(value: int, message: Message[int]) -> None:
        if value != 1 and message.attempt < 3:
            raise ConnectionError("not yet")

    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(twice))
    async with app:
        await stage.publish(topic, 0, 1, 2, key="k")
        await stage.handled(3)
        await stage.committed(app)
    if how == "reset":
        async with app.connected():
            await reset(app, stage.group, topic, "earliest")
    elif how == "another tool":
        first, _ = stage.anchor.watermarks(topic.name, 0)
        stage.anchor.reset_offsets(stage.group, topic.name, {0: Committed(first)})
    else:
        stage.anchor.delete_group(stage.group)
    seen = stage.seen.attempts
    async with app:
        if how == "another tool" and not durable:
            # It begins no generation, so what comes back is what came back before.
            await stage.until(lambda: len(seen[2]) == 4, "it was handled again")
            await stage.committed(app)
            assert {value: sorted(tries) for value, tries in seen.items()} == {
                0: [1, 1, 2, 3],
                1: [1, 1],
                2: [1, 1, 2, 3],
            }
            return
        await stage.handled(6)
        await stage.committed(app)
        assert await stage.letters(app) == []
    assert sorted(stage.seen.values) == [0, 0, 1, 1, 2, 2]
    twice_over = [1, 1, 2, 2, 3, 3]
    assert {value: sorted(tries) for value, tries in seen.items()} == {
        0: twice_over,
        1: [1, 1],
        2: twice_over,
    }


async def test_messages_of_one_id_wait_beside_each_other(stage: Stage) -> None:
    """In several partitions they are several messages."""
    app = stage.app()
    topic = stage.topic(app, partitions=4)

    def once(value: int, message: Message[int]) -> None:
        if message.attempt == 1:
            raise ConnectionError("not yet")

    retry = Retry(attempts=3, delay=0.05, in_order=False)
    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(once))
    async with app:
        for value, key in enumerate(keys_of_all_partitions(4)):
            await stage.publish(topic, value, key=key, id="x")
        await stage.handled(4)
    assert sorted(stage.seen.values) == [0, 1, 2, 3]


async def test_a_group_that_started_over_counts_on(stage: Stage) -> None:
    """What it notes is what it noted before, and must not be taken for that."""
    retry = Retry(attempts=4, delay=0.005, cap=0.01, durable=True)
    never = asyncio.Event()

    def twice(value: int, message: Message[int]) -> Any:
        if message.attempt < 3:
            raise ConnectionError("not yet")
        return never.wait()  # until the life ends

    seen = stage.seen.attempts[0]
    for life in range(3):
        app = stage.app()
        topic = stage.topic(app, partitions=1)
        flow = Flow(commit=0.05, drain=0.0)
        app.processor(topic, group=stage.group, retry=retry, flow=flow)(stage.recorder(twice))
        if life == 1:
            stage.anchor.delete_group(stage.group)
        async with app:
            if life == 0:
                await stage.publish(topic, 0, key="k")
            expected = [1, 2, 3, 1, 2, 3, 3][: (3, 6, 7)[life]]
            await stage.until(partial(reached, seen, len(expected)), "tried")
            assert seen == expected


async def test_attempts_begin_anew_where_the_log_has_lost_its_end(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    retry = Retry(attempts=3, delay=0.005, cap=0.01, durable=True)

    def twice(value: int, message: Message[int]) -> None:
        if message.attempt < 3:
            raise ConnectionError("not yet")

    app.processor(topic, group=stage.group, retry=retry, flow=QUICK)(stage.recorder(twice))
    async with app:
        await stage.publish(topic, 0, key="k")
        await stage.handled(1)
        await stage.committed(app)
    _, end = stage.anchor.watermarks(topic.name, 0)
    place = Committed(end + 5, encode_progress(end + 5, 0, ()).progress)
    stage.anchor.reset_offsets(stage.group, topic.name, {0: place})
    async with app:
        if stage.case.name == "redis":  # there a group goes on at the log's end then
            await stage.publish(topic, 1, key="k")
        await stage.handled(2)
    assert list(stage.seen.attempts.values()) in ([[1, 2, 3] * 2], [[1, 2, 3]] * 2)


async def test_a_message_of_a_time_to_come_hides_no_note(tmp_path: Path) -> None:
    """On Kafka whoever publishes says when. Notes about what stands behind it are older than that
    time."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    ahead = Streams(url)
    ahead.clock = Clock(datetime.now(timezone.utc) + timedelta(days=1))
    retry = Retry(attempts=4, delay=0.005, cap=0.01, durable=True)
    flow = Flow(commit=0.05, drain=0.0)
    attempts: list[int] = []
    never = asyncio.Event()

    def life() -> Any:
        """A process that handles the topic until its second message has its third attempt."""
        app = Streams(url)
        topic = app.topic("calls", int, partitions=1)

        @app.processor(topic, group="phone", concurrency=2, retry=retry, flow=flow)
        async def call(value: int, message: Message[int]) -> None:
            if value == 0:
                await never.wait()  # so that the group stays here
            attempts.append(message.attempt)
            if message.attempt < 3:
                raise ConnectionError("busy")
            await never.wait()

        return app, topic

    early = ahead.topic("calls", int, partitions=1)
    async with ahead.connected():
        await early.publish(0, key="first")
    app, topic = life()
    async with app:
        await topic.publish(1, key="second")
        await until(lambda: attempts == [1, 2, 3], "two attempts failed")
    app, _ = life()
    async with app:
        await until(lambda: len(attempts) > 3, "it is tried again")
    assert attempts == [1, 2, 3, 3]


def first_positions(stage: Stage, count: int) -> list[str]:
    """Of the first messages of the topic."""
    first, end = stage.anchor.watermarks(stage.topic_name, 0)
    with closing(stage.anchor.reader(stage.topic_name, 0, first, end)) as reader:
        batch = reader.read(count)
    assert batch is not None
    return [first_position(batch, index, has_come_back=False) for index in range(count)]


def reached(seen: list[int], count: int) -> bool:
    return len(seen) >= count


def forge_notes(stage: Stage, *offsets: int, headers: Headers = ()) -> None:
    """Write that messages of the topic wait elsewhere."""
    notes = f"{stage.topic_name}.{stage.group}.attempts"
    places = [str(Position(stage.topic_name, 0, offset)).encode() for offset in offsets]
    append(
        stage.anchor, notes, [record(b"%d" % DELAYED, place, headers=headers) for place in places]
    )
