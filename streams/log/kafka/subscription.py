"""A member of a Kafka group: one consumer, used by one thread at a time.

Theory of operation. The driver fetches and heartbeats in threads of its own; its callbacks run
inside ``consume`` and ``close``. Three rules ensure that nothing is skipped:

* A callback never raises: the driver would throw away the messages it was about to return, with
  its position already behind them. What goes wrong in one is kept and raised by ``poll``.
* When partitions arrive, the callback only notes them and acknowledges the rebalance. ``poll``
  then reads their committed offsets, tells the listener, and starts to fetch exactly where the
  listener said, which the driver accepts at any time. So the listener may block, commit, read the
  log and fail, and the next poll retries what may pass. And no message of an assignment can be
  older than the assignment: what the driver still held of a partition that left and came back has
  no owner and is dropped.
* ``auto.offset.reset=error``: a position that retention has overtaken comes as an error. The
  assignment ends as lost and another begins, whose listener sees the gap between the committed
  offset and the log's start.

Partitions leave inside the callback, because they are gone once it returns: the listener drains
and commits there. The broker refuses a commit of a former member by its group epoch; but a live
member could still commit a partition that it no longer owns, so ``offsets.py`` filters commits by
ownership and version. ``ownership.py`` says how long ownership is certain.

Who owns what; each calls only those below:

=============================  ==================================================================
``KafkaSubscription``          the calls of the protocol; wakeup, outputs, forced resets
``AssignmentStarter``          how pending partitions are started
``AssignmentEnder``            how assignments end; whether the listener is being told of it
``GroupConsumer``              the driver's consumer, which may be replaced by another one
``AssignedPartitions``         what is pending, owned, fetched and paused, and where fetches begin
``OffsetCommits``              the commits under these assignments
``Ownership``                  the time until which they are certainly owned
``DriverReports``              whether the consumer is cut off, or has stopped fetching
``MemberErrors``               errors of callbacks, until a poll raises them
=============================  ==================================================================

``GroupConsumer`` tells those above it of the group's decisions, through ``GroupCallbacks`` alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from streams.errors import ConfigError, Fatal, Fenced, LogError, Unavailable
from streams.log.kafka.assignment_ender import AssignmentEnder
from streams.log.kafka.assignment_starter import AssignmentStarter
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.consumer import (
    GroupCallbacks,
    GroupConsumer,
    KafkaClients,
    MemberOptions,
)
from streams.log.kafka.errors import OUT_OF_RANGE
from streams.log.kafka.event_readers import HELD_WAIT, PolledEvents
from streams.log.kafka.forced_resets import ResetRequests
from streams.log.kafka.member_errors import MemberErrors
from streams.log.kafka.offsets import RETRY_PAUSE, RETRY_TIMEOUT, MembershipLost, to_driver
from streams.log.kafka.output_writer import OutputWriter
from streams.log.protocol import (
    Assignment,
    Commit,
    Committed,
    RebalanceListener,
    Submitted,
    Subscription,
    Transaction,
)
from streams.message import Batch, Record
from streams.text import get_logger

logger = get_logger("streams.kafka")

POLL_SLICE = 0.05
"""Seconds for which the driver may block at once: the delay of ``wakeup`` at worst."""

RESUME_DELAY = 1.0
"""Seconds after which librdkafka fetches again at the latest. A broker's thread that had nothing to
fetch sleeps for up to a second, and a resume does not wake it (seen with 2.16: 0.5 to 0.95 s)."""


class KafkaSubscription(Subscription):
    """A member of a group.

    :param reset_requests: where forced resets of the group are requested.
    :param on_closed: called once this is closed.
    :param refuses_records: whether a topic takes nothing but appends to histories.
    :param events: leaves out what does not count in event topics; None: there are none.
    """

    def __init__(
        self,
        clients: KafkaClients,
        options: MemberOptions,
        listener: RebalanceListener,
        reset_requests: ResetRequests,
        on_closed: Callable[[KafkaSubscription], None],
        refuses_records: Callable[[str], bool],
        events: PolledEvents | None = None,
    ) -> None:
        settings, flow = clients.settings, options.flow
        self.group = options.group
        if flow.drain >= settings.max_poll_interval:
            logger.warning(
                "group %s: a drain may take %g s (Flow.drain), but a member that does not poll for "
                "%g s (max.poll.interval.ms) is expelled: set a shorter drain",
                self.group, flow.drain, settings.max_poll_interval,
            )  # fmt: skip
        self._reset_requests = reset_requests
        self._on_closed = on_closed
        self._events = events
        self._member_name = options.member_name
        self._first_topic = options.topics[0]
        self._outputs = OutputWriter(
            clients.connect_writer,
            clients.requests,
            clients.readers.metadata,
            refuses_records,
            options.group,
            options.session_timeout,
            options.member_name,
        )
        self._only_topic = options.topics[0] if len(options.topics) == 1 else None
        self._wakeup = threading.Event()
        self._closed = False
        self._errors = MemberErrors()
        self._consumer = GroupConsumer(clients, options, self._errors)
        self._ender = AssignmentEnder(self._consumer, listener, self._errors, self.group)
        self._consumer.join(
            GroupCallbacks(self._ender.revoke, self._ender.expel, reset_requests.look_soon)
        )
        self._starter = AssignmentStarter(
            clients, self._consumer, listener, self._errors, self.group
        )

    def _replace_consumer(self, reason: str) -> None:
        """This consumer is of no use any more: join with a new one (``reconnect.py``)."""
        fresh = self._consumer.join_anew(reason)
        if fresh is None:
            return
        self._consumer.commits.membership_lost()
        self._ender.lose_all()
        self._consumer.switch_to(fresh)

    def _restart_stalled(self) -> None:
        """Fetch anew what the driver has stopped fetching; where that has not helped, with another
        consumer (``fetch_watch.py``)."""
        stalled = self._consumer.reports.take_stalled()
        if stalled is None:
            return
        names = ", ".join(f"{topic}/{number}" for topic, number in stalled.partitions)
        reason = f"nothing came from {names}, though there is more"
        if stalled.is_hopeless:
            self._replace_consumer(reason)
            return
        logger.warning("group %s: %s: restarting the fetch", self.group, reason)
        self._consumer.restart_fetching(stalled.partitions)

    # -- polling

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        events = self._events
        if events is None:
            return self._poll(limit, timeout)
        may_deliver = self._consumer.partitions.may_deliver
        if events.holds_back(may_deliver):
            # Wait for the index to decide on them, and poll once so that rebalances are served.
            batches = self._poll(1, 0.0)
        else:
            batches, timeout = self._poll(limit, timeout), HELD_WAIT
        may_deliver = self._consumer.partitions.may_deliver  # a poll may replace the consumer
        found = events.pass_on(batches, min(timeout, POLL_SLICE), may_deliver)
        if not events.is_needed:
            self._events = None
        return found

    def _poll(self, limit: int, timeout: float) -> Sequence[KafkaBatch]:
        self._raise_fatal()
        self._apply_resets()
        self._starter.start_pending()
        messages = self._consume(limit, 0.0)
        if not messages:
            self._starter.start_pending()
            messages = self._wait_for_messages(limit, timeout)
        if self._consumer.reports.is_isolated():
            # Fetched messages are dropped below: the next consumer owns nothing yet.
            self._replace_consumer("its brokers are out of reach for this client alone")
        self._restart_stalled()
        if not messages:
            self._errors.raise_deferred()
            return ()
        for failed in remove_errors(messages):
            self._handle_error(failed)
        batches = []
        partitions = self._consumer.partitions
        for topic, partition, run in split_by_partition(messages, self._only_topic):
            assignment = partitions.fetched_assignment(topic, partition)
            if assignment is not None:
                batches.append(KafkaBatch(topic, partition, run, assignment))
        if batches:
            self._errors.messages_came()
        else:
            self._errors.raise_deferred()
        return batches

    def _consume(self, limit: int, timeout: float) -> list[Any]:
        messages = self._consumer.consume(limit, timeout)
        self._raise_fatal()
        return messages

    def _wait_for_messages(self, limit: int, timeout: float) -> list[Any]:
        """Block for the first message, in slices, so that :meth:`wakeup` is heard."""
        deadline = time.monotonic() + timeout
        errors, reports = self._errors, self._consumer.reports
        while not errors.has_deferred and not reports.has_stalled:
            remaining = deadline - time.monotonic()
            if remaining < 0.001 or self._wakeup.is_set():
                break  # the driver rounds less than a millisecond to none: it would be a busy loop
            if self._consumer.partitions.all_paused:
                # Only a rebalance can come, and an event wakes at once.
                self._wakeup.wait(min(remaining, POLL_SLICE))
                messages = self._consume(limit, 0.0)
            else:
                messages = self._consume(1, min(remaining, POLL_SLICE))
                if messages and limit > 1:
                    messages += self._consume(limit - 1, 0.0)
            if messages:
                return messages
            self._apply_resets()
            self._starter.start_pending()
        self._wakeup.clear()
        return []

    def _raise_fatal(self) -> None:
        """Raise what broke this subscription; a member that is fenced owns nothing any more."""
        if isinstance(self._errors.fatal, Fatal):
            self._ender.lose_all()
        self._errors.raise_fatal()

    # -- errors

    def _handle_error(self, failed: Any) -> None:
        """Handle an error that came instead of a message."""
        error: KafkaError = failed.error()
        topic, partition = failed.topic(), failed.partition()
        if error.code() in OUT_OF_RANGE:
            self._restart_out_of_range(topic, partition, failed.offset())
            return
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return  # logged by the driver, which reports the loss separately
        source = f"{topic}/{partition}" if topic and partition is not None else f"{self.group!r}"
        translated = self._consumer.translate(error, f"consuming {source}")
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._errors.fail(translated)
        else:
            self._errors.defer(translated)

    def _restart_out_of_range(self, topic: str, partition: int, offset: int) -> None:
        """The log no longer has our position: the listener resolves it anew."""
        assignment = self._consumer.partitions.fetched_assignment(topic, partition)
        if assignment is None:
            return
        logger.warning(
            "group %s: %s/%d no longer has offset %d, resolving its position again",
            self.group, topic, partition, offset,
        )  # fmt: skip
        self._ender.lose([assignment])
        self._ender.restart([assignment])

    # -- forced resets

    def _apply_resets(self) -> None:
        """Start over from the offsets of a forced reset."""
        partitions = self._consumer.partitions
        resets = self._reset_requests.take_pending(partitions.fetched)
        if not resets:
            return
        assignments = partitions.owned_among(resets)
        names = ", ".join(f"{topic}/{partition}" for topic, partition in resets)
        logger.info("group %s: its offsets were reset by force: %s", self.group, names)
        self._ender.lose(assignments)
        self._ender.restart(assignments)
        try:
            self._consumer.commits.store_unassigned(resets)
            self._reset_requests.mark_applied(resets)
        except MembershipLost:
            pass  # the driver will report it; whoever owns them next finds the reset
        except KafkaException as error:
            self._errors.defer(self._consumer.translate(error, f"moving group {self.group!r}"))
        except LogError as error:
            self._errors.defer(error)

    # -- commits

    def commit(self, commits: Sequence[Commit]) -> None:
        """See the protocol.

        :raises TooLarge: the broker's offset.metadata.max.bytes is smaller than usual.
        """
        try:
            with self._commit_errors():
                self._consumer.commits.commit(commits)
        except MembershipLost:
            # We own nothing any more; the driver will report it, too.
            logger.warning("group %s: a commit came too late, this member was expelled", self.group)
            self._consumer.expelled()

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        with self._commit_errors():
            sent = self._consumer.commits.commit_async(commits, on_submitted)
        if not sent:
            on_submitted(False)

    def prepare_outputs(self) -> None:
        """See the protocol. Ends what a former process of this static member has left open, before
        its partitions are asked for."""
        self._starter.has_outputs = True
        if self._member_name:
            self._outputs.begin(self._first_topic)

    @property
    def resume_delay(self) -> float:
        return RESUME_DELAY

    @property
    def outputs_limit(self) -> int | None:
        return self._outputs.limit

    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        if self._closed:
            self._errors.raise_fatal()
        owns = self._consumer.partitions.owns
        for commit in commits:
            assignment = commit.assignment
            if not owns(assignment):
                raise Fenced(
                    f"group {self.group!r}: {assignment.topic}/{assignment.partition} is no longer "
                    "assigned to this member; nothing was stored"
                )
        offsets = to_driver(
            {
                each.assignment.topic_partition: Committed(each.position, each.progress)
                for each in commits
            }
        )
        until = time.monotonic() + RETRY_TIMEOUT
        while True:
            try:
                self._outputs.write(outputs, offsets, self._consumer.group_metadata)
            except Fenced:
                # In a rebalance that takes partitions away, the coordinator refuses for a moment.
                if not self._ender.is_revoking or time.monotonic() > until:
                    raise
                time.sleep(RETRY_PAUSE)
            except RuntimeError as error:
                raise Unavailable(f"group {self.group!r}: this subscription is closed") from error
            else:
                return

    @contextmanager
    def _commit_errors(self) -> Iterator[None]:
        operation = f"committing positions of group {self.group!r}"
        try:
            yield
        except RuntimeError as error:
            raise Unavailable(f"Kafka, {operation}: this subscription is closed") from error
        except Unavailable as error:
            raise Unavailable(f"Kafka, {operation}: {error}") from error
        except KafkaException as error:
            raise self._consumer.translate(error, operation) from error

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        """See the protocol. This member keeps the partitions, and starts them anew from the
        group's offsets at the next poll."""
        restarted = [each for each in assignments if self._consumer.partitions.owns(each)]
        if restarted:
            self._ender.restart(restarted)

    def keep_alive(self) -> None:
        """Do nothing: the driver heartbeats by itself.

        Its reports are read in ``poll`` only, so during a drain longer than the session (10 s by
        default, with KIP-848 45 s) ownership of the other partitions becomes uncertain.
        """

    # -- the rest

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """See the protocol. What was prefetched is thrown away."""
        self._consumer.partitions.pause(assignments)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        self._consumer.partitions.resume(assignments)

    def wakeup(self) -> None:
        self._wakeup.set()

    def begin_transaction(self) -> Transaction:
        raise ConfigError("kafka:// has no transaction for a handler's SQL: use sqlite://")

    def close(self) -> None:
        """Leave the group; a static member stays until its session ends, so that a restart finds
        its partitions again. So does a member whose coordinator does not answer within seconds."""
        if self._closed:
            return
        self._closed = True
        self._consumer.refuse_partitions()
        self._errors.begin_close()
        self._reset_requests.close()
        self._starter.close()
        self._ender.close()
        self._outputs.close()
        self._consumer.close()  # whose callbacks find nothing left to do
        self._on_closed(self)
        self._errors.end_close()
