"""Keys that wait behind a dead message: the records, and the state that follows from them.

``DeadLetters(sequenced=True)``: once a message of a key is dead, later messages of that key are
*parked* behind it until it is retried, edited or dropped; then they are handled in their original
order, and the key opens again. All records about the keys of partition p of ``orders`` are in
partition p of ``orders.billing.parked``. The state follows from reading them in order:
:class:`ParkingState` does this and nothing else, so all readers of the same records get the same
state.

Rules
-----

1. **Records.** An *owner* record opens the epoch of the source partition's owner. A *dead* record
   is a message that could not be handled, a *waits* record one that is parked: both hold its
   bytes, headers and source offset. A *done* record says that the message of a source offset was
   handled. *retry*, *edit* and *drop* are commands; any program may write them.
2. **The chain of owners.** An owner record names the epoch that it replaces, and counts only if
   that epoch is in force at the record's position. A process that was paused between reading and
   writing names an epoch that another one has replaced meanwhile, so its record is ignored. An
   epoch is named ``position/name`` after the position of its owner record, so no two epochs ever
   have the same name, whatever is written. If the earlier epochs are unknown (the topic is new, or
   was trimmed above the floor), the first owner record counts, whatever epoch it names.
3. **The fence.** Dead, waits and done records carry their writer's epoch, and count only while it
   is in force. The next owner reads to the end, writes its owner record, and reads up to it:
   records that a former owner still writes come after it and are always ignored. Some logs
   (memory, SQLite, Redis on one server) do not even write them: there each of these records, and
   the owner record, is written in one step with a check that its writer owns the source
   partition. No rule depends on that; Kafka and Redis Cluster have the other rules alone.
4. **Read back.** A source position is committed only after the parked records below it were read
   back from the log and count, as they do for every reader. Confirmed writes are not enough: the
   epoch may have been replaced before they arrived. An owner that reads that its epoch was replaced
   gives the partition up with everything that was not committed, and starts it again at the
   committed position, if it still owns it. So does an owner whose record the log refuses.
5. **A key** has a queue of source offsets, ascending; it is *closed* while the queue is not empty.
   Only the head can be dead. A waits record is inserted by its offset, which is at the end as long
   as only the owner writes. A record of a queued offset is the same message written again, and
   changes nothing, except that a dead record of the head's offset means that the head failed. A
   record of an offset before the head's changes nothing.
6. **Commands** name the head's record by its position, so that a command that was meant for an
   earlier state does nothing. They act on a dead head only: retry lets it be handled again, edit
   replaces its bytes and does the same, drop removes it.
7. **Actions.** A command is a record that changes the state, and nothing else. The owner reads the
   records as they arrive, and hands out every head that is not dead.
8. **Older records.** Releases before the chain wrote owner records that name no other epoch, and
   used the owner's name alone as the epoch. Such a record always counts until the first record of
   the chain counts, and never after that.

Effects of a crash
------------------

Each step is one record, so it is there or it is not.

* Before the dead record: the source is not settled; the message is handled again.
* After it, before the source's position is committed: the source offset counts as settled, because
  it is recorded here (:attr:`ParkingState.source_offsets`). The same holds for a parked message.
* A message that came back was handled, and its done record was not written: it is handled again,
  like any message whose position was not committed (at-least-once). The done record is confirmed
  before the next message of the key begins, so this affects one message per key. The messages that
  its handler returned (``to=``) are written before that, under IDs derived from the message. If the
  done records of an owner are ignored, because its epoch was replaced, the messages since then are
  handled again.
* It failed again, and its dead record was not written: it is handled again.
* A reset of the group redelivers messages that are done here: an owner record that is *fresh* (the
  group's position is where it was started or reset to) makes readers forget all done messages.
  Parked messages go on waiting. A message before the head of its closed key is handled when it
  comes.

As everywhere, an owner that was frozen may finish its handlers while its successor's run.

Records of other writers
------------------------

A client that may write to the topic can do what an operator can: drop, edit and retry. A client
that also reads it can do what the owner can, in the owner's name. A foreign owner record, whatever
epoch it names, loses no message: the owner's records after it do not count, so nothing that depends
on them is committed, and the owner starts again. Other records are skipped.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Literal, NamedTuple, get_args

from streams.derived_records import header_text, redriven_headers
from streams.log.event_headers import copied_headers
from streams.message import ID, REDRIVE, Batch, Headers, Record, headers_without
from streams.wire import FIRST_SECOND, LAST_SECOND, parse_float, parse_int

PREFIX = "__streams.parked."

KIND = PREFIX + "what"
OWNER = PREFIX + "owner"
REPLACES = PREFIX + "replaces"
OFFSET = PREFIX + "offset"
TIME = PREFIX + "time"
MESSAGE_ID = PREFIX + "id"
TARGET = PREFIX + "of"
AFTER_RESET = PREFIX + "fresh"

MessageKind = Literal["dead", "waits"]

RecordKind = Literal["owner", "dead", "waits", "done", "retry", "edit", "drop"]

Command = Literal["retry", "edit", "drop"]

_KINDS: tuple[str, ...] = get_args(RecordKind)

_READ_HEADERS = frozenset({KIND, OWNER, REPLACES, OFFSET, TARGET, AFTER_RESET})

NO_EPOCH = "-"
"""The epoch that an owner record names as replaced if none is in force."""

MAX_EPOCH = 128
"""Characters of an epoch, at most."""

MAX_OWNER_NAME = 64
"""Characters of an owner's name, at most: an epoch has a position in front of it."""

