"""The job of an executor: a handler, and everything about running it that is known before the
start."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from streams.clock import SYSTEM, Clock
from streams.config import Dedup, Flow, Retry
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch, Range, decode_generation, decode_progress
from streams.errors import UnreadableHeaders
from streams.log.protocol import Assignment, Committed, Log, StaticMember, TopicPartition
from streams.message import Batch, Position, identity_suffix
from streams.processing.pending_outputs import Outgoing as Outgoing
from streams.processing.pending_outputs import PendingOutputs

WriteAnswers = Sequence[Position | BaseException | None]
"""The outcome of a write, record by record: its position, or the error for which the log refused
it. None: it is written together with the progress of the message it was derived from."""

OnWritten = Callable[[WriteAnswers], None]
"""Called once with the outcome of a write."""

WriteDerived = Callable[
    [Sequence[Outgoing], OnWritten, Callable[[Callable[[], None]], None], "Assignment | None"], None
]
"""Writes records. The arguments: the records; the callback for the outcome; a function, callable
from any thread, that runs an action in the thread in which the callback may be called; and the
assignment as whose owner alone the records may be written (where the log can check that), or
None."""

ResultEncoder = Callable[[Any, Batch, int, "str | None"], Sequence[Outgoing]]
"""Makes records from what a handler returned for one message. The arguments: the result, the
message's batch, its index there, and its identity (None: its topic, partition and offset identify
it)."""

BeforeDeadLetter = Callable[[Delivery, Callable[["DeadLetterAnswer | BaseException"], None]], None]
"""Called in the dispatcher's thread, with a delivery that has a reason and with a callback for the
answer. The callback is called once, from any thread; an error means that there is no answer yet."""


class DeadLetterAnswer(Enum):
    """What becomes of a message that is to be dead-lettered."""

    WRITE = "write"
    """Its dead letter is written."""
    SETTLE = "settle"
    """It was handled after all, by its partition's previous owner: it is settled."""
    ABANDON = "abandon"
    """Its partition belongs to another member, which decides."""


class Skip(Exception):
    """A message that is not for this handler (a tombstone, an unknown tag): settled unhandled."""


class SeveralValues:
    """Stands for the values of a message that is several, or none: they are handled one after the
    other, and settled together (:mod:`streams.processing.several`)."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values


class UndecodableValue:
    """Stands for a value that cannot be decoded, where values are decoded ahead."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


def check_headers(batch: Batch, index: int) -> None:
    """Refuse a message whose headers nobody can read.

    :raises UnreadableHeaders: they cannot be read.
    """
    why = batch.unreadable.get(index)
    if why is not None:
        raise UnreadableHeaders(f"its headers cannot be read: {why}")


class IdReader(Protocol):
    """Reads the message ID from a decoded value."""

    def __call__(self, value: Any) -> str:
        """The ID of one value.

        :raises Exception: it has none.
        """
        ...

    def identify_many(self, values: Sequence[Any]) -> list[str]:
        """The ID of each value.

        :raises Exception: one has none.
        """
        ...


class Decoding(Protocol):
    """How one topic's values become what the handler is declared to take."""

    @property
    def gives_several(self) -> bool:
        """:meth:`decode_one` may answer :class:`SeveralValues`."""
        ...

    def unwrap(self, batch: Batch) -> Batch:
        """The batch with the envelopes of its messages removed, if some are wrapped in one that
        carries their IDs and headers; else the batch itself."""
        ...

    def fast_decoder(
        self, values: Sequence[bytes | None], largest: int
    ) -> Callable[[Any], Any] | None:
        """The bare decoder, if it is safe for every one of these values; else None.

        ``largest`` is the largest one's size in bytes, -1 where one is null.
        """
        ...

    def decode_one(self, batch: Batch, index: int) -> Any:
        """Decode one message.

        :raises Skip: it is not for this handler.
        :raises Exception: it cannot be decoded (a poison message).
        """
        ...

    @property
    def id_reader(self) -> IdReader | None:
        """Reads the message ID from a decoded value, where the topic says it is there."""
        ...


