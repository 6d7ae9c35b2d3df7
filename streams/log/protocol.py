"""The protocol of a log: two small protocols, :class:`Log` and :class:`Subscription`, and their
terms.

Rules every log keeps (``tests/conformance/`` proves them, one suite over all logs):

* **Offsets are ints with a total order.** On Kafka and SQLite they are the log's own numbers; on
  Redis the entry ID ``ms-seq`` as ``ms << 64 | seq``. Gaps are normal, so offsets are compared,
  never counted.
* **A position is the offset at which reading continues**: every message of the partition with a
  smaller offset is settled. After the message at ``offset`` it is ``offset + 1`` (on Redis that is
  the next possible entry ID). Kafka's committed offset means the same.
* **Progress** is a position and an opaque ASCII string of at most :data:`PROGRESS_LIMIT`
  characters; a log stores and returns it without knowing what it means.
* **Every call is synchronous and raises only** :class:`~streams.errors.LogError` and its
  subclasses; the log translates its driver's exceptions. A :class:`Log` may be used from any
  thread; a
  :class:`Subscription` belongs to the one thread that polls it, except where a method says so.
  On a closed log every call raises.
* **Ownership has an epoch.** A commit under an older epoch is refused, and
  ``Assignment.valid_until`` says until when ownership is certain: past it no handler starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from streams.config import Flow
from streams.config import Retention as Retention
from streams.errors import ConfigError, LogError, NotFound, TopicMismatch
from streams.message import Batch, Position, Record
from streams.wire import PROGRESS_LIMIT as PROGRESS_LIMIT

TRIM_MARGIN = 10_000
"""Messages kept below the position that every group has settled, so that dedup windows can be
rebuilt."""


TopicPartition = tuple[str, int]
"""A topic's name and the number of one of its partitions."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The features of a log. The app refuses the others, and their tests are not run on this
    log."""

    name: str
    durable: bool = True
    """Acknowledged messages survive ``kill -9`` of the process."""
    processes: bool = True
    """One group can span several processes."""
    transactions: bool = False
    """A handler's own SQL can join the transaction that commits its position."""
    commits_outputs: bool = False
    """Records and positions can be stored in one step (:meth:`Subscription.commit_outputs`)."""
    outputs_at_once: int = 20_000
    """Records of one such step, at most (except for those of a single message)."""
    why_no_outputs: str = ""
    """Why outputs cannot be committed with positions, and what to do instead."""
    fences_appends: bool = False
    """Records can be appended as a partition's owner, and only as that
    (:attr:`Assignment.append_as_owners`)."""
    append_once: bool = False
    """Writing a message ID twice leaves one entry in the log."""
    events: bool = False
    """The log keeps histories: it is an :class:`~streams.log.events.EventLog`."""
    documents: bool = False
    """The log keeps documents: it is a :class:`~streams.log.documents.DocumentLog`."""
    creates_topics: bool = True
    """A missing topic of the user's is created when declared, with one partition unless declared
    otherwise. The toolkit's own topics are created on every log."""
    retention: frozenset[str] = frozenset({"seconds", "messages"})
    """The bounds of :class:`~streams.config.Retention` that the log can apply."""
    forgets_positions: bool = False
    """Positions of a group without running members are deleted some time after they were
    committed."""
    uses_app_clock: bool = False
    """All its times are by the app's clock, so that a test can advance them."""
    commit_interval: float = 0.025
    """Seconds between two asynchronous commits of a member, at least."""
    dead_letter_config: Mapping[str, str] = field(default_factory=dict)
    """Settings of a dead letter topic, which must take more than its source's largest record."""
    compacted_config: Mapping[str, str] = field(default_factory=dict)
    """Settings of a topic that keeps only the last record of each key, on logs that can."""


def check_retention(topic: str, retention: Retention, capabilities: Capabilities) -> None:
    """Check that a log can apply a retention.

    :raises ConfigError: it cannot.
    """
    unsupported = [bound for bound in retention.bounds_set if bound not in capabilities.retention]
    if unsupported:
        possible = [each.name for each in fields(Retention) if each.name in capabilities.retention]
        raise ConfigError(
            f"topic {topic!r}: Retention({unsupported[0]}=...) is not possible on "
            f"{capabilities.name}, "
            f"which has {', '.join(possible)}"
        )


