"""**at-least-once** and **bounded redelivery**: commits cover what is settled and nothing else."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from random import Random
from typing import Any

import pytest

from streams import Dedup, Flow, Message, ProcessorDied, Retry
from streams.engine.progress import decode_progress
from streams.errors import Unavailable
from streams.log.protocol import Retention
from streams.processing.partition_lifecycle import PartitionLifecycle
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.faults.fleet import Fleet
from tests.faults.history import Recorder, Sent, check, read


async def test_the_start_is_committed_before_the_first_delivery(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    found = []
    handler = stage.recorder(lambda value, message: found.append(stage.places(app)))
    app.processor(topic, group=stage.group, flow=Flow(commit=3600))(handler)
    async with app:
        await stage.publish(topic, 1)
        await stage.handled(1)
    assert set(found[0]) == {0, 1}
    assert all(
        place.position == stage.anchor.watermarks(topic.name, 0)[0] for place in found[0].values()
    )


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "plain"])
async def test_what_was_handled_is_committed_long_before_the_interval_is_over(
    stage: Stage, asynchronous: bool
) -> None:
    app = stage.app()
    topic = stage.topic(app)
    concurrency, handler = 8, stage.recorder()
    if not asynchronous:
        concurrency, handler = 1, stage.plain_recorder()
    app.processor(topic, group=stage.group, concurrency=concurrency, flow=Flow(commit=3600))(
        handler
    )
    async with app:
        for number in range(3):
            await stage.publish(topic, *range(100 * number, 100 * (number + 1)))
            await stage.committed(app)
    assert sorted(stage.seen.values) == list(range(300))


async def test_what_waits_for_a_slow_message_is_stored_long_before_the_interval_is_over(
    stage: Stage,
) -> None:
    """The process is killed then: nothing that comes at the end of a life stores it."""
    app, gate = stage.app(), asyncio.Event()
    topic = stage.topic(app, partitions=1)
    handler = stage.recorder(lambda value, _: gate.wait() if value == 0 else None)
    app.processor(topic, group=stage.group, concurrency=8, flow=Flow(commit=3600))(handler)
    async with app:
        positions = await stage.publish(topic, *range(50), key=lambda value: f"k{value}")

        def stored() -> bool:
            place = stage.places(app).get(0)
            if place is None or not place.progress:
                return False
            settled = decode_progress(place.position, place.progress)[1]
            return bool(settled) and settled[-1][1] > positions[-1].offset

        await stage.until(stored, "what was settled out of order is stored")
        gate.set()
        await stage.committed(app)


async def test_partitions_that_cannot_be_begun_are_begun_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, failures = PartitionLifecycle._restore_progress, 3

    def fails(self: PartitionLifecycle, *given: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise Unavailable("the log is away for a moment")
        return begin(self, *given)

    monkeypatch.setattr(PartitionLifecycle, "_restore_progress", fails)
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(50), key=lambda value: f"k{value}")
        await stage.handled(50)
        await stage.committed(app)
        stats = app.stats().processors
    assert failures == 0
    assert [each.losses for each in stats.values()] == [0]
    assert sorted(stage.seen.values) == list(range(50))


async def test_a_commit_never_passes_what_is_not_settled(stage: Stage) -> None:
    app, gate = stage.app(), asyncio.Event()
    topic = stage.topic(app, partitions=1)
    handler = stage.recorder(lambda value, _: gate.wait() if value == 3 else None)
    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(handler)
    async with app:
        positions = await stage.publish(topic, *range(20), key=lambda value: f"k{value}")
        await stage.handled(19)
        stuck = positions[3].offset

        def remembered() -> bool:
            place = stage.places(app)[0]
            if not place.progress:
                return False
            settled = decode_progress(place.position, place.progress)[1]
            return bool(settled) and settled[-1][1] > positions[-1].offset

        await stage.until(remembered, "the settled set committed")
        assert stage.places(app)[0].position <= stuck
        gate.set()
        await stage.committed(app)


async def test_what_finished_out_of_order_is_not_handled_again(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    never = asyncio.Event()
    handler = stage.recorder(lambda value, _: never.wait() if value in (0, 5) else None)
    app.processor(topic, group=stage.group, concurrency=8, flow=Flow(commit=0.05, drain=0.1))(
        handler
    )
    async with app:
        await stage.publish(topic, *range(10), key=lambda value: f"k{value}")
        await stage.handled(8)
    # The drain deadline cancelled 0 and 5; the last commit remembers the other eight.
    again = stage.app()
    topic = stage.topic(again, partitions=1)
    # Without deduplication: it is the settled set that knows, not the message IDs.
    again.processor(topic, group=stage.group, concurrency=8, dedup=Dedup(window=0), flow=QUICK)(
        stage.recorder()
    )
    async with again:
        await stage.handled(10)
        await stage.committed(again)
    assert sorted(stage.seen.values[8:]) == [0, 5]


@pytest.mark.short_lease
@pytest.mark.needs("processes", "durable")
async def test_kill_9_at_any_instant_loses_nothing(stage: Stage, tmp_path: Path) -> None:
    """A small version of the fault runs, on every log that can be shared by processes."""
    messages, random = 2_000, Random(7)
    app = stage.app()
    topic = stage.topic(app, bytes, partitions=4)
    recorder = Recorder(tmp_path)
    async with app.connected():
        records = [
            topic.record(str(n).encode(), key=f"k{random.randrange(200)}", id=f"m{n}")
            for n in range(messages)
        ]
        for record, position in zip(
            records, await app.publisher.publish_many(topic.name, records), strict=True
        ):
            key = (record.key or b"").decode()
            recorder.write(Sent(0.0, *position, key, record.id))
    await asyncio.to_thread(kill_three_times, stage, tmp_path, messages, random)
    report = check(read(tmp_path))
    assert report.anomalies == []
    assert report.handled == messages


def kill_three_times(stage: Stage, folder: Path, messages: int, random: Random) -> None:
    with Fleet(
        folder, stage.url, stage.topic_name, stage.group, concurrency=16, pause=0.005
    ) as fleet:
        fleet.start()
        fleet.start()
        for moment in sorted(random.randrange(200, messages * 3 // 4) for _ in range(3)):
            fleet.until(lambda handled, moment=moment: handled >= moment)  # type: ignore[misc]
            fleet.kill_one(random)
        fleet.until(lambda handled: handled >= messages)
        fleet.stop()


@pytest.mark.needs("crashes")
async def test_a_crashed_member_loses_nothing(stage: Stage) -> None:
    """Where one process is the whole world, a member crashes instead of a process."""
    gate = asyncio.Event()
    app, other = stage.app(), stage.app()
    topic = stage.topic(app)
    blocked = stage.recorder(lambda value, _: gate.wait() if value >= 50 else None)
    app.processor(topic, group=stage.group, concurrency=100, flow=Flow(drain=0.0))(blocked)
    stage.topic(other)
    other.processor(other.topics[topic.name], group=stage.group, concurrency=8, flow=QUICK)(
        stage.recorder()
    )
    async with other.connected():
        await stage.publish(other.topics[topic.name], *range(100), key=lambda value: f"k{value}")
    with pytest.raises(ProcessorDied, match="crashed by a test"):
        async with app:
            await stage.handled(50)
            poller = app.processors[0].poller
            assert poller is not None
            subscription = poller._subscription
            assert subscription is not None
            subscription.crash()  # type: ignore[attr-defined]
            await asyncio.sleep(PATIENCE)
    async with other:
        await stage.until(lambda: set(range(100)) <= set(stage.seen.values), "all handled")
        await stage.committed(other)


@pytest.mark.needs("trims")
async def test_what_was_deleted_before_it_was_handled_is_reported(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.anchor.create_topic(stage.topic_name, 1, Retention(messages=100))
    app = stage.app()
    topic = stage.topic(app, partitions=None)
    async with app.connected():
        await stage.publish(topic, *range(10))
    first, _ = stage.anchor.watermarks(topic.name, 0)
    assert stage.anchor.initialize_offsets(stage.group, topic.name, {0: first - 5})
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    with caplog.at_level(logging.ERROR, logger="streams"):
        async with app:
            await stage.handled(10)
            losses = app.stats().processors["handle"].losses
    assert losses == 1
    assert "deleted before they were handled" in caplog.text


async def test_nothing_is_lost_when_a_handler_raises_what_is_no_exception(stage: Stage) -> None:
    """SystemExit in a handler ends the processor, loudly; the message is handled next time."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def leave(value: int, message: Message[int]) -> None:
        raise SystemExit(3)

    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(leave))
    with pytest.raises(Exception, match="handle died: SystemExit"):
        async with app:
            await stage.publish(topic, 1)
            await asyncio.sleep(30)
    again = stage.app()
    topic = stage.topic(again, partitions=1)
    again.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with again:
        await stage.handled(1)


