"""Queues, choreographed sagas, views and process managers, over topics full of hostile records."""

from __future__ import annotations

from functools import partial

import msgspec
from hypothesis import strategies as st
from typing_extensions import override

from streams import Streams, View, ViewNotReady
from streams.eventsourcing.views.keyed_records import KeyedRecord, keyed_header
from streams.log.kafka import document_records
from streams.message import CORRELATION, TYPE, Record
from streams.patterns import (
    ChoreographySaga,
    ConsumerConfig,
    MessageQueue,
    PatternEventBus,
    QueueMessage,
    SagaEvent,
    SagaTracker,
    create_handler,
)
from streams.patterns import choreography as steps
from tests.hostile.generate import (
    any_text,
    any_value,
    anything,
    delayed,
    letter,
    mixed,
    note,
    pick,
    source,
)
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written
from tests.hostile.service import QUICK, Item, Running
from tests.managers.desk import Desk, Tick

ANY_DAY = 1_700_000_000_000
"""A time that a broker takes everywhere."""


class Sum(msgspec.Struct, frozen=True):
    """A view's document."""

    total: int = 0


def add(found: Sum | None, item: Item) -> Sum:
    return Sum((found or Sum()).total + item.n)


class Views(Running):
    """A view, and one whose documents have other keys than its source."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.keyed = f"{self.name('by-number')}.v1.keyed"
        ground.create(self.keyed)

    @override
    def declare(self, app: Streams) -> None:
        self.numbers = app.topic(self.name("numbers"), Item, partitions=1)
        self.sums = View(app, self.name("sums"), Sum, add, self.numbers)
        self.by_number = View(
            app, self.name("by-number"), Sum, add, self.numbers, key=lambda item: f"good-{item.n}"
        )

    @override
    def handle_good(self, n: int) -> None:
        id = f"good-{n}"
        self.app.wait(self.numbers.publish(Item(n), key=id))
        for view in (self.sums, self.by_number):
            self._until(partial(self._has, view, id, Sum(n)), view.name)

    def _has(self, view: View[Sum], key: str, wanted: Sum) -> bool:
        try:
            return self.app.wait(view.get(key)) == wanted
        except ViewNotReady:  # not yet
            return False

    @override
    def kinds(self) -> dict[str, st.SearchStrategy[Written]]:
        found = {self.keyed: mixed(keyed)}
        if self.ground.case.name == "kafka":
            for view in ("sums", "by-number"):
                found[f"{self.name(view)}.v1.documents"] = documents()
        return found


class Patterns(Views):
    """One app with each of them, each in topics of its own."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.queue_name, self.bus_name = self.name("queue"), self.name("steps")
        self.desk_name = f"{self.name('m')}-desk"
        queue, desk = self.queue_name, self.desk_name
        for name in (
            *(
                queue,
                f"{queue}.{queue}.attempts",
                f"{queue}.{queue}.dead",
                f"{queue}.{queue}.delay",
            ),
            self.bus_name,
            *(f"{desk}.timeouts", f"{desk}.timeouts.delay", f"{self.name('m')}-ticks.{desk}.dead"),
        ):
            ground.create(name)

    @override
    def declare(self, app: Streams) -> None:
        super().declare(app)
        self.queues = MessageQueue(app, partitions=1)
        self.queue = self.queues.declare(self.queue_name, Item)
        self.bus = PatternEventBus(app, self.bus_name)
        self.tracker = SagaTracker(self.bus, done="order.shipped")
        self.desk = Desk(app, self.name("m"))

        @self.queue.subscribe(config=ConsumerConfig(max_retries=1, retry_delay=0.001, commit=0.05))
        async def work(message: QueueMessage[Item]) -> None:
            assert repr(message)
            assert message.timestamp.utcoffset() is not None
            dict(message.headers)
            if message.data.n < 0:
                raise ValueError("negative")
            self._saw("queue", message.data.n)

        async def pay(event: SagaEvent) -> dict[str, int]:
            assert repr(event)
            if event.data["n"] < 0:
                raise ValueError("negative")
            return {"n": event.data["n"]}

        async def ship(event: SagaEvent) -> None:
            self._saw("steps", event.data["n"])

        for function, listens_to, answer in (
            (pay, "order.placed", "order.paid"),
            (ship, "order.paid", "order.shipped"),
        ):
            create_handler(
                self.bus, listens_to, function, answer, "order.failed",
                group=f"{function.__name__}-{self.group}", flow=QUICK,
            )  # fmt: skip

    @override
    def start(self) -> None:
        super().start()
        self.app.wait(self.tracker.start())

    @override
    def handle_good(self, n: int) -> None:
        id, item = f"good-{n}", Item(n)

        async def publish() -> None:
            await self.queue.publish(item, key=id)
            await ChoreographySaga(self.bus, id).start("order.placed", {"n": n})
            await self.desk.ticks.publish(Tick(id, "open 5, schedule soon 0"))

        self.app.wait(publish())
        self._until(lambda: self.saw("queue", n), "queues")
        self._until(lambda: self.saw("steps", n), "steps")
        self._until(lambda: (found := self.tracker.get(id)) and found.status == "done", "trackers")
        super().handle_good(n)
        self._until(lambda: self._rang(id), "timeouts")

    def _rang(self, key: str) -> bool:
        found = self.app.wait(self.desk.manager.load(key))
        return bool(found.state.last == "Rang")

    @override
    def kinds(self) -> dict[str, st.SearchStrategy[Written]]:
        queue, desk = self.queue_name, self.desk_name
        ticks = f"{self.name('m')}-ticks"
        return super().kinds() | {
            queue: mixed(source),
            f"{queue}.{queue}.attempts": mixed(lambda n: note(n, queue, queue)),
            f"{queue}.{queue}.dead": mixed(lambda n: letter(n, queue, queue)),
            f"{queue}.{queue}.delay": mixed(lambda n: delayed(n, queue)),
            self.bus_name: mixed(step),
            f"{desk}.timeouts": mixed(timeout),
            f"{desk}.timeouts.delay": mixed(lambda n: delayed(n, f"{desk}.timeouts")),
            f"{ticks}.{desk}.dead": mixed(lambda n: letter(n, ticks, desk)),
        }


