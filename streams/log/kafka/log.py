"""The log protocol on Kafka: one object that holds the clients and shares the work out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from streams.config import Flow
from streams.errors import ConfigError, GroupNotEmpty
from streams.log.dense_offsets import DenseOffsets
from streams.log.kafka import durability, forced_resets
from streams.log.kafka.client import RequestRetry, SharedClient
from streams.log.kafka.consumer import KafkaClients, MemberOptions
from streams.log.kafka.errors import DriverLogger, translate
from streams.log.kafka.groups import Groups
from streams.log.kafka.offsets import CommittedOffsets
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import KafkaReader, ReaderPool
from streams.log.kafka.settings import (
    MAX_MESSAGE_BYTES,
    Settings,
    check_settings,
    read_settings,
    suggest_setting,
)
from streams.log.kafka.subscription import KafkaSubscription
from streams.log.kafka.topics import Topics
from streams.log.names import check_group
from streams.log.protocol import (
    TRIM_MARGIN,
    Capabilities,
    Committed,
    DurabilityFact,
    GroupInfo,
    OnAppended,
    OpenRequest,
    RebalanceListener,
    Retention,
    StaticMember,
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
    commit_interval=0.1,
    # Whatever the producer may write at all fits a dead letter topic.
    dead_letter_config={"max.message.bytes": str(MAX_MESSAGE_BYTES)},
    # Nothing younger than an hour is compacted: what is said of a key is heard before it goes.
    compacted_config={"cleanup.policy": "compact", "min.compaction.lag.ms": "3600000"},
)

Client = TypeVar("Client", Consumer, Producer, AdminClient)


def open(request: OpenRequest) -> KafkaLog:
    """Open ``kafka://`` or ``kafka+ssl://``. Does not wait for a connection.

    :raises ConfigError: the URL or a setting cannot work.
    """
    return KafkaLog(read_settings(request))


class KafkaLog(DenseOffsets):
    """See :class:`streams.log.protocol.Log`.

    ``offset_before`` and ``lag`` count offsets, as Kafka's own tools do, transaction markers and
    compacted messages included: how many messages a range holds cannot be told without reading it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._driver_logger = settings.user_config.get("logger") or DriverLogger(
            logger, scrub=settings.scrub
        )
        self._subscriptions: set[KafkaSubscription] = set()
        self._lock = threading.Lock()
        self._closed = False
        # The driver checks names and values when a client is made, so one of each is made now.
        self._admin = admin = SharedClient(
            lambda: self._connect(AdminClient, settings.admin_config())
        )
        with admin.use():
            pass
        self._requests = requests = RequestRetry(settings, admin)
        connect_consumer = partial(self._connect, Consumer)
        self._readers = ReaderPool(
            settings, connect_consumer, requests, lambda *part: self._topics.check_partitions(*part)
        )
        self._topics = Topics(settings, admin, self._readers.metadata, requests)
        self._groups = Groups(
            settings, CommittedOffsets(settings, connect_consumer, requests), requests
        )
        trial_config = {**settings.member_config("streams", Flow(), lambda _: None), "log_level": 0}
        self._connect(Consumer, trial_config).close()
        self._clients = KafkaClients(
            settings,
            lambda conf: self._connect(Consumer, conf, logger=self._driver_logger),
            requests,
            self._readers,
            self._topics.partitions_with_leader,
        )
        self._writer = Writer(
            settings,
            lambda conf: self._connect(Producer, conf, logger=self._driver_logger),
            self._topics.partition_count,
            requests.record_client_error,
            self._readers.probe_broker,
        )

    def __repr__(self) -> str:
        return f"<Kafka log at {self._settings.hosts}>"

    def _connect(
        self, client_class: Callable[..., Client], config: dict[str, Any], **more: Any
    ) -> Client:
        """Make one of the driver's clients.

        :raises ConfigError: the driver does not take the settings.
        """
        try:
            return client_class(config, **more)
        except KafkaException as error:
            config_error = translate(error, "settings", self._settings.scrub)
            if (hint := suggest_setting(str(config_error))) is not None:
                config_error = ConfigError(f"{config_error}; {hint}")
            raise config_error from None
        except (TypeError, ValueError) as error:
            self._settings.secrets.hide_in_error(error)
            raise ConfigError(f"Kafka, settings: {error}") from None

    @property
    def capabilities(self) -> Capabilities:
        """What this log can do."""
        return CAPABILITIES

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic, kept for ever unless ``retention`` says otherwise.

        ``config`` is Kafka's own topic settings, and ``replication.factor``. Where the topic
        exists it is left as it is.

        :raises TopicMismatch: it exists with another number of partitions.
        :raises ConfigError: there is no such retention here.
        :raises Fatal: this user may not create it.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.create_topic(topic, partitions, retention, config)

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """Give a topic that exists another retention; its other settings stay.

        :raises NotFound: there is none of that name.
        :raises ConfigError: there is no such retention here.
        :raises Fatal: this user may not.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.set_retention(topic, retention)

    def topic(self, topic: str) -> TopicInfo:
        """A topic's facts.

        :raises NotFound: there is none of that name.
        """
        return self._topics.describe_topic(topic)

    def topics(self) -> list[TopicInfo]:
        """All topics, by name; Kafka's internal ones are left out."""
        return self._topics.list_topics()

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        """How many brokers have a topic, and how many must.

        :raises NotFound: there is none of that name.
        """
        return durability.durability_facts(self._requests, topic)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        self._topics.delete_topic(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Write records in order. Returns once they are queued; ``on_appended`` is called when all
        of them are confirmed or failed."""
        self._writer.append(topic, records, on_appended)

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """First position that can be read, and the end of what can be read now."""
        return self._readers.watermarks(topic, partition)

    def log_end_offset(self, topic: str, partition: int) -> int:
        """The end, open transactions included: the position of a member that read them, too, may
        lie behind what can be read now."""
        return self._readers.end(topic, partition)

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        """Position of the first message the log took at or after ``time``; the end if none.

        Kafka's time of a message is when it was published, by the producer's clock (on a topic
        with ``message.timestamp.type=LogAppendTime``, by the broker's).
        """
        return self._readers.offset_for_time(topic, partition, time)

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """Read from position ``start`` up to, not including, position ``end``.

        :raises NotFound: there is no such topic or partition.
        """
        self._topics.check_partitions(topic, [partition])
        return self._readers.open_reader(topic, partition, start, end)

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a *new* group its positions, all at once: True where it had none in this topic.

        :raises GroupNotEmpty: the group runs on other topics, so Kafka lets nobody set a position
            for it; its members find their new partitions without one.
        """
        check_group(group)
        self._topics.check_partitions(topic, positions)
        return self._groups.initialize_offsets(group, topic, positions)

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        check_group(group)
        return self._groups.describe_group(group)

    def committed(self, group: str, topic: str) -> dict[int, Committed]:
        """Where a group is in one topic, by partition; nothing if it never was there."""
        check_group(group)
        partitions = [(topic, number) for number in range(self._topics.partition_count(topic))]
        offsets = self._groups.committed(group, partitions)
        return {partition: committed for (_, partition), committed in offsets.items()}

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return self._groups.list_groups()

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """Set a group's places in a topic; the group is made if there is none.

        :raises GroupNotEmpty: it has running members, and ``force`` is not set. When forced, its
            members lose the partitions and start over from the new places; members that are not
            this toolkit's refuse.
        """
        check_group(group)
        self._topics.check_partitions(topic, offsets)
        try:
            self._groups.alter_offsets(group, topic, offsets)
        except GroupNotEmpty:
            if not force:
                raise
            forced_resets.force_reset(self._groups, group, topic, offsets)

    def delete_group(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupNotEmpty: it has running members.
        :raises NotFound: there is none of that name.
        """
        check_group(group)
        self._groups.delete_group(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        *,
        flow: Flow = Flow(),
        trim_margin: int = TRIM_MARGIN,
        member: StaticMember | None = None,
    ) -> KafkaSubscription:
        """Join a group. Up to half of ``flow.bytes`` is the driver's own queue; Kafka trims by
        the topic's settings, so ``trim_margin`` has no say.

        :raises NotFound: there is no such topic.
        :raises ConfigError: a static member, with KIP-848.
        """
        check_group(group)
        member_name = member.name if member is not None else ""
        check_settings(replace(self._settings, member_name=member_name))
        for topic in topics:
            self._topics.partition_count(topic)
        kip848 = self._settings.kip848
        session_timeout = (
            self._groups.session_timeout(group) if kip848 else self._settings.session_timeout
        )
        reset_requests = forced_resets.ResetRequests(self._groups, group)
        try:
            subscription = KafkaSubscription(
                self._clients,
                MemberOptions(group, topics, flow, session_timeout, member_name),
                listener,
                reset_requests,
                self._discard_subscription,
            )
        except BaseException:
            reset_requests.close()
            raise
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def _discard_subscription(self, subscription: KafkaSubscription) -> None:
        """A subscription was closed: nothing of it is kept."""
        with self._lock:
            self._subscriptions.discard(subscription)

    def remove_member(self, group: str, member: StaticMember) -> None:
        """Nothing can be done: the driver has no request for it. A static member's name brings
        its partitions back as soon as it is started again; others wait for the session's end."""

    # -- the rest

    def flush(self, timeout: float) -> None:
        """Wait until every append so far has been told its outcome.

        :raises Unavailable: some have not, after ``timeout`` seconds.
        """
        self._writer.flush(timeout)

    def close(self) -> None:
        """Let go of everything; what was not acknowledged is told so."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            subscriptions, self._subscriptions = list(self._subscriptions), set()
        self._writer.close()
        for subscription in subscriptions:
            try:
                subscription.close()
            except Exception:
                logger.exception("group %s: leaving it", subscription.group)
        self._readers.close()
        self._admin.close()
