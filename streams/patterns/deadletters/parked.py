"""Keys that wait behind a dead message: what is written of them, and what follows from it.

``DeadLetters(sequenced=True)``: once a message of a key is dead, later messages of that key are
*parked* behind it until it is retried, edited or dropped; then they are handled in their original
order, and the key opens again. Everything about the keys of partition p of ``orders`` stands in
partition p of ``orders.billing.parked``, and the state is what follows from reading that in order:
:class:`State` reads, and does nothing else. Whoever reads the same records comes to the same state.

Rules
-----

1. **Records.** An *owner* record opens the ownership epoch of whoever owns the source partition. A
   *dead* record is a message that could not be handled, a *waits* record one that is parked: both
   hold its bytes, headers and source offset. A *done* record says that the message of a source
   offset was handled. *retry*, *edit* and *drop* are commands; anybody may write them.
2. **The chain of owners.** An owner record names the epoch that it replaces, and counts only if
   that epoch is in force where the record stands. A process that stood still between looking and
   writing names an epoch that another one has replaced meanwhile, so its record counts for nobody.
   An epoch is called ``position/name``: the position is that of its owner record, so no two epochs
   ever have one name, whatever anybody writes. Where nothing is known of what came before (the
   topic is new, or was trimmed above the floor), the first owner record counts whatever it names.
3. **The fence.** Dead, waits and done records carry their writer's epoch, and count only while it
   is in force. The next owner reads to the end, writes its owner record, and reads up to it: what
   a former owner still writes stands behind it and counts for nobody, ever.
4. **Read back.** A source position is committed only after the parked records below it were read
   back from the log as counting, by the reading that everybody does. That the writes were
   confirmed is not enough: the epoch may have been replaced before they arrived. An owner that
   reads that its epoch was replaced lets go of the partition with everything that was not
   committed, and begins it again at the committed position, if it still has it.
5. **A key** has a queue of source offsets, ascending; it is *closed* while the queue is not empty.
   Only the head can be dead. A waits record takes its place by its offset, which is the end as
   long as nobody but the owner writes; a record of an offset that is queued is the same message
   written again, and changes nothing, except that a dead record of the head's offset says that the
   head failed (once more). One of an offset before the head's changes nothing.
6. **Commands** name the head's record (its position here), so that a command that was meant for an
   earlier state does nothing. They act on a dead head only: retry lets it be handled again, edit
   puts other bytes in its place and does the same, drop takes it away.
7. **Who acts.** No command asks anybody to do something: each is a record that changes the state.
   The owner reads the records as they come, and hands out the head of every queue that is not dead.
8. **Older records.** Releases before the chain wrote owner records that name nobody, and used
   their name alone as the epoch. Such a record counts as it did then, always, until the first
   record that names the one it replaces counts, and never after that.

What a crash can do
-------------------

Each step is one record, so it is there or it is not.

* Before the dead record: the source is not settled; the message is handled again.
* After it, before the source's position is committed: the source offset counts as settled, because
  it stands here (:attr:`State.sources`). The same for a parked message.
* A message that came back was handled, and its done record was not written: it is handled again, as
  any message whose position was not committed (at-least-once). The done record is confirmed before
  the next message of the key begins, so that is one message a key. What its handler returned
  (``to=``) is written before that, under IDs derived from the message. Where the done records of an
  owner counted for nobody, because its epoch was replaced, those since then are handled again.
* It failed again, and its dead record was not written: it is handled again.
* A reset of the group makes messages come again that are done here: an owner record that is *fresh*
  (the group stands where it was started or reset to) lets all that is done be forgotten. What waits
  goes on waiting. A message before the head of its closed key is handled when it comes.

An owner that was frozen may finish the handlers it had begun beside its successor's, as everywhere.

What anybody can write
----------------------

Whoever may write to the topic can do what an operator can: drop, edit and retry. Whoever also reads
it can do what the owner can, in its name. An owner record of a stranger, whatever it names, loses
no message: the owner's records after it do not count, so nothing that depends on them is committed,
and the owner begins again. Bytes that are no record of ours are passed over.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Literal, NamedTuple, get_args

from streams.letters import PREFIX as ERRORS
from streams.letters import first_failure, header, redrives_of
from streams.message import ID, REDRIVE, Headers, Record
from streams.wire import FIRST_SECOND, LAST_SECOND, finite, whole

PREFIX = "__streams.parked."

WHAT = PREFIX + "what"
OWNER = PREFIX + "owner"
REPLACES = PREFIX + "replaces"
OFFSET = PREFIX + "offset"
TIME = PREFIX + "time"
NAME = PREFIX + "id"
OF = PREFIX + "of"
FRESH = PREFIX + "fresh"

What = Literal["owner", "dead", "waits", "done", "retry", "edit", "drop"]

_OFFSET_DIGITS = 39
"""Those of Redis have 128 bits."""

Command = Literal["retry", "edit", "drop"]

_KNOWN: tuple[str, ...] = get_args(What)

_READ = frozenset({WHAT, OWNER, REPLACES, OFFSET, OF, FRESH})

NOBODY = "-"
"""What an owner record replaces where no epoch is in force."""

LONGEST = 128
"""Characters of an epoch, at most."""

LONGEST_NAME = 64
"""Characters of an owner's name, at most: with a position before it, it makes an epoch."""

