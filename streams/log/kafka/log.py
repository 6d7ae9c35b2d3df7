"""The log protocol on Kafka: one object that holds the clients and shares the work out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from streams import wire
from streams.config import Flow
from streams.errors import ConfigError, GroupLive
from streams.log.kafka import durability, moves
from streams.log.kafka.asking import Asking
from streams.log.kafka.client import Shared
from streams.log.kafka.errors import translate
from streams.log.kafka.groups import Groups
from streams.log.kafka.lines import Lines
from streams.log.kafka.places import Places
from streams.log.kafka.producer import Appender
from streams.log.kafka.reading import KafkaReader, Readers
from streams.log.kafka.settings import MESSAGE_BYTES, Settings, check, meant, settings
from streams.log.kafka.subscription import KafkaSubscription
from streams.log.kafka.topics import Topics
from streams.log.names import check_group
from streams.log.protocol import (
    TRIM_MARGIN,
    Capabilities,
    Committed,
    Done,
    Fact,
    GroupInfo,
    Listener,
    Opened,
    Retention,
    Static,
    TopicInfo,
    check_retention,
)
from streams.message import Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

CAPABILITIES = Capabilities(
    "kafka",
    creates_topics=False,
    retention=frozenset({"seconds", "bytes", "compacted"}),
    # Each is a record that all replicas of the coordinator's partition write.
    commits=0.1,
    # The driver's message objects are looked through by Python's cyclic garbage collector again
    # and again while they live: with 1,000, a message cost 10 % more CPU.
    portion=256,
    # Whatever the producer may write at all fits a dead letter topic.
    letters={"max.message.bytes": str(MESSAGE_BYTES)},
    # Nothing younger than an hour is compacted: what is said of a key is heard before it goes.
    compacted={"cleanup.policy": "compact", "min.compaction.lag.ms": "3600000"},
)

Client = TypeVar("Client", Consumer, Producer, AdminClient)


def open(opened: Opened) -> KafkaLog:
    """Open ``kafka://`` or ``kafka+ssl://``. Does not wait for a connection.

    :raises ConfigError: the URL or a setting cannot work.
    """
    return KafkaLog(settings(opened))


class KafkaLog:
    """See :class:`streams.log.protocol.Log`."""

    def __init__(self, found: Settings) -> None:
        self._settings = found
        self._lines = found.given.get("logger") or Lines(logger, scrub=found.scrub)
        self._subscriptions: set[KafkaSubscription] = set()
        self._lock = threading.Lock()
        self._closed = False
        # The driver checks names and values when a client is made, so one of each is made now.
        self._admin = admin = Shared(lambda: self._connect(AdminClient, found.admin()))
        with admin.use():
            pass
        self._asking = asking = Asking(found, admin)
        consumer = partial(self._connect, Consumer)
        self._readers = Readers(found, consumer, asking, lambda *part: self._topics.check(*part))
        self._topics = Topics(found, admin, self._readers.metadata, asking)
        self._groups = Groups(found, admin, Places(found, consumer, asking), asking)
        trial = {**found.member("streams", Flow(), lambda _: None), "log_level": 0}
        self._connect(Consumer, trial).close()
        self._appender = Appender(
            found,
            lambda conf: self._connect(Producer, conf, logger=self._lines),
            self._topics.partitions,
            asking.told,
            self._readers.reaches,
        )

    def __repr__(self) -> str:
        return f"<Kafka log at {self._settings.hosts}>"

    def _connect(self, kind: Callable[..., Client], conf: dict[str, Any], **more: Any) -> Client:
        """Make one of the driver's clients.

        :raises ConfigError: the driver does not take the settings.
        """
        try:
            return kind(conf, **more)
        except KafkaException as error:
            refused = translate(error, "settings", self._settings.scrub)
            if (hint := meant(str(refused))) is not None:
                refused = ConfigError(f"{refused}; {hint}")
            raise refused from None
        except (TypeError, ValueError) as error:
            self._settings.secrets.hide_in(error)
            raise ConfigError(f"Kafka, settings: {error}") from None

    @property
    def capabilities(self) -> Capabilities:
        """What this log can do."""
        return CAPABILITIES

    # -- topics

    def create(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic, kept for ever unless ``retention`` says otherwise.

        ``config`` is Kafka's own topic settings, and ``replication.factor``. Where the topic
        exists it is left as it is.

        :raises Mismatch: it exists with another number of partitions.
        :raises ConfigError: there is no such retention here.
        :raises Fatal: this user may not create it.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.create(topic, partitions, retention, config)

    def retain(self, topic: str, retention: Retention) -> TopicInfo:
        """Give a topic that exists another retention; its other settings stay.

        :raises NotFound: there is none of that name.
        :raises ConfigError: there is no such retention here.
        :raises Fatal: this user may not.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.retain(topic, retention)

    def topic(self, topic: str) -> TopicInfo:
        """A topic's facts.

        :raises NotFound: there is none of that name.
        """
        return self._topics.topic(topic)

    def topics(self) -> list[TopicInfo]:
        """All topics, by name; Kafka's internal ones are left out."""
        return self._topics.topics()

    def durability(self, topic: str) -> tuple[Fact, ...]:
        """How many brokers have a topic, and how many must.

        :raises NotFound: there is none of that name.
        """
        return durability.facts(self._admin, self._asking, topic)

    def delete(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        self._topics.delete(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """Write records in order. Returns once they are queued; ``done`` is called when all of
        them are confirmed or failed."""
        self._appender.append(topic, records, done)

    # -- reading

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First position that can be read, and the end of what can be read now."""
        return self._readers.bounds(topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """The end, open transactions included: the position of a member that read them, too, may
        lie behind what can be read now."""
        return self._readers.end(topic, partition)

    def at(self, topic: str, partition: int, time: float) -> int:
        """Position of the first message the log took at or after ``time``; the end if none.

        Kafka's time of a message is when it was published, by the producer's clock (on a topic
        with ``message.timestamp.type=LogAppendTime``, by the broker's).
        """
        return self._readers.at(topic, partition, time)

    def back(self, topic: str, partition: int, position: int, count: int) -> int:
        """The position ``count`` offsets before ``position``, or the first there is.

        Transaction markers and compacted messages count as well: Kafka cannot tell how many
        messages a range holds without reading it.
        """
        first, end = self.bounds(topic, partition)
        return max(first, min(position, end) - count)

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        """How many offsets stand at or behind ``position``, as Kafka's own tools count."""
        first, end = self.bounds(topic, partition)
        return max(0, end - max(position, first))

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """Read from position ``start`` up to, not including, position ``end``.

        :raises NotFound: there is no such topic or partition.
        """
        self._topics.check(topic, [partition])
        return self._readers.read(topic, partition, start, end)

    # -- groups

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a *new* group its positions, all at once: True where it had none in this topic.

        :raises GroupLive: the group runs on other topics, so Kafka lets nobody set a position
            for it; its members find their new partitions without one.
        """
        check_group(group)
        self._topics.check(topic, positions)
        return self._groups.begin(group, topic, positions)

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        check_group(group)
        return self._groups.group(group)

    def places(self, group: str, topic: str) -> dict[int, Committed]:
        """Where a group is in one topic, by partition; nothing if it never was there."""
        check_group(group)
        parts = [(topic, part) for part in range(self._topics.partitions(topic))]
        found = self._groups.positions(group, parts)
        return {partition: place for (_, partition), place in found.items()}

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return self._groups.names()

    def move(
        self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """Set a group's places in a topic; the group is made if there is none.

        :raises GroupLive: it has running members, and ``force`` is not set. When forced, its
            members lose the partitions and start over from the new places; members that are not
            this toolkit's refuse.
        """
        check_group(group)
        self._topics.check(topic, places)
        try:
            self._groups.alter(group, topic, places)
        except GroupLive:
            if not force:
                raise
            moves.order(self._groups, group, topic, places)

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        :raises NotFound: there is none of that name.
        """
        check_group(group)
        self._groups.forget(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        flow: Flow = Flow(),
        window: int = TRIM_MARGIN,
        member: Static | None = None,
    ) -> KafkaSubscription:
        """Join a group. Up to half of ``flow.bytes`` is the driver's own queue; Kafka trims by
        the topic's settings, so ``window`` has no say.

        :raises NotFound: there is no such topic.
        :raises ConfigError: a static member, with KIP-848.
        """
        check_group(group)
        static = member.name if member is not None else ""
        check(replace(self._settings, static=static))
        for topic in topics:
            self._topics.partitions(topic)
        kip848 = self._settings.kip848
        session = self._groups.session(group) if kip848 else self._settings.session
        desk = moves.Desk(self._groups, group)
        try:
            subscription = KafkaSubscription(
                self._settings,
                lambda conf: self._connect(Consumer, conf, logger=self._lines),
                group,
                topics,
                listener,
                flow,
                session,
                desk,
                self._asking,
                self._readers,
                self._topics.led,
                self._left,
                static,
            )
        except BaseException:
            desk.close()
            raise
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def _left(self, subscription: KafkaSubscription) -> None:
        """A subscription was closed: nothing of it is kept."""
        with self._lock:
            self._subscriptions.discard(subscription)

    def expel(self, group: str, member: Static) -> None:
        """Nothing can be done: the driver has no request for it. A static member's name brings
        its partitions back as soon as it is started again; others wait for the session's end."""

    # -- the rest

    def show(self, offset: int) -> str:
        """An offset as people write it: a number."""
        return str(offset)

    def parse(self, text: str) -> int:
        """An offset as :meth:`show` writes it.

        :raises ConfigError: it is none.
        """
        found = wire.whole(text)
        if found is None:
            raise ConfigError(
                f"offset {wire.brief(text, 60)!r}: a Kafka offset is a number, such as 42"
            )
        return found

    def flush(self, timeout: float) -> None:
        """Wait until every append so far has been told its outcome.

        :raises Unavailable: some have not, after ``timeout`` seconds.
        """
        self._appender.flush(timeout)

    def close(self) -> None:
        """Let go of everything; what was not acknowledged is told so."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            subscriptions, self._subscriptions = list(self._subscriptions), set()
        self._appender.close()
        for subscription in subscriptions:
            try:
                subscription.close()
            except Exception:
                logger.exception("group %s: leaving it", subscription.group)
        self._readers.close()
        self._admin.close()