class DecodedAhead(NamedTuple):
    """A batch that was decoded because its identities are inside the values."""

    values: list[Any]
    ids: list[str | None]
    all_decoded: bool


def decode_ahead(decoding: Decoding, batch: Batch, largest: int) -> DecodedAhead:
    """Values and identities of a batch whose topic has an ``id_reader``; ``largest`` as
    :meth:`Decoding.fast_decoder` takes it."""
    identify = decoding.id_reader
    if identify is None:
        raise ValueError("this topic's identities are not inside its values")
    fast = decoding.fast_decoder(batch.values, largest)
    if fast is not None:
        try:
            values = list(map(fast, batch.values))
            if len(values) < len(batch):
                raise RuntimeError("decoding raised StopIteration, which ends map()")
            found: list[Any] = identify.identify_many(values)
            suffixes = batch.identity_suffixes()
            if suffixes is not None:
                found = [id + suffix for id, suffix in zip(found, suffixes, strict=True)]
            if not batch.unreadable and not batch.decode_errors:
                return DecodedAhead(values, found, True)
        except Exception:  # noqa: S110 - which one it was is found below
            pass
    values, ids, all_decoded = [], list[str | None](), True
    for index, header_id in enumerate(batch.ids):
        try:
            check_headers(batch, index)
            value = decoding.decode_one(batch, index)
            id = identify(value) + identity_suffix(header_id)
        except Exception as error:
            values.append(UndecodableValue(error))
            # The ID in the headers identifies no decoded value, so it must not collide with one.
            ids.append(None if header_id is None else f"{header_id}\0undecodable")
            all_decoded = False
        else:
            values.append(value)
            ids.append(id)
    return DecodedAhead(values, ids, all_decoded)


class BatchIdentities(NamedTuple):
    """The identities of a batch's messages.

    :param ids: the identity of each; None: it has none.
    :param values: the values, if all messages were decoded to identify them; else None.
    """

    ids: Sequence[str | None]
    values: Sequence[Any] | None


def identify_batch(decoding: Decoding, batch: Batch) -> BatchIdentities:
    """The identities of a batch's messages.

    :param batch: as :meth:`Decoding.unwrap` gives it.
    """
    if decoding.id_reader is None:
        return BatchIdentities(batch.ids, None)
    found = decode_ahead(decoding, batch, batch.total_and_largest()[1])
    return BatchIdentities(found.ids, found.values if found.all_decoded else None)


def reset_generation(assignment: Assignment | None) -> int:
    """Which reset of its group a partition's owner goes on from; 0: none, or there is no owner."""
    committed = None if assignment is None else assignment.committed
    return 0 if committed is None else decode_generation(committed.progress)


def settled_ahead(committed: Committed | None) -> list[Range]:
    """Ranges above a group's position whose messages are settled; none for a foreign commit."""
    if committed is None or not committed.progress:
        return []
    try:
        return decode_progress(committed.position, committed.progress)[1]
    except ValueError:
        return []


class PartitionObserver(Protocol):
    """Learns which partitions a processor owns, in the thread that polls."""

    def assigned(self, assignments: Sequence[Assignment], keep_alive: Callable[[], None]) -> None:
        """These are ours; nothing of them was handled yet.

        :param keep_alive: to be called now and then, where this takes long.
        """
        ...

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """These are given up, with everything handled and committed, or lost."""
        ...

    def describe_pending_work(self) -> str:
        """What keeps it from being at rest, in words; empty when only time may change anything
        (any thread)."""
        ...

    def next_due(self) -> tuple[float, str] | None:
        """How many seconds from now something is due, and what that is; None: nothing waits for
        its time (any thread)."""
        ...


class FailureRecord(NamedTuple):
    """The record of a failure, written before the message is tried again."""

    outgoing: Outgoing
    is_delayed: bool
    """True: a copy of the message, which waits elsewhere and is settled here; False: a note."""