DIGITS = 40
"""Digits of an offset, at most: on Redis it has 128 bits."""


def parked_topic(topic: str, group: str) -> str:
    """Where the closed keys of a topic and group stand."""
    return f"{topic}.{group}.parked"


class Said(NamedTuple):
    """What one record says."""

    what: str
    owner: str
    """Of an owner record its name, of what an owner wrote its epoch."""
    offset: int
    """In the source."""
    of: int
    """The record that a command is about."""
    fresh: bool
    replaces: str | None = None
    """The epoch that an owner record replaces, empty for none; None: an older release wrote it."""


def said(headers: Headers) -> Said | None:
    """What a record says; None where it says nothing of ours, or what none of ours would say."""
    found = {name: value for name, value in headers if name in _READ and value is not None}
    what = _word(found.get(WHAT))
    if what not in _KNOWN:
        return None
    offset, of = whole(found.get(OFFSET), DIGITS), whole(found.get(OF), DIGITS)
    owner = _word(found.get(OWNER))
    replaces: str | None = None
    if what in ("retry", "edit", "drop"):
        if of is None:
            return None
    elif not owner:
        return None
    elif what != "owner":
        if offset is None:
            return None
    elif len(owner) > LONGEST_NAME:
        return None
    elif REPLACES in found:
        replaces = _word(found[REPLACES])
        if not replaces:
            return None
        replaces = "" if replaces == NOBODY else replaces
    elif "/" in owner or owner == NOBODY:
        return None  # it would pass for an epoch of the chain, or for none
    return Said(
        what,
        owner,
        -1 if offset is None else offset,
        -1 if of is None else of,
        found.get(FRESH) == b"1",
        replaces,
    )


def _word(value: bytes | None) -> str:
    """A name of ours; empty where it is none."""
    if not value or len(value) > LONGEST or not value.isascii():
        return ""
    word = value.decode()
    return word if word.isprintable() else ""


def epoch(position: int, name: str) -> str:
    """What the epoch is called that an owner record opens.

    :param position: where the record stands.
    """
    return f"{position}/{name}"


_OLDER = re.compile(r"[0-9a-f]{32}\Z")
"""Owners' names in releases before the chain."""


def may_be_in_force(epoch: str, position: int) -> bool:
    """Whether an epoch of this name may be in force at a position; empty is none."""
    begun, chained, name = epoch.partition("/")
    if not chained:
        return not epoch or _OLDER.match(epoch) is not None
    at = whole(begun, DIGITS)
    word = _word(name.encode("utf-8", "surrogateescape"))
    return at is not None and at < position and word == name != "" and len(name) <= LONGEST_NAME


# -- records -------------------------------------------------------------------------------------


