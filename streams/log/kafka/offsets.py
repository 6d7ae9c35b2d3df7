"""A group's offsets: committing them as a member, and reading them as anybody.

**Committing** never goes backwards, never overlaps, and never waits without a deadline. The
driver's synchronous commit has no deadline (while a broker is frozen it does not return), and the
asynchronous one reports its result only inside ``poll``, which nobody can call while a revocation
waits for its last commit. So a commit is sent asynchronously, and then the offsets are read back,
with a deadline: both go to the coordinator over one connection, which answers in order, so what is
read is what the commit did.

An asynchronous commit (``commit_async``) is sent the same way, and the driver reports its result in
a later poll. A synchronous one that follows reads it back first; if it is not there, it was
refused.

A commit that could not be read back *may* be stored, now or when the driver retries, and the next
one must not overtake it: until its result is known, the next raises
:class:`~streams.errors.Unavailable`. What was sent once is never followed by something older; and
where the driver reports that an old one landed late, the newest is sent once more.

**Reading** does not use the AdminClient's ListConsumerGroupOffsets: while a coordinator moves or
starts up, its answer makes librdkafka 2.16 read the group state that only a consumer has, and the
process crashes (SIGSEGV in rd_kafka_handle_OffsetFetch, librdkafka's issue 5040). A consumer that
never joins the group asks the same safely. It must name the partitions; Kafka answers with those
that have an offset.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import LogError, Unavailable
from streams.idle_cache import IdleCache
from streams.log.kafka.client import REQUEST_TIMEOUT, RequestRetry, SharedClient
from streams.log.protocol import Assignment, Commit, Committed, Submitted, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

SendCommit = Callable[[list[KTopicPartition]], None]
ReadCommitted = Callable[[Sequence[TopicPartition]], Mapping[TopicPartition, "Committed | None"]]

RETRY_TIMEOUT = 3.0
"""Seconds for which a refused commit is retried: meanwhile the driver ends a rebalance by itself,
and learns the group epoch under which the commit is accepted."""

RETRY_PAUSE = 0.1
"""Seconds between two tries."""

UNANSWERED_TIMEOUT = 120.0
"""Seconds after which the driver has surely given up a commit whose result it never reports."""

MAX_UNREPORTED = 100
"""Commits that are kept until the driver reports them, at most. It reports each one."""

MAX_ASKED = 400
"""Partitions that are asked for at once: what the driver does with them costs their number squared.
"""

MAX_IDLE = 4
"""Groups that nobody asks for now and whose readers are kept."""

IDLE_SECONDS = 10.0
"""Real seconds for which they are: each has threads and connections."""


class MembershipLost(Exception):
    """This member was expelled from the group, so nothing that it commits is stored."""


@dataclass(eq=False, slots=True)
class _CommitState:
    """The state of the commits under one assignment."""

    assignment: Assignment
    stored_version: int = -1
    """The newest version that is stored for certain."""
    sent_version: int = -1
    """The newest version that was handed to the driver."""
    sent_offset: Committed | None = None
    """The offset of that version."""


class _SentVersion(NamedTuple):
    """The version of a commit that was sent, and the state of the commits that it belongs to."""

    state: _CommitState
    version: int


class _SentCommit(NamedTuple):
    """A commit that was handed to the driver."""

    offsets: Mapping[TopicPartition, Committed]
    sent_at: float
    """Monotonic time, just before it was sent."""


class OffsetCommits:
    """The commits of one subscription.

    :param send: the driver's asynchronous commit.
    :param read: the group's offsets; raises LogError, or :class:`MembershipLost`.
    :param member_id: the member's ID, which changes when the coordinator has expelled it.
    """

    def __init__(
        self, send: SendCommit, read: ReadCommitted, member_id: Callable[[], str | None]
    ) -> None:
        self._send = send
        self._read_committed = read
        self._member_id = member_id
        self._lock = threading.Lock()
        self._states: dict[TopicPartition, _CommitState] = {}
        self._in_flight: dict[TopicPartition, Committed] = {}
        """The offsets of the commit whose result is not known."""
        self._in_flight_versions: dict[TopicPartition, _SentVersion] = {}
        self._sent_at = 0.0
        self._submitted: Submitted | None = None
        """To be called with that result, if the commit is asynchronous."""
        self._unreported: deque[_SentCommit] = deque(maxlen=MAX_UNREPORTED)
        """The commits that the driver has not reported yet."""

    def add_assignments(self, assignments: Iterable[Assignment]) -> None:
        """These may be committed from now on."""
        with self._lock:
            for assignment in assignments:
                self._states[assignment.topic_partition] = _CommitState(assignment)

    def remove_assignments(self, assignments: Iterable[Assignment]) -> None:
        """These may no longer be committed; waits for a commit that is being made."""
        with self._lock:
            for assignment in assignments:
                key = assignment.topic_partition
                state = self._states.get(key)
                if state is not None and state.assignment is assignment:
                    del self._states[key]

    def commit(self, commits: Iterable[Commit]) -> bool:
        """Store what is newer than what was stored, of what is owned; whether there was any.

        :raises Unavailable: nothing is known to be stored.
        :raises MembershipLost: nothing was stored, and nothing will be.
        :raises KafkaException: the driver did not take it.
        """
        with self._lock:
            newest = self._newer_commits(commits)
            if not newest:
                return False
            self._check_previous()
            self._commit_and_verify(self._record_sent(newest))
            return True

    def commit_async(self, commits: Iterable[Commit], submitted: Submitted) -> bool:
        """Send the same, and tell ``submitted`` in a later poll or commit whether it is stored.
        False: nothing was sent, as nothing is newer or the previous one has not ended.

        :raises KafkaException: the driver did not take it.
        """
        with self._lock:
            newest = self._newer_commits(commits)
            if not newest or self._in_flight:
                return False
            offsets = self._record_sent(newest)
            self._in_flight, self._sent_at = offsets, time.monotonic()
            try:
                self._send_offsets(offsets)
            except BaseException:
                self._in_flight, self._in_flight_versions = {}, {}
                raise
            self._submitted = submitted
            return True

    def _newer_commits(self, commits: Iterable[Commit]) -> dict[TopicPartition, Commit]:
        """The commits of owned partitions that are newer than the stored ones."""
        newest: dict[TopicPartition, Commit] = {}
        for commit in commits:
            key = commit.assignment.topic_partition
            state = self._states.get(key)
            if state is None or state.assignment is not commit.assignment:
                continue
            newest_version = newest[key].version if key in newest else state.stored_version
            if commit.version > newest_version and commit.version >= state.sent_version:
                newest[key] = commit
        return newest

    def _record_sent(
        self, newest: Mapping[TopicPartition, Commit]
    ) -> dict[TopicPartition, Committed]:
        """Note that these are about to be sent."""
        self._in_flight_versions = {
            key: _SentVersion(self._states[key], each.version) for key, each in newest.items()
        }
        offsets = {k: Committed(each.position, each.progress) for k, each in newest.items()}
        for key, sent in self._in_flight_versions.items():
            sent.state.sent_version, sent.state.sent_offset = sent.version, offsets[key]
        return offsets

    def store_unassigned(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Store offsets of a forced reset, whose partitions are between two assignments.

        :raises Unavailable: nothing is known to be stored.
        """
        with self._lock:
            self._check_previous()
            self._in_flight_versions = {}
            self._commit_and_verify(offsets)

    def _commit_and_verify(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Commit; a coordinator refuses during a rebalance, so this is retried for a while."""
        member_id, start = self._member_id(), time.monotonic()
        self._in_flight, self._sent_at = dict(offsets), start
        while True:
            self._send_offsets(offsets)
            if self._verify_stored():
                return
            if self._member_id() != member_id or not member_id:
                self._unreported.clear()
                raise MembershipLost
            if time.monotonic() > start + RETRY_TIMEOUT:
                raise Unavailable(
                    "the coordinator did not take the positions (a rebalance, most likely)"
                )
            time.sleep(RETRY_PAUSE)

    def _send_offsets(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        sent_at = time.monotonic()
        self._send(to_driver(offsets))
        self._unreported.append(_SentCommit(offsets, sent_at))

    def _check_previous(self) -> None:
        """See that the previous commit has ended."""
        if not self._in_flight or self._verify_stored():
            return
        if self._submitted is not None:
            # The coordinator answers in order, and this was not accepted.
            self._finish(stored=False)
            return
        if time.monotonic() - self._sent_at < UNANSWERED_TIMEOUT:
            raise Unavailable("the commit before this one has not been answered yet")
        self._in_flight = {}

    def _verify_stored(self) -> bool:
        """Whether the coordinator has what was sent. (It may have had the same before, or from the
        partitions' next owner: so this does not show that it has accepted the commit.)"""
        if self._read_committed(list(self._in_flight)) != self._in_flight:
            return False
        self._finish(stored=True)
        return True

    def _finish(self, *, stored: bool) -> None:
        for sent in self._in_flight_versions.values():
            if stored:
                sent.state.stored_version = max(sent.state.stored_version, sent.version)
        self._in_flight, self._in_flight_versions = {}, {}
        submitted, self._submitted = self._submitted, None
        if submitted is not None:
            submitted(stored)

    def on_commit(
        self, error: KafkaError | None, partitions: Sequence[KTopicPartition]
    ) -> float | None:
        """The driver's report, inside a poll, of how a commit ended.

        :returns: when the commit was sent, if the coordinator has accepted it: then this process
            was a member at that time. None: it has not.
        """
        ended = {(part.topic, part.partition): part for part in partitions}
        sent_at = self._take_sent({key: _committed_of(part) for key, part in ended.items()})
        if self._in_flight and all(
            key in ended and _committed_of(ended[key]) == committed
            for key, committed in self._in_flight.items()
        ):
            self._finish(stored=error is None and all(part.error is None for part in partitions))
        if error is None:
            self._resend_overtaken(ended)
        is_accepted = error is None and all(part.error is None for part in partitions)
        return sent_at if is_accepted else None

    def _take_sent(self, offsets: Mapping[TopicPartition, Committed | None]) -> float | None:
        """When the commit of these offsets was sent; of several, the first."""
        for commit in tuple(self._unreported):
            if commit.offsets == offsets:
                self._unreported.remove(commit)
                return commit.sent_at
        return None

    def _resend_overtaken(self, ended: Mapping[TopicPartition, KTopicPartition]) -> None:
        """Where a commit that nobody waited for landed after a newer one, repeat the newer."""
        overtaken = {
            key: state.sent_offset
            for key, state in self._states.items()
            if state.sent_offset is not None
            and (partition := ended.get(key)) is not None
            and partition.error is None
            and partition.offset < state.sent_offset.position
        }
        if overtaken:
            try:
                self._send_offsets(overtaken)
            except KafkaException as error:
                logger.warning("positions were not committed again: %s", error)

    def membership_lost(self) -> None:
        """Note that this member was expelled: what it sent has no effect any more."""
        self._unreported.clear()
        self._finish(stored=False)


def to_driver(offsets: Mapping[TopicPartition, Committed]) -> list[KTopicPartition]:
    """Offsets as the driver takes them."""
    return [
        KTopicPartition(*key, committed.position, metadata=committed.progress)
        for key, committed in offsets.items()
    ]


class OffsetReader:
    """Reads a group's offsets through a consumer that never joins it (any thread).

    :param connect: makes a consumer.
    :param stable: wait for the end of transactions that may change them.
    :param timeout: seconds to wait for an answer.
    """

    def __init__(
        self,
        connect: Callable[[dict[str, Any]], Consumer],
        group: str,
        requests: RequestRetry,
        *,
        stable: bool = False,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        config = requests.settings.offset_reader_config(group)
        if stable:
            config["isolation.level"] = "read_committed"
        self._consumer = SharedClient(lambda: connect(config))
        self._group = group
        self._requests = requests
        self._timeout = timeout

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Committed]:
        """The group's offsets in these partitions."""
        operation = f"asking for the positions of group {self._group}"
        found: dict[TopicPartition, Committed] = {}
        for begin in range(0, len(partitions), MAX_ASKED):
            wanted = partitions[begin : begin + MAX_ASKED]
            offsets = self._requests.run(
                operation, self._consumer, partial(self._ask, wanted), timeout=self._timeout
            )
            found |= {key: each for key, each in offsets.items() if each is not None}
        return found

    def _ask(
        self, partitions: Sequence[TopicPartition], consumer: Consumer
    ) -> Mapping[TopicPartition, Committed | None]:
        wanted = [KTopicPartition(*partition) for partition in partitions]
        try:
            return committed_by_partition(consumer.committed(wanted, self._timeout))
        except KafkaException as error:
            raise _authorization_error(consumer) or error from None

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


class OffsetReaders:
    """Reads the offsets of any group (any thread).

    The readers of groups that were asked for last are kept for a while: until a new one has found
    the group's coordinator takes some 20 ms, and several connections.

    :param connect: makes a consumer.
    """

    def __init__(
        self, connect: Callable[[dict[str, Any]], Consumer], requests: RequestRetry
    ) -> None:
        self._readers = IdleCache(
            lambda group: OffsetReader(connect, group, requests),
            MAX_IDLE,
            IDLE_SECONDS,
            OffsetReader.close,
        )
        self._closed = False

    def committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Committed]:
        """A group's offsets in these partitions; none if there is no such group."""
        if not partitions:
            return {}
        if self._closed:
            raise LogError("Kafka: this log is closed")
        with self._readers.hold(group) as reader:
            return reader.committed(partitions)

    def close(self) -> None:
        """Close the readers; those in use when their users have finished."""
        self._closed = True
        self._readers.close()


def _authorization_error(consumer: Consumer) -> KafkaException | None:
    """The driver reports only as an event that this user may not read the group's offsets; the
    request itself just finds no coordinator in time."""
    for event in consumer.consume(100, 0):
        error = event.error()
        if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return KafkaException(error)
    return None


def committed_by_partition(
    partitions: Sequence[KTopicPartition],
) -> dict[TopicPartition, Committed | None]:
    """Committed offsets from the driver's answer; None where there is none.

    :raises KafkaException: one of them could not be read.
    """
    offsets: dict[TopicPartition, Committed | None] = {}
    for partition in partitions:
        if partition.error is not None:
            raise KafkaException(partition.error)
        offsets[partition.topic, partition.partition] = _committed_of(partition)
    return offsets


def _committed_of(partition: KTopicPartition) -> Committed | None:
    if partition.offset < 0:
        return None
    try:
        progress = partition.metadata or ""
    except UnicodeDecodeError:
        # Not ours: we write ASCII. The position is valid all the same.
        progress = "?"
    return Committed(partition.offset, progress)