class AttemptLog(Protocol):
    """Keeps the count of a failing message's attempts in the log, and perhaps the message too
    (see :class:`~streams.config.Retry`). Asked where outcomes are reported."""

    def failed_attempts(self, batch: Batch, index: int) -> int:
        """How often a message that was just taken up failed before."""
        ...

    def record_failure(self, delivery: Delivery, attempt: int, delay: float) -> FailureRecord:
        """The record to write before ``delivery``, failed for the ``attempt``-th time, is retried.

        This is the message itself if it waits elsewhere for ``delay`` seconds. Otherwise the
        message waits in its key queue, and its :meth:`failed_attempts` is 0 from then on, as the
        delivery carries the attempt.
        """
        ...

    def delayed_note(self, delivery: Delivery, copy: Position) -> Outgoing:
        """The note to write for a message that waits elsewhere, before it is settled here.

        :param copy: the position of its copy.
        """
        ...

    def is_delayed(self, batch: Batch, index: int) -> bool:
        """The message waits elsewhere, as a former owner of its partition noted."""
        ...

    def has_no_records(self, batch: Batch) -> bool:
        """None of these messages waits elsewhere or failed before."""
        ...


class ParkDecision(NamedTuple):
    """A message that is not to be handled now."""

    record: Outgoing | None
    """Settled once this is written; None: it needs no writing."""
    is_duplicate: bool = True
    """False: it came back too early, and comes back again."""


class KeyParking(Protocol):
    """Keeps keys closed behind a dead message (see :class:`~streams.config.DeadLetters`).

    The poller's thread says what is owned and fetches what comes back; the executor asks, of each
    message whose turn has come, whether it is to be handled.
    """

    wake_poller: Callable[[], None]
    """Makes the poller begin its next cycle soon (any thread); set by the poller."""

    # -- the poller's side

    def restore(
        self,
        assignment: Assignment,
        position: int,
        *,
        after_reset: bool,
        keep_alive: Callable[[], None],
    ) -> Collection[int]:
        """Learn which keys of a partition are closed, before anything of it is handled.

        :param after_reset: the group stands where it was started or reset to.
        :param keep_alive: to be called now and then.
        :returns: offsets from ``position`` on whose messages are settled: dead or parked.
        :raises Unavailable: the log cannot be reached; to be called again.
        """
        ...

    def begin(self, assignment: Assignment, state: PartitionState) -> None:
        """From now on its messages are handled."""
        ...

    def release(self, assignments: Sequence[Assignment]) -> None:
        """These are given up or lost."""
        ...

    def take_returned(self) -> Sequence[FetchedBatch]:
        """The parked messages that are to be handled now, each before all others of its key."""
        ...

    def is_confirmed(self, assignment: Assignment) -> bool:
        """Whether everything of a partition that :meth:`write_confirmed` was told of until now is
        known to count, so that what was settled until now may be committed. May read the log for
        it."""
        ...

    def replaced_epochs(self) -> Sequence[tuple[Assignment, float]]:
        """Assignments with which nothing more may be done because the partition is not owned any
        more, or another process has written as its owner: each is to be let go of now, with all
        that was not committed, and to be begun again after so many seconds."""
        ...

    def contested_partitions(self) -> int:
        """How many partitions were to be begun again of late because another process has written as
        their owner (any thread)."""
        ...

    def closed_keys(self) -> tuple[int, int]:
        """How many keys are closed in the partitions that are owned, and how many messages wait
        behind those that close them (any thread)."""
        ...

    def describe_pending_work(self) -> str:
        """What keeps it from being at rest, in words (any thread)."""
        ...

    # -- the executor's side, where outcomes are reported

    def decide(self, delivery: Delivery) -> ParkDecision | None:
        """None: the message is to be handled.

        :raises Unavailable: more cannot be held, or the partition is not owned any more; to be
            asked again later.
        """
        ...

    def is_closed(self, delivery: Delivery) -> bool:
        """:meth:`decide` has something to say of the message."""
        ...

    def no_key_closed(self, fetched: FetchedBatch) -> bool:
        """No key of the partition is closed, so of none of these messages need be asked, before
        one of them has failed."""
        ...

    def has_returned(self, delivery: Delivery) -> bool:
        """The message has come back by :meth:`take_returned`."""
        ...

    def close_key(self, delivery: Delivery, dead_letter: Outgoing) -> Outgoing:
        """The record to write for a dead message: ``dead_letter``, or one that closes its key.

        :raises Unavailable: more cannot be held, or the partition is not owned any more; try again
            later.
        """
        ...

    def handled_record(self, delivery: Delivery) -> Outgoing:
        """The record to write when a message that was parked has been handled."""
        ...

    def write_confirmed(self, delivery: Delivery) -> bool:
        """A record of :meth:`decide`, :meth:`close_key` or :meth:`handled_record` was written.

        :returns: False: the record is void, since the partition is not owned any more. True does
            not prove that it is valid: :meth:`is_confirmed` is asked before the source's position
            is committed.
        """
        ...

    def write_refused(self, delivery: Delivery) -> None:
        """The log refuses it."""
        ...

    def write_fenced(self, delivery: Delivery) -> None:
        """The log refuses it, as the partition is not owned any more."""
        ...