def check_outputs(what: str, capabilities: Capabilities) -> None:
    """Check that a log can store records and positions in one step.

    :param what: the feature that needs it, for the error.
    :raises ConfigError: it cannot.
    """
    if not capabilities.commits_outputs:
        why = capabilities.why_no_outputs or "it cannot store records and positions in one step"
        raise ConfigError(
            f"{what}: exactly_once=True is not possible on {capabilities.name}: {why}"
        )


def ensure_topic(
    log: Log,
    topic: str,
    partitions: int,
    retention: Retention = Retention(),
    config: Mapping[str, str] | None = None,
) -> TopicInfo:
    """The facts of a topic, which is created if it does not exist; blocks.

    If several processes find it missing at once, one creates it, and the others use that topic,
    however many partitions it has.
    """
    try:
        return log.describe_topic(topic)
    except NotFound:
        pass
    try:
        return log.create_topic(topic, partitions, retention, config)
    except TopicMismatch:
        return log.describe_topic(topic)


class TopicInfo(NamedTuple):
    """A topic's facts in the log."""

    name: str
    partitions: int
    retention: Retention = Retention()
    retention_known: bool = True
    """False if this user may not ask for it (Kafka: DescribeConfigs on the topic)."""
    is_event_topic: bool = False
    """The topic holds histories (:mod:`streams.log.events`), and nothing else may be written to
    it."""


class DurabilityFact(NamedTuple):
    """A setting of the log or its servers that decides whether acknowledged messages can be lost.

    :param name: the server's name for it.
    :param value: its value now.
    :param is_safe: False: messages can be lost. None: this cannot be known from here.
    :param advice: what to do or to consider; even a safe setting may have some.
    """

    name: str
    value: str
    is_safe: bool | None
    advice: str = ""


class Committed(NamedTuple):
    """A group's commit in one partition: the position, and the engine's progress."""

    position: int
    progress: str = ""


class Commit(NamedTuple):
    """A commit for one partition. ``version`` ascends within an assignment: a commit with an older
    version is stale and is dropped (one with the same version is accepted), so that two threads
    that commit cannot move a group backwards."""

    assignment: Assignment
    position: int
    progress: str
    version: int


def by_topic_of(outputs: Sequence[tuple[str, Record]]) -> dict[str, list[int]]:
    """The indexes of records by their target topics."""
    found: dict[str, list[int]] = {}
    for index, (topic, _) in enumerate(outputs):
        found.setdefault(topic, []).append(index)
    return found


class StaticMember(NamedTuple):
    """A member with a name by which its group recognizes it after a restart.

    A member that joins under the name takes over the previous member's partitions at once, which
    fences that member: its commits are refused, and its next poll raises
    :class:`~streams.errors.MemberFenced`.
    """

    name: str
    incarnation: str
    """A text that is unique to the process which uses the name."""

    def __str__(self) -> str:
        return f"{self.name}:{self.incarnation}"


class MemberInfo(NamedTuple):
    """A running member of a group."""

    id: str
    partitions: tuple[TopicPartition, ...]
    """The partitions that the member owns."""


class GroupInfo(NamedTuple):
    """A group's facts in the log."""

    name: str
    members: tuple[MemberInfo, ...]
    positions: Mapping[TopicPartition, Committed]
    """A partition without a position is absent."""

    def within(self, topics: Collection[str] | None) -> GroupInfo:
        """The group without its positions in other topics; None: with all positions."""
        if topics is None:
            return self
        positions = {at: each for at, each in self.positions.items() if at[0] in topics}
        return self._replace(positions=positions)

    def committed_in(self, topic: str) -> dict[int, Committed]:
        """The positions in one topic, by partition."""
        return {
            partition: committed
            for (name, partition), committed in self.positions.items()
            if name == topic
        }


