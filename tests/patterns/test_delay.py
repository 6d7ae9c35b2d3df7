"""**Delayed delivery** on every log: when it is due, once, in due order, and cancelled if asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from streams import ConfigError, Flow, InvalidValue, Message, Streams
from streams.clock import SYSTEM
from streams.log import record_fetcher
from streams.log.floor import floor_group
from streams.log.protocol import Assignment
from streams.log.url import open_log
from streams.patterns import DeadLetterManager, Delays
from streams.retries import records as delay_records
from streams.retries import scheduler
from streams.retries.checkpoints import parse_place
from streams.testing import Clock, harness
from tests.conformance.stage import QUICK, Stage
from tests.patterns.delay_child import SOURCE, declare
from tests.patterns.keeping import until

DAY = 86_400.0
ROOT = Path(__file__).parents[2]


def delays_of(stage: Stage, app: Streams, **options: Any) -> Delays:
    return Delays(app, f"{stage.topic_name}.later", **options)


async def handled_by(stage: Stage, app: Streams, topic: Any) -> list[Message[int]]:
    """Handle ``topic`` in ``app``; what came, in order."""
    came: list[Message[int]] = []

    @app.processor(topic, group=stage.group, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        came.append(message)
        stage.seen.begin(message.key, value, message.attempt)
        stage.seen.end(message.key, value)

    return came


def soon(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


async def test_messages_come_when_due_in_due_order_as_they_were(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    happened = datetime(2020, 1, 1, tzinfo=timezone.utc)
    now = datetime.now(timezone.utc)
    async with app.connected():
        for value, due in ((1, 0.9), (2, 0.3), (3, 0.6)):
            taken = await delays.publish(
                topic, value, at=now + timedelta(seconds=due), key=f"k{value}", id=f"m{value}",
                headers={"color": "red"}, timestamp=happened,
            )  # fmt: skip
            assert taken.id == f"m{value}"
    again = stage.app()
    topic = stage.topic(again, partitions=1)
    delays_of(stage, again)
    handled: list[tuple[int, float, Any]] = []

    @again.processor(topic, group=stage.group, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        late = datetime.now(timezone.utc).timestamp() - now.timestamp()
        what = (message.id, message.key, message.headers["color"], message.timestamp)
        handled.append((value, late, what))
        stage.seen.handled.append((message.key, value))

    async with again:
        await stage.handled(3)
        await stage.committed(again)
    assert [value for value, _, _ in handled] == [2, 3, 1]
    dues = {1: 0.9, 2: 0.3, 3: 0.6}
    assert all(late >= dues[value] for value, late, _ in handled)
    assert [what for _, _, what in handled] == [
        (f"m{value}", f"k{value}", "red", happened) for value in (2, 3, 1)
    ]


async def test_one_far_off_message_holds_up_nothing(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    await handled_by(stage, app, topic)
    async with app:
        await delays.publish(topic, 0, delay=timedelta(days=365), id="far")
        for value in range(1, 21):
            await delays.publish(topic, value, delay=0.05)
        await stage.handled(20)
        # And nothing of it stands in the group's way: what was said in the topic is settled.
        await stage.until(lambda: delays.stats().pending == 1, "all but one are marked")
        assert await delays.cancel("far") == "cancelled"
    assert sorted(stage.seen.values) == list(range(1, 21))


async def test_what_was_delivered_does_not_come_again_after_a_restart(stage: Stage) -> None:
    app, again = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    await handled_by(stage, app, topic)
    async with app:
        await delays.publish(topic, 1, delay=0, id="m1")
        await delays.publish(topic, 2, delay=DAY, id="m2")
        await stage.handled(1)
        await stage.until(lambda: delays.stats().delivered == 1, "marked")
    known = delays_of(stage, again)
    await handled_by(stage, again, stage.topic(again, partitions=1))
    async with again:
        await stage.until(lambda: known.stats().pending == 1, "the other is known again")
        assert await known.cancel("m1") == "delivered"
        assert await known.cancel("m2") == "cancelled"
        assert known.stats().delivered == 0
        await stage.committed(again)
    assert stage.seen.values == [1]


async def test_a_crash_between_delivery_and_mark_doubles_nothing(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    await handled_by(stage, app, topic)
    async with app.connected():
        await delays.publish(topic, 1, delay=0, id="m1", key="k")
        # As the owner would have, before it was killed.
        await topic.publish(1, id="m1", key="k")
    async with app:
        await stage.until(lambda: delays.stats().delivered == 1, "delivered and marked")
        await topic.publish(2, key="k")
        await stage.handled(2)
    assert stage.seen.values == [1, 2]


async def test_a_request_to_cancel_is_answered_by_what_happened(stage: Stage) -> None:
    app, asker = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app, partitions=2)
    stage.topic(asker, partitions=1)
    asks = delays_of(stage, asker, partitions=2)
    await handled_by(stage, app, topic)
    async with asker.connected():
        await asks.publish(asker.topics[topic.name], 1, delay=DAY, id="m1")
        with pytest.raises(TimeoutError, match="is a process running"):
            await asks.cancel("m9", within=0.05)
        async with app:
            await asks.publish(asker.topics[topic.name], 2, delay=0, id="m2")
            await stage.handled(1)
            assert await asks.cancel("m1") == "cancelled"
            assert await asks.cancel("m2") == "delivered"
            assert await asks.cancel("m3") == "unknown"
            assert await asks.cancel("m1") == "cancelled"
            assert delays.stats().cancelled == 1
            assert delays.stats().pending == 0
    assert stage.seen.values == [2]


async def test_an_id_that_is_pending_is_replaced(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    await handled_by(stage, app, topic)
    async with app:
        await delays.publish(topic, 1, delay=DAY, id="m")
        await delays.publish(topic, 2, delay=0.05, id="m")
        await delays.publish(topic, 3, delay=600, id="n")
        await delays.publish(topic, 4, delay=DAY, id="n")
        await stage.handled(1)
        await stage.until(lambda: delays.stats().pending == 1, "one is left")
        assert await delays.cancel("n") == "cancelled"
    assert stage.seen.values == [2]


async def test_owners_share_the_partitions(stage: Stage) -> None:
    apps = [stage.app() for _ in range(2)]
    desks = []
    for app in apps:
        topic = stage.topic(app, partitions=1)
        desks.append(delays_of(stage, app, partitions=4))
    await handled_by(stage, apps[0], apps[0].topics[stage.topic_name])
    topic = apps[0].topics[stage.topic_name]
    async with apps[0], apps[1]:
        await stage.until(lambda: all(each._scheduler._by_partition for each in desks), "shared")
        for value in range(100):
            app, desk = apps[value % 2], desks[value % 2]
            await desk.publish(app.topics[topic.name], value, delay=0.05, id=f"m{value}")
        await stage.handled(100)
        await stage.until(
            lambda: sum(each.stats().delivered for each in desks) == 100, "each was marked"
        )
    assert Counter(stage.seen.values) == Counter(range(100))
    assert all(each.stats().delivered for each in desks)


async def test_what_cannot_be_delivered_is_a_dead_letter_and_can_be_put_back(stage: Stage) -> None:
    """Into the delay topic, as that is what its owner delivers from."""
    teller, app, again = stage.app(), stage.app(), stage.app()
    other = teller.topic(f"{stage.topic_name}.other", int, partitions=1)
    told = delays_of(stage, teller)
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app)
    await handled_by(stage, app, topic)
    async with teller.connected():
        await told.publish(other, 7, delay=0, key="k", id="m7", headers={"color": "red"})
    async with app:
        await delays.publish(topic, 1, delay=0)
        await stage.handled(1)
        await stage.until(lambda: delays.stats().dead == 1, "a dead letter")
        assert await delays.cancel("m7") == "dead"
        letters = app.topic(f"{stage.topic_name}.later.dead", bytes)
        (letter,) = await asyncio.to_thread(lambda: list(letters.read()))
    assert letter.value == b"7"
    assert letter.headers["color"] == "red"
    assert "does not declare" in letter.headers["__streams.errors.message"]

    other = again.topic(other.name, int, partitions=1)
    delays = delays_of(stage, again)
    came = await handled_by(stage, again, other)
    manager = DeadLetterManager(again, f"{delays.name}.dead")
    async with again:
        assert await manager.reprocess() == 1
        await stage.handled(2)
        await stage.until(lambda: delays.stats().delivered == 1, "marked")
        assert await delays.cancel("m7") == "delivered"
        assert await manager.get_dead_letters() == []
    (message,) = came
    assert (message.id, message.key, message.value) == ("m7", "k", 7)
    assert message.headers["color"] == "red"


async def test_what_is_known_is_bounded_and_the_rest_is_found_again(stage: Stage) -> None:
    app, again = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app, pending=10)
    values, bound = list(range(60)), 10 + 2 + 1
    Random(3).shuffle(values)
    async with app.connected():
        for value in values:
            await delays.publish(topic, value, delay=DAY + value, id=f"m{value}")
    await handled_by(stage, app, topic)
    async with app:
        await stage.until(lambda: delays.stats().pending >= 10, "the next are known")
        assert delays.stats().pending <= bound
        # It is behind the horizon, so the log is asked.
        assert await delays.cancel("m59") == "cancelled"
        # And again, whatever became of it before.
        await delays.publish(topic, 59, delay=DAY + 59, id="m59")
        assert await delays.cancel("m59") == "cancelled"
        assert delays.stats().cancelled == 2
    topic = stage.topic(again, partitions=1)
    delays = delays_of(stage, again, pending=10)
    came = await handled_by(stage, again, topic)
    base, most = soon(0), 0
    async with again.connected():
        for value in values:
            due = base + timedelta(milliseconds=10 * value)
            await delays.publish(topic, value, at=due, id=f"m{value}")
    async with again:

        def over() -> bool:
            nonlocal most
            most = max(most, delays.stats().pending)
            return len(came) == 60

        await stage.until(over, "all delivered")
    assert stage.seen.values == list(range(60))
    assert most <= bound
    assert delays.stats().scans > 3


async def test_what_arrives_when_the_log_is_looked_at_again_is_delivered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wait than are known, so those that are due last are dropped. When what was known is
    delivered, and before the log is read again, another process appends what is due at once."""
    app, other = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    delays = delays_of(stage, app, pending=1)
    elsewhere, same_topic = delays_of(stage, other), stage.topic(other, partitions=1)
    await handled_by(stage, app, topic)
    loop, scans = asyncio.get_running_loop(), 0
    plan_scan = scheduler.PartitionScheduler._plan_scan

    def append_first(partition: scheduler.PartitionScheduler) -> Any:
        nonlocal scans
        scans += 1
        if scans == 2:
            late = elsewhere.publish(same_topic, 2, delay=0)
            asyncio.run_coroutine_threadsafe(late, loop).result()
        return plan_scan(partition)

    monkeypatch.setattr(scheduler.PartitionScheduler, "_plan_scan", append_first)
    async with other.connected():
        await elsewhere.publish(same_topic, 1, delay=0)
        for far in range(4):
            await elsewhere.publish(same_topic, 10 + far, delay=DAY + far)
        async with app:
            await stage.handled(2)
            await stage.until(lambda: delays.stats().delivered == 2, "marked")
    assert stage.seen.values == [1, 2]