OFFSET_DIGITS = 40
"""Digits of an offset, at most: on Redis it has 128 bits."""


def parked_topic(topic: str, group: str) -> str:
    """The topic of the closed keys of a topic and group."""
    return f"{topic}.{group}.parked"


class ParkingRecord(NamedTuple):
    """The content of one record, without the message."""

    kind: str
    writer: str
    """The owner's name in an owner record, its epoch in a dead, waits or done record."""
    offset: int
    """The offset of the message in the source."""
    target: int
    """The position of the record that a command is about."""
    after_reset: bool
    replaces: str | None = None
    """The epoch that an owner record replaces, empty for none; None: an older release wrote it."""


def parse_record(headers: Headers) -> ParkingRecord | None:
    """The content of a record; None: it is not a parking record, or cannot be valid."""
    found = {name: value for name, value in headers if name in _READ_HEADERS and value is not None}
    kind = _parse_token(found.get(KIND))
    if kind not in _KINDS:
        return None
    offset = parse_int(found.get(OFFSET), OFFSET_DIGITS)
    target = parse_int(found.get(TARGET), OFFSET_DIGITS)
    owner = _parse_token(found.get(OWNER))
    replaces: str | None = None
    if kind in ("retry", "edit", "drop"):
        if target is None:
            return None
    elif not owner:
        return None
    elif kind != "owner":
        if offset is None:
            return None
    elif len(owner) > MAX_OWNER_NAME:
        return None
    elif REPLACES in found:
        replaces = _parse_token(found[REPLACES])
        if not replaces:
            return None
        replaces = "" if replaces == NO_EPOCH else replaces
    elif "/" in owner or owner == NO_EPOCH:
        return None  # it could be taken for an epoch of the chain, or for none
    return ParkingRecord(
        kind,
        owner,
        -1 if offset is None else offset,
        -1 if target is None else target,
        found.get(AFTER_RESET) == b"1",
        replaces,
    )


def parse_batch(batch: Batch) -> list[tuple[int, bytes | None, ParkingRecord]]:
    """The valid records of a batch: the position, key and content of each."""
    parsed = []
    for index, position in enumerate(batch.offsets):
        record = parse_record(batch.headers(index))
        if record is not None:
            parsed.append((position, batch.keys[index], record))
    return parsed


def _parse_token(value: bytes | None) -> str:
    """A name in the form that this module writes; empty if it has another form."""
    if not value or len(value) > MAX_EPOCH or not value.isascii():
        return ""
    word = value.decode()
    return word if word.isprintable() else ""


def epoch_name(position: int, name: str) -> str:
    """The epoch that an owner record opens.

    :param position: the position of the record.
    """
    return f"{position}/{name}"


_UNCHAINED_NAME = re.compile(r"[0-9a-f]{32}\Z")
"""Owners' names in releases before the chain."""


def is_possible_epoch(epoch: str, position: int) -> bool:
    """Whether an epoch of this name may be in force at a position; empty means none."""
    begun, chained, name = epoch.partition("/")
    if not chained:
        return not epoch or _UNCHAINED_NAME.match(epoch) is not None
    begun_position = parse_int(begun, OFFSET_DIGITS)
    word = _parse_token(name.encode("utf-8", "surrogateescape"))
    is_name = word == name != "" and len(name) <= MAX_OWNER_NAME
    return is_name and begun_position is not None and begun_position < position