@dataclass(eq=False, slots=True)
class Assignment:
    """One partition, owned by one subscription under one epoch, until revoked or lost.

    Compared by identity: if the partition is assigned again, that is another assignment.
    """

    topic: str
    partition: int
    epoch: int
    committed: Committed | None
    """The group's commit when this assignment began."""
    valid_until: float = float("inf")
    """Monotonic time until which ownership is certain; the subscription moves it on each
    confirmation, and to minus infinity when the partition is revoked or lost."""
    lease: float | None = None
    """Seconds after which the partition of a silent owner goes to another member; None: it never
    does, or the log does not say."""
    stored_beyond_end: int | None = field(default=None, init=False)
    """The position that was stored before, if it is beyond the log's end and the log itself
    replaced it by ``committed``."""
    append_as_owners: AppendAsOwners | None = field(default=None, init=False)
    """Appends records that only the owner of this assignment, or of another one of its
    subscription, may write; None: the log cannot check that
    (:attr:`Capabilities.fences_appends`)."""
    incarnation: str = field(default="", init=False)
    """The topic's incarnation (:meth:`Log.incarnation`), once it was looked up."""
    position: int = field(init=False)
    """The position at which reading starts; the listener sets it before ``assigned`` returns."""
    log_end: int | None = field(default=None, init=False)
    """The log's end when this assignment began, readable or not (:meth:`Log.log_end_offset`); the
    listener sets it, for an inbox that compares its database with the log. None: no inbox does."""

    def __post_init__(self) -> None:
        self.position = self.committed.position if self.committed else 0

    @property
    def topic_partition(self) -> TopicPartition:
        """Topic and partition."""
        return self.topic, self.partition

    def __repr__(self) -> str:
        return f"<Assignment {self.topic}/{self.partition} epoch {self.epoch}>"


class RebalanceListener(Protocol):
    """The callbacks of a subscription, always called inside ``poll`` or ``close``."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are assigned: set each one's ``position`` before returning.

        :raises Unavailable: none of them can be started now; the callback is repeated for them.
        """
        ...

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """These partitions go to others once this returns: drain and commit now, which is still
        accepted."""
        ...

    def lost(self, assignments: Sequence[Assignment]) -> None:
        """Another member owns these partitions already: discard them, and commit nothing."""
        ...


class OutputsRefused(LogError):
    """Some records can never be written, so nothing that was to be stored with them was stored."""

    def __init__(self, errors: Mapping[int, LogError]) -> None:
        """``errors`` are the reasons, by index into the records."""
        super().__init__("; ".join(dict.fromkeys(map(str, errors.values()))))
        self.errors = errors


Submitted = Callable[[bool], None]
"""Called once; the argument is whether an asynchronous commit was stored."""