async def test_what_makes_no_sense_is_refused(stage: Stage) -> None:
    app, other = stage.app(), stage.app()
    topic = stage.topic(app, partitions=1)
    foreign = other.topic("foreign", int)
    delays = delays_of(stage, app)
    wrongs: list[dict[str, Any]] = [
        {}, {"delay": 1, "at": soon(1)}, {"delay": -1}, {"delay": "1"}, {"delay": True},
        {"delay": float("nan")}, {"delay": float("inf")}, {"at": 5},
        {"at": datetime(2030, 1, 1)},  # noqa: DTZ001
    ]  # fmt: skip
    async with app.connected():
        for wrong in wrongs:
            with pytest.raises(InvalidValue):
                await delays.publish(topic, 1, **wrong)
        with pytest.raises(ConfigError, match="not declared on this app"):
            await delays.publish(foreign, 1, delay=1)
        with pytest.raises(InvalidValue, match="message ID"):
            await delays.cancel("")
    for options in ({"partitions": 0}, {"pending": 0}, {"pending": True}):
        with pytest.raises(ConfigError, match=r"must be an? .*integer"):
            Delays(app, "x", **options)


# -- where time is in the test's hand


@pytest.mark.parametrize("log", ["memory", "sqlite"])
async def test_nothing_comes_early(log: str, tmp_path: Path) -> None:
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    came: list[int] = []

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        came.append(value)

    url = "memory://" if log == "memory" else f"sqlite:///{tmp_path / 'log.db'}"
    async with harness(app, clock=Clock(), url=url) as running:
        await delays.publish(topic, 1, delay=60)
        await delays.publish(topic, 2, at=running.clock.now() + timedelta(seconds=30))
        running.clock.advance(29.999)
        await running.settled()
        assert came == []
        running.clock.advance(0.001)
        await running.settled()
        assert came == [2]
        running.clock.advance(timedelta(days=1))
        await running.settled()
        assert came == [2, 1]