class ManagedKeyParking(KeyParking, Protocol):
    """A :class:`KeyParking` that an app can set up."""

    def prepare(self, log: Log) -> None:
        """Create what it needs in the log; blocks."""
        ...


class ManagedAttemptLog(AttemptLog, PartitionObserver, Protocol):
    """A :class:`AttemptLog` that is also told which partitions are owned."""

    def prepare(self, log: Log) -> None:
        """Create what it needs in the log; blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One processor, ready to run."""

    name: str
    group: str
    topics: tuple[str, ...]
    function: Callable[..., Any]
    asynchronous: bool
    wants_message: bool
    """The function takes the value and a message (of a batch, lists of both)."""
    decodings: Mapping[str, Decoding]
    concurrency: int = 1
    batch: int | None = None
    filter: Callable[[Any], bool] | None = None
    timeout: float | None = None
    retry: Retry = field(default_factory=Retry)
    dedup: Dedup = field(default_factory=Dedup)
    flow: Flow = field(default_factory=Flow)
    clock: Clock = SYSTEM
    encode_results: ResultEncoder | None = None
    """Encodes what the handler returned, for one message; None: it is dropped."""
    dead_letter: Callable[[Delivery], Outgoing] | None = None
    """The dead letter of a delivery that has a reason."""
    on_rejected: Callable[[Delivery], None] | None = None
    """Takes what would be dead-lettered instead, where the dispatcher may be touched."""
    write_derived: WriteDerived | None = None
    """Writes derived records until the log has answered; outages are waited out there."""
    outputs: PendingOutputs | None = None
    """Takes derived records instead, of an exactly-once processor."""
    start_positions: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Where to begin in partitions in which the group has no position: those of a topic that is
    new to a group which is live. Others begin at the log's start."""
    member: StaticMember | None = None
    """The processor's static membership in its group, if it has one."""
    attempt_log: AttemptLog | None = None
    """Counts attempts in the log."""
    observer: PartitionObserver | None = None
    on_assigned: Callable[[Sequence[Assignment]], None] | None = None
    """Told of partitions that are ours from then on, each with the log's end
    (:attr:`~streams.log.protocol.Assignment.log_end`), in the thread that polls; it must not
    block."""
    key_parking: KeyParking | None = None
    """Keeps keys closed behind dead messages."""
    before_dead_letter: BeforeDeadLetter | None = None
    """Asked before a dead letter is written."""
    builds_messages: bool = False
    """The function builds the messages itself, where it needs them; ``wants_message`` is set. It
    takes the value and what :func:`~streams.message.make_message` takes beside it: batch, index,
    attempt and transaction. Of a batch handler, it takes the values and a function that makes the
    messages."""
    reset_context: Callable[[], None] | None = None
    """Called in the handler's task when a call of an async function that builds messages has ended:
    undoes what the function did to the task's context."""
    transactions: bool = False
    """The log lets a handler's own SQL join the commit of its position."""

    @property
    def takes_value_only(self) -> bool:
        """The handler takes the value and nothing else happens around it."""
        return not self.wants_message and self.filter is None
