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
and commits there. The broker refuses a commit of a former member by its generation; but a live
member could still commit a partition that it no longer owns, so ``offsets.py`` filters commits by
ownership and version. ``ownership.py`` says how long ownership is certain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import ConfigError, Fatal, Fenced, LogError, Unavailable
from streams.log.kafka.assignment import topic_partitions_of
from streams.log.kafka.assignment_starter import AssignmentStarter
from streams.log.kafka.batch import KafkaBatch, remove_errors, split_by_partition
from streams.log.kafka.consumer import GroupConsumer, KafkaClients, MemberOptions
from streams.log.kafka.errors import OUT_OF_RANGE
from streams.log.kafka.event_readers import HELD_WAIT, PolledEvents
from streams.log.kafka.forced_resets import ResetRequests
from streams.log.kafka.offsets import RETRY_PAUSE, RETRY_TIMEOUT, MembershipLost, to_driver
from streams.log.kafka.output_writer import OutputWriter
from streams.log.protocol import (
    Assignment,
    Commit,
    Committed,
    RebalanceListener,
    Submitted,
    Subscription,
    TopicPartition,
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

    One class, because it is the log protocol's ``Subscription``, whose methods all go to one
    consumer under the rules above; what has state of its own (assignment, offsets, ownership,
    outputs) is in modules of its own.

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
        self._settings = settings
        self._listener = listener
        self._reset_requests = reset_requests
        self._on_closed = on_closed
        self._events = events
        self._member_name = options.member_name
        self._first_topic = options.topics[0]
        self._is_revoking = False
        """The listener is told of partitions that are taken away."""
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
        self._consumer = GroupConsumer(clients, options, self._on_revoke, self._on_lost)
        self._starter = AssignmentStarter(clients, self._consumer, listener, self.group)

    def _replace_consumer(self, reason: str) -> None:
        """This consumer is of no use any more: join with a new one (``reconnect.py``)."""
        fresh = self._consumer.join_anew(reason)
        if fresh is None:
            return
        self._consumer.commits.membership_lost()
        self._lose(list(self._consumer.partitions.owned.values()))
        self._consumer.switch_to(fresh)

    def _restart_stalled(self) -> None:
        """Fetch anew what the driver has stopped to fetch; where that has not helped, with another
        consumer (``fetch_watch.py``)."""
        stalled, self._consumer.stalled = self._consumer.stalled, None
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
        if events.holds_back(self._may_deliver):
            # Wait for the index to decide on them, and poll once so that rebalances are served.
            batches = self._poll(1, 0.0)
        else:
            batches, timeout = self._poll(limit, timeout), HELD_WAIT
        found = events.pass_on(batches, min(timeout, POLL_SLICE), self._may_deliver)
        if not events.is_needed:
            self._events = None
        return found

    def _may_deliver(self, assignment: Assignment) -> bool | None:
        """Whether messages of an assignment may be given out; None: it is ours no more."""
        partitions, key = self._consumer.partitions, assignment.topic_partition
        if partitions.owned.get(key) is not assignment or key not in partitions.fetched:
            return None
        return key not in partitions.paused

    def _poll(self, limit: int, timeout: float) -> Sequence[KafkaBatch]:
        self._raise_fatal()
        self._apply_resets()
        self._starter.start_pending()
        messages = self._consume(limit, 0.0)
        if not messages:
            self._starter.start_pending()
            messages = self._wait_for_messages(limit, timeout)
        if self._consumer.is_isolated():
            # Fetched messages are dropped below: the next consumer owns nothing yet.
            self._replace_consumer("its brokers are out of reach for this client alone")
        if self._consumer.stalled is not None:
            self._restart_stalled()
        if not messages:
            self._raise_deferred()
            return ()
        for failed in remove_errors(messages):
            self._handle_error(failed)
        batches = []
        owned, fetched = self._consumer.partitions.owned, self._consumer.partitions.fetched
        for topic, partition, run in split_by_partition(messages, self._only_topic):
            assignment = owned.get((topic, partition))
            if assignment is not None and (topic, partition) in fetched:
                batches.append(KafkaBatch(topic, partition, run, assignment))
        if not batches:
            self._raise_deferred()
        elif isinstance(self._consumer.deferred_error, Unavailable):
            self._consumer.deferred_error = None  # messages came, so it has passed
        return batches

    def _consume(self, limit: int, timeout: float) -> list[Any]:
        messages = self._consumer.consume(limit, timeout)
        self._raise_fatal()
        return messages

    def _wait_for_messages(self, limit: int, timeout: float) -> list[Any]:
        """Block for the first message, in slices, so that :meth:`wakeup` is heard."""
        deadline = time.monotonic() + timeout
        while self._consumer.deferred_error is None and self._consumer.stalled is None:
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
        if self._consumer.fatal_error is None:
            return
        if isinstance(self._consumer.fatal_error, Fatal):
            self._lose(list(self._consumer.partitions.owned.values()))
        raise self._consumer.fatal_error

    def _raise_deferred(self) -> None:
        """Raise once what went wrong in a callback or beside messages."""
        deferred, self._consumer.deferred_error = self._consumer.deferred_error, None
        if deferred is not None:
            raise deferred

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
            self._consumer.fail(translated)
        elif self._consumer.deferred_error is None or isinstance(
            self._consumer.deferred_error, Unavailable
        ):
            self._consumer.deferred_error = translated

    def _restart_out_of_range(self, topic: str, partition: int, offset: int) -> None:
        """The log no longer has our position: the listener resolves it anew."""
        key = (topic, partition)
        assignment = self._consumer.partitions.owned.get(key)
        if assignment is None or key not in self._consumer.partitions.fetched:
            return
        logger.warning(
            "group %s: %s/%d no longer has offset %d, resolving its position again",
            self.group, topic, partition, offset,
        )  # fmt: skip
        self._lose([assignment])
        self._restart([key])

    def _notify_listener(
        self, notify: Callable[[Sequence[Assignment]], None], assignments: list[Assignment]
    ) -> None:
        """Tell the listener; what it raises breaks the subscription, but not the callback."""
        try:
            if assignments:
                notify(assignments)
        except BaseException as error:
            self._consumer.fail(error)

    def _lose(self, assignments: list[Assignment]) -> None:
        self._consumer.remove_owned(assignments)
        self._notify_listener(self._listener.lost, assignments)

    def _restart(self, keys: Collection[TopicPartition]) -> None:
        """Stop fetching these until the listener has been told of them anew."""
        self._consumer.stop_fetching(keys)
        self._consumer.partitions.add_pending(keys)

    # -- what the group decides; called inside consume and close, so nothing may be raised

    def _on_revoke(self, partitions: list[KTopicPartition]) -> None:
        self._give_up_partitions(partitions, self._listener.revoked)

    def _on_lost(self, partitions: list[KTopicPartition]) -> None:
        logger.warning(
            "group %s: this member was expelled from the group; %d partitions lost",
            self.group,
            len(partitions),
        )
        self._consumer.commits.membership_lost()
        for key in topic_partitions_of(partitions):
            if key in self._consumer.partitions.owned:
                self._consumer.partitions.owned[key].valid_until = float("-inf")
        self._give_up_partitions(partitions, self._listener.lost)

    def _give_up_partitions(
        self, partitions: list[KTopicPartition], notify: Callable[[Sequence[Assignment]], None]
    ) -> None:
        keys, owned = topic_partitions_of(partitions), self._consumer.partitions.owned
        for key in keys:
            self._consumer.partitions.pending.pop(key, None)
        removed = [owned[key] for key in keys if key in owned]
        self._is_revoking = True
        self._notify_listener(notify, removed)
        self._is_revoking = False
        self._consumer.remove_owned(removed)
        self._consumer.stop_fetching(keys, rebalance=True)

    def _apply_resets(self) -> None:
        """Start over from the offsets of a forced reset."""
        if self._consumer.group_changed:
            self._consumer.group_changed = False
            self._reset_requests.look_soon()
        resets = self._reset_requests.take_pending(self._consumer.partitions.fetched)
        if not resets:
            return
        assignments = [self._consumer.partitions.owned[key] for key in resets]
        names = ", ".join(f"{topic}/{partition}" for topic, partition in resets)
        logger.info("group %s: its offsets were reset by force: %s", self.group, names)
        self._lose(assignments)
        self._restart(resets)
        try:
            self._consumer.commits.store_unassigned(resets)
            self._reset_requests.mark_applied(resets)
        except MembershipLost:
            pass  # the driver will report it; whoever owns them next finds the reset
        except KafkaException as error:
            self._consumer.deferred_error = self._consumer.translate(
                error, f"moving group {self.group!r}"
            )
        except LogError as error:
            self._consumer.deferred_error = error

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
            self._consumer.ownership.confirmed_at = float("-inf")
            self._consumer.extend_ownership()

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        with self._commit_errors():
            sent = self._consumer.commits.commit_async(commits, on_submitted)
        if not sent:
            on_submitted(False)

    def prepare_outputs(self) -> None:
        """See the protocol. Ends what a former process of this static member has left open, before
        its partitions are asked for."""
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
        if self._closed and self._consumer.fatal_error is not None:
            raise self._consumer.fatal_error
        owned = self._consumer.partitions.owned
        for commit in commits:
            assignment = commit.assignment
            if owned.get(assignment.topic_partition) is not assignment:
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
                if not self._is_revoking or time.monotonic() > until:
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
        owned = self._consumer.partitions.owned
        restarted = [each for each in assignments if owned.get(each.topic_partition) is each]
        if restarted:
            self._consumer.remove_owned(restarted)
            self._restart([each.topic_partition for each in restarted])

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
        self._closed = self._consumer.is_closing = True
        fatal_error, self._consumer.fatal_error = self._consumer.fatal_error, None
        self._reset_requests.close()
        self._starter.close()
        revoked = list(self._consumer.partitions.owned.values())
        self._is_revoking = True
        self._notify_listener(self._listener.revoked, revoked)
        self._consumer.remove_owned(revoked)
        self._consumer.partitions.pending.clear()
        self._outputs.close()
        self._consumer.close()  # whose callbacks find nothing left to do
        self._on_closed(self)
        error, self._consumer.fatal_error = (
            self._consumer.fatal_error,
            fatal_error or LogError("this subscription is closed"),
        )
        if error is not None:
            raise error