@pytest.mark.parametrize("log", ["memory", "sqlite"])
async def test_a_dead_letter_that_is_refused_holds_up_and_doubles_nothing(
    log: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    url = "memory://" if log == "memory" else f"sqlite:///{tmp_path / 'log.db'}"

    def refusals() -> int:
        said = [each.getMessage() for each in caplog.records]
        return sum("cannot write the dead letters of" in each for each in said)

    def refused_again(before: int) -> bool:
        return refusals() > before

    def delivered(count: int) -> bool:
        return delays.stats().delivered == count

    async with harness(app, clock=Clock(), url=url) as running:
        due = int((running.clock.time() + 60) * 1000)
        strays = [
            delay_records.entry_record(topic.record(9, id=id), "elsewhere", due)
            for id in ("bad", "worse")
        ]
        await app.publisher.publish_many("delays", strays)
        await delays.publish(topic, 1, delay=60)
        await until(lambda: delays.stats().pending == 3, "all are known")
        running.log.delete_topic("delays.dead")
        for number in (2, 3, 4):
            before = refusals()
            running.clock.advance(61)
            await until(partial(refused_again, before), "it was tried again")
            await delays.publish(topic, number, delay=0)
            await until(partial(delivered, number), "the others go on")
        assert (delays.stats().pending, delays.stats().dead) == (2, 0)
        assert await delays.cancel("bad") == "cancelled"
        running.log.create_topic("delays.dead", 1)
        running.clock.advance(61)
        await until(lambda: delays.stats().dead == 1, "its dead letter is written")
        assert await delays.cancel("worse") == "dead"
        assert [each.value for each in await running.messages(topic)] == [1, 2, 3, 4]
        (letter,) = await running.messages(app.topic("delays.dead", bytes))
        assert letter.key == "worse"


class SetForward:
    """A machine's clock that somebody sets, which is said to nobody."""

    def __init__(self) -> None:
        self.by = 0.0

    def monotonic(self) -> float:
        return SYSTEM.monotonic()

    def time(self) -> float:
        return SYSTEM.time() + self.by

    def real_timeout(self, seconds: float) -> float:
        return SYSTEM.real_timeout(seconds)

    def on_jump(self, callback: Callable[[], None]) -> Callable[[], None]:
        return SYSTEM.on_jump(callback)


async def test_that_the_clock_was_set_is_noticed() -> None:
    app, clock = Streams("memory://"), SetForward()
    app.clock = clock
    topic = app.topic("wanted", int)
    delays = Delays(app)
    async with app:
        await delays.publish(topic, 1, delay=3_000)

        def sleeps() -> bool:
            owned = delays._scheduler._by_partition.get(0)
            return owned is not None and owned.is_idle and owned.idle_until is not None

        await until(sleeps, "it waits")
        clock.by = 3_000
        await until(lambda: delays.stats().delivered == 1, "delivered")


async def test_what_is_given_up_before_it_began_has_ended() -> None:
    """It was assigned and revoked while the loop was busy."""
    app, clock = Streams("memory://"), Clock()
    app.clock = clock
    delays = Delays(app)
    async with app.connected():
        keeper = delays._scheduler
        watchers = len(clock._watchers)
        owned = scheduler.PartitionScheduler(keeper, Assignment(delays.name, 0, 1, None))
        owned.start()
        owned.stopped = True
        owned.stop()
        await until(owned.ended.is_set, "it has ended")
        assert len(clock._watchers) == watchers


@pytest.mark.parametrize("log", ["memory", "sqlite"])
async def test_a_log_that_trims_keeps_what_is_pending(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "FLOOR_INTERVAL", 0.0)
    app = Streams("memory://")
    topic = app.topic("wanted", int)
    delays = Delays(app)
    url = "memory://" if log == "memory" else f"sqlite:///{tmp_path / 'log.db'}"

    async def pass_through(count: int) -> None:
        """So many messages that are due at once, and their marks."""
        records = [
            delay_records.entry_record(topic.record(value), topic.name, 0) for value in range(count)
        ]
        before = delays.stats().delivered
        await app.publisher.publish_many("delays", records)
        while delays.stats().delivered < before + count:
            await running.settled(within=60)

    async with harness(app, clock=Clock(), url=url) as running:
        log_ = running.log
        await delays.publish(topic, -1, delay=DAY, id="far")
        await pass_through(15_000)
        running.clock.advance(2)
        await pass_through(500)
        assert log_.watermarks("delays", 0)[0] == 0
        assert await delays.cancel("far") == "cancelled"
        await pass_through(15_000)
        running.clock.advance(2)
        await pass_through(500)
        assert log_.watermarks("delays", 0)[0] > 0
        first, end = log_.watermarks("delays", 0)
        assert end - first < 45_000


async def test_payloads_are_bounded_and_due_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "DELIVERY_BYTES", 100)
    app = Streams("memory://")
    topic = app.topic("wanted", bytes)
    delays = Delays(app)
    came: list[int] = []

    @app.processor(topic, group="g")
    async def handle(value: bytes) -> None:
        came.append(int(value))

    async with harness(app, clock=Clock()) as running:
        for number in reversed(range(40)):  # the last to be due stands first
            await delays.publish(topic, b"%030d" % number, delay=number + 1)
        await delays.publish(topic, b"%0300d" % 40, delay=50)
        while delays.stats().pending < 41:  # what is not known yet has no place in the order
            await running.settled()
        running.clock.advance(3600)
        while delays.stats().delivered < 41:
            await running.settled()
    assert came == list(range(41))


