"""The loops by hand do what they are said to do: every message once, no duplicate, the same client
settings as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis as redis_client
from confluent_kafka import Consumer

from benchmarks import baseline, hand, ours
from benchmarks.cases import LOGS, LOGS_WITH_SERVER, QUICK, LogTarget, Side, cases, ours_on_kafka
from benchmarks.collector import GC_THRESHOLD
from benchmarks.orders import KEYS, Order, customer, message_id, order
from benchmarks.process import WorkerProcess
from benchmarks.worker import task_of
from streams.cli import run_app
from streams.log.kafka.settings import read_settings
from streams.log.protocol import OpenRequest
from streams.log.redis.settings import READ_SIZE
from tests.servers.find import KafkaAddress, RedisAddress

MESSAGES = 2_000


# -- equal work -------------------------------------------------------------------------------


def test_kafkas_consumer_has_our_settings() -> None:
    mine = ours_on_kafka()
    theirs = dict(baseline.KAFKA_CONSUMER)
    assert theirs.pop("auto.offset.reset") == "earliest"  # ours places a new group itself
    assert {name: mine[name] for name in theirs} == theirs
    # What ours sets beside these moves no message faster.
    assert mine.keys() - theirs.keys() == {
        "auto.offset.reset", "client.id", "enable.metrics.push", "heartbeat.interval.ms",
        "message.max.bytes", "metadata.recovery.strategy", "receive.message.max.bytes",
        "reconnect.backoff.max.ms", "reconnect.backoff.ms", "security.protocol",
        "socket.timeout.ms", "statistics.interval.ms", "topic.metadata.refresh.interval.ms",
    }  # fmt: skip


def test_cycles_are_looked_for_as_under_streams_run() -> None:
    assert GC_THRESHOLD == run_app.GC_THRESHOLD


def test_kafkas_producer_has_our_settings() -> None:
    mine = read_settings(OpenRequest("kafka://localhost", "")).producer_config()
    assert {name: mine[name] for name in baseline.KAFKA_PRODUCER} == baseline.KAFKA_PRODUCER


def test_redis_is_read_in_pieces_of_the_same_size() -> None:
    assert baseline.REDIS_READ_SIZE == READ_SIZE


def test_an_order_is_as_large_as_it_is_said_to_be() -> None:
    sizes = {len(msgspec.json.encode(order(number))) for number in range(0, 10_000, 7)}
    assert max(sizes) <= 205
    assert min(sizes) >= 195
    assert len({order(number).customer for number in range(KEYS)}) == KEYS


# -- what the loops do --------------------------------------------------------------------------


def _rows(numbers: list[int]) -> list[baseline.Row]:
    found: list[baseline.Row] = []
    for number in numbers:
        each = order(number)
        data = msgspec.json.encode(each)
        found.append((number % 4, number, message_id(number), customer(each), data))
    return found


@pytest.mark.parametrize("batch", [False, True])
def test_a_loop_over_rows_calls_once_for_each_id_and_commits(batch: bool) -> None:
    seen: list[str] = []
    committed: dict[Any, Any] = {}
    batches = iter([_rows([0, 1, 2]), _rows([2, 1, 3]), _rows([3])])
    if batch:

        def many(orders: list[Order]) -> None:
            seen.extend(each.order_id for each in orders)

        baseline.handle_row_batches(batches, many, committed.update)
    else:
        baseline.handle_rows(batches, lambda each: seen.append(each.order_id), committed.update)
    assert seen == [order(number).order_id for number in range(4)]
    assert committed == {0: 0, 1: 1, 2: 2, 3: 3}


def test_the_window_is_bounded_and_remembers_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "WINDOW", 10)
    seen: list[str] = []
    numbers = [*range(10), *range(10), *range(100, 130), *range(10)]
    batches = (_rows(numbers[at : at + 5]) for at in range(0, len(numbers), 5))
    baseline.handle_rows(batches, lambda each: seen.append(each.order_id), lambda positions: None)
    # The first repetition is passed over; after thirty others it is forgotten.
    assert len(seen) == 10 + 30 + 10


def test_the_table_by_hand_has_what_was_published(tmp_path: Path) -> None:
    file = baseline.SqliteFile(str(tmp_path / "raw.db"))
    file.publish([order(number) for number in range(25)], 10)
    seen: list[str] = []
    baseline.handle_rows(file.batches(), lambda each: seen.append(each.order_id), file.commit)
    file.close()
    assert seen == [order(number).order_id for number in range(25)]


# -- on real servers ------------------------------------------------------------------------------


def _ids(consume: Callable[[Callable[[Order], None], Callable[[], bool]], None]) -> list[str]:
    seen: list[str] = []
    consume(lambda each: seen.append(each.order_id), lambda: len(seen) >= MESSAGES)
    return sorted(seen)


ALL = sorted(order(number).order_id for number in range(MESSAGES))


@contextmanager
def _subscribed(url: str, topic: str) -> Iterator[Consumer]:
    consumer = hand._consumer(url)
    consumer.subscribe([topic])
    try:
        yield consumer
    finally:
        consumer.close()


def _by_loop(consumer: Consumer, topic: str, *, header: bool) -> list[str]:
    return _ids(
        lambda function, over: baseline.kafka(consumer, topic, function, over, header=header)
    )


@pytest.mark.parametrize("header", [True, False])
def test_the_loop_on_kafka_reads_what_ours_wrote(kafka: KafkaAddress, header: bool) -> None:
    topic = f"loops-{header}".lower()
    ours.fill(kafka.url, topic, MESSAGES)
    with _subscribed(kafka.url, topic) as consumer:
        assert _by_loop(consumer, topic, header=header) == ALL
        committed = consumer.committed(consumer.assignment(), 10)
        assert sum(place.offset for place in committed) == MESSAGES


def test_the_tasks_on_kafka_take_every_message_once_several_at_a_time(kafka: KafkaAddress) -> None:
    topic = "loops-tasks"
    ours.fill(kafka.url, topic, MESSAGES)
    seen: list[str] = []
    crowded = asyncio.Event()
    running = most = 0

    async def function(each: Order) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 16:
            crowded.set()
        await crowded.wait()
        await asyncio.sleep(0)
        running -= 1
        seen.append(each.order_id)

    def over() -> bool:
        return len(seen) >= MESSAGES

    with _subscribed(kafka.url, topic) as consumer:
        asyncio.run(baseline.kafka_tasks(consumer, function, over, 16))
    assert most == 16
    assert sorted(seen) == ALL


def test_the_tasks_on_kafka_end_where_one_of_them_fails(kafka: KafkaAddress) -> None:
    topic = "loops-failing"
    ours.fill(kafka.url, topic, MESSAGES)

    async def fails(each: Order) -> None:
        raise ValueError(each.order_id)

    with _subscribed(kafka.url, topic) as consumer, pytest.raises(ValueError):
        asyncio.run(baseline.kafka_tasks(consumer, fails, lambda: False, 16))


def test_messages_without_headers_have_their_ids_inside(kafka: KafkaAddress) -> None:
    topic = "loops-foreign"
    hand.kafka_fill(kafka.url, topic, MESSAGES)
    with _subscribed(kafka.url, topic) as consumer:
        assert _by_loop(consumer, topic, header=False) == ALL
    assert ours.consume(kafka.url, topic, MESSAGES, id="order_id")["messages"] == MESSAGES - 1


def test_the_loops_on_redis_read_what_ours_wrote(redis_server: RedisAddress) -> None:
    url, topic = redis_server.url, "bench-loops"
    ours.fill(url, topic, MESSAGES)
    streams = hand._streams(topic)
    with hand._client(url) as client:
        for stream in streams:
            client.xgroup_create(stream, "loops", "0")
        assert _ids(
            lambda function,
            over: baseline.redis_one_by_one(client, streams, "loops", function, over)
        ) == ALL  # fmt: skip
        assert all(not client.xpending(stream, "loops")["pending"] for stream in streams)
        connection: Any = client.connection_pool.get_connection()
        assert _ids(
            lambda function, over: baseline.handle_rows(
                baseline.redis_read_ahead(connection, streams, over), function,
                lambda positions: None
            )
        ) == ALL  # fmt: skip
        connection.disconnect()


def test_what_is_published_by_hand_on_redis_can_be_read(redis_server: RedisAddress) -> None:
    streams = hand._streams("bench-by-hand")
    with redis_client.Redis.from_url(redis_server.url) as client:
        baseline.redis_publish(client, streams, [order(n) for n in range(100)], 30)
        assert sum(client.xlen(stream) for stream in streams) == 100


# -- every case can be run ----------------------------------------------------------------------


def _place(log: str) -> LogTarget:
    return LogTarget(log, "url", "topic", "file", "folder")


@pytest.mark.parametrize("log", LOGS)
def test_every_task_of_every_case_is_there(log: str) -> None:
    found = cases(_place(log), QUICK)
    assert found
    for case in found:
        sides = [case.ours, *(rival.side for rival in case.rivals), case.check]
        for side in sides:
            if isinstance(side, Side) and not side.peer:
                task_of(side.task)  # it is there
                if side.prepare is not None:
                    task_of(side.prepare[0])  # it is there


def test_every_row_of_the_promise_has_a_case() -> None:
    found = {
        (case.log, case.name): [rival.target for rival in case.rivals]
        for log in LOGS
        for case in cases(_place(log), QUICK)
    }
    assert found["kafka", "plain handler, ID in a header"] == [0.85, 4.0]
    assert found["kafka", "plain handler, ID in the payload, no headers"] == [0.85]
    assert found["kafka", "batch handler"][0] == 0.90
    assert found["kafka", "async handler that does not wait, 64 at once"][:3] == [0.65, 80, 80]
    for concurrency, target in ((64, 0.96), (256, 0.94), (1024, 0.70)):
        name = f"async handler that waits 5 ms, {concurrency} at once"
        assert found["kafka", name][0] == target
    assert found["kafka", "plain handler that waits 5 ms, 64 threads"] == [0.90]
    assert found["redis", "plain handler"] == [1.5, 0.85]
    assert found["sqlite", "plain handler"] == [0.85]
    assert found["memory", "plain handler"] == [0.80]
    assert found["kafka", "1,000 concurrent `await publish`"][:2] == [5.0, 5.0]
    for log in ("kafka", "redis", "sqlite"):
        assert found[log, "publish_many, 10,000 at a time"] == [0.80]
    for log in LOGS_WITH_SERVER:
        assert found[log, "latency at 1,000 a second, plain handler"] == [1.25, 1.25]
    assert found["kafka", "two processes, 4 partitions, a handler of 50 µs"] == [1.7]


def test_tasks_that_wait_for_nothing_else_run_on_kafka(kafka: KafkaAddress) -> None:
    """Those that the small runs of the command, on memory, do not reach."""
    where = {"url": kafka.url}
    with WorkerProcess() as worker:
        worker.run_task("fill", **where, topic="bench-tasks", messages=4_000)
        at = {**where, "topic": "bench-tasks", "messages": 3_000}
        for id in (None, "order_id"):
            assert worker.run_task("consume", **at, id=id)["messages"] == 2_999
        assert worker.run_task("kafka", **at, batch=True)["rate"] > 0
        checked = worker.run_task("keeps_order", **at, concurrency=256, wait=0.002)
        assert checked["violations"] == 0
        tasks = {"concurrency": 100, "wait": 0.002}
        assert worker.run_task("kafka_tasks", **at, **tasks)["messages"] == 2_900
        for task in ("publish_each", "kafka_publish_each"):
            assert worker.run_task(task, **where, messages=200, tasks=100)["rate"] > 0
        for task in ("publish_many", "kafka_publish"):
            assert worker.run_task(task, **where, messages=200, size=100)["rate"] > 0
        for task in ("latency", "kafka_latency"):
            answer = worker.run_task(task, **where, messages=50, rate=200)
            assert 0 < answer["p50"] <= answer["p99"]


def test_processes_share_a_topic(kafka: KafkaAddress) -> None:
    with WorkerProcess() as worker:
        worker.run_task("fill", url=kafka.url, topic="bench-shared", messages=2_000)
        given = {"url": kafka.url, "topic": "bench-shared", "messages": 2_000, "work": 1e-6}
        answer = worker.run_task("share", **given, processes=2)
    assert sum(answer["shares"]) >= 2_000
    assert answer["rate"] > 0
