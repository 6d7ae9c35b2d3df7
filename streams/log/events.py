"""Histories: appending events under a condition, and reading one key's events.

The second protocol of a log, beside :class:`~streams.log.protocol.Log`. An *event topic* is a topic
in which each key has a *history*: events with versions from 1 without gaps. Nothing but
:meth:`EventLog.append_events` writes one; its partitions, offsets and readers are those of any
topic.

Rules every log keeps (``tests/conformance/test_event_log.py`` proves them):

* **The base is compared, not the version alone.** An append names the history that its writer
  decided upon, by its length and the ID of its last record. It counts only if the history ends
  exactly there at the moment it is written. (A number can match on another history after a
  failover, and a unique index accepts one that is too high: Rails Event Store 1760.)
* **An append counts wholly or not at all.** Its events follow each other in their history.
* **The same append again is the same append.** Records have fresh IDs, and the first one's is the
  append's. Where that very append stands in the history already, it is a success, for ever
  (KurrentDB's rule): so an append whose answer was lost may be sent again.
* **A base that the history does not have is not a conflict.** It means that the log has lost, or
  exchanged, what it had acknowledged, and is told as *truncated*.
* **Causes are found on the history that the base comes from.** One answer of
  :meth:`EventLog.read_histories` has the events, where the history ends, and what was appended for
  a cause, all at the same moment.
* **Nothing is skipped**: offsets of a partition are given in the order in which appends count.
* **Snapshots are only a cache.** A log keeps what it is given and hands it out again if the history
  has the base that the snapshot was made of. Nothing else depends on one.
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
    """The history that a writer decided upon.

    :param version: how many events it has.
    :param last_id: the ID of its last record; empty where it has none.
    """

    version: int = 0
    last_id: str = ""


NO_HISTORY = Base()
"""The base of a key's first append."""


class Head(NamedTuple):
    """Where a history ends.

    :param base: what the next append has to name.
    :param is_final: its last event was appended as the last one: nothing may follow.
    """

    base: Base = NO_HISTORY
    is_final: bool = False


EMPTY = Head()


class EventAppend(NamedTuple):
    """Events to be appended to one key's history, if it ends at ``base``.

    :param records: with their IDs and all headers (:mod:`streams.log.event_headers`); the IDs were
        never used before. Their keys are ``key``.
    :param head: where the history ends once they are appended.
    :param cause: what they are appended for; empty: nothing is to be found by it later.
    :param is_refusal: there is no event. The one record says that the cause was refused: it has no
        version, and ends the history as its last record, so that nothing that was decided upon what
        was before it can be appended any more.
    """

    key: bytes
    base: Base
    records: Sequence[Record]
    head: Head
    cause: str = ""
    is_refusal: bool = False

    @property
    def is_final(self) -> bool:
        """Nothing may be appended after these."""
        return self.head.is_final


class Appended(NamedTuple):
    """The append stands in the history, now or since an earlier call.

    :param offsets: of its records.
    """

    partition: int
    offsets: tuple[int, ...]


Refusal = Literal["conflict", "final", "truncated"]
"""Why an append is refused: the history ends elsewhere; it ended for good; or it does not contain
the base."""


class Refused(NamedTuple):
    """The append is not in the history, and never will be."""

    reason: Refusal
    head: Head
    """Where the history ended when it was refused."""


AppendOutcome = Appended | Refused | LogError
OnEventsAppended = Callable[[Sequence[AppendOutcome]], None]
"""Called once with the outcome of each append."""


class HistoryRequest(NamedTuple):
    """What to read of a history.

    :param after: what is known already: the events behind it are read, if the history has it.
    :param limit: how many events at most.
    :param cause: also find what was appended for this.
    :param fingerprint: begin behind the snapshot of this kind, where there is one that is ahead of
        ``after``.
    """

    key: bytes
    after: Base = NO_HISTORY
    limit: int = 1_000
    cause: str = ""
    fingerprint: str = ""


