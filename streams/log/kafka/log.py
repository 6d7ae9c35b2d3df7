"""The log protocol on Kafka: one object that holds the clients and shares the work out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from typing_extensions import override

from streams.config import Flow
from streams.errors import ConfigError, GroupNotEmpty, LogError
from streams.log.dense_offsets import DenseOffsets
from streams.log.event_filter import EventReader
from streams.log.events import events_only
from streams.log.history_log import HistoryLog
from streams.log.kafka import durability, forced_resets
from streams.log.kafka.client import ExclusiveClients, RequestRetry, SharedClient
from streams.log.kafka.consumer import KafkaClients, MemberOptions
from streams.log.kafka.documents import KafkaDocuments
from streams.log.kafka.errors import DriverLogger
from streams.log.kafka.event_readers import EventReaders, KnownTopics, PolledEvents
from streams.log.kafka.events import Events
from streams.log.kafka.groups import Groups
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import KafkaReader, ReaderPool
from streams.log.kafka.reader_consumer import ReaderConsumer
from streams.log.kafka.settings import (
    MAX_MESSAGE_BYTES,
    Settings,
    check_settings,
    read_settings,
    suggest_setting,
)
from streams.log.kafka.snapshot_index import snapshot_topic
from streams.log.kafka.subscription import KafkaSubscription
from streams.log.kafka.topics import Topics
from streams.log.kafka.transactions import WriterTools
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
    events=True,
    documents=True,
    commits_outputs=True,
    retention=frozenset({"seconds", "bytes", "compacted"}),
    forgets_positions=True,
    # Each is a record that all replicas of the coordinator's partition write.
    commit_interval=0.1,
    # A dead letter topic takes all that the producer may write.
    dead_letter_config={"max.message.bytes": str(MAX_MESSAGE_BYTES)},
    # Readers see each record of a key for an hour before it may be compacted.
    compacted_config={"cleanup.policy": "compact", "min.compaction.lag.ms": "3600000"},
)

Client = TypeVar("Client", Consumer, Producer, AdminClient)


def open(request: OpenRequest) -> KafkaLog:
    """Open ``kafka://`` or ``kafka+ssl://``. Does not wait for a connection.

    :raises ConfigError: the URL or a setting cannot work.
    """
    return KafkaLog(read_settings(request))


class KafkaLog(DenseOffsets, HistoryLog[Events]):
    """Topics, appends, reads and groups on Kafka.

    ``offset_before`` and ``lag`` count offsets, as Kafka's own tools do, with transaction markers
    and compacted messages: only reading tells how many messages a range has.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._subscriptions: set[KafkaSubscription] = set()
        self._lock = threading.Lock()
        self._closed = False
        # The driver checks names and values when a client is made, so one of each is made now.
        self._admin = SharedClient(lambda: self._connect(AdminClient, settings.admin_config()))
        with self._admin.use():
            pass
        self._group_admins = ExclusiveClients(
            lambda: self._connect(AdminClient, settings.admin_config())
        )
        self._requests = requests = RequestRetry(settings, self._admin, self._group_admins)
        self._readers = readers = ReaderPool(partial(self._connect, ReaderConsumer), requests)
        self._metadata = readers.metadata
        self._topics = Topics(readers.metadata, requests)
        self._groups = Groups(partial(self._connect, Consumer), requests, self._topics)
        trial_config = {**settings.member_config("streams", Flow(), lambda _: None), "log_level": 0}
        self._connect(Consumer, trial_config).close()
        driver_logger = settings.user_config.get("logger") or DriverLogger(
            logger, scrub=settings.scrub
        )
        connect_member = partial(self._connect, Consumer, logger=driver_logger)
        # To the driver it is fatal that a writer is fenced. Here it raises an error as any other.
        quiet = DriverLogger(logger, scrub=settings.scrub, highest=logging.DEBUG)
        connect_writer = partial(self._connect, Producer, logger=quiet)
        self._clients = KafkaClients(connect_member, requests, readers, connect_writer)
        connect_producer = partial(self._connect, Producer, logger=driver_logger)
        self._writer = Writer(connect_producer, requests, readers)
        # Appends to histories come in groups, and a caller waits for each.
        make_event_writer = partial(Writer, connect_producer, requests, readers, linger=0)
        tools = WriterTools(connect_writer, requests, readers)
        self._events = Events(self._topics, make_event_writer, tools)
        self._event_readers = EventReaders(self._events)
        self._known_topics = KnownTopics(self._events.kinds, self._topics, readers)
        self.documents = KafkaDocuments(self._topics, tools)

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
            config_error = self._settings.translate(error, "settings")
            if hint := suggest_setting(str(config_error)):
                config_error = ConfigError(f"{config_error}; {hint}")
            raise config_error from None
        except (TypeError, ValueError) as error:
            self._settings.secrets.hide_in_error(error)
            raise ConfigError(f"Kafka, settings: {error}") from None

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic; one that exists is left as it is.

        :param config: Kafka's own topic settings, and ``replication.factor``.
        :raises Fatal: this user may not create it.
        """
        check_retention(topic, retention, CAPABILITIES)
        if self._events.kinds.refuses_records(topic):
            raise events_only(topic, "created as another topic")
        return self._topics.create_topic(topic, partitions, retention, config)

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        check_retention(topic, retention, CAPABILITIES)
        if retention != Retention() and self._events.kinds.refuses_records(topic):
            raise events_only(topic, "trimmed")
        return self._topics.set_retention(topic, retention)

    def delete_before(self, topic: str, partition: int, position: int) -> None:
        """See :meth:`streams.log.protocol.RecordDeleter.delete_before`."""
        if self._events.kinds.refuses_records(topic):
            raise events_only(topic, "trimmed")
        self._topics.delete_before(topic, partition, position)

    def describe_topic(self, topic: str) -> TopicInfo:
        info = self._topics.describe_topic(topic)
        return info._replace(is_event_topic=self._holds_events(topic))

    def _holds_events(self, topic: str) -> bool:
        """Whether it is an event topic, as far as that can be found out."""
        try:
            return self._known_topics.is_event_topic(topic)
        except LogError as error:  # this user may not read it, perhaps
            logger.debug("whether %s is an event topic: %s", topic, error)
            return self._events.kinds.refuses_records(topic)

    def describe_topics(self) -> list[TopicInfo]:
        found = self._topics.list_topics()
        compacted = {info.name for info in found if info.retention.compacted}
        return [
            # There may be thousands: their marks, which decide elsewhere, are not read here.
            info._replace(is_event_topic=True)
            if self._events.kinds.refuses_records(info.name, ask=False)
            or (snapshot_topic(info.name) in compacted and info.retention == Retention())
            else info
            for info in found
        ]

    def incarnation(self, topic: str) -> str:
        return self._topics.incarnation(topic)

    def list_topics(self) -> list[str]:
        return sorted(self._topics.partition_counts())

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        return durability.durability_facts(self._requests, topic)

    def delete_topic(self, topic: str) -> None:
        is_event_topic = self._events.kinds.refuses_records(topic)
        self._events.forget(topic)
        self._known_topics.forget(topic)
        self._topics.delete_topic(topic)
        if is_event_topic:
            self._events.delete_snapshot_topics(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Return once the records are queued; call ``on_appended`` when all have ended."""
        # Where the topic was used before, brokers that do not answer hold up no append.
        if self._refuses_records(topic, ask=not self._metadata.has_count(topic)):
            on_appended([events_only(topic, "published to")] * len(records))
            return
        self._writer.append(topic, records, on_appended)

    def _refuses_records(self, topic: str, *, ask: bool = True) -> bool:
        """Whether it is known to be an event topic, or is found to be one."""
        return self._known_topics.known(topic) is True or self._events.kinds.refuses_records(
            topic, ask=ask
        )

    # -- histories

    @property
    @override
    def fails_by_partition(self) -> bool:
        return True

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        info = self._events.kinds.create(topic, partitions)
        self._known_topics.declare(topic)
        return info

    def uncounted_records(self, topic: str) -> int:
        return self._events.uncounted_records(topic)

    def stop_following(self, topic: str) -> None:
        self._events.stop_following(topic)

    def index_progress(self, topic: str) -> tuple[int, int]:
        if not self._known_topics.is_event_topic(topic):
            return 0, 0
        for partition in range(self._metadata.partition_count(topic)):
            self._events.decided_until(topic, partition)  # begin with it
        return self._events.index_progress(topic)

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        if self._known_topics.known(topic):  # a stranger's open transaction holds nobody up
            return self._readers.bounds(topic, partition)
        return self._readers.watermarks(topic, partition)

    def log_end_offset(self, topic: str, partition: int) -> int:
        """The end, open transactions included: a member that read uncommitted messages may have a
        position beyond what can be read now."""
        return self._readers.end(topic, partition)

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        """By the time of publishing on the producer's clock, or the broker's on a topic with
        ``message.timestamp.type=LogAppendTime``."""
        return self._readers.offset_for_time(topic, partition, time)

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader | EventReader:
        self._metadata.check_partitions(topic, [partition])
        is_event_topic = self._known_topics.is_event_topic(topic)
        reader = self.raw_reader(topic, partition, start, end)
        return EventReader(reader, self._event_readers) if is_event_topic else reader

    def raw_reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        self._metadata.check_partitions(topic, [partition])
        uncommitted = self._known_topics.known(topic) is True
        return self._readers.open_reader(topic, partition, start, end, uncommitted=uncommitted)

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """See the protocol.

        :raises GroupNotEmpty: the group runs on other topics, so Kafka refuses to set its
            positions; its members start their new partitions without one.
        """
        check_group(group)
        self._metadata.check_partitions(topic, positions)
        return self._groups.initialize_offsets(group, topic, positions)

    def describe_group(self, group: str, topics: Collection[str] | None = None) -> GroupInfo:
        """See the protocol. To look in all topics takes some 0.1 s where there are thousands."""
        check_group(group)
        return self._groups.describe_group(group, topics)

    def committed(self, group: str, topic: str) -> dict[int, Committed]:
        check_group(group)
        partitions = [(topic, number) for number in range(self._metadata.partition_count(topic))]
        offsets = self._groups.committed(group, partitions)
        return {partition: committed for (_, partition), committed in offsets.items()}

    def list_groups(self) -> list[str]:
        return self._groups.list_groups()

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """See the protocol. Only members that run this toolkit obey a forced reset."""
        check_group(group)
        self._metadata.check_partitions(topic, offsets)
        try:
            self._groups.alter_offsets(group, topic, offsets)
        except GroupNotEmpty:
            if not force:
                raise
            forced_resets.force_reset(self._groups, self._metadata, group, topic, offsets)

    def delete_group(self, group: str) -> None:
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
        the topic's settings, whatever ``trim_margin`` says.

        :raises NotFound: there is no such topic.
        :raises ConfigError: a static member cannot use KIP-848.
        """
        check_group(group)
        member_name = member.name if member is not None else ""
        check_settings(replace(self._settings, member_name=member_name))
        for topic in topics:
            self._metadata.partition_count(topic)
        kip848 = self._settings.kip848
        session_timeout = (
            self._groups.session_timeout(group) if kip848 else self._settings.session_timeout
        )
        subscription = KafkaSubscription(
            self._clients,
            MemberOptions(
                group,
                topics,
                flow,
                session_timeout,
                member_name,
                uncommitted=self._known_topics.have_only_events(topics, group),
            ),
            listener,
            forced_resets.ResetRequests(self._groups, group, always=self._settings.eager),
            self._subscriptions.discard,
            self._refuses_records,
            self._polled_events(topics),
        )
        self._subscriptions.add(subscription)
        return subscription

    def _polled_events(self, topics: Sequence[str]) -> PolledEvents | None:
        """The filter of polled event topics; None if all topics are known to be none."""
        if all(self._known_topics.known(topic) is False for topic in topics):
            return None
        return PolledEvents(topics, self._event_readers, self._known_topics)

    def remove_member(self, group: str, member: StaticMember) -> None:
        """Do nothing: the driver has no such request. A static member gets its partitions back as
        soon as it restarts; the others wait until its session ends."""

    # -- the rest

    def flush(self, timeout: float) -> None:
        self._writer.flush(timeout)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.documents.close()
        self._events.close()
        self._writer.close()
        for subscription in list(self._subscriptions):
            try:
                subscription.close()
            except Exception:
                logger.exception("group %s: leaving it", subscription.group)
        self._groups.close()
        self._group_admins.close()
        self._readers.close()
        self._admin.close()