async def test_payloads_are_found_by_position(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, bytes, partitions=1)
    async with app.connected():
        places = []
        for low in range(0, 300, 100):
            places += await topic.publish_many([b"%d" % n for n in range(low, low + 100)])
            await asyncio.sleep(0.002)  # on Redis what stands in another millisecond has a gap
        positions = [place.offset for place in places]
        look = record_fetcher.RecordFetcher(app.log, topic.name, 0)

        def found(wanted: list[int], most: int = 1 << 20) -> tuple[list[bytes | None], bool]:
            rows, whole = look.fetch(wanted, most)
            assert list(rows) == wanted[: len(rows)]
            return [None if row is None else row.value for row in rows.values()], whole

        await asyncio.to_thread(found, positions)
        for wanted in ([0], [299], [3, 4, 5, 150, 298], list(range(0, 300, 7)), list(range(300))):
            values, whole = await asyncio.to_thread(found, [positions[each] for each in wanted])
            assert values == [b"%d" % each for each in wanted]
            assert whole
        values, whole = await asyncio.to_thread(found, positions, 40)
        assert not whole
        assert 0 < len(values) < 300
        # Where positions have gaps, what stands in none of them is not there.
        gap = positions[99] + 1
        if gap < positions[100]:
            wanted = [positions[99], gap, positions[100]]
            values, _ = await asyncio.to_thread(found, wanted)
            assert values == [b"99", None, b"100"]
        else:
            assert stage.case.name != "redis"


