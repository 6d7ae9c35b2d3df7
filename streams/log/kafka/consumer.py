"""The driver's side of a group's member: its consumer, and what the driver calls back.

A consumer that is cut off is replaced by another one, which joins the group anew; callbacks of the
previous one are ignored. The driver's callbacks run inside ``consume`` and ``close``, and none of
them raises (see :mod:`streams.log.kafka.subscription`): what goes wrong in one is kept in
:class:`~streams.log.kafka.member_errors.MemberErrors`.

Each consumer has its own partitions, commits under them, and time until which they are owned; they
are replaced together with it, and change together here. The modules that start and end assignments
call this one, and learn of the group's decisions through :class:`GroupCallbacks`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KTopicPartition

from streams.config import Flow
from streams.errors import Fatal, LogError, StreamsError, Unavailable
from streams.log.kafka.assignment import AssignedPartitions
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry, close_in_background
from streams.log.kafka.driver_reports import DriverReports
from streams.log.kafka.errors import error_class_of, kafka_error_of
from streams.log.kafka.member_errors import MemberErrors
from streams.log.kafka.offsets import MembershipLost, OffsetCommits, committed_by_partition
from streams.log.kafka.ownership import Ownership
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.settings import Settings
from streams.log.kafka.statistics import decode_snapshot
from streams.log.protocol import Assignment, Committed, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

_REPORTED_ERRORS = frozenset(
    {KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL}
)
"""The driver's general errors that concern the whole subscription."""

_MEMBERSHIP_LOST = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError._ASSIGNMENT_LOST,
    }
)
"""Answers to a commit that mean: the member was expelled, and its partitions are lost."""


class KafkaClients(NamedTuple):
    """The factories, requests and readers that the members of a log's groups share."""

    connect: Callable[[dict[str, Any]], Consumer]
    """Makes a consumer."""
    requests: RequestRetry
    """Knows why no broker can be reached."""
    readers: ReaderPool
    """Looks partitions up without being a member."""
    connect_writer: Callable[[dict[str, Any]], Producer]
    """Makes a producer of transactions."""

    @property
    def settings(self) -> Settings:
        """The log's settings."""
        return self.requests.settings


class MemberOptions(NamedTuple):
    """The group that a member joins, and how."""

    group: str
    topics: Sequence[str]
    flow: Flow
    session_timeout: float
    """Seconds after which the coordinator gives up a silent member."""
    member_name: str = ""
    """The name by which the group knows this member, if it is a static one."""
    uncommitted: bool = False
    """It reads event topics, in which transactions mean nothing."""


class GroupCallbacks(NamedTuple):
    """How a member learns what its group has decided. They are called inside ``consume`` and
    ``close``, so they must not raise."""

    revoked: Callable[[list[KTopicPartition]], None]
    """A rebalance gives these partitions to other members."""
    lost: Callable[[list[KTopicPartition]], None]
    """These partitions are other members' already."""
    group_changed: Callable[[], None]
    """Partitions were started, or the group epoch has changed."""


