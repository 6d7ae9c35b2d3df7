"""Transactions of exactly-once processors on Kafka: killed at each step, fenced, and refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as KTopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewPartitions,  # pyright: ignore[reportPrivateImportUsage]
)

from streams import Flow, Message, Streams, Unavailable
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.output_writer import OutputWriter
from streams.log.protocol import Assignment, Committed
from tests.conformance.logs import LOGS
from tests.conformance.pipelines import KAFKA_STEPS, Pipeline, Worker, fails_once
from tests.conformance.stage import Stage
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

pytestmark = pytest.mark.anyio

PATIENCE = 60.0

SESSION = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 100}


@pytest.fixture
def run() -> str:
    return uuid4().hex[:8]


@pytest.fixture
def stage(kafka: KafkaAddress) -> Iterator[Stage]:
    url = f"{kafka.url}?{urlencode(SESSION)}"
    opened = Stage(next(each for each in LOGS if each.name == "kafka"), url)
    yield opened
    opened.close()


@pytest.fixture
def pipeline(stage: Stage, run: str) -> Pipeline:
    return Pipeline(stage.url, run)


@pytest.mark.parametrize(
    "step",
    [
        step if step == "_send_offsets" else pytest.param(step, marks=pytest.mark.faults)
        for step in KAFKA_STEPS
    ],
)
async def test_killed_behind_each_step_of_a_transaction(
    stage: Stage, pipeline: Pipeline, run: str, step: str
) -> None:
    app = pipeline.app()
    pipeline.topics(app)
    async with app.connected():
        with Worker(pipeline, run, "async", step, 3) as worker:
            for start in range(0, 200, 50):
                await pipeline.publish(app, range(start, start + 50))
                await stage.until(lambda: pipeline.is_done(stage.anchor) or not worker.runs)
            await stage.until(lambda: not worker.runs, "killed")
            assert worker.was_killed
    again = pipeline.app()
    pipeline.declare(again)
    async with again:
        await stage.until(lambda: pipeline.is_done(stage.anchor), "done")
    pipeline.check(stage.anchor, range(200))


def producer_id(app: Streams) -> str:
    """The transactional ID of the app's one member."""
    return writer_of(app)._id


def writer_of(app: Streams) -> OutputWriter:
    poller = app.processors[0].poller
    assert poller is not None
    return cast(Any, poller._subscription)._outputs  # type: ignore[no-any-return]


async def test_a_producer_that_is_fenced_is_followed_by_another(
    stage: Stage, pipeline: Pipeline
) -> None:
    """As by the brokers after a transaction that took too long: what was in it is published again,
    from memory, by a producer of another ID."""
    app = pipeline.app()
    runs: Counter[int] = Counter()
    pipeline.declare(app, act=lambda number, message: runs.update([number]))
    async with app:
        await pipeline.publish(app, range(50))
        await stage.until(lambda: pipeline.is_done(stage.anchor), "begun")
        before = producer_id(app)
        bootstrap = stage.url.removeprefix("kafka://").partition("?")[0]
        usurper = Producer({"bootstrap.servers": bootstrap, "transactional.id": before})
        usurper.init_transactions(30)
        await pipeline.publish(app, range(50, 100))
        await stage.until(lambda: pipeline.is_done(stage.anchor), "done")
        assert producer_id(app) != before
    pipeline.check(stage.anchor, range(100))
    assert runs == {number: 2 if fails_once(number) else 1 for number in range(100)}


async def test_a_static_member_has_a_producer_of_its_name(stage: Stage, pipeline: Pipeline) -> None:
    """So what it leaves open when it is killed ends as soon as it is back."""
    names = []
    for start in (0, 50):
        # With the usual session: what stands still for a short one is fenced.
        app = Streams(stage.url.partition("?")[0], member="worker-1")
        pipeline.declare(app)
        async with app:
            await pipeline.publish(app, range(start, start + 50))
            await stage.until(lambda: pipeline.is_done(stage.anchor), "done")
            names.append(producer_id(app))
    assert names == [f"{pipeline.group}.worker-1"] * 2
    pipeline.check(stage.anchor, range(100))


async def test_only_what_is_too_large_becomes_a_dead_letter(stage: Stage, run: str) -> None:
    """A broker refuses a whole batch because of one record: the others are published."""
    log = stage.anchor
    assert isinstance(log, KafkaLog)
    source_name, target_name, group = f"in-{run}", f"out-{run}", f"g-{run}"
    log.create_topic(target_name, 1, config={"max.message.bytes": "200000"})
    app = Streams(stage.url)
    source = app.topic(source_name, int, partitions=1)
    target = app.topic(target_name, bytes, key=lambda value: value[:4].decode())

    @app.processor(source, group=group, to=target, exactly_once=True, flow=Flow(commit=0.2))
    async def swell(number: int, message: Message[int]) -> bytes:
        return b"%04d" % number + bytes(300_000 if number == 17 else 1_000)

    async with app:
        await source.publish_many(range(60))
        await stage.until(
            lambda: log.committed(group, source_name).get(0, (0,))[0] >= 60, "committed"
        )
        found = sorted([int(each.value[:4]) async for each in target.read()])
        letters = app.topic(f"{source_name}.{group}.dead", bytes)
        (letter,) = [each async for each in letters.read()]
    assert found == [each for each in range(60) if each != 17]
    assert letter.value == b"17"
    assert letter.headers["__streams.errors.exception"].endswith("TooLarge")