class StoredSnapshot(NamedTuple):
    """What a key's events add up to, at one of its versions.

    :param fingerprint: of the code that made it: snapshots of several kinds stand beside each
        other.
    :param base: the history that it was made of.
    :param offset: of that history's last record.
    """

    key: bytes
    fingerprint: str
    base: Base
    offset: int
    data: bytes


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as the log has it. (There are many of these: the garbage collector need not look at
    them.)

    :param time: when the log took it, in seconds since the epoch.
    """

    version: int
    offset: int
    time: float
    record: Record


class StoredEvents(Sequence[StoredEvent]):
    """Events of one history, each of which is made when it is looked at: who folds a long history
    needs their values alone."""

    @property
    @abstractmethod
    def values(self) -> Sequence[bytes | None]:
        """The value of each."""


def values_of(events: Sequence[StoredEvent]) -> Sequence[bytes | None]:
    """The values of events of a history."""
    if isinstance(events, StoredEvents):
        return events.values
    return [event.record.value for event in events]


class Caused(NamedTuple):
    """What was appended for a cause.

    :param first_version: of its events.
    :param event_count: how many; 0: the cause was refused.
    """

    first_version: int
    event_count: int


class History(NamedTuple):
    """A part of one key's history, as of one moment.

    :param events: the first ones behind what was known, in order.
    :param head: where the whole history ends; ``events`` reach it unless the limit cut them off.
    :param caused: what was appended for the cause that was asked for; None: nothing.
    :param is_truncated: the history does not contain what was known. There are no events then.
    :param snapshot: where the events begin, if that is not where they were asked for.
    """

    partition: int
    events: Sequence[StoredEvent]
    head: Head
    caused: Caused | None = None
    is_truncated: bool = False
    snapshot: StoredSnapshot | None = None


class HistoryKey(NamedTuple):
    """One key of an event topic, and where its history ends."""

    key: bytes
    head: Head


class EventTotals(NamedTuple):
    """How much an event topic holds.

    :param cause_bytes: what remembering causes takes, in bytes, about.
    :param snapshots: how many there are of each fingerprint.
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
        """Whether appending and reading never wait for anything, so that an event loop may do it
        itself."""
        ...

    @property
    def fails_by_partition(self) -> bool:
        """Whether some partitions can be out of reach while others are not: each has a server of
        its own."""
        ...

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        """Create an event topic, which keeps its messages for ever. The same again is harmless.

        :raises PartitionCountMismatch: it exists with another number of partitions.
        :raises TopicMismatch: it exists and is not an event topic.
        """
        ...

    def append_events(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """Append, each under its own condition, in order; what counts is durable when
        ``on_appended`` says so. It is called exactly once, from any thread.

        An :class:`~streams.errors.OutcomeUnknown` may count or not: the same append again tells.
        """
        ...

    def read_histories(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """Parts of histories, each read to the log's end as it was after the call began.

        :raises Unavailable: the log cannot be reached now.
        """
        ...

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """Keep snapshots, each in place of the one of its key and fingerprint. One that is older
        than what is kept of this history, or whose base the history does not have, is dropped.

        :raises LogError: they may be kept or not.
        """
        ...

    def delete_snapshots(self, topic: str, fingerprint: str | None = None) -> int:
        """Delete all snapshots of one fingerprint, or all there are; how many."""
        ...

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """All snapshots of one key, of whatever fingerprint, by fingerprint."""
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
        """Read the records of a range as they stand, those too that are no events. A topic's own
        :meth:`~streams.log.protocol.Log.reader` has its events alone."""
        ...

    def index_progress(self, topic: str) -> tuple[int, int]:
        """How many of an event topic's records were looked at to know which of them count, and how
        many there are. Readers wait until they are the same; asking begins with it. (0, 0) where
        nothing has to be looked at before."""
        ...


@runtime_checkable
class ArbitratingLog(Protocol):
    """A log that takes in every record, and whose readers decide which of them count."""

    def uncounted_records(self, topic: str) -> int:
        """Records that count for no history, of what was read here so far. Asks nobody."""
        ...

    def stop_following(self, topic: str) -> None:
        """Give back what it takes to know which records of a topic count, until somebody uses the
        topic again."""
        ...


@runtime_checkable
class RetryingLog(Protocol):
    """A log whose :meth:`EventLog.append_events` returns when all is answered, and until then sends
    again, for seconds, what has no answer."""

    def append_events_once(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """The same, but nothing is sent again: what cannot be reached is
        :class:`~streams.errors.Unavailable`, what has no answer
        :class:`~streams.errors.OutcomeUnknown`."""
        ...


def read_each(
    log: EventLog, topic: str, requests: Sequence[HistoryRequest]
) -> Sequence[History | LogError]:
    """The same as :meth:`EventLog.read_histories`, but that a history that cannot be read (somebody
    has damaged it) hides no other: it has its error in its place.

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
    """What a decision may have to know of one key's history."""

    @property
    def head(self) -> Head:
        """Where it ends."""
        ...

    def id_at(self, version: int) -> str | None:
        """The ID of the event of a version; None where there is no such version."""
        ...

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal with this record ID stands; None where none does."""
        ...


def has_base(history: StoredHistory, base: Base) -> bool:
    """Whether a history once ended at ``base``."""
    if base == NO_HISTORY:
        return True
    if history.id_at(base.version) == base.last_id:
        return True
    return history.refusal_version(base.last_id) == base.version


def judge(append: EventAppend, history: StoredHistory) -> Refused | Literal["append", "appended"]:
    """What becomes of an append: it is to be appended, stands in the history already, or is
    refused."""
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
    """The error for whoever wants to change an event topic otherwise than by an append.

    :param what: what was to be done, as "published to".
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
