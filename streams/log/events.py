"""Histories: appending events under a condition, and reading one key's events.

The second protocol of a log, beside :class:`~streams.log.protocol.Log`. An *event topic* is a topic
in which each key has a *history*: events with versions from 1 without gaps. Nothing but
:meth:`EventLog.append_events` writes one; its partitions, offsets and readers are those of any
topic.

Rules every log keeps (``tests/conformance/test_event_log.py`` proves them):

* **The base is compared, not the version alone.** An append names the history that its writer's
  decision is based on, by its length and the ID of its last record. It counts only if the history
  ends exactly there when it is written. (A number can match on another history after a failover,
  and a unique index accepts one that is too high: Rails Event Store 1760.)
* **An append counts wholly or not at all.** Its events are consecutive in their history.
* **The same append again is the same append.** Records have fresh IDs, and the first one's is the
  append's. If that very append is in the history already, it is a success, for ever (KurrentDB's
  rule): so an append whose answer was lost may be sent again.
* **A base that the history does not have is not a conflict.** It means that the log has lost or
  replaced events that it had acknowledged, and is reported as *truncated*.
* **Causes are found on the history that the base comes from.** One answer of
  :meth:`EventLog.read_histories` has the events, the end of the history, and the events appended
  for a cause, all as of the same moment.
* **Nothing is skipped**: offsets of a partition are given in the order in which appends count.
* **Snapshots are only a cache.** A log stores a snapshot and returns it if the history has the base
  that the snapshot was made of. Nothing else depends on snapshots.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from streams.errors import EventTopicError, LogError, PartitionCountMismatch, Unavailable
from streams.log.protocol import Reader, TopicInfo
from streams.message import Record


class Base(NamedTuple):
    """The history that a writer's decision is based on.

    :param version: the number of its events.
    :param last_id: the ID of its last record; empty if it has none.
    """

    version: int = 0
    last_id: str = ""


NO_HISTORY = Base()
"""The base of a key's first append."""


class Head(NamedTuple):
    """The end of a history.

    :param base: the base that the next append has to name.
    :param is_final: its last event was appended as the final one: nothing may follow.
    """

    base: Base = NO_HISTORY
    is_final: bool = False


EMPTY = Head()


class EventAppend(NamedTuple):
    """Events to be appended to one key's history, if it ends at ``base``.

    :param records: the records, with all headers (:mod:`streams.log.event_headers`) and with IDs
        that were never used before. Their keys are ``key``.
    :param head: the end of the history after the append.
    :param cause: the cause of the events; empty: they need not be found by a cause later.
    :param is_refusal: there is no event. The one record says that the cause was refused: it has no
        version, but is the history's last record from then on, so that appends with an earlier base
        are refused.
    """

    key: bytes
    base: Base
    records: Sequence[Record]
    head: Head
    cause: str = ""
    is_refusal: bool = False

    @property
    def is_final(self) -> bool:
        """Whether nothing may be appended after these events."""
        return self.head.is_final


class Appended(NamedTuple):
    """The append is in the history, now or since an earlier call.

    :param offsets: the offsets of its records.
    """

    partition: int
    offsets: tuple[int, ...]


Refusal = Literal["conflict", "final", "truncated"]
"""Why an append is refused: the history ends elsewhere; it has ended for good; or it does not
contain the base."""


class Refused(NamedTuple):
    """The append is not in the history, and never will be."""

    reason: Refusal
    head: Head
    """The end of the history when the append was refused."""


AppendOutcome = Appended | Refused | LogError
OnEventsAppended = Callable[[Sequence[AppendOutcome]], None]
"""Called once with the outcome of each append."""


class HistoryRequest(NamedTuple):
    """A request to read a part of a history.

    :param after: the base that the caller knows: the events behind it are read, if the history has
        it.
    :param limit: the most events to read.
    :param cause: also find the events appended for this cause.
    :param fingerprint: begin behind the snapshot with this fingerprint, if there is one ahead of
        ``after``.
    """

    key: bytes
    after: Base = NO_HISTORY
    limit: int = 1_000
    cause: str = ""
    fingerprint: str = ""