async def test_an_output_for_a_partition_that_was_added(
    kafka: KafkaAddress, stage: Stage, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored at once, though the producer has known the topic before."""
    monkeypatch.setattr("streams.log.kafka.topics.COUNT_TTL", 0.0)
    log = stage.anchor
    source_name, target_name, group = f"in-{run}", f"out-{run}", f"g-{run}"
    log.create_topic(target_name, 1)
    app = Streams(stage.url)
    source = app.topic(source_name, int, partitions=1)
    target = app.topic(target_name, int)

    @app.processor(source, group=group, to=target, exactly_once=True, flow=Flow(commit=0.1))
    async def pass_on(number: int) -> int:
        return number

    def committed() -> int:
        return log.committed(group, source_name).get(0, (0,))[0]

    refused: list[BaseException] = []
    not_stored = OutputWriter._not_stored

    def note(self: OutputWriter, producer: Any, raised: BaseException, *rest: Any) -> Any:
        refused.append(raised)
        return not_stored(self, producer, raised, *rest)

    monkeypatch.setattr(OutputWriter, "_not_stored", note)
    async with app:
        await source.publish(0)
        await stage.until(lambda: committed() == 1, "the producer knows the topic")
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        admin.create_partitions([NewPartitions(target_name, 8)])[target_name].result(60)
        await stage.until(
            lambda: log.describe_topic(target_name).partitions == 8, "the broker knows them"
        )
        await source.publish_many(range(1, 40))
        await stage.until(lambda: committed() == 40, "all are stored")
        found = sorted([each.value async for each in target.read()])
    assert found == list(range(40))
    assert refused == []


async def test_the_settings_of_its_transactions(stage: Stage) -> None:
    settings = cast(Any, stage.anchor)._settings
    config = settings.output_config("id", 10.0)
    assert config["transaction.timeout.ms"] == 7_500  # shorter than a session
    assert config["message.timeout.ms"] == 7_500
    assert config["socket.timeout.ms"] == 7_500
    assert config["retry.backoff.ms"] == 1
    assert settings.output_config("id", 45.0)["transaction.timeout.ms"] == 10_000


async def test_an_output_that_is_too_large_in_front_of_many_holds_nobody_up(
    stage: Stage, run: str
) -> None:
    """The broker has refused it while others of its transaction are still being sent."""
    log = stage.anchor
    assert isinstance(log, KafkaLog)
    source_name, target_name, group, count = f"in-{run}", f"out-{run}", f"g-{run}", 6_000
    log.create_topic(target_name, 1, config={"max.message.bytes": "200000"})
    app = Streams(stage.url)
    source = app.topic(source_name, int, partitions=1)
    target = app.topic(target_name, bytes)

    @app.processor(
        source, group=group, to=target, exactly_once=True, batch=2_000,
        flow=Flow(messages=4 * count, commit=1.0),
    )  # fmt: skip
    async def swell(numbers: list[int], messages: list[Message[int]]) -> list[bytes]:
        return [bytes(300_000 if number == 0 else 10) for number in numbers]

    async with app:
        await source.publish_many(range(count))
        await stage.until(
            lambda: log.committed(group, source_name).get(0, (0,))[0] >= count, "committed"
        )
        assert len([each async for each in target.read()]) == count - 1


class Listener:
    """What a member with outputs is told."""

    def __init__(self) -> None:
        self.assignments: list[Assignment] = []
        """All that were given to it, those that it has lost since included: the topic is empty, so
        a position in it is lost at once, perhaps in the poll in which it was given."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self.assignments += assignments
        for each in assignments:
            each.position = 0 if each.committed is None else each.committed.position

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        pass

    lost = revoked


@pytest.mark.parametrize("source", ["topic", "event topic"])
def test_the_next_owner_waits_for_the_positions_of_an_open_transaction(
    stage: Stage, run: str, source: str
) -> None:
    """Its former owner may be frozen before the commit, and go on. That holds for a source, too, in
    which transactions mean nothing: the positions are the group's."""
    log: Any = stage.anchor
    assert isinstance(log, KafkaLog)
    topic, target, group = f"{run}.events", f"out-{run}", f"g-{run}"
    log.create_topic(target, 1)
    (log.create_topic if source == "topic" else log.create_event_topic)(topic, 1)
    log.initialize_offsets(group, topic, {0: 0})
    bootstrap = stage.url.removeprefix("kafka://").partition("?")[0]
    former = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{group}.former"})
    former.init_transactions(30)
    former.begin_transaction()
    former.produce(target, b"an output")
    outsider = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    former.send_offsets_to_transaction(
        [KTopicPartition(topic, 0, 1)], outsider.consumer_group_metadata(), 30
    )
    outsider.close()
    listener = Listener()
    subscription: Any = log.subscribe(group, [topic], listener)
    subscription.prepare_outputs()

    def poll() -> None:
        with suppress(Unavailable):  # what it waits for is told as an outage
            subscription.poll(1, 0.05)

    def has_tried() -> bool:
        poll()
        pending = subscription._consumer.partitions.pending
        return bool(listener.assignments) or pending.was_tried((topic, 0))

    def is_assigned() -> bool:
        poll()
        return bool(listener.assignments)

    until(has_tried, PATIENCE, "it looks for the group's positions")
    former.commit_transaction(30)
    until(is_assigned, PATIENCE, "it has the partition")
    assert listener.assignments[0].committed == Committed(1)
    subscription.close()
