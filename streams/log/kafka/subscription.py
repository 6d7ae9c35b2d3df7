"""A member of a Kafka group: one consumer, used by one thread at a time.

Theory of operation. The driver fetches and heartbeats in threads of its own; its callbacks run
inside ``consume`` and ``close``. Three things are arranged so that nothing is skipped:

* A callback never raises: the driver would throw away the messages it was about to return, with
  its position already behind them. What goes wrong in one is kept and raised by ``poll``.
* When partitions arrive, the callback only notes them and acknowledges the rebalance. ``poll``
  then asks for their committed places, tells the listener, and starts to fetch exactly where the
  listener said, which the driver accepts at any time. So the listener may block, commit, read the
  log and fail in there, a failure that passes is tried again by the next poll, and no message of
  an assignment can be older than the assignment: what a partition had in the driver's hands when
  it went and came back finds no owner and is dropped.
* ``auto.offset.reset=error``: a position that retention overtook comes as an error. The
  assignment ends as lost and another begins, whose listener sees the gap between the committed
  place and the log's start.

Partitions leave inside the callback, because they are gone once it returns: the listener drains
and commits there. A commit carries the group's generation, so one of a former member is refused
by the broker; but a live member could still commit a partition that it no longer owns, so commits
are filtered by ownership and version in ``offsets.py``. How long ownership is certain is in
``ownership.py``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.config import Flow
from streams.errors import ConfigError, Fatal, LogError, StreamsError, Unavailable
from streams.log.kafka.assignment import (
    AssignedPartitions,
    PartitionProbe,
    topic_partition_of,
    topic_partitions_of,
)
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry, close_in_background
from streams.log.kafka.errors import error_class_of, kafka_error_of, translate
from streams.log.kafka.forced_resets import ResetRequests
from streams.log.kafka.offsets import MembershipLost, OffsetCommits, committed_by_partition
from streams.log.kafka.ownership import Ownership
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.reconnect import ConnectivityMonitor, IsolationCheck
from streams.log.kafka.settings import Settings, prefetch_bytes
from streams.log.kafka.statistics import decode_snapshot
from streams.log.protocol import (
    Assignment,
    Commit,
    Committed,
    RebalanceListener,
    Submitted,
    TopicPartition,
    Transaction,
)
from streams.text import get_logger

logger = get_logger("streams.kafka")

POLL_SLICE = 0.05
"""Seconds the driver is asked to block at once: how late ``wakeup`` is noticed at worst."""

_next_epoch = itertools.count(1)
"""One count for the whole process, so that no two assignments of it share an epoch."""

_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
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
"""A commit's answer that means: this member is none any more, its partitions are lost."""