class StoredSnapshot(NamedTuple):
    """The state that a key's events add up to, at one version.

    :param fingerprint: identifies the code that made it; a key may have snapshots with several
        fingerprints.
    :param base: the history that it was made of.
    :param offset: the offset of that history's last record.
    """

    key: bytes
    fingerprint: str
    base: Base
    offset: int
    data: bytes


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event in the log. (There are many of these, so the garbage collector does not track them.)

    :param time: when the log appended it, in seconds since the epoch.
    """

    version: int
    offset: int
    time: float
    record: Record


class StoredEvents(Sequence[StoredEvent]):
    """Events of one history, each created when it is accessed: folding a long history needs only
    their values."""

    @property
    @abstractmethod
    def values(self) -> Sequence[bytes | None]:
        """The value of each event."""


def values_of(events: Sequence[StoredEvent]) -> Sequence[bytes | None]:
    """The values of events of a history."""
    if isinstance(events, StoredEvents):
        return events.values
    return [event.record.value for event in events]


class Caused(NamedTuple):
    """The events appended for a cause.

    :param first_version: of its events.
    :param event_count: the number of its events; 0: the cause was refused.
    """

    first_version: int
    event_count: int


class History(NamedTuple):
    """A part of one key's history, as of one moment.

    :param events: the first events behind the base that the caller knows, in order.
    :param head: the end of the whole history; ``events`` reach it unless the limit cut them off.
    :param caused: the events appended for the requested cause; None: there are none.
    :param is_truncated: the history does not contain the base that the caller knows. There are no
        events then.
    :param snapshot: the snapshot behind which the events begin, if not behind the requested base.
    """

    partition: int
    events: Sequence[StoredEvent]
    head: Head
    caused: Caused | None = None
    is_truncated: bool = False
    snapshot: StoredSnapshot | None = None


class StoredRefusal(NamedTuple):
    """A refusal in a history, whose record says what was refused
    (:func:`~streams.log.event_headers.cause_of`, :func:`~streams.log.event_headers.refused_by`).

    :param version: of the history when the refusal was appended: that of the event before it.
    :param offset: of its record, which only :meth:`EventLog.raw_reader` returns.
    """

    version: int
    offset: int


class HistoryKey(NamedTuple):
    """One key of an event topic, with the end of its history."""

    key: bytes
    head: Head


class EventTotals(NamedTuple):
    """How much an event topic holds.

    :param cause_bytes: about how many bytes the remembered causes take.
    :param snapshots: the number of snapshots by fingerprint.
    """

    keys: int
    events: int
    causes: int
    cause_bytes: int
    snapshots: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class EventLog(Protocol):
    """A log that keeps histories. Usable from any thread; every call blocks."""

    @property
    def never_blocks(self) -> bool:
        """Whether appending and reading never wait, so that an event loop may call them
        directly."""
        ...

    @property
    def fails_by_partition(self) -> bool:
        """Whether some partitions can be unavailable while others are not, as each has its own
        server."""
        ...

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        """Create an event topic, which keeps its messages for ever. Repeating the call is harmless.

        :raises PartitionCountMismatch: it exists with another number of partitions.
        :raises TopicMismatch: it exists and is not an event topic.
        """
        ...

    def append_events(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """Append in order, each append under its own condition; those that count are durable when
        ``on_appended`` is called. It is called exactly once, from any thread.

        An :class:`~streams.errors.OutcomeUnknown` may count or not: repeating the same append finds
        out.
        """
        ...

    def read_histories(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """Read parts of histories, each up to an end of the log that was current after the call
        began.

        :raises Unavailable: the log cannot be reached now.
        """
        ...

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """Store snapshots, each in place of the one of its key and fingerprint. A snapshot that is
        older than the stored one of this history, or whose base the history does not have, is
        dropped.

        :raises LogError: they may be stored or not.
        """
        ...

    def delete_snapshots(self, topic: str, fingerprint: str | None = None) -> int:
        """Delete all snapshots of one fingerprint, or all (None); returns how many were deleted."""
        ...

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """All snapshots of one key, in the order of their fingerprints."""
        ...

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        """All refusals of one key, in the order in which they were appended."""
        ...

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """The keys of a partition in the order of their bytes, behind ``after``."""
        ...

    def event_totals(self, topic: str) -> EventTotals:
        """How much an event topic holds."""
        ...

    def raw_reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        """Read all records of a range, including those that are not events. The topic's
        :meth:`~streams.log.protocol.Log.reader` returns only its events."""
        ...

    def index_progress(self, topic: str) -> tuple[int, int]:
        """How many of an event topic's records were indexed to know which of them count, and how
        many there are. Readers wait until both are equal; the first call starts the indexing. (0,
        0) on a log without such an index."""
        ...


@runtime_checkable
class ArbitratingLog(Protocol):
    """A log that accepts every record, and whose readers decide which of them count."""

    def uncounted_records(self, topic: str) -> int:
        """The number of records read here so far that count for no history. Sends no request."""
        ...

    def stop_following(self, topic: str) -> None:
        """Release the resources for deciding which records of a topic count, until the topic is
        used again."""
        ...


@runtime_checkable
class RetryingLog(Protocol):
    """A log whose :meth:`EventLog.append_events` returns when all appends are answered, and until
    then repeats, for seconds, those without an answer."""

    def append_events_once(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """As :meth:`EventLog.append_events`, but nothing is sent again: an append that cannot be
        sent is :class:`~streams.errors.Unavailable`, one without an answer
        :class:`~streams.errors.OutcomeUnknown`."""
        ...


def read_each(
    log: EventLog, topic: str, requests: Sequence[HistoryRequest]
) -> Sequence[History | LogError]:
    """As :meth:`EventLog.read_histories`, but a history that cannot be read, as it is damaged, does
    not fail the others: its error takes its place.

    :raises Unavailable: the log cannot be reached now.
    """
    try:
        return log.read_histories(topic, requests)
    except Unavailable:
        raise
    except LogError as error:
        if len(requests) == 1:
            return [error]
        middle = len(requests) // 2
        first = read_each(log, topic, requests[:middle])
        return [*first, *read_each(log, topic, requests[middle:])]


# -- the decision, for the logs that do not leave it to a server ----------------------------------


class StoredHistory(Protocol):
    """The facts about one key's history that a decision may need."""

    @property
    def head(self) -> Head:
        """The end of the history."""
        ...

    def id_at(self, version: int) -> str | None:
        """The ID of the event at a version; None if there is no such version."""
        ...

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal with this record ID was recorded; None if there is
        none."""
        ...


def has_base(history: StoredHistory, base: Base) -> bool:
    """Whether a history once ended at ``base``."""
    if base == NO_HISTORY:
        return True
    if history.id_at(base.version) == base.last_id:
        return True
    return history.refusal_version(base.last_id) == base.version


def judge(append: EventAppend, history: StoredHistory) -> Refused | Literal["append", "appended"]:
    """Decide about an append: it is to be written, is in the history already, or is refused."""
    head, base = history.head, append.base
    if head.base == base:
        return Refused("final", head) if head.is_final else "append"
    first = append.records[0].id
    if append.is_refusal:
        if history.refusal_version(first) == base.version:
            return "appended"
    elif history.id_at(base.version + 1) == first:
        return "appended"
    if not has_base(history, base):
        return Refused("truncated", head)
    return Refused("final" if head.is_final else "conflict", head)


# -- errors that are the same on every log ---------------------------------------------------------


def not_an_event_topic(topic: str) -> EventTopicError:
    """The error for a topic that was not created as an event topic."""
    return EventTopicError(
        f"topic {topic!r} exists and holds no histories: give the aggregate another name"
    )


def events_only(topic: str, what: str) -> EventTopicError:
    """The error for a change of an event topic other than by an append.

    :param what: the refused operation, as "published to".
    """
    reason = "only the aggregate's decide() and append() write to it"
    if what == "trimmed":
        reason = "an aggregate is loaded from its first event on"
    return EventTopicError(
        f"topic {topic!r} holds the histories of an aggregate and cannot be {what}: {reason}"
    )


def partition_count_mismatch(topic: str, found: int, declared: int) -> PartitionCountMismatch:
    """The error for an event topic with another number of partitions."""
    return PartitionCountMismatch(
        f"event topic {topic!r} has {found} partitions, but {declared} were declared: keys would "
        "get a second history in other partitions, so nothing is written; declare "
        f"partitions={found}, or copy the events to a new topic"
    )