# -- records -------------------------------------------------------------------------------------


def _header(name: str, value: object) -> tuple[str, bytes | None]:
    return name, str(value).encode("utf-8", "surrogateescape")


def owner_record(name: str, replaces: str, partition: int, *, after_reset: bool) -> Record:
    """The record that opens an epoch.

    :param name: the owner's name, never used before.
    :param replaces: the epoch in force; empty if there is none.
    """
    headers = [
        _header(KIND, "owner"),
        _header(OWNER, name),
        _header(REPLACES, replaces or NO_EPOCH),
        _header(AFTER_RESET, int(after_reset)),
    ]
    return Record(None, None, f"{name}/owner", headers, partition)


def parked_record(
    kind: MessageKind, epoch_id: str, partition: int, offset: int, message: Record, timestamp: float
) -> Record:
    """The record of a message that is dead, or waits behind a dead one."""
    redrive = header_text(message.headers, REDRIVE) or "0"
    headers = [
        *message_headers(message.headers),
        _header(KIND, kind),
        _header(OWNER, epoch_id),
        _header(OFFSET, offset),
        _header(TIME, timestamp),
        _header(MESSAGE_ID, message.id),
    ]
    # A unique ID: a log may keep only one record of each ID.
    id = f"{epoch_id}/{offset}/{kind}/{redrive}"
    return Record(message.value, message.key, id, headers, partition)


def done_record(epoch_id: str, partition: int, offset: int, key: bytes) -> Record:
    """The record that says that the message of that source offset was handled."""
    headers = [_header(KIND, "done"), _header(OWNER, epoch_id), _header(OFFSET, offset)]
    return Record(None, key, f"{epoch_id}/{offset}/done", headers, partition)


def command_record(
    command: Command, target: int, partition: int, key: bytes, id: str, edited: Record | None = None
) -> Record:
    """The record of a command on the dead message of a key.

    :param target: the position of the message's record.
    :param edited: the message with its new bytes, for ``edit``.
    """
    given = () if edited is None else edited.headers
    headers = headers_without(given, (ID, KIND, OWNER, TARGET))
    headers += [_header(KIND, command), _header(TARGET, target)]
    value = None if edited is None else edited.value
    return Record(value, key, id, headers, partition)


def message_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """A message's own headers, without those of parking and without its ID."""
    return copied_headers(headers_without(headers, (ID,), PREFIX))


class OriginalMessage(NamedTuple):
    """The message in a record, as it was in its source."""

    id: str | None
    """None: the record does not say."""
    offset: int
    time: float
    headers: list[tuple[str, bytes | None]]
    """The headers as the handler sees them, the ID first."""


def read_original(headers: Headers, *, as_redriven: bool = True) -> OriginalMessage:
    """The message in a dead, waits or edit record.

    :param as_redriven: return it as its handler is to get it: a dead message with its redrive count
        raised, and without its error.
    """
    own = message_headers(headers)
    if as_redriven and header_text(headers, KIND) != "waits":
        own = redriven_headers(own)
    id = header_text(headers, MESSAGE_ID) or None
    offset = parse_int(header_text(headers, OFFSET), OFFSET_DIGITS)
    when = parse_float(header_text(headers, TIME))
    if when is None or not FIRST_SECOND <= when <= LAST_SECOND:
        when = 0.0
    if id is not None:
        own.insert(0, _header(ID, id))
    return OriginalMessage(id, -1 if offset is None else offset, when, own)


# -- the state -----------------------------------------------------------------------------------


