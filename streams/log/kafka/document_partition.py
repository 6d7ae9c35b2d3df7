"""One partition of a collection, as it is read: which records count, and when they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.document_file import (
    DocumentFile,
    DocumentState,
    ReadDocument,
    document_row,
)
from streams.log.kafka.document_records import (
    CHECKPOINT_KEY,
    COMPACTION_LAG,
    DELETE_RETENTION,
    document_key,
    parse_checkpoint,
    parse_document,
)
from streams.log.kafka.index_consumer import HistoryGone
from streams.message import Headers
from streams.text import get_logger

logger = get_logger("streams.kafka")

FLUSH_COUNT = 20_000
"""Documents of a partition that memory holds, at most, while it is read for the first time."""

FLUSH_BYTES = 8 << 20

_MAX_STRANGE = 100
"""Origins of checkpoints that do not count, which are remembered."""


class KnownEnd(NamedTuple):
    """Where a partition ended at some moment."""

    asked_at: float
    """Seconds since the epoch."""
    offset: int


class DocumentPartition:
    """One partition of a collection. ``fold`` is called by one thread, all else under the index's
    lock.

    :param asked_at: when its bounds were asked for (seconds since the epoch).
    :param first: its first offset.
    :param end: its end.
    :param was_replaced: whether the topic was deleted since and made anew; None: this cannot be
        known.
    """

    def __init__(
        self,
        topic: str,
        number: int,
        file: DocumentFile,
        asked_at: float,
        first: int,
        end: int,
        was_replaced: Callable[[], bool | None],
    ) -> None:
        self._place = f"{topic}/{number}"
        self._number = number
        self._file = file
        state = file.state(number)
        if state.next_offset and (
            state.next_offset < first
            or not 0 <= asked_at - state.caught_up_at < DELETE_RETENTION / 2
        ):
            logger.info("%s: the index was not used for a long time: rebuilding it", self._place)
            file.forget_partition(number)
            state = DocumentState()
        if not state.next_offset:
            state = replace(state, next_offset=first, caught_up_at=asked_at)
        if state.next_offset > end:
            raise HistoryGone(
                f"{self._place} was read up to offset {state.next_offset} and ends at {end} now: "
                "it was recreated, or has lost acknowledged records (unclean leader election?)"
            )
        self.state = state
        """The state in the file, which readers see."""
        self._read = state
        """The state that readers will see next."""
        self.next_offset = state.next_offset
        self.needed = 0
        """Up to where it has to be read before anything is shown: this process has written it."""
        self.caught_up_at = state.caught_up_at
        self.is_ready = False
        self.goal: KnownEnd | None = KnownEnd(asked_at, end)
        """Where it ended at some moment, if that is not reached yet."""
        self._shown_offset = 0
        self._counted: list[ReadDocument] = []
        """Documents whose checkpoint has come."""
        self._open: list[ReadDocument] = []
        """Those whose checkpoint has not."""
        self._bytes = 0
        self._has_reported = False
        self._was_replaced = was_replaced
        self._strange_origins: set[bytes] = set()
        """Those of checkpoints that do not count."""
        # The last checkpoint is looked at again, to see that it is the one that was read.
        looks_again = first <= state.at and not state.has_waiting
        self.start = state.at if looks_again else state.next_offset

    def is_shown(self, offset: int = 0) -> bool:
        """Whether all is there that has to be shown, and all before an offset."""
        return self.is_ready and self._shown_offset >= max(self.needed, offset)

    def wanted_offset(self) -> int:
        """Up to where it has to be read before anything is shown."""
        goal = 0 if self.goal is None else self.goal.offset
        return max(self.needed, goal, self.next_offset)

    # -- reading

    def fold(self, batch: KafkaBatch, now: float) -> None:
        """The next records."""
        self._check_age(now)
        offsets, keys, values = batch.offsets, batch.keys, batch.values
        for index, headers in enumerate(batch.all_headers()):
            offset = offsets[index]
            if offset < self.next_offset:
                self._compare(offset, keys[index], values[index], headers)
                continue
            key, value = keys[index], values[index]
            if key == CHECKPOINT_KEY:
                self._fold_checkpoint(offset, value, headers)
            else:
                self._fold_document(offset, key, value, headers)
        self.next_offset = max(self.next_offset, offsets[-1] + 1)

    def _check_age(self, now: float) -> None:
        away = abs(now - self.caught_up_at)
        if away > DELETE_RETENTION / 2:
            raise HistoryGone(
                f"{self._place} was not at its end for {away / 3600:.0f} hours: deletions "
                "may be unknown here, so it is read again from the beginning"
            )
        if away > COMPACTION_LAG / 2 and self.is_ready:
            self.is_ready, self.goal = False, None  # a new one is asked for

    def _compare(
        self, offset: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        """See that the record of the last checkpoint is the one that was read before."""
        if offset == self.state.at:
            found = parse_checkpoint(value, headers) if key == CHECKPOINT_KEY else None
            if found is None or (found.number, found.origin) != (
                self.state.number,
                self.state.origin,
            ):
                raise HistoryGone(
                    f"{self._place}: offset {offset} holds another record than was read there: the "
                    "topic was recreated, or has lost acknowledged records"
                )

    def _fold_document(
        self, offset: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        found = parse_document(value, headers)
        if found is None or key is None or found.number <= self._read.number:
            self._report(offset)
            return
        key, row = document_key(key), None
        if found.content is not None:
            row = document_row(self._number, key, found.content)
            self._bytes += len(row)
        self._bytes += len(key)
        self._open.append(ReadDocument(key, found.number, row, 1 if found.is_stopped else None))

    def _fold_checkpoint(self, offset: int, value: bytes | None, headers: Headers) -> None:
        found = parse_checkpoint(value, headers)
        if found is None or not self._is_origin(found.origin) or found.number <= self._read.number:
            self._report(offset)
            return
        number, cleared = found.number, found.cleared
        if cleared > self._read.cleared:
            self._counted = [each for each in self._counted if each.number >= cleared]
        counted = [each for each in self._open if cleared <= each.number <= number]
        if any(each.number > number for each in self._open):
            self._report(offset)
        self._open.clear()
        self._counted += counted
        self._read = replace(
            self._read,
            number=number,
            cleared=max(cleared, self._read.cleared),
            origin=found.origin,
            at=offset,
            position=None if found.position is None else str(found.position),
            data=value or b"",
        )

    def _is_origin(self, origin: bytes) -> bool:
        """Whether a checkpoint's origin is that of all before.

        :raises HistoryGone: it is not, because this is another topic of the same name.
        """
        if self._read.origin in (b"", origin):
            return True
        if origin in self._strange_origins:
            return False
        replaced = self._was_replaced()
        if self.is_ready if replaced is None else replaced:
            raise HistoryGone(f"{self._place}: the topic was deleted and recreated")
        if len(self._strange_origins) >= _MAX_STRANGE:
            self._strange_origins.clear()
        self._strange_origins.add(origin)
        return False

    def _report(self, offset: int) -> None:
        if not self._has_reported:
            self._has_reported = True
            logger.warning(
                "%s: a record at or before offset %d does not belong to a collection of documents "
                "and is ignored, as are all such that follow: only the toolkit should write there",
                self._place, offset,
            )  # fmt: skip

    def reach(self, offset: int) -> None:
        """Everything before an offset was read. That says nothing of the end: since the poll that
        found nothing, or the fetch, this process may have been frozen."""
        if offset > self.next_offset:
            self._check_age(time.time())
            self.next_offset = offset

    # -- showing

    def flush(self) -> None:
        """Write what is to be shown, and what memory is not to hold."""
        goal = self.goal
        if goal is not None and self.next_offset >= goal.offset:
            self.caught_up_at, self.goal, self.is_ready = goal.asked_at, None, True
        is_full = len(self._open) + len(self._counted) >= FLUSH_COUNT or self._bytes >= FLUSH_BYTES
        if (self.is_ready or is_full) and self._read is not self.state:
            # Records behind the last checkpoint are read again after a restart.
            self._write(self._read.at + 1 if self._open else self.next_offset)
        if is_full and self._open:
            state = self._file.keep_waiting(self._number, self.next_offset, self._open)
            self.state = self._read = replace(state, caught_up_at=self.caught_up_at)
            self._open.clear()
        if is_full or not self._open:
            self._bytes = 0
        if self.is_ready:
            self._shown_offset = self.next_offset

    def _write(self, next_offset: int) -> None:
        state = replace(
            self._read, next_offset=next_offset, caught_up_at=self.caught_up_at, has_waiting=False
        )
        if self._file.write(self._number, state, self._counted):
            self._report(state.at)
        self.state = self._read = state
        self._counted.clear()

    def save(self) -> None:
        """Note how far it was read, for the next start."""
        if not self._open and self._read is self.state:
            state = replace(
                self.state, next_offset=self.next_offset, caught_up_at=self.caught_up_at
            )
            self._file.write_state(self._number, state)
            self.state = self._read = state