def _pair(name: str, value: object) -> tuple[str, bytes | None]:
    return name, str(value).encode("utf-8", "surrogateescape")


def owner_record(name: str, replaces: str, partition: int, *, fresh: bool) -> Record:
    """Opens an epoch.

    :param name: of the owner, never used before.
    :param replaces: the epoch in force; empty where there is none.
    """
    headers = [
        _pair(WHAT, "owner"),
        _pair(OWNER, name),
        _pair(REPLACES, replaces or NOBODY),
        _pair(FRESH, int(fresh)),
    ]
    return Record(None, None, f"{name}/owner", headers, partition)


def entry_record(
    what: Literal["dead", "waits"],
    owner: str,
    partition: int,
    offset: int,
    message: Record,
    when: float,
) -> Record:
    """A message that is dead, or waits behind one that is."""
    redrive = header(message.headers, REDRIVE) or "0"
    headers = [
        *without(message.headers),
        _pair(WHAT, what),
        _pair(OWNER, owner),
        _pair(OFFSET, offset),
        _pair(TIME, when),
        _pair(NAME, message.id),
    ]
    # Under an ID of its own: a log may keep one record of each ID.
    id = f"{owner}/{offset}/{what}/{redrive}"
    return Record(message.value, message.key, id, headers, partition)


def done_record(owner: str, partition: int, offset: int, key: bytes) -> Record:
    """The message of that source offset was handled."""
    headers = [_pair(WHAT, "done"), _pair(OWNER, owner), _pair(OFFSET, offset)]
    return Record(None, key, f"{owner}/{offset}/done", headers, partition)


def command_record(
    command: Command, of: int, partition: int, key: bytes, id: str, edited: Record | None = None
) -> Record:
    """What is to become of the dead message of a key.

    :param of: the position of its record.
    :param edited: it, with other bytes, for ``edit``.
    """
    headers: list[tuple[str, bytes | None]] = [] if edited is None else list(edited.headers)
    headers = [pair for pair in headers if pair[0] not in (ID, WHAT, OWNER, OF)]
    headers += [_pair(WHAT, command), _pair(OF, of)]
    value = None if edited is None else edited.value
    return Record(value, key, id, headers, partition)


def without(headers: Headers) -> list[tuple[str, bytes | None]]:
    """A message's own headers: nothing of ours, and not its ID."""
    return [pair for pair in headers if pair[0] != ID and not pair[0].startswith(PREFIX)]


class Original(NamedTuple):
    """The message in a record, as it stood in its source."""

    id: str | None
    """None where the record does not say."""
    offset: int
    time: float
    headers: list[tuple[str, bytes | None]]
    """As its handler is to see them, the ID first."""


def original(headers: Headers, *, again: bool = True) -> Original:
    """The message in a dead, waits or edit record.

    :param again: as it is to be handled: if it was dead, counted as put back, without its error.
    """
    own = without(headers)
    if again and header(headers, WHAT) != "waits":
        redrive, first = redrives_of(own) + 1, first_failure(own)
        own = [pair for pair in own if pair[0] != REDRIVE and not pair[0].startswith(ERRORS)]
        own.append(_pair(REDRIVE, redrive))
        own += first
    id = header(headers, NAME) or None
    offset = whole(header(headers, OFFSET), DIGITS)
    when = finite(header(headers, TIME))
    if when is None or not FIRST_SECOND <= when <= LAST_SECOND:
        when = 0.0
    if id is not None:
        own.insert(0, _pair(ID, id))
    return Original(id, -1 if offset is None else offset, when, own)


# -- the state -----------------------------------------------------------------------------------