class GroupConsumer:
    """One member's consumer. Used by one thread at a time, which calls :meth:`join` first."""

    _callbacks: GroupCallbacks
    _consumer: Consumer
    _ownership: Ownership
    partitions: AssignedPartitions
    commits: OffsetCommits

    def __init__(self, clients: KafkaClients, options: MemberOptions, errors: MemberErrors) -> None:
        self._settings = settings = clients.settings
        self.translate = settings.translate
        self._connect = clients.connect
        self._requests = clients.requests
        self._options = options
        self._group = options.group
        self._errors = errors
        self.session_timeout = options.session_timeout
        """Seconds after which the coordinator gives up a silent member."""
        self._ever_assigned = False
        self._group_metadata: object = None
        """Member and group epoch by the last report; opaque, but it can be compared."""
        self._accepts_partitions = True
        self.waits_for_transactions = True
        """Positions are withheld from this consumer while a transaction that may change them is
        open."""
        readers = clients.readers
        end_of = readers.end if options.uncommitted else readers.end_of_committed
        self.reports = DriverReports(options.session_timeout, readers.probe_broker, end_of)
        self._consumer_number = 0
        """The number of consumers so far; callbacks of all but the last one are ignored."""

    # -- joining, and leaving

    def join(self, callbacks: GroupCallbacks) -> None:
        """Join the group with a first consumer.

        :raises LogError: the driver refuses.
        """
        self._callbacks = callbacks
        self._use(self._new_consumer())

    def _new_consumer(self) -> Consumer:
        """Make a consumer, and have it join the group."""
        options, number = self._options, self._consumer_number + 1

        def if_current(callback: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                if number == self._consumer_number:
                    callback(*args)

            return call

        config = self._settings.member_config(
            options.group, options.flow, if_current(self._on_statistics), options.member_name
        )
        config["error_cb"] = if_current(self._on_client_error)
        config["on_commit"] = if_current(self._on_commit)
        if options.uncommitted:
            config["isolation.level"] = "read_uncommitted"
        self.waits_for_transactions = config["isolation.level"] == "read_committed"
        consumer = self._connect(config)
        try:
            consumer.subscribe(
                list(options.topics),
                on_assign=if_current(self._on_assign),
                on_revoke=if_current(lambda _, partitions: self._callbacks.revoked(partitions)),
                on_lost=if_current(lambda _, partitions: self._callbacks.lost(partitions)),
            )
        except KafkaException as error:
            close_in_background(consumer)
            raise self.translate(error, f"subscribing to {', '.join(options.topics)}") from error
        return consumer

    def _use(self, consumer: Consumer) -> None:
        """Use this consumer from now on; the previous one is ignored."""
        settings = self._settings
        self._ownership = Ownership(
            self.session_timeout, settings.max_poll_interval, settings.kip848, time.monotonic()
        )
        self.partitions = AssignedPartitions(consumer, settings.eager)
        self.commits = OffsetCommits(
            lambda offsets: consumer.commit(offsets=offsets, asynchronous=True),
            self.read_committed,
            self._member_id,
        )
        self._consumer = consumer
        self._consumer_number += 1

    def join_anew(self, reason: str) -> Consumer | None:
        """Another consumer, which joins the group; None if that failed."""
        self.reports.consumer_failed()
        try:
            consumer = self._new_consumer()
        except StreamsError as error:
            logger.warning("group %s: rejoining failed: %s", self._group, error)
            return None
        logger.warning("group %s: %s: rejoining", self._group, reason)
        return consumer

    def switch_to(self, consumer: Consumer) -> None:
        """Use the consumer that :meth:`join_anew` made; the one before is closed."""
        old = self._consumer
        self._use(consumer)
        self.reports.consumer_replaced()
        close_in_background(old)

    def refuse_partitions(self) -> None:
        """Accept no more partitions: the member is about to leave."""
        self._accepts_partitions = False

    def close(self) -> None:
        """Leave the group; wait for the coordinator :data:`REQUEST_TIMEOUT` seconds at most."""
        self.reports.close()
        closing = threading.Thread(target=self._close, name="streams-kafka-close", daemon=True)
        closing.start()
        closing.join(REQUEST_TIMEOUT)
        if closing.is_alive():
            logger.warning(
                "group %s: the coordinator did not answer; closed without leaving the group",
                self._group,
            )

    def _close(self) -> None:
        consumer = self._consumer
        try:
            if not self._is_static():  # a static member stays
                self._leave(consumer)
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            logger.warning("group %s: %s", self._group, self._settings.scrub(str(error)))

    def _is_static(self) -> bool:
        return bool(
            self._options.member_name or self._settings.user_config.get("group.instance.id")
        )

    def _leave(self, consumer: Consumer) -> None:
        """Send LeaveGroup. The driver's close() omits it for members without partitions, and during
        rebalances for all: there it even postpones an unsubscribe and then forgets it, so the
        partitions would stay assigned to a dead member until its session times out. A member has
        left once it has no member ID any more."""
        if self._settings.kip848:
            if not consumer.assignment():
                consumer.unsubscribe()
            return
        consumer.unsubscribe()
        ends = time.monotonic() + self.session_timeout
        while consumer.memberid() and time.monotonic() < ends:
            consumer.consume(1, 0.01)

    # -- polling

    def consume(self, limit: int, timeout: float) -> list[Any]:
        """Fetch messages from the driver; its callbacks run in here. A fatal error is kept."""
        now = time.monotonic()
        messages: list[Any] = []
        try:
            messages = self._consumer.consume(limit, timeout)
        except KafkaException as error:
            # The driver raises here only what is fatal: its own state, or this member's.
            failure = self.translate(error, f"consuming as group {self._group!r}")
            self._errors.fail_driver(failure)
        except RuntimeError as error:
            raise LogError(f"Kafka, group {self._group!r}: this subscription is closed") from error
        self._ownership.polled_at = now
        self._extend_ownership()
        return messages

    def read_committed(
        self, keys: Sequence[TopicPartition], timeout: float | None = None
    ) -> dict[TopicPartition, Committed | None]:
        """The group's offsets in these.

        :raises MembershipLost: this member was given up.
        """
        try:
            return committed_by_partition(
                self._consumer.committed(
                    [KTopicPartition(*key) for key in keys], timeout or REQUEST_TIMEOUT
                )
            )
        except KafkaException as error:
            cause = kafka_error_of(error)
            if cause is not None and cause.code() in _MEMBERSHIP_LOST:
                raise MembershipLost from error
            raise self.translate(error, f"positions of group {self._group!r}") from error

    def group_metadata(self) -> object:
        """The driver's group metadata (member and group epoch) for a transaction; opaque."""
        return self._consumer.consumer_group_metadata()

    # -- partitions that come and leave

    def add_owned(self, assignments: Sequence[Assignment]) -> None:
        """Add assignments that are this member's from now on."""
        self._extend_ownership()
        self.partitions.add_owned(assignments)
        self.commits.add_assignments(assignments)

    def start_fetching(self, assignments: Sequence[Assignment]) -> None:
        """Fetch these, each from its position; they are no longer pending.

        :raises KafkaException: the driver refuses.
        """
        self.partitions.start_fetching(assignments)
        self.partitions.pending.remove(each.topic_partition for each in assignments)
        self._ever_assigned = True
        self._callbacks.group_changed()

    def remove_owned(self, assignments: Sequence[Assignment]) -> None:
        """Remove assignments that are no longer this member's."""
        self.commits.remove_assignments(assignments)
        self.partitions.remove_owned(assignments)

    def stop_fetching(self, keys: Iterable[TopicPartition], *, rebalance: bool = False) -> None:
        """Stop fetching these, and acknowledge if it is in a rebalance."""
        try:
            self.partitions.stop_fetching(keys, rebalance=rebalance)
        except KafkaException as error:
            operation = f"giving up partitions of group {self._group!r}"
            self._errors.fail(self.translate(error, operation))

    def restart_fetching(self, keys: Iterable[TopicPartition]) -> None:
        """Fetch these anew, from behind what was delivered."""
        try:
            self.partitions.restart_fetching(keys)
        except KafkaException as error:
            operation = f"restarting the fetch of group {self._group!r}"
            self._errors.fail(self.translate(error, operation))

    # -- errors

    def _on_client_error(self, error: KafkaError) -> None:
        """The driver's error_cb: brokers that are gone, logins that failed, fatal states."""
        self._settings.call_user("error_cb", error, f"group {self._group}: ")
        self._requests.record_client_error(error)
        if error.code() not in _REPORTED_ERRORS and not error.fatal():
            # One connection of several, often one that was idle: the driver makes another.
            logger.debug("group %s: %s", self._group, self._settings.scrub(str(error.str())))
            return
        operation = f"group {self._group!r}"
        translated = self.translate(error, operation)
        if error.fatal():
            self._errors.fail(translated)
            return
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            translated = self._requests.no_answer_error(
                operation, time.monotonic() - REQUEST_TIMEOUT
            )
        if isinstance(translated, Fatal) and self._ever_assigned:
            # It worked before: a broker that is starting may not know its users yet.
            translated = Unavailable(str(translated))
        self._errors.defer(translated)

    # -- ownership

    def _on_statistics(self, text: str) -> None:
        try:
            snapshot, now = decode_snapshot(text), time.monotonic()
            self._ownership.observe(snapshot, now)
            metadata = self._consumer.consumer_group_metadata()
            if metadata != self._group_metadata:
                self._group_metadata = metadata
                self._callbacks.group_changed()
            self.reports.observe(snapshot, self.partitions.fetch_positions(), now)
            if (user_callback := self._settings.user_config.get("stats_cb")) is not None:
                user_callback(text)
        except Exception:
            logger.exception("group %s: the driver's statistics were not understood", self._group)

    def _extend_ownership(self) -> None:
        """Set ``valid_until`` of all owned assignments to what has been confirmed."""
        self.partitions.set_valid_until(self._ownership.valid_until)

    def expelled(self) -> None:
        """The group has expelled this member: it owns nothing any more."""
        self._ownership.expelled()
        self._extend_ownership()

    # -- the driver's other callbacks; called inside consume and close, so nothing may be raised

    def _on_assign(self, consumer: Consumer, partitions: list[KTopicPartition]) -> None:
        self._ownership.assignment_received()
        if not self._accepts_partitions:
            return
        try:
            self.partitions.accept_assignment(partitions)
        except KafkaException as error:
            self._errors.fail_driver(self.translate(error, f"joining group {self._group!r}"))

    def _member_id(self) -> str | None:
        """Our ID in the group; None where the driver has left it, as nobody polled for too long."""
        ownership = self._ownership
        if time.monotonic() > ownership.polled_at + ownership.max_poll_interval:
            return None
        return self._consumer.memberid()

    def _on_commit(self, error: KafkaError | None, partitions: list[KTopicPartition]) -> None:
        """The driver's on_commit, called inside a poll: how a commit ended."""
        accepted_at = self.commits.on_commit(error, partitions)
        # Only a classic coordinator takes a commit for a heartbeat.
        if accepted_at is not None and not self._settings.kip848:
            self._ownership.confirm(accepted_at)
            self._extend_ownership()
        failed = error or next(
            (partition.error for partition in partitions if partition.error is not None), None
        )
        if failed is None or failed.code() == KafkaError._FATAL:
            return  # the driver reports what is fatal by itself, such as that the member is fenced
        if failed.code() in _MEMBERSHIP_LOST:
            self._ownership.expelled()
        elif error_class_of(failed) is not Unavailable:
            self._errors.defer(self.translate(failed, f"positions of group {self._group!r}"))