class Subscription(Protocol):
    """A member of a group, reading the partitions it owns. Used by one thread at a time."""

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        """The next messages, at most ``limit``, without those of paused assignments.

        Blocks only while there are none, for up to ``timeout`` real seconds. Keeps the membership
        alive, so call it more often than the session or lease lasts.

        :raises Unavailable: the log cannot be reached now; poll again after a pause.
        :raises LogError: any other failure.
        """
        ...

    def commit(self, commits: Sequence[Commit]) -> None:
        """Store these commits durably. Stale ones, and those of assignments that are no longer
        owned, are dropped without an error (the listener is told of the loss).

        :raises Unavailable: nothing is known to be stored; commit again later.
        """
        ...

    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        """Store these as :meth:`commit` does, but cheaply: they survive the end of this process,
        not of the machine, and the call does not wait if the log can report the result later.

        ``on_submitted`` is called once, inside this call or a later one of ``poll`` or ``commit``,
        and ``commit_async`` must not be called again before. False: they were not accepted.

        :raises Unavailable: nothing is known to be stored; ``on_submitted`` was not called.
        """
        ...

    def prepare_outputs(self) -> None:
        """Prepare for :meth:`commit_outputs`: called before the first poll of a subscription with
        outputs.

        :raises Unavailable: the log cannot be reached now; call again later.
        """
        return

    @property
    def resume_delay(self) -> float:
        """The most seconds from :meth:`resume` until messages come again; a shorter pause costs
        more than it saves. 0: they come at once."""
        return 0.0

    @property
    def outputs_limit(self) -> int | None:
        """The most records that the next :meth:`commit_outputs` should have (except for those of a
        single message), if fewer than :attr:`Capabilities.outputs_at_once`."""
        return None

    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        """Append records, each to the topic in its pair, and store positions, in one step: all of
        it is in the log afterwards, or nothing. Records of one key keep their order.

        A log that supports it says so in its :class:`Capabilities`. Only the thread that polls
        calls it, also from inside the listener while partitions are revoked.

        :raises Unavailable: nothing was stored; call again later.
        :raises Fenced: nothing was stored, as a partition is no longer owned, or may be about to be
            revoked: poll, and call again for the partitions that are still owned.
        :raises OutputsRefused: nothing was stored, and some of the records never can be.
        :raises OutcomeUnknown: all of it was stored, or nothing, and this cannot be found out now:
            give the partitions up (:meth:`reassign`), and continue from the log's positions.
        :raises ConfigError: the log cannot do this.
        """
        raise ConfigError("this log cannot store records and positions in one step")

    def pause(self, assignments: Iterable[Assignment]) -> None:
        """Deliver no messages of these assignments until they are resumed; they stay owned."""
        ...

    def resume(self, assignments: Iterable[Assignment]) -> None:
        """Resume delivering these assignments, after the last message delivered."""
        ...

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        """Give these assignments up, committed or not, and have a later poll assign the partitions
        again, to this member or another, at the group's committed offsets. The listener is not
        told, as it has given them up itself; assignments that are no longer owned are ignored.

        :raises Unavailable: the log cannot be reached; those that were not given up stay owned.
        """
        ...

    def keep_alive(self) -> None:
        """Stay a member without polling: renew the leases, but deliver and rebalance nothing.

        The polling thread calls it about once a second while it waits for handlers, also from
        inside the listener.
        """
        ...

    def wakeup(self) -> None:
        """Make a blocked ``poll`` return soon (any thread)."""
        ...

    def begin_transaction(self) -> Transaction:
        """A transaction for a handler (any thread).

        :raises ConfigError: the log has no such transactions.
        """
        ...

    def close(self) -> None:
        """Leave the group. ``listener.revoked`` is called for the partitions still owned."""
        ...


class Transaction(Protocol):
    """A handler's own SQL together with the position of the messages it handled (one thread at a
    time)."""

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one statement; the rows it returns."""
        ...

    def commit(self, commits: Sequence[Commit]) -> None:
        """Commit the handler's rows and these positions together.

        :raises Fenced: a partition is no longer owned; everything was rolled back.
        """
        ...

    def rollback(self) -> None:
        """Undo everything; harmless when there is nothing to undo."""
        ...


class FileTransaction(Protocol):
    """The user's own SQL and messages, written to a log's file together. The transaction has begun,
    and all other writers of the file wait for its end. One thread at a time."""

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one statement; the rows it returns."""
        ...

    def append(self, topic: str, records: Sequence[Record]) -> list[Position]:
        """Write records in order; returns their positions after the commit.

        :raises LogError: none of them was written; the transaction goes on.
        """
        ...

    def commit(self) -> None:
        """Commit all of it, and wake the callers that wait for messages.

        :raises OutcomeUnknown: the disk failed in the middle of the commit.
        """
        ...

    def rollback(self) -> None:
        """Undo everything; harmless if the transaction has ended."""
        ...

    def interrupt(self) -> None:
        """Make a statement that runs in another thread fail soon (any thread)."""
        ...

    def claim_context(self) -> None:
        """Bind the transaction to this context: any other write to the file from the context fails
        at once while the transaction is open, as it would wait for itself."""
        ...


READ_TIMEOUT = 15.0
"""Seconds for which a reader waits for its next messages. Longer than a Kafka cluster takes to give
a partition another leader (a broker counts as gone after ``broker.session.timeout.ms``, 9 s)."""