class Queue:
    """What waits of one closed key."""

    __slots__ = ("dead", "generation", "given", "latest", "positions", "sources")

    def __init__(self, generation: int) -> None:
        self.sources: deque[int] = deque()
        """Source offsets, ascending."""
        self.positions: deque[int] = deque()
        """Where their first records stand; -1 for one that was written and not read yet."""
        self.dead = False
        """The head waits for a command."""
        self.latest = -1
        """Where the record stands that has the head's bytes now, if it failed again or was edited.
        The first one is needed all the same: without it, what is said later is about nothing."""
        self.generation = generation
        """Changes when what was handed out is handed out no more."""
        self.given = 0
        """How many from the head on are handed out."""

    def __len__(self) -> int:
        return len(self.sources)

    def __contains__(self, offset: int) -> bool:
        at = self._slot(offset)
        return at > 0 and self.sources[at - 1] == offset

    def place(self, at: int) -> int:
        """Where the bytes of a message stand; -1 where that is not known yet."""
        return self.latest if at == 0 and self.latest >= 0 else self.positions[at]

    @property
    def first(self) -> int:
        """The lowest position that is needed of it; -1 where none is known."""
        return self.positions[0]

    def _slot(self, offset: int) -> int:
        """Behind how many messages this one belongs, itself included if it is there. Looked for
        from the end, where it is as good as always."""
        sources, at = self.sources, len(self.sources)
        while at and sources[at - 1] > offset:
            at -= 1
        return at

    def put(self, offset: int, position: int) -> int | None:
        """Give a message its place; where it is there already, it learns where its record stands.

        :returns: its index if it is new; None otherwise, and where it belongs before the head.
        """
        at = self._slot(offset)
        if not at and self.sources:
            return None
        if at and self.sources[at - 1] == offset:
            if self.positions[at - 1] < 0:
                self.positions[at - 1] = position
            return None
        self.sources.insert(at, offset)
        self.positions.insert(at, position)
        return at

    def take_back(self, offset: int) -> bool:
        """Remove a message that was to be written, and was not; whether it was there."""
        at = self._slot(offset) - 1
        if at < 0 or self.sources[at] != offset or self.positions[at] >= 0:
            return False
        del self.sources[at], self.positions[at]
        return True