class ParkedQueue:
    """The queue of one closed key."""

    __slots__ = (
        "handed_out",
        "head_position",
        "is_dead",
        "recall_number",
        "record_positions",
        "source_offsets",
    )

    def __init__(self, recall_number: int) -> None:
        self.source_offsets: deque[int] = deque()
        """Source offsets, ascending."""
        self.record_positions: deque[int] = deque()
        """Positions of their first records; -1: the record was written and not read yet."""
        self.is_dead = False
        """Whether the head is dead and waits for a command."""
        self.head_position = -1
        """The position of the record with the head's current bytes, if it failed again or was
        edited. Its first record is still needed: later records refer to it."""
        self.recall_number = recall_number
        """Changes when messages that were handed out are recalled."""
        self.handed_out = 0
        """How many messages, from the head on, were handed out to be handled."""

    def __len__(self) -> int:
        return len(self.source_offsets)

    def __contains__(self, offset: int) -> bool:
        index = self._insertion_index(offset)
        return index > 0 and self.source_offsets[index - 1] == offset

    def position_of(self, index: int) -> int:
        """The position of the record with a message's bytes; -1: not known yet."""
        replaced = index == 0 and self.head_position >= 0
        return self.head_position if replaced else self.record_positions[index]

    @property
    def lowest_position(self) -> int:
        """The lowest position that the queue needs; -1: not known."""
        return self.record_positions[0]

    def _insertion_index(self, offset: int) -> int:
        """How many messages have an offset up to this one. Searched from the end, where the result
        nearly always is."""
        sources, index = self.source_offsets, len(self.source_offsets)
        while index and sources[index - 1] > offset:
            index -= 1
        return index

    def insert(self, offset: int, position: int) -> int | None:
        """Insert a message by its offset; if it is there already, note its record's position.

        :returns: its index if it is new; None if it is not, or belongs before the head.
        """
        index = self._insertion_index(offset)
        if not index and self.source_offsets:
            return None
        if index and self.source_offsets[index - 1] == offset:
            if self.record_positions[index - 1] < 0:
                self.record_positions[index - 1] = position
            return None
        self.source_offsets.insert(index, offset)
        self.record_positions.insert(index, position)
        return index

    def remove_unwritten(self, offset: int) -> bool:
        """Remove a message whose record was not written; returns whether it was there."""
        index = self._insertion_index(offset) - 1
        if index < 0 or self.source_offsets[index] != offset or self.record_positions[index] >= 0:
            return False
        del self.source_offsets[index], self.record_positions[index]
        return True