async def test_a_result_is_confirmed_before_its_source_is_settled(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    out = app.topic(f"{stage.topic_name}-out", int, partitions=2)

    @app.processor(topic, group=stage.group, concurrency=8, to=out, flow=QUICK)
    async def double(value: int) -> list[int] | int | None:
        return None if value == 3 else [value, value * 2] if value == 4 else value * 2

    async with app:
        await stage.publish(topic, *range(6), key=str)
        await stage.committed(app)
        found = await asyncio.to_thread(lambda: list(out.read()))
    assert sorted(message.value for message in found) == [0, 2, 4, 4, 8, 10]
    # The same message handled again writes the same IDs, so it doubles nothing downstream.
    ids = {message.id for message in found}
    await asyncio.to_thread(rewind, stage)
    again = stage.app()
    topic = stage.topic(again)
    again.processor(
        topic, group=stage.group, to=again.topic(out.name, int), flow=QUICK, retry=Retry(attempts=1)
    )(lambda value: value * 2 if value not in (3, 4) else None)
    async with again:
        await stage.committed(again)
        found = await asyncio.to_thread(lambda: list(again.topics[out.name].read()))
    assert {message.id for message in found} == ids


def rewind(stage: Stage) -> None:
    """Put the group back to the beginning."""
    from streams.log.protocol import Committed

    places = {
        partition: Committed(stage.anchor.watermarks(stage.topic_name, partition)[0])
        for partition in range(stage.anchor.describe_topic(stage.topic_name).partitions)
    }
    stage.anchor.reset_offsets(stage.group, stage.topic_name, places)


async def test_a_topic_that_is_added_to_a_live_group_begins_where_it_was_told(stage: Stage) -> None:
    """A rolling release: members that know one more topic join those that do not."""
    before, after, other = stage.app(), stage.app(), stage.app()
    before.processor(stage.topic(before), group=stage.group)(stage.recorder())
    added = other.topic(f"{stage.topic_name}-added", int, partitions=2)
    seen: list[int] = []

    @after.processor(
        stage.topic(after), after.topic(added.name, int), group=stage.group, start="latest"
    )
    async def also(value: int) -> None:
        seen.append(value)

    async with other.connected(), before:
        await stage.until(lambda: before.stats().processors["handle"].partitions, "it is live")
        await stage.publish(added, *range(10))
        async with after:
            await stage.publish(added, *range(10, 20))
            await stage.until(lambda: len(seen) >= 10, "what came later is handled")
            await stage.until(
                lambda: all(
                    stage.places(after, added.name)[part].position
                    == stage.anchor.watermarks(added.name, part)[1]
                    for part in range(2)
                ),
                "it is committed",
            )
    assert sorted(seen) == list(range(10, 20))


async def test_members_that_join_one_by_one_share_the_source(stage: Stage) -> None:
    """The retry topic, which every member reads as well, does not count against the source."""
    apps = [stage.app() for _ in range(2)]
    for app in apps:
        app.processor(stage.topic(app, partitions=4), group=stage.group)(stage.recorder())

    def shares() -> list[int]:
        members = stage.anchor.describe_group(stage.group).members
        return sorted(
            sum(topic == stage.topic_name for topic, _ in member.partitions) for member in members
        )

    async with apps[0]:
        await stage.until(lambda: shares() == [4], "the first has all")
        async with apps[1]:
            # KIP-848's own assignor evens out the sum, the retry topic included.
            even = [[2, 2], [1, 3]] if stage.case.name == "kip848" else [[2, 2]]
            await stage.until(lambda: shares() in even, "they share")