class State:
    """The closed keys of one partition, as they follow from the records that were read.

    :param owner: the epoch in force where reading begins; empty where that is not known.
    :param since: source offsets from there on are kept in :attr:`sources`.
    """

    def __init__(self, owner: str = "", since: int | None = None) -> None:
        self.owner = owner
        """The epoch in force."""
        self.keys: dict[bytes, Queue] = {}
        self.held = 0
        """Messages in all queues."""
        self.sources: dict[int, int] = {}
        """Source offsets that were dead or parked and not forgotten since, from ``since`` on,
        and where their first record stands. Only what counted is here."""
        self.moving: dict[bytes, Queue] = {}
        """Those of :attr:`keys` whose head is not dead: it is to be handled."""
        self.tenures: list[tuple[int, str]] = []
        """Where epochs began, ascending."""
        self.refused = 0
        """Owner records that counted for nobody."""
        self._since = since
        self._early: dict[int, int] = {}
        """Source offsets whose done record was written and not read yet, and where the message
        stands: it counts as needed until then, in case that record counts for nobody."""
        self._generation = 0

    # -- reading

    def read(self, position: int, key: bytes | None, record: Said) -> None:
        """The next record."""
        what = record.what
        if what == "owner":
            self._begun(position, record)
        elif key is None:
            return
        elif what in ("retry", "edit", "drop"):
            self._commanded(position, key, record)
        elif self.owner and record.owner != self.owner:
            return  # the fence
        elif what == "done":
            self._early.pop(record.offset, None)
            self.done(key, record.offset)
        else:
            self._entered(position, key, record)

    def _begun(self, position: int, record: Said) -> None:
        if not self._follows(record):
            self.refused += 1
            return
        chained = record.replaces is not None
        self.owner = epoch(position, record.owner) if chained else record.owner
        self.tenures.append((position, self.owner))
        if record.fresh:
            waiting = {offset for queue in self.keys.values() for offset in queue.sources}
            kept = {each: at for each, at in self.sources.items() if each in waiting}
            self.sources = kept

    def _follows(self, record: Said) -> bool:
        """Whether an owner record counts: the chain."""
        if not self.owner:
            return True  # nothing is known of what came before
        if record.replaces is None:
            return "/" not in self.owner  # an older release, and nobody has begun the chain
        return record.replaces == self.owner

    def _entered(self, position: int, key: bytes, record: Said) -> None:
        offset, dead = record.offset, record.what == "dead"
        if self._since is not None and offset >= self._since:
            self.sources.setdefault(offset, position)
        queue = self.keys.get(key)
        if queue is None:
            queue = self._closed(key)
        head = queue.sources[0] if queue.sources else -1
        written = offset == head and queue.positions[0] >= 0
        self._put(queue, offset, position)
        if dead and queue.sources[0] == offset:
            if written:
                queue.latest = position  # it failed once more
            self._died(key, queue)

    def _commanded(self, position: int, key: bytes, record: Said) -> None:
        queue = self.keys.get(key)
        if queue is None or not queue.dead or queue.place(0) != record.of or record.of < 0:
            return
        if record.what == "drop":
            self._pop(key, queue)
            return
        queue.dead = False
        self.moving[key] = queue
        if record.what == "edit":
            queue.latest = position

    # -- what the owner knows before it reads it

    def expect(self, key: bytes, offset: int, *, dead: bool) -> None:
        """The owner is about to write this; for a head that came back, nothing changes yet."""
        queue = self.keys.get(key)
        if queue is None:
            queue = self._closed(key)
        self._put(queue, offset, -1)
        if dead and len(queue) == 1 and queue.sources[0] == offset and queue.positions[0] < 0:
            self._died(key, queue)

    def unexpect(self, key: bytes, offset: int) -> None:
        """It was refused, and is not there."""
        queue = self.keys.get(key)
        if queue is None or not queue.take_back(offset):
            return
        self.held -= 1
        if not queue.sources:
            del self.keys[key]
            self.moving.pop(key, None)

    def done(self, key: bytes, offset: int, *, early: bool = False) -> None:
        """The message of that offset was handled, or is not there any more.

        :param early: the record that says so is written, and not read yet.
        """
        queue = self.keys.get(key)
        if queue is not None and queue.sources[0] == offset:
            if early:
                self._early[offset] = queue.positions[0]
            self._pop(key, queue)

    @property
    def unread(self) -> bool:
        """There is something to be read, or may be."""
        return bool(self.keys or self._early)

    def recall(self, queue: Queue) -> None:
        """What was handed out of a queue is not to be handled."""
        self._generation += 1
        queue.generation = self._generation
        queue.given = 0

    # -- inside

    def _closed(self, key: bytes) -> Queue:
        self._generation += 1
        queue = self.keys[key] = self.moving[key] = Queue(self._generation)
        return queue

    def _put(self, queue: Queue, offset: int, position: int) -> None:
        at = queue.put(offset, position)
        if at is None:
            return
        self.held += 1
        if at < queue.given:
            self.recall(queue)  # what was handed out is not in order any more

    def _died(self, key: bytes, queue: Queue) -> None:
        queue.dead = True
        self.moving.pop(key, None)
        self.recall(queue)

    def _pop(self, key: bytes, queue: Queue) -> None:
        queue.sources.popleft()
        queue.positions.popleft()
        queue.dead, queue.latest = False, -1
        queue.given = max(0, queue.given - 1)
        self.held -= 1
        if queue.sources:
            self.moving[key] = queue
        else:
            del self.keys[key]
            self.moving.pop(key, None)

    # -- how much of it must be read again

    def floor(self, at: int, settled: int) -> tuple[int, str]:
        """From where on the next owner is to read, and which epoch is in force there.

        :param at: everything below was read.
        :param settled: the source's committed position: of what is below, nothing comes again.
        """
        for offset in [each for each in self.sources if each < settled]:
            del self.sources[offset]
        needed = [queue.first for queue in self.keys.values()]
        needed += [*self.sources.values(), *self._early.values()]
        found = min((each for each in needed if each >= 0), default=at)
        found = min(found, at)
        while len(self.tenures) > 1 and self.tenures[1][0] < found:
            del self.tenures[0]
        owner = next((name for begun, name in reversed(self.tenures) if begun < found), "")
        return found, owner