class KafkaSubscription:
    """See :class:`streams.log.protocol.Subscription`.

    :param session_timeout: seconds after which the coordinator gives up a silent member.
    :param reset_requests: where forced moves of the group are left.
    :param requests: knows why no broker can be reached.
    :param readers: ask after partitions, as somebody who is no member.
    :param partitions_with_leader: which partitions of a topic have a leader.
    :param on_closed: called once this is closed.
    :param member_name: the name by which the group knows this member, if it is a static one.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[dict[str, Any]], Consumer],
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        flow: Flow,
        session_timeout: float,
        reset_requests: ResetRequests,
        requests: RequestRetry,
        readers: ReaderPool,
        partitions_with_leader: Callable[[str], Collection[int]],
        on_closed: Callable[[KafkaSubscription], None],
        member_name: str = "",
    ) -> None:
        if flow.drain >= settings.max_poll_interval:
            logger.warning(
                "group %s: a drain may take %g s (Flow.drain), but a member that does not poll for "
                "%g s (max.poll.interval.ms) is given up: set the drain shorter",
                group, flow.drain, settings.max_poll_interval,
            )  # fmt: skip
        self.group = group
        self.prefetch = prefetch_bytes(flow)
        """Bytes of ``flow.bytes`` that the driver's queue may hold."""
        self._settings = settings
        self._connect = connect
        self._topics = list(topics)
        self._flow = flow
        self._session_timeout = session_timeout
        self._reset_requests = reset_requests
        self._requests = requests
        self._partitions_with_leader = partitions_with_leader
        self._on_closed = on_closed
        self._member_name = member_name
        self._watermarks = readers.watermarks
        self._listener = listener
        self._only_topic = topics[0] if len(topics) == 1 else None
        self._wakeup = threading.Event()
        self._fatal_error: BaseException | None = None
        """What broke this subscription for good."""
        self._deferred_error: StreamsError | None = None
        """An error that came along with messages, or through a callback: told by a poll."""
        self._valid_until = float("-inf")
        """The ``valid_until`` of all that is owned."""
        self._ever_assigned = False
        self._closed = False
        self._connectivity = ConnectivityMonitor(session_timeout)
        self._isolation = IsolationCheck(self._connectivity, readers.probe_broker)
        self._probe = PartitionProbe(self._probe_partition)
        self._user_stats_callback: Callable[[str], None] | None = settings.user_config.get(
            "stats_cb"
        )
        self._user_error_callback: Callable[[KafkaError], None] | None = settings.user_config.get(
            "error_cb"
        )
        self._consumer_number = 0
        """How many there were; only to the last one is listened."""
        self._consumer: Consumer
        self._switch_consumer(self._join())

    def _join(self) -> Consumer:
        """Make a consumer, and have it join the group."""
        settings, number = self._settings, self._consumer_number + 1

        def if_current(callback: Callable[..., None]) -> Callable[..., None]:
            def call(*args: Any) -> None:
                if number == self._consumer_number:
                    callback(*args)

            return call

        config = settings.member_config(
            self.group, self._flow, if_current(self._on_statistics), self._member_name
        )
        config["error_cb"] = if_current(self._on_client_error)
        config["on_commit"] = if_current(self._on_commit)
        consumer = self._connect(config)
        try:
            consumer.subscribe(
                self._topics,
                on_assign=if_current(self._on_assign),
                on_revoke=if_current(self._on_revoke),
                on_lost=if_current(self._on_lost),
            )
        except KafkaException as error:
            close_in_background(consumer)
            raise self._translate(error, f"subscribing to {', '.join(self._topics)}") from error
        return consumer

    def _switch_consumer(self, consumer: Consumer) -> None:
        """This is the consumer from now on; the one before is not listened to any more."""
        settings = self._settings
        self._ownership = Ownership(
            self._session_timeout, settings.max_poll_interval, settings.kip848, time.monotonic()
        )
        self._partitions = AssignedPartitions(consumer, settings.eager)
        self._commits = OffsetCommits(
            lambda offsets: consumer.commit(offsets=offsets, asynchronous=True),
            self._read_committed,
            self._member_id,
        )
        self._consumer = consumer
        self._consumer_number += 1

    def _replace_consumer(self) -> None:
        """The consumer is cut off and another is not: join with a new one (``reconnect.py``)."""
        self._connectivity.back_off()
        try:
            consumer = self._join()
        except StreamsError as error:
            logger.warning("group %s: joining anew failed: %s", self.group, error)
            return
        logger.warning(
            "group %s: its brokers are out of reach for this client alone, joining anew",
            self.group,
        )  # fmt: skip
        lost = list(self._partitions.owned.values())
        self._commits.membership_lost()
        self._remove_owned(lost)
        self._notify_listener(self._listener.lost, lost)
        old = self._consumer
        self._switch_consumer(consumer)
        close_in_background(old)

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[KafkaBatch]:
        """The next messages, at most ``limit``; blocks only while there are none.

        :raises Unavailable: Kafka cannot be reached now; poll again after a pause.
        :raises LogError: anything worse. What the listener raised comes out as it is.
        """
        self._raise_fatal()
        self._apply_resets()
        self._start_pending()
        messages = self._consume(limit, 0.0)
        if not messages:
            self._start_pending()
            messages = self._wait_for_messages(limit, timeout)
        if self._isolation.should_replace(time.monotonic()):
            self._replace_consumer()  # nobody owns what came
        if not messages:
            self._raise_deferred()
            return ()
        for failed in remove_errors(messages):
            self._handle_error(failed)
        batches = []
        owned, fetched = self._partitions.owned, self._partitions.fetched
        for topic, partition, run in split_by_partition(messages, self._only_topic):
            assignment = owned.get((topic, partition))
            if assignment is not None and (topic, partition) in fetched:
                batches.append(KafkaBatch(topic, partition, run, assignment))
        if not batches:
            self._raise_deferred()
        elif isinstance(self._deferred_error, Unavailable):
            self._deferred_error = None  # it is over
        return batches

    def _consume(self, limit: int, timeout: float) -> list[Any]:
        now = time.monotonic()
        messages: list[Any] = []
        try:
            messages = self._consumer.consume(limit, timeout)
        except KafkaException as error:
            # The driver raises here only what is fatal: its own state, or this member's.
            self._fatal_error = self._translate(error, f"consuming as group {self.group!r}")
        except RuntimeError as error:
            raise LogError(f"Kafka, group {self.group!r}: this subscription is closed") from error
        self._ownership.polled_at = now
        self._extend_ownership()
        self._raise_fatal()
        return messages

    def _wait_for_messages(self, limit: int, timeout: float) -> list[Any]:
        """Block for the first message, in slices, so that :meth:`wakeup` is heard."""
        deadline = time.monotonic() + timeout
        while self._deferred_error is None:
            remaining = deadline - time.monotonic()
            if remaining < 0.001 or self._wakeup.is_set():
                break  # to the driver, less than a millisecond is none: it would be a busy loop
            if self._partitions.all_paused:
                # Nothing can come but a rebalance, and an event wakes at once.
                self._wakeup.wait(min(remaining, POLL_SLICE))
                messages = self._consume(limit, 0.0)
            else:
                messages = self._consume(1, min(remaining, POLL_SLICE))
                if messages and limit > 1:
                    messages += self._consume(limit - 1, 0.0)
            if messages:
                return messages
            self._apply_resets()
            self._start_pending()
        self._wakeup.clear()
        return []

    def _raise_fatal(self) -> None:
        """Raise what broke this subscription; a member that is fenced owns nothing any more."""
        if self._fatal_error is None:
            return
        if isinstance(self._fatal_error, Fatal):
            lost = list(self._partitions.owned.values())
            self._remove_owned(lost)
            self._notify_listener(self._listener.lost, lost)
        raise self._fatal_error

    def _raise_deferred(self) -> None:
        """Raise what went wrong on the way, once."""
        deferred, self._deferred_error = self._deferred_error, None
        if deferred is not None:
            raise deferred

    # -- errors

    def _translate(self, error: KafkaException | KafkaError, operation: str) -> StreamsError:
        return translate(error, operation, self._settings.scrub)

    def _on_client_error(self, error: KafkaError) -> None:
        """The driver's error_cb: brokers that are gone, logins that failed, fatal states."""
        try:
            if self._user_error_callback is not None:
                self._user_error_callback(error)
        except Exception:
            logger.exception("group %s: error_cb raised", self.group)
        self._requests.record_client_error(error)
        if error.code() not in _REPORTED_ERRORS and not error.fatal():
            # One connection of several, often one that was idle: the driver makes another.
            logger.debug("group %s: %s", self.group, self._settings.scrub(str(error.str())))
            return
        operation = f"group {self.group!r}"
        translated = self._translate(error, operation)
        if error.fatal():
            self._fatal_error = self._fatal_error or translated
            return
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            translated = self._requests.no_answer_error(
                operation, time.monotonic() - REQUEST_TIMEOUT
            )
        if isinstance(translated, Fatal) and self._ever_assigned:
            # It worked before: a broker that starts up may not know its users yet.
            translated = Unavailable(str(translated))
        if not isinstance(self._deferred_error, Fatal):
            self._deferred_error = translated  # what else is said of it: that all brokers are down

    def _handle_error(self, failed: Any) -> None:
        """An error that came in a message's place."""
        error: KafkaError = failed.error()
        topic, partition = failed.topic(), failed.partition()
        if error.code() in _OUT_OF_RANGE:
            self._restart_out_of_range(topic, partition, failed.offset())
            return
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return  # logged by the driver; the loss is told on its own
        source = f"{topic}/{partition}" if topic and partition is not None else f"{self.group!r}"
        translated = self._translate(error, f"consuming {source}")
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal_error = self._fatal_error or translated
        elif self._deferred_error is None or isinstance(self._deferred_error, Unavailable):
            self._deferred_error = translated

    def _restart_out_of_range(self, topic: str, partition: int, offset: int) -> None:
        """The log no longer has the position we were at: the listener resolves it anew."""
        key = (topic, partition)
        assignment = self._partitions.owned.get(key)
        if assignment is None or key not in self._partitions.fetched:
            return
        logger.warning(
            "group %s: %s/%d has no offset %d any more, its position is resolved anew",
            self.group, topic, partition, offset,
        )  # fmt: skip
        self._remove_owned([assignment])
        self._notify_listener(self._listener.lost, [assignment])
        self._stop_fetching([key])
        self._partitions.add_pending([key])

    def _notify_listener(
        self, notify: Callable[[Sequence[Assignment]], None], assignments: list[Assignment]
    ) -> None:
        """Tell the listener; what it raises breaks the subscription, but not the callback."""
        try:
            if assignments:
                notify(assignments)
        except BaseException as error:
            self._fatal_error = self._fatal_error or error

    # -- statistics and ownership

    def _on_statistics(self, text: str) -> None:
        try:
            snapshot, now = decode_snapshot(text), time.monotonic()
            self._ownership.observe(snapshot, now)
            self._connectivity.observe_member(
                snapshot, self._partitions.fetched - self._partitions.paused, now
            )
            if self._user_stats_callback is not None:
                self._user_stats_callback(text)
        except Exception:
            logger.exception("group %s: the driver's statistics were not understood", self.group)

    def _extend_ownership(self) -> None:
        """Carry what is confirmed over to what is owned."""
        valid_until = self._ownership.valid_until
        if valid_until != self._valid_until:
            self._valid_until = valid_until
            for assignment in self._partitions.owned.values():
                assignment.valid_until = valid_until

    # -- what the group decides; called inside consume and close, so nothing may be raised

    def _on_assign(self, consumer: Consumer, partitions: list[KTopicPartition]) -> None:
        self._ownership.assignment_received()
        if self._closed:
            return
        try:
            self._partitions.accept_assignment(partitions)
        except KafkaException as error:
            self._fatal_error = self._translate(error, f"joining group {self.group!r}")

    def _on_revoke(self, consumer: Consumer, partitions: list[KTopicPartition]) -> None:
        self._give_up_partitions(partitions, self._listener.revoked)

    def _on_lost(self, consumer: Consumer, partitions: list[KTopicPartition]) -> None:
        logger.warning(
            "group %s: this member was given up, %d partitions", self.group, len(partitions)
        )
        self._commits.membership_lost()
        for key in topic_partitions_of(partitions):
            if key in self._partitions.owned:
                self._partitions.owned[key].valid_until = float("-inf")
        self._give_up_partitions(partitions, self._listener.lost)

    def _give_up_partitions(
        self, partitions: list[KTopicPartition], notify: Callable[[Sequence[Assignment]], None]
    ) -> None:
        keys, owned = topic_partitions_of(partitions), self._partitions.owned
        for key in keys:
            self._partitions.pending.pop(key, None)
        removed = [owned[key] for key in keys if key in owned]
        self._notify_listener(notify, removed)
        self._remove_owned(removed)
        self._stop_fetching(keys, rebalance=True)

    def _remove_owned(self, assignments: list[Assignment]) -> None:
        """These are ours no more."""
        self._commits.remove_assignments(assignments)
        self._partitions.remove_owned(assignments)

    def _stop_fetching(self, keys: Iterable[TopicPartition], *, rebalance: bool = False) -> None:
        try:
            self._partitions.stop_fetching(keys, rebalance=rebalance)
        except KafkaException as error:
            operation = f"giving up partitions of group {self.group!r}"
            self._fatal_error = self._fatal_error or self._translate(error, operation)

    # -- partitions that arrive; outside of the driver's callbacks

    def _start_pending(self) -> None:
        """Tell the listener what arrived, and fetch from where it says. What cannot be begun yet
        is asked after in another thread, until it answers, and holds up nothing else."""
        partitions = self._partitions
        if not partitions.pending:
            return
        never_tried = partitions.never_tried()
        if never_tried:
            self._try_start(never_tried)
        now = time.monotonic()
        for key in partitions.due_for_retry(now):
            self._probe.start(key)
        outcomes = self._probe.take_outcomes()
        waiting = [
            key
            for key in outcomes
            if key in partitions.pending and partitions.pending[key].retry_pause
        ]
        for key in waiting:
            partitions.pending[key].schedule_retry(now)
        reachable = [key for key in waiting if outcomes[key]]
        if reachable:
            self._try_start(reachable)

    def _probe_partition(self, topic: str, partition: int) -> None:
        """In the probe's thread: see that a partition answers."""
        if partition not in self._partitions_with_leader(topic):
            raise Unavailable(f"Kafka: no broker leads {topic}/{partition}")
        self._watermarks(topic, partition)

    def _try_start(self, keys: Sequence[TopicPartition]) -> None:
        try:
            with_leader = self._with_leader(keys)
            self._start_partitions([key for key in keys if key in with_leader])
        except MembershipLost:
            return  # the driver will tell so
        except LogError as error:
            if isinstance(error, Fatal):
                raise
            self._postpone(keys, error)
            return
        without_leader = [key for key in keys if key not in with_leader]
        if without_leader:
            names = ", ".join(f"{topic}/{number}" for topic, number in without_leader)
            reason = f"Kafka, group {self.group!r}: no broker leads {names} now"
            self._postpone(without_leader, Unavailable(reason))

    def _postpone(self, keys: Sequence[TopicPartition], error: LogError) -> None:
        now = time.monotonic()
        for key in keys:
            pending = self._partitions.pending.get(key)
            if pending is not None:
                if not pending.retry_pause and self._partitions.owned:
                    logger.warning("group %s: %s/%d waits: %s", self.group, *key, error)
                pending.schedule_retry(now)
        if not self._partitions.owned:
            self._deferred_error = error

    def _with_leader(self, keys: Sequence[TopicPartition]) -> set[TopicPartition]:
        """Those of them that a broker leads: of others the bounds are asked for in vain."""
        topics = dict.fromkeys(topic for topic, _ in keys)
        return {
            (topic, number) for topic in topics for number in self._partitions_with_leader(topic)
        }

    def _start_partitions(self, keys: Sequence[TopicPartition]) -> None:
        """Tell the listener of these, and fetch them.

        :raises LogError: none of them could be begun; unless it is Fatal, they can be later.
        :raises Gone: this member was given up.
        """
        if not keys:
            return
        committed = self._read_committed(keys)
        valid_until = self._valid_until = self._ownership.valid_until
        assignments = [
            Assignment(*key, next(_next_epoch), committed[key], valid_until) for key in keys
        ]
        self._partitions.owned.update((topic_partition_of(each), each) for each in assignments)
        self._commits.add_assignments(assignments)
        try:
            self._listener.assigned(assignments)
            self._partitions.start_fetching(assignments)
        except KafkaException as error:
            self._fatal_error = self._translate(error, f"fetching as group {self.group!r}")
            raise self._fatal_error from error
        except BaseException as error:
            self._remove_owned(assignments)
            if isinstance(error, Fatal) or not isinstance(error, LogError):
                self._fatal_error = self._fatal_error or error
            raise
        self._ever_assigned = True
        for key in keys:
            self._partitions.pending.pop(key, None)

    def _read_committed(
        self, keys: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Committed | None]:
        """Where the group is in these.

        :raises Gone: this member was given up.
        """
        try:
            return committed_by_partition(
                self._consumer.committed([KTopicPartition(*key) for key in keys], REQUEST_TIMEOUT)
            )
        except KafkaException as error:
            cause = kafka_error_of(error)
            if cause is not None and cause.code() in _MEMBERSHIP_LOST:
                raise MembershipLost from error
            raise self._translate(error, f"positions of group {self.group!r}") from error

    def _apply_resets(self) -> None:
        """Start over where somebody forced the group to."""
        resets = self._reset_requests.take_pending(self._partitions.fetched)
        if not resets:
            return
        assignments = [self._partitions.owned[key] for key in resets]
        logger.warning("group %s: moved by force: %s", self.group, assignments)
        self._remove_owned(assignments)
        self._notify_listener(self._listener.lost, assignments)
        self._stop_fetching(resets)
        self._partitions.add_pending(resets)
        try:
            self._commits.store_unassigned(resets)
            self._reset_requests.mark_applied(resets)
        except MembershipLost:
            pass  # the driver will tell so; whoever owns them next finds the move
        except KafkaException as error:
            self._deferred_error = self._translate(error, f"moving group {self.group!r}")
        except LogError as error:
            self._deferred_error = error

    # -- commits

    def commit(self, commits: Sequence[Commit]) -> None:
        """Store these places durably; stale ones and those of partitions that left are dropped.

        :raises Unavailable: nothing is known to be stored; commit again later.
        :raises TooLarge: the broker's offset.metadata.max.bytes is smaller than usual.
        """
        now = time.monotonic()
        operation = f"committing positions of group {self.group!r}"
        try:
            stored = self._commits.commit(commits)
        except RuntimeError as error:
            raise Unavailable(f"Kafka, {operation}: this subscription is closed") from error
        except MembershipLost:
            # Nothing is ours any more; the driver will tell so, too.
            logger.warning("group %s: a commit came too late, this member was given up", self.group)
            self._ownership.confirmed_at = float("-inf")
            self._extend_ownership()
            return
        except Unavailable as error:
            raise Unavailable(f"Kafka, {operation}: {error}") from error
        except KafkaException as error:
            raise self._translate(error, operation) from error
        if stored and not self._settings.kip848:
            # A classic coordinator takes a commit for a heartbeat; KIP-848's does not.
            self._ownership.confirm(now)
            self._extend_ownership()

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        """Store these places; a later poll or commit tells whether they are."""
        now = time.monotonic()

        def finish(stored: bool) -> None:
            if stored and not self._settings.kip848:
                self._ownership.confirm(now)
                self._extend_ownership()
            on_submitted(stored)

        operation = f"committing positions of group {self.group!r}"
        try:
            sent = self._commits.commit_async(commits, finish)
        except RuntimeError as error:
            raise Unavailable(f"Kafka, {operation}: this subscription is closed") from error
        except KafkaException as error:
            raise self._translate(error, operation) from error
        if not sent:
            on_submitted(False)

    def _member_id(self) -> str | None:
        """Who we are in the group; None where the driver has left it, unpolled for too long."""
        ownership = self._ownership
        if time.monotonic() > ownership.polled_at + ownership.max_poll_interval:
            return None
        return self._consumer.memberid()

    def _on_commit(self, error: KafkaError | None, partitions: list[KTopicPartition]) -> None:
        """The driver's on_commit: how a commit ended, told inside a poll."""
        self._commits.on_commit(error, partitions)
        failed = error or next(
            (partition.error for partition in partitions if partition.error is not None), None
        )
        if failed is None or failed.code() == KafkaError._FATAL:
            return  # what was fatal, such as that the member is fenced, the driver tells by itself
        if failed.code() in _MEMBERSHIP_LOST:
            self._ownership.confirmed_at = float("-inf")
        elif error_class_of(failed) is not Unavailable:
            self._deferred_error = self._translate(failed, f"positions of group {self.group!r}")

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        """Give these up, and begin with the partitions anew: they stay this member's in the group,
        which says at the next poll where it stands there."""
        owned = self._partitions.owned
        restarted = [each for each in assignments if owned.get(topic_partition_of(each)) is each]
        if restarted:
            keys = [topic_partition_of(each) for each in restarted]
            self._remove_owned(restarted)
            self._stop_fetching(keys)
            self._partitions.add_pending(keys)

    def keep_alive(self) -> None:
        """Nothing is needed: the driver heartbeats by itself.

        Its reports are heard in ``poll`` only, so a drain longer than the session (of the classic
        protocol: KIP-848's is 45 s) leaves the partitions that stay uncertain until it is over.
        """

    # -- the rest

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver nothing of these until resumed; what was prefetched is thrown away."""
        self._partitions.pause(assignments)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Deliver these again, from behind the last message delivered."""
        self._partitions.resume(assignments)

    def wakeup(self) -> None:
        """Make a blocked ``poll`` return soon (any thread)."""
        self._wakeup.set()

    def begin_transaction(self) -> Transaction:
        """Kafka has no transaction for a handler's SQL."""
        raise ConfigError("kafka:// has no transaction for a handler's SQL: use sqlite://")

    def close(self) -> None:
        """Leave the group. ``listener.revoked`` is called for what is still owned.

        A static member (group.instance.id) stays in the group for its session, so that a restart
        finds its partitions again. Does not wait longer than some seconds for a coordinator that
        does not answer: the session ends the membership then.
        """
        if self._closed:
            return
        self._closed = True
        fatal_error, self._fatal_error = self._fatal_error, None
        self._reset_requests.close()
        self._probe.close()
        revoked = list(self._partitions.owned.values())
        self._notify_listener(self._listener.revoked, revoked)
        self._remove_owned(revoked)
        self._partitions.pending.clear()
        # What the driver still calls back has nothing to do any more.
        closing = threading.Thread(
            target=self._close_consumer, name="streams-kafka-close", daemon=True
        )
        closing.start()
        closing.join(REQUEST_TIMEOUT)
        if closing.is_alive():
            logger.warning("group %s: its coordinator does not answer, left without", self.group)
        self._on_closed(self)
        error, self._fatal_error = (
            self._fatal_error,
            fatal_error or LogError("this subscription is closed"),
        )
        if error is not None:
            raise error

    def _close_consumer(self) -> None:
        consumer = self._consumer
        try:
            # librdkafka's close sends no LeaveGroup for a member without partitions: its successors
            # would wait for it until its session ends. A member that unsubscribes does send one; a
            # static member must not.
            if not self._member_name and not consumer.assignment():
                consumer.unsubscribe()
            consumer.close()
        except (KafkaException, RuntimeError) as error:
            logger.warning("group %s: %s", self.group, self._settings.scrub(str(error)))