class Reader(Protocol):
    """A plain, sequential reading of one partition, outside any group (one thread at a time)."""

    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> Batch | None:
        """The next messages, at least one and at most ``limit``; None at the reader's end.

        :raises Unavailable: nothing came within ``timeout`` seconds.
        """
        ...

    def close(self) -> None:
        """Release what the reader holds."""
        ...


OnAppended = Callable[[Sequence["Position | LogError"]], None]
"""Called once with the result of an append: the position or the error of each record."""

AppendAsOwners = Callable[[str, Sequence[Record], Sequence[Assignment], OnAppended], None]
"""Appends as :meth:`Log.append` does, each record in one step with a check that the assignment at
its index is still owned (any thread). If it is not, the record gets
:class:`~streams.errors.Fenced`, is not in the log and never will be; the others are written. The
assignments, present or past, must be of the subscription whose assignment has this function."""


_FORMER_NAMES = {
    "topic": "describe_topic",
    "topics": "describe_topics",
    "topic_names": "list_topics",
    "group": "describe_group",
    "groups": "list_groups",
}
"""Former names of methods of :class:`Log`, which still work on ``app.log``."""


class Log(Protocol):
    """Topics, appends, reads and groups. Usable from any thread."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in _FORMER_NAMES:
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            new = _FORMER_NAMES[name]
            warnings.warn(f"log.{name}() is now {new}()", DeprecationWarning, stacklevel=2)
            return getattr(self, new)

    @property
    def capabilities(self) -> Capabilities:
        """The features of this log."""
        ...

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic. Repeating the call is harmless; ``config`` has the server's own settings.

        :raises TopicMismatch: it exists with another number of partitions.
        :raises ConfigError: this log has no such retention.
        """
        ...

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """Change a topic's retention; ``Retention()`` keeps messages for ever.

        :raises NotFound: there is none of that name.
        :raises ConfigError: this log has no such retention.
        """
        ...

    def describe_topic(self, topic: str) -> TopicInfo:
        """A topic's current facts.

        :raises NotFound: there is none of that name.
        """
        ...

    def describe_topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        ...

    def incarnation(self, topic: str) -> str:
        """An ID that this topic keeps for as long as it exists: a topic that is recreated under its
        name, here or in another log, has another one. Code that stores positions, or data derived
        from them, outside the log stores this ID with them.

        :raises NotFound: there is none of that name.
        :raises Unavailable: it cannot be found out now.
        """
        ...

    def list_topics(self) -> list[str]:
        """The names of all topics, sorted. Costs one request to a server where
        :meth:`describe_topics` asks for the facts of each topic."""
        ...

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        """The current settings that decide whether an acknowledged message of this topic can be
        lost.

        :raises NotFound: there is no topic of that name, and the settings are per topic.
        :raises Unavailable: the servers do not answer.
        """
        ...

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        ...

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Write records in order. May block; calls ``on_appended`` exactly once, from any thread,
        when they are durable. Errors of records, and :class:`NotFound` for a missing topic, are
        passed to it and never raised.

        A key always goes to one partition; a keyless record goes by its ID.
        """
        ...

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """The first position that can be read, and the smallest one that the next message can
        get."""
        ...

    def log_end_offset(self, topic: str, partition: int) -> int:
        """The log's end, readable now or not: no position of this log is beyond it."""
        ...

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        """The position of the first message appended at or after ``time``; the end if there is
        none."""
        ...

    def offset_before(self, topic: str, partition: int, position: int, count: int) -> int:
        """The position of the message ``count`` messages before ``position``, or of the first
        one."""
        ...

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        """The number of messages from ``position`` on; None if it cannot be known."""
        ...

    def reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        """Read from position ``start`` up to, not including, position ``end``."""
        ...

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a *new* group its positions, all at once; returns True if it had none in this
        topic."""
        ...

    def describe_group(self, group: str, topics: Collection[str] | None = None) -> GroupInfo:
        """A group's members and positions.

        :param topics: read positions only in these topics, which may be much less work on a log
            with thousands of topics; None: in all topics.
        :raises NotFound: there is none of that name.
        """
        ...

    def committed(self, group: str, topic: str) -> dict[int, Committed]:
        """A group's commits in one topic, by partition; empty if there are none."""
        try:
            return self.describe_group(group, [topic]).committed_in(topic)
        except NotFound:
            return {}

    def list_groups(self) -> list[str]:
        """The names of all groups, sorted."""
        ...

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """Set a group's offsets in a topic; the group is created if it does not exist.

        :raises GroupNotEmpty: it has running members, and ``force`` is not set. When forced, its
            members lose the partitions and start over from the new offsets.
        """
        ...

    def delete_group(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupNotEmpty: it has running members.
        :raises NotFound: there is none of that name.
        """
        ...

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        *,
        flow: Flow = Flow(),
        trim_margin: int = TRIM_MARGIN,
        member: StaticMember | None = None,
    ) -> Subscription:
        """Join a group. ``flow`` sizes the driver's own prefetch; ``trim_margin`` is how many
        messages below the group's position must not be trimmed; ``member`` makes it a static
        member.

        :raises ConfigError: the log, as it is configured, has no static members.
        """
        ...

    def remove_member(self, group: str, member: StaticMember) -> None:
        """Remove the member of a process that has certainly ended, so that the others get its
        partitions at once. Does nothing if it is no longer a member or another process has its
        name by now, or if the log does not allow it (Kafka: there a static member gets its
        partitions back when it restarts).
        """
        ...

    # -- the rest

    def format_offset(self, offset: int) -> str:
        """An offset in this log's notation for people."""
        ...

    def parse_offset(self, text: str) -> int:
        """An offset as :meth:`format_offset` writes it.

        :raises ConfigError: it is none.
        """
        ...

    def flush(self, timeout: float) -> None:
        """Wait until the result of every append so far has been reported.

        :raises Unavailable: some results are missing after ``timeout`` seconds.
        """
        ...

    def close(self) -> None:
        """Close everything; appends that were not acknowledged end with an error."""
        ...


@runtime_checkable
class Queryable(Protocol):
    """A log whose file can be read with SQL."""

    def query(
        self, sql: str, parameters: Any = (), is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[tuple[Any, ...]]:
        """The rows of one read-only SQL statement; blocks, from any thread.

        :param is_cancelled: asked while the statement runs; True: end it.
        :raises ConfigError: it also writes, or is more than one statement.
        :raises LogError: it is refused, or was ended.
        """
        ...


@runtime_checkable
class TransactionalLog(Protocol):
    """A log whose file takes the user's SQL and messages in one transaction."""

    def begin_file_transaction(self) -> FileTransaction:
        """Begin a transaction, once no one else writes; blocks, from any thread.

        :raises Unavailable: others have been writing for too long.
        """
        ...


@runtime_checkable
class RecordDeleter(Protocol):
    """A log whose retention ignores groups: messages that are no longer needed are deleted by a
    caller that knows this."""

    def delete_before(self, topic: str, partition: int, position: int) -> None:
        """Delete the messages below a position, for good; blocks.

        :raises LogError: they were deleted or not; or this user may not delete them.
        """
        ...


@runtime_checkable
class SizedLog(Protocol):
    """A log that can estimate the size of a topic without reading it."""

    def topic_bytes(self, topic: str) -> int | None:
        """About how many bytes a topic's messages take in the log's file or its server's memory,
        estimated from a bounded part of each partition; blocks.

        :returns: None: the server does not say.
        :raises NotFound: there is no topic of that name.
        :raises LogError: the log cannot be read.
        """
        ...


OpenMode = Literal["ro", "rw", "rwc"]
"""How to open a log's file, in SQLite's words: ``ro`` only reads, ``rw`` uses a file that exists,
``rwc`` creates it if there is none."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a log's module is asked to open: the URL in parts, driver settings, the app's clock."""

    # None of these fields is shown: each may hold a password.
    url: str = field(repr=False)
    path: str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The URL's query."""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Driver settings, passed through."""
    clock: Any = None
    member: str = ""
    """The name under which the app's processors join their groups; empty: they are not static."""
    mode: OpenMode = "rwc"
    """How the file is opened, for logs that are files."""