class ParkingState:
    """The closed keys of one partition, as they follow from the records that were read.

    :param in_force: the epoch in force where reading begins; empty: not known.
    :param keep_from: source offsets from this one on are kept in :attr:`source_offsets`.
    """

    def __init__(self, in_force: str = "", keep_from: int | None = None) -> None:
        self.epoch = in_force
        """The epoch in force."""
        self.keys: dict[bytes, ParkedQueue] = {}
        self.parked_messages = 0
        """Messages in all queues."""
        self.source_offsets: dict[int, int] = {}
        """Source offsets from ``keep_from`` on of messages that were dead or parked, and not
        forgotten since; with the position of the first record of each that counted."""
        self.returning: dict[bytes, ParkedQueue] = {}
        """The queues in :attr:`keys` whose head is not dead, and is to be handled."""
        self.epochs: list[tuple[int, str]] = []
        """The position of each owner record that counted, and the epoch it opened; ascending."""
        self.refused_owners = 0
        """Owner records that were ignored."""
        self._keep_from = keep_from
        self._done_unread: dict[int, int] = {}
        """Source offsets whose done record was written and not read yet, with the position of the
        message's record: it is still needed, in case the done record is ignored."""
        self._recall_number = 0

    # -- reading

    def apply(self, position: int, key: bytes | None, record: ParkingRecord) -> None:
        """Apply the next record."""
        kind = record.kind
        if kind == "owner":
            self._apply_owner(position, record)
        elif key is None:
            return
        elif kind in ("retry", "edit", "drop"):
            self._apply_command(position, key, record)
        elif self.epoch and record.writer != self.epoch:
            return  # a former owner wrote it (rule 3)
        elif kind == "done":
            self._done_unread.pop(record.offset, None)
            self.remove_handled(key, record.offset)
        else:
            self._apply_message(position, key, record)

    def _apply_owner(self, position: int, record: ParkingRecord) -> None:
        if not self._continues_chain(record):
            self.refused_owners += 1
            return
        chained = record.replaces is not None
        self.epoch = epoch_name(position, record.writer) if chained else record.writer
        self.epochs.append((position, self.epoch))
        if record.after_reset:
            queues, noted = self.keys.values(), self.source_offsets.items()
            parked = {offset for queue in queues for offset in queue.source_offsets}
            self.source_offsets = {offset: at for offset, at in noted if offset in parked}

    def _continues_chain(self, record: ParkingRecord) -> bool:
        """Whether an owner record counts (rules 2 and 8)."""
        if not self.epoch:
            return True  # the earlier epochs are unknown
        if record.replaces is None:
            return "/" not in self.epoch  # of an older release: counts until the chain begins
        return record.replaces == self.epoch

    def _apply_message(self, position: int, key: bytes, record: ParkingRecord) -> None:
        offset, dead = record.offset, record.kind == "dead"
        if self._keep_from is not None and offset >= self._keep_from:
            self.source_offsets.setdefault(offset, position)
        queue = self.keys.get(key)
        if queue is None:
            queue = self._close_key(key)
        head = queue.source_offsets[0] if queue.source_offsets else -1
        was_written = offset == head and queue.record_positions[0] >= 0
        self._enqueue(queue, offset, position)
        if dead and queue.source_offsets[0] == offset:
            if was_written:
                queue.head_position = position  # it failed again
            self._mark_dead(key, queue)

    def _apply_command(self, position: int, key: bytes, record: ParkingRecord) -> None:
        queue = self.keys.get(key)
        if queue is None or not queue.is_dead or record.target < 0:
            return
        if queue.position_of(0) != record.target:
            return
        if record.kind == "drop":
            self._pop_head(key, queue)
            return
        queue.is_dead = False
        self.returning[key] = queue
        if record.kind == "edit":
            queue.head_position = position

    # -- the owner's changes, before it reads its records back

    def expect_record(self, key: bytes, offset: int, *, dead: bool) -> None:
        """Enqueue a message whose record the owner is about to write. For a head that came back,
        nothing changes yet."""
        queue = self.keys.get(key)
        if queue is None:
            queue = self._close_key(key)
        self._enqueue(queue, offset, -1)
        is_new = len(queue) == 1 and queue.record_positions[0] < 0
        if dead and is_new and queue.source_offsets[0] == offset:
            self._mark_dead(key, queue)

    def cancel_expected(self, key: bytes, offset: int) -> None:
        """Undo :meth:`expect_record`: the record was refused, and is not in the log."""
        queue = self.keys.get(key)
        if queue is None or not queue.remove_unwritten(offset):
            return
        self.parked_messages -= 1
        if not queue.source_offsets:
            del self.keys[key]
            self.returning.pop(key, None)

    def remove_handled(self, key: bytes, offset: int, *, unread: bool = False) -> None:
        """Remove the head if it has that offset: it was handled, or its record was deleted.

        :param unread: its done record was written, and not read yet.
        """
        queue = self.keys.get(key)
        if queue is not None and queue.source_offsets[0] == offset:
            if unread:
                self._done_unread[offset] = queue.record_positions[0]
            self._pop_head(key, queue)

    @property
    def has_unread(self) -> bool:
        """Whether there may be records to read."""
        return bool(self.keys or self._done_unread)

    def recall_queue(self, queue: ParkedQueue) -> None:
        """Recall the messages of a queue that were handed out: they must not be handled."""
        self._recall_number += 1
        queue.recall_number = self._recall_number
        queue.handed_out = 0

    # -- inside

    def _close_key(self, key: bytes) -> ParkedQueue:
        self._recall_number += 1
        queue = self.keys[key] = self.returning[key] = ParkedQueue(self._recall_number)
        return queue

    def _enqueue(self, queue: ParkedQueue, offset: int, position: int) -> None:
        index = queue.insert(offset, position)
        if index is None:
            return
        self.parked_messages += 1
        if index < queue.handed_out:
            self.recall_queue(queue)  # otherwise they would be handled out of order

    def _mark_dead(self, key: bytes, queue: ParkedQueue) -> None:
        queue.is_dead = True
        self.returning.pop(key, None)
        self.recall_queue(queue)

    def _pop_head(self, key: bytes, queue: ParkedQueue) -> None:
        queue.source_offsets.popleft()
        queue.record_positions.popleft()
        queue.is_dead, queue.head_position = False, -1
        queue.handed_out = max(0, queue.handed_out - 1)
        self.parked_messages -= 1
        if queue.source_offsets:
            self.returning[key] = queue
        else:
            del self.keys[key]
            self.returning.pop(key, None)

    # -- the floor

    def floor(self, read_end: int, settled: int) -> tuple[int, str]:
        """The position from which the next owner has to read, and the epoch in force there.

        :param read_end: everything below this position was read.
        :param settled: the source's committed position: no message below it comes again.
        """
        for offset in [each for each in self.source_offsets if each < settled]:
            del self.source_offsets[offset]
        needed = [queue.lowest_position for queue in self.keys.values()]
        needed += [*self.source_offsets.values(), *self._done_unread.values()]
        lowest = min((each for each in needed if each >= 0), default=read_end)
        lowest = min(lowest, read_end)
        while len(self.epochs) > 1 and self.epochs[1][0] < lowest:
            del self.epochs[0]
        in_force = next((name for begun, name in reversed(self.epochs) if begun < lowest), "")
        return lowest, in_force
