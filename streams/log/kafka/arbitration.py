"""Which records of an event topic count, decided by their order in the log alone.

Theory of operation
-------------------
Kafka cannot append under a condition (KAFKA-2260), so whoever wants to append does, and every
reader decides afterwards, from the records' headers (:mod:`streams.log.event_headers`), by one
rule:

    An append counts, wholly, at the offset of its last record, if the history of its key ended at
    the append's base when its first record was reached, and still does when the last one is.

A partition is one total order and the rule looks at nothing but what stands before a record in it,
so every reader comes to the same histories: of several appends on one base the first that is whole
wins. A writer reads back to its own last record and knows what became of its append. There is no
lock, lease, clock or transaction that could hold anybody up.

* The records of an append may have records of others between them. An append whose last record
  never comes does not count, and holds no writer up.
* Whoever *reads* past its first records cannot know whether they will count. So where the rest does
  not follow for a while, one who follows the partition writes a record that says so (*void*): what
  that append had begun is dropped there. It needs no agreement: it does nothing if the append was
  whole before, and an append that goes on behind it is not whole. Its writer sends it again.
* The same append may stand in the log more than once (its writer did not hear of the first). The
  first whole one counts; the others find that the history has gone on.
* What is no record of an append, or lies about its place in one, never counts.
* Transactions mean nothing here: a record counts where it stands, whether somebody wrapped it in a
  transaction or not, and what became of that. So all who decide read uncommitted records, and an
  open transaction of a stranger holds nobody up. (Appends are never written in one.)

:class:`Arbiter` is that rule for one partition: pure, fed in order, without I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from streams.log.event_headers import EventHeader
from streams.log.events import EMPTY, Base, Head


class Counted(NamedTuple):
    """An append that counts from the record on that was just fed.

    :param offsets: of its records.
    :param base: the history that it continued.
    """

    key: bytes
    append_id: str
    base: Base
    offsets: tuple[int, ...]
    head: Head
    cause: str
    is_refusal: bool


class PendingAppend:
    """The first records of an append whose base holds."""

    __slots__ = ("cause", "count", "offsets")

    def __init__(self, count: int, offsets: list[int], cause: str) -> None:
        self.count = count
        self.offsets = offsets
        self.cause = cause


HeadOf = Callable[[bytes], Head]
"""Where a key's history ends."""


class Arbiter:
    """Decides, record by record, which appends of one partition count.

    :param head_of: for whoever keeps the histories himself: he knows their ends. By default the
        arbiter remembers them.
    """

    def __init__(self, head_of: HeadOf | None = None) -> None:
        self.heads: dict[bytes, Head] = {}
        """Where each key's history ends, if the arbiter is to remember that."""
        self.pending: dict[bytes, dict[str, PendingAppend]] = {}
        """By key and append; all of them have the key's present head as their base."""
        self._remembers = head_of is None
        self._head_of = self.head if head_of is None else head_of

    def head(self, key: bytes) -> Head:
        """Where a key's history ends."""
        return self.heads.get(key, EMPTY)

    def first_pending_offset(self) -> int | None:
        """Where the oldest append began that may still become whole."""
        if not self.pending:
            return None
        begun = [each.offsets[0] for found in self.pending.values() for each in found.values()]
        return min(begun, default=None)

    def void(self, key: bytes | None, append_id: str) -> None:
        """The next record says that what this append has begun does not count."""
        found = self.pending.get(key or b"")
        if found is not None and found.pop(append_id, None) is not None and not found:
            del self.pending[key or b""]

    def feed(
        self,
        offset: int,
        key: bytes | None,
        record_id: str,
        header: EventHeader | None,
        cause: str,
        is_final: bool,
    ) -> Counted | None:
        """The next record of the partition.

        :param header: what its headers say of its append; None: it is no record of one.
        :returns: the append that is whole with it, and counts.
        """
        if header is None or key is None:
            return None
        head = self._head_of(key)
        if head.base != header.base or head.is_final:
            return None
        index, count = header.record_index, header.record_count
        if index == 0:
            if header.append_id != record_id:
                return None
            if header.is_last:
                return self._count(key, header, (offset,), record_id, cause, is_final)
            pending = self.pending.setdefault(key, {})
            pending[header.append_id] = PendingAppend(count, [offset], cause)
            return None
        found = self.pending.get(key, {}).get(header.append_id)
        if found is None or found.count != count or len(found.offsets) != index:
            return None
        found.offsets.append(offset)
        if not header.is_last:
            return None
        return self._count(key, header, tuple(found.offsets), record_id, found.cause, is_final)

    def _count(
        self,
        key: bytes,
        header: EventHeader,
        offsets: tuple[int, ...],
        last_id: str,
        cause: str,
        is_final: bool,
    ) -> Counted:
        head = Head(Base(header.base.version + header.record_count, last_id), is_final)
        if self._remembers:
            self.heads[key] = head
        self.pending.pop(key, None)  # they were decided upon what has passed now
        return Counted(key, header.append_id, header.base, offsets, head, cause, header.is_refusal)