# -- the kinds of records that they write


def step(n: int) -> list[Record]:
    """What the steps of a saga publish."""
    return [
        Record(
            b'{"n":%d}' % n, b"s%d" % (n % 3), f"{topic}-{n}",
            (
                (TYPE, topic.encode()),
                (CORRELATION, b"s%d" % (n % 3)),
                (steps.STEP_HEADER, b"pay"),
                (steps.STATUS_HEADER, status),
                (steps.ERROR_HEADER, b"ValueError: why"),
            ),
        )
        for topic, status in (
            ("order.placed", b"started"), ("order.paid", b"succeeded"), ("order.failed", b"failed")
        )
    ]  # fmt: skip


def keyed(n: int) -> list[Record]:
    """What a keyed topic's writer writes, of a source that the view does not read."""
    return [
        Record(
            b'{"n":%d}' % n, b"good-%d" % n, f"y{n}",
            (
                keyed_header(KeyedRecord("nobody", 0, n, 0, (0, 1), after)),
                ("__streams.view.time", b"1"),
            ),
        )
        for after in (None, (n, 0))
    ]  # fmt: skip


def timeout(n: int) -> list[Record]:
    key = b"k%d" % (n % 3)
    value = b'{"type":"timeout","key":"k%d","name":"soon","sequence":"%d"}' % (n % 3, n)
    return [Record(value, key, f"t{n}")]


def documents() -> st.SearchStrategy[Written]:
    """Records of a collection on Kafka, which is compacted: each has a key, and none a good one's.
    Their times are such as a broker takes everywhere."""
    number = pick([b"1", b"3", b"30/-", b"9" * 18, b"7/0/3/me", b"1/1//me", b"2/0/1/"]) | any_text()
    name = pick(["streams_document", "streams_failure", "streams_checkpoint"]).map(str.encode)
    headers = st.lists(st.tuples(name, number), min_size=1, max_size=2)
    key = pick([b"k1", b"k2", document_records.CHECKPOINT_KEY]) | any_text()
    ours = st.builds(Written, any_value(), key, headers, st.just(ANY_DAY))
    return ours | anything().map(lambda found: found._replace(key=found.key or b"x", time=ANY_DAY))
