"""What a scrape says is what happened, on every log."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from itertools import count
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from streams import ConfigError, Message, ProcessorStats, Retry, Streams
from streams.clock import SYSTEM
from streams.patterns import Event, EventBus, MetricsCollector, MonitoringServer
from streams.patterns.monitoring.lag_probe import _lag_and_age
from streams.processing.committer import PartitionProgress
from streams.processing.timing import BUCKET_BOUNDS, QUICK_CALL, SAMPLE_EVERY, Histogram, Timing
from tests.conformance.stage import QUICK as QUICK_FLOW
from tests.conformance.stage import Stage
from tests.monitoring.conftest import come, scrape, until


async def test_what_happened_is_counted(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)

    async def act(value: int, message: Message[int]) -> None:
        if value == 13:
            raise ValueError("thirteen")

    handler: Any = app.processor(
        topic, group=stage.group, concurrency=4, filter=lambda value: value != 7,
        retry=Retry(attempts=3, delay=0.001), flow=QUICK_FLOW,
    )(stage.recorder(act))  # fmt: skip
    with MonitoringServer(app, port=0) as server:
        async with app:
            await topic.publish_many(list(range(20)))
            await topic.publish(100, id="twice")
            await topic.publish(101, id="twice")
            copies = 0 if app.log.capabilities.append_once else 1
            mine = {"processor": handler.name, "group": stage.group}
            found = await until(
                server,
                lambda now: (
                    now.of("messages_handled_total") == [19]
                    and now.of("dead_letters_total") == [1]
                    and now.of("messages_duplicate_total") == [copies]
                    and sum(now.of("lag_messages")) == 0
                ),
            )
            assert found.one("messages_filtered_total", **mine) == 1
            assert found.one("retries_total", **mine) == 2
            assert found.one("published_total") == 22 + 1  # the dead letter
            assert found.one("in_flight_messages", **mine) == 0
            assert found.one("handlers_running", **mine) == 0
            assert found.one("losses_total", **mine) == 0
            assert found.one("progress_rejected_total", **mine) == 0
            assert found.one("processor_up", **mine) == 1
            assert found.one("processor_paused", **mine) == 0
            assert found.one("log_reachable", **mine) == 1
            assert found.one("app_up") == 1
            assert found.one("backlog_known") == 1
            # Two partitions, and the group's retry topic.
            assert found.one("partitions_owned", **mine) >= 3
            assert found.one("rebalances_total", **mine) >= 1
            assert found.of("lag_messages", topic=topic.name, **mine) == [0, 0]
            assert found.of("oldest_unsettled_seconds", topic=topic.name, **mine) == [0, 0]
            found = await until(server, lambda now: now.one("commits_total") >= 1)
            commits = found.one("commits_total", **mine)
            assert found.one("commit_seconds_count", **mine) == commits
            assert found.one("commit_seconds_bucket", le="+Inf", **mine) == commits
            assert 0 < found.one("commit_seconds_sum", **mine) < 60 * commits
            # 19 that succeeded, three attempts of one that did not; quick ones are estimated.
            assert 1 <= found.one("handler_seconds_count", **mine) <= 2 * 22
        after = await scrape(server)
    assert after.one("app_up") == 0
    assert after.one("backlog_known") == 0
    assert after.of("messages_handled_total") == after.of("lag_messages") == []


async def test_lag_and_age_of_what_waits_in_the_log_and_in_a_handler(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    hold = asyncio.Event()

    async def act(value: int, message: Message[int]) -> None:
        await hold.wait()

    handler: Any = app.processor(topic, group=stage.group, flow=QUICK_FLOW)(stage.recorder(act))
    handler.pause()
    began = SYSTEM.time()
    with MonitoringServer(app, port=0) as server:
        async with app:
            for value in range(5):
                await topic.publish(value, key="k")
            found = await until(server, lambda now: now.of("lag_messages", topic=topic.name) == [5])
            assert found.one("processor_paused") == 1
            age = found.one("oldest_unsettled_seconds", topic=topic.name)
            handler.resume()
            await until(server, lambda now: now.one("handlers_running") == 1)
            found = await until(server, lambda now: now.of("in_flight_messages") == [5])
            assert found.one("lag_messages", topic=topic.name) == 5
            later = found.one("oldest_unsettled_seconds", topic=topic.name)
            # A server's clock is its own: what it took in may be as old as the two are apart.
            assert age <= later <= SYSTEM.time() - began + 3_600
            hold.set()
            found = await until(server, lambda now: sum(now.of("lag_messages")) == 0)
            assert found.of("oldest_unsettled_seconds", topic=topic.name) == [0]


async def test_what_was_not_taken_in_yet_is_as_old_as_the_log_says(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        log, name = app.log, topic.name
        first, end = log.watermarks(name, 0)
        now = app.clock.time()
        assert _lag_and_age(log, PartitionProgress(name, 0, first, first, None), now) == (0, 0.0)
        await topic.publish(1)
        await topic.publish(2)
        first, end = log.watermarks(name, 0)
        found = _lag_and_age(log, PartitionProgress(name, 0, first, first, None), now + 3600)
        assert found[0] == 2
        assert found[1] == pytest.approx(3600, abs=60)
        assert _lag_and_age(log, PartitionProgress(name, 0, end, end, None), now + 3600) == (0, 0.0)
        held = PartitionProgress(name, 0, log.offset_before(name, 0, end, 1), end, now)
        assert _lag_and_age(log, held, now + 5) == (1, 5.0)


async def test_a_log_that_does_not_answer_holds_up_no_scrape() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    app.processor(topic, group="g")(lambda value: None)
    registry = CollectorRegistry()
    collector = MetricsCollector(app, patience=0.05)
    registry.register(collector)
    answers = threading.Event()

    def known() -> Any:
        return registry.get_sample_value("streams_backlog_known")

    def lags() -> int:
        found = {metric.name: metric for metric in collector.collect()}
        return len(found["streams_lag_messages"].samples)

    async with app:
        await come(lags)
        asked = 0
        lag = app.log.lag

        def stuck(topic: str, partition: int, position: int) -> int | None:
            nonlocal asked
            asked += 1
            answers.wait(30)
            return lag(topic, partition, position)

        app.log.lag = stuck  # type: ignore[method-assign]
        assert await asyncio.to_thread(known) == 0
        assert await asyncio.to_thread(lags) == 0
        assert asked == 1  # and not once a scrape
        answers.set()
        await come(lags)
        await come(lambda: known() == 1)


async def test_one_registry_takes_one_collector_and_the_server_uses_it() -> None:
    app = Streams("memory://")
    registry = CollectorRegistry()
    registry.register(MetricsCollector(app))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(MetricsCollector(app))
    with MonitoringServer(app, port=0) as one, MonitoringServer(app, port=0) as two:
        for server in (one, two):
            found = await scrape(server)
            assert found.of("app_up") == [0]


async def test_a_server_may_be_closed_twice_and_takes_no_metrics_from_another() -> None:
    app = Streams("memory://")
    one, two = MonitoringServer(app, port=0), MonitoringServer(app, port=0)
    one.close()
    one.close()
    assert (await scrape(two)).of("app_up") == [0]
    two.close()
    assert REGISTRY.get_sample_value("streams_app_up") is None


async def test_ephemeral_subscribers_that_come_and_go_have_the_same_labels() -> None:
    app = Streams("memory://")
    bus, labels = EventBus(app), {"processor": "events", "group": "ephemeral-1"}

    async def watch(event: Event) -> None: ...

    async with app:
        with MonitoringServer(app, port=0) as server:
            for _ in range(3):
                unsubscribe = bus.subscribe("a", watch)
                await unsubscribe.ready()
                await until(
                    server,
                    lambda now: now.of("processor_up") == now.of("processor_up", **labels) == [1],
                )
                unsubscribe()


async def test_two_apps_of_one_process_have_their_own_figures() -> None:
    one, two = Streams("memory://"), Streams("memory://")
    one.processor(one.topic("a", int), group="one")(lambda value: None)
    two.processor(two.topic("b", int), group="two")(lambda value: None)
    with MonitoringServer(one, port=0) as first, MonitoringServer(two, port=0) as second:
        async with one, two:
            for server, group in ((first, "one"), (second, "two")):
                found = await scrape(server)
                assert found.of("processor_up") == found.of("processor_up", group=group) == [1]


def test_what_is_no_app_is_refused() -> None:
    with pytest.raises(ConfigError, match="a Streams app is needed"):
        MetricsCollector("memory://")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="positive number of seconds"):
        MetricsCollector(Streams("memory://"), patience=0)


# -- how calls are timed ---------------------------------------------------------------------------


def test_a_duration_falls_into_the_bucket_up_to_its_bound() -> None:
    histogram = Histogram()
    for bound in BUCKET_BOUNDS:
        histogram.add(bound)
    histogram.add(BUCKET_BOUNDS[-1] * 2, times=3)
    found = histogram.read()
    assert found.counts == (*(1 for _ in BUCKET_BOUNDS), 3)
    assert found.number == len(BUCKET_BOUNDS) + 3
    assert found.total == pytest.approx(sum(BUCKET_BOUNDS) + 6 * BUCKET_BOUNDS[-1])


def test_quick_calls_are_timed_now_and_then_and_count_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = count()
    monkeypatch.setattr(
        "streams.processing.timing.perf_counter", lambda: next(moments) * QUICK_CALL / 2
    )
    timing = Timing(asynchronous=False)
    called: list[int] = []
    timed = 0
    stretches = 10 * SAMPLE_EVERY + 1
    for _ in range(stretches):
        picked = timing.sample(called.append)
        timed += picked != called.append
        picked(1)
    found = timing.read()
    assert len(called) == stretches
    assert timed == 11
    assert found.number == stretches
    assert found.total == pytest.approx(stretches * QUICK_CALL / 2)


def test_slow_calls_are_all_timed() -> None:
    timing = Timing(asynchronous=False)

    def slow() -> None:
        time.sleep(2 * QUICK_CALL)

    for _ in range(20):
        picked = timing.sample(slow)
        assert picked is not slow
        picked()
    found = timing.read()
    assert found.number == 20
    assert found.total >= 40 * QUICK_CALL


async def test_failed_calls_are_timed_too() -> None:
    timing = Timing(asynchronous=True)

    async def fail() -> None:
        await asyncio.sleep(0.001)
        raise ValueError

    with pytest.raises(ValueError):
        await timing.sample(fail)()
    assert timing.read().number == 1
    plain = Timing(asynchronous=False)
    with pytest.raises(ZeroDivisionError):
        plain.sample(lambda: 1 // 0)()
    assert plain.read().number == 1


def test_the_code_of_a_generator_is_timed() -> None:
    timing = Timing(asynchronous=False)

    def several() -> Any:
        time.sleep(0.002)
        yield 1
        yield 2

    assert timing.sample(several)() == [1, 2]
    assert timing.read().total >= 0.002


@pytest.mark.parametrize("shape", ["async", "plain", "async batch", "plain batch", "threads"])
async def test_every_way_to_run_a_handler_is_timed(shape: str) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    done: list[Any] = []
    options: dict[str, Any] = {"batch": 4} if "batch" in shape else {}
    options |= {"concurrency": 3} if shape == "threads" else {}

    async def later(value: Any) -> None:
        await asyncio.sleep(0.002)
        done.append(value)

    def now(value: Any) -> None:
        time.sleep(0.002)
        done.append(value)

    def figures() -> ProcessorStats:
        (found,) = app.stats().processors.values()
        return found

    app.processor(topic, group="g", **options)(later if "async" in shape else now)
    async with app:
        await topic.publish_many([1])
        await come(lambda: done)
        assert figures().handler_seconds.number == 0  # nobody asked
        app.measure()  # also while it runs
        await topic.publish_many(list(range(8)))
        await come(lambda: figures().handled == 9)
        found = figures().handler_seconds
    calls = len(done)
    assert 1 <= found.number <= calls
    assert found.total >= 0.002 * found.number
    assert sum(found.counts[: BUCKET_BOUNDS.index(0.001) + 1]) == 0


def test_nothing_of_it_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, streams, streams.app, streams.patterns, streams.cli.root\n"
        "found = [name for name in sys.modules if name.split('.')[0] in "
        "('opentelemetry', 'prometheus_client')]\n"
        "print(found)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said == "[]\n"