# -- real processes, killed


class Deliverer:
    """A process that delivers over fake time (see delay_child)."""

    def __init__(self, url: str, pending: int, start: float, end: float, step: float) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        numbers = [str(pending), str(start), str(end), str(step)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.patterns.delay_child", url, *numbers],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Deliverer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self) -> list[float] | None:
        """What it says after the next step; None at its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def kill(self) -> None:
        """``kill -9``."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


async def a_day(tmp_path: Path, count: int, pending: int, step: float) -> list[list[float]]:
    """``count`` messages over 24 hours of fake time on a file, the deliverer killed half-way: each
    is delivered once, not before it is due. What the deliverer said."""
    url = f"sqlite:///{tmp_path / 'log.db'}?synchronous=normal"
    start, random = 1_700_000_000.0, Random(11)
    dues: list[int] = [int((start + random.random() * DAY) * 1000) for _ in range(count)]
    app, _ = declare(url, pending)
    app.clock = Clock(datetime.fromtimestamp(start, timezone.utc))
    topic = app.topics[SOURCE]
    async with app.connected():
        await asyncio.to_thread(scheduler.ensure_delay_topic, app.log, "delays", 2)
        for low in range(0, count, 10_000):
            records = [
                delay_records.entry_record(topic.record(value, id=f"m{value}"), SOURCE, dues[value])
                for value in range(low, min(count, low + 10_000))
            ]
            await app.publisher.publish_many("delays", records)
    said: list[list[float]] = []
    now = start
    with Deliverer(url, pending, now, start + DAY, step) as first:
        while now < start + DAY / 2:
            line = await asyncio.to_thread(first.next)
            assert line is not None
            said.append(line)
            now = line[0]
        # It goes on with the next step while we kill it.
    killed_at = now
    log = open_log(url)
    floors = log.committed(floor_group("delays"), "delays")
    log.close()
    assert all(parse_place(each.progress) for each in floors.values()), "no checkpoint"
    with Deliverer(url, pending, killed_at, start + DAY, step) as second:
        while (line := await asyncio.to_thread(second.next)) is not None:
            said.append(line)
            now = line[0]
    assert now == start + DAY
    assert said[-1][2] == 0

    # Each is there, not before it was due; what the kill made come twice is handled once.
    app, _ = declare(url, pending)
    app.clock = Clock(datetime.fromtimestamp(start + DAY, timezone.utc))
    seen: Counter[int] = Counter()
    handled: Counter[int] = Counter()
    topic = app.topics[SOURCE]

    @app.processor(topic, group="count", batch=1000, flow=Flow(commit=3600))
    async def handle(values: list[int]) -> None:
        handled.update(values)

    async with harness(app, clock=app.clock, url=url) as running:
        async for message in topic.read():
            seen[message.value] += 1
            taken = message._batch.time(message._index)
            assert taken * 1000 >= dues[message.value] - 1
        await running.settled(within=600)
    assert len(seen) == count
    twice = sum(times - 1 for times in seen.values())
    assert twice <= 2 * scheduler.DELIVERY_BATCH
    assert set(handled) == set(range(count))
    assert set(handled.values()) == {1}
    return said


async def test_ten_thousand_messages_over_a_day_killed_midway(tmp_path: Path) -> None:
    said = await a_day(tmp_path, 10_000, pending=2_000, step=3600)
    assert max(line[2] for line in said) <= 2 * (2_000 + 500) + scheduler.DELIVERY_BATCH


@pytest.mark.faults
@pytest.mark.timeout(3600)
async def test_a_million_messages_over_a_day_killed_midway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = await a_day(tmp_path, 1_000_000, pending=100_000, step=300)
    assert max(line[2] for line in said) <= 2 * (125_000 + scheduler.DELIVERY_BATCH)
    peak = max(line[3] for line in said)
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory {peak:g} MiB, read {said[-1][4]:g} times\n")
    assert peak < 300
