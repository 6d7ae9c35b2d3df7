"""Appends records, each message ID once.

Each partition's records are sent in chunks, each written by one script call, so a chunk is in the
log altogether or not at all. A partition has one chunk in flight at a time: a later one can never
overtake an earlier one that must be sent again. Partitions are written side by side.

A chunk that got no answer is sent again, with the same message IDs, until it gets one or
``timeout`` seconds are over: if it had been written, the answer has the entry IDs of then. So a
lost answer, a failover or a restart ends in a certain outcome, and in
:class:`~streams.errors.OutcomeUnknown` only if it lasts too long. With ``once=0`` nothing is
remembered and records are written one by one: only those that the server did not take, and that
nothing was written behind, are ever sent again.

Records that are appended as a partition's owner (:class:`Owner`) are written by a script that
checks the lease first. A lost lease is lost for good, so such a chunk is not sent again. These IDs
are remembered with ``once=0`` too, for as long as a chunk may be sent again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.errors import Fenced, LogError, OutcomeUnknown, TooLarge, Unavailable
from streams.log.events import events_only
from streams.log.names import partitions_for
from streams.log.protocol import Assignment, OnAppended
from streams.log.redis.batch import encode_fields, identity_of_record
from streams.log.redis.client import Client, Command, Pipeline, script_command
from streams.log.redis.errors import WritesRefused
from streams.log.redis.keys import offset_of, offsets_of
from streams.log.redis.lua import MAX_ARGUMENTS
from streams.log.redis.topics import Topics
from streams.message import Position, Record

CHUNK_RECORDS = 1_000
"""Records of one script call at most: 1,000 of them take the server about 5 ms."""

CHUNK_BYTES = 4 << 20
"""Bytes of one script call's records; a single larger record goes alone."""

MAX_IN_FLIGHT = 4
"""Chunks in flight at once, of different partitions."""

MAX_BYTES = 512_000_000
"""Bytes of one key, value or header (``proto-max-bulk-len`` is 512 MB unless set otherwise)."""

MAX_FIELDS = 3_900
"""Fields of one entry at most: name and value each are an argument of one XADD."""

RETRY_BACKOFF = 0.05, 1.0
"""Seconds before a chunk is sent again: at first, and at most."""


class Owner(NamedTuple):
    """The owner of a partition under one lease, as which records are appended."""

    group_key: bytes
    """The key of the group's hash in the partition, which has the lease."""
    member: str
    epoch: int
    name: str
    """The partition and the group, for errors."""


class Owners(NamedTuple):
    """The owner as which each record is appended."""

    group: str
    member: str
    assignments: Sequence[Assignment]
    """The assignments of the records, in order."""

    def resolved(self, topics: Topics) -> list[Owner]:
        """The owner of each record; one object per assignment.

        :raises NotFound: a topic that is owned was deleted.
        """
        found: dict[Assignment, Owner] = {}
        for each in self.assignments:
            if each not in found:
                keys = topics.partition_keys(each.topic, each.partition)
                name = f"{keys}: group {self.group!r}"
                found[each] = Owner(keys.group_key(self.group), self.member, each.epoch, name)
        return [found[each] for each in self.assignments]


@dataclass(slots=True)
class Chunk:
    """Records of one partition that are written together."""

    owner: Owner | None
    """The owner as which they are written, if any."""
    indexes: list[int] = field(default_factory=list)
    """The indexes of the chunk's records in the append."""
    ids: dict[str, int] = field(default_factory=dict)
    """The identities of the records, with the place of each in ``indexes``."""
    duplicates: list[tuple[int, int]] = field(default_factory=list)
    """Records whose identity is in the chunk already: their index, and the first one's place in
    ``indexes``."""
    arg_count: int = 1
    size: int = 0
    outcome_unknown: bool = False
    """Whether the chunk was sent, and got no answer."""
    error: LogError | None = None

    def all_indexes(self) -> list[int]:
        """The indexes of the chunk's records, including the duplicates."""
        return [*self.indexes, *(duplicate for duplicate, _ in self.duplicates)]


class PendingAppend:
    """One append in progress."""

    def __init__(self, topic: str, records: Sequence[Record], deduplicates: bool) -> None:
        self.topic = topic
        self.records = records
        self.results: list[Position | LogError | None] = [None] * len(records)
        self.deduplicates = deduplicates
        self.chunks: dict[int, list[Chunk]] = {}
        """Chunks by partition, the next one last."""

    def split(self, partitions: int, owners: Sequence[Owner] | None) -> None:
        """Split the records into chunks.

        :param owners: the owner as which each record is appended, if any.
        """
        last_chunks: dict[int, Chunk] = {}
        routed = zip(self.records, partitions_for(self.records, partitions), strict=True)
        for index, (record, partition) in enumerate(routed):
            value, key, headers = record.value, record.key, record.headers
            field_count = 4 + len(headers)
            size = len(value or b"") + len(key or b"")
            for _, data in headers:
                size += len(data or b"")
            if size > MAX_BYTES or field_count > MAX_FIELDS:
                self.results[index] = TooLarge(
                    f"{self.topic}: a record of {size} bytes and {len(headers)} headers; at most "
                    f"{MAX_BYTES} and {MAX_FIELDS - 4}"
                )
                continue
            if not record.id:
                self.results[index] = LogError(f"{self.topic}: a record without an ID")
                continue
            if not 0 <= partition < partitions:
                self.results[index] = LogError(f"{self.topic} has no partition {partition}")
                continue
            chunk = last_chunks.get(partition)
            if owners is not None and chunk is not None and chunk.owner is not owners[index]:
                chunk = None
            id = identity_of_record(record) if headers else record.id
            if self.deduplicates and chunk is not None and id in chunk.ids:
                chunk.duplicates.append((index, chunk.ids[id]))
                continue
            # A record may begin a new run, which needs its field names and three numbers more.
            arg_count = 2 * field_count + 3
            if chunk is None or (
                chunk.arg_count + arg_count > MAX_ARGUMENTS
                or chunk.size + size > CHUNK_BYTES
                or len(chunk.indexes) >= CHUNK_RECORDS
            ):
                chunk = last_chunks[partition] = Chunk(None if owners is None else owners[index])
                self.chunks.setdefault(partition, []).append(chunk)
            chunk.ids[id] = len(chunk.indexes)
            chunk.indexes.append(index)
            chunk.arg_count += arg_count
            chunk.size += size
        for chunks in self.chunks.values():
            chunks.reverse()

    def chunk_written(self, partition: int, chunk: Chunk, entry_ids: Sequence[bytes]) -> None:
        """Settle a chunk that was written, with its entry IDs."""
        for index, offset in zip(chunk.indexes, offsets_of(entry_ids), strict=True):
            self.results[index] = Position(self.topic, partition, offset)
        for index, original in chunk.duplicates:
            self.results[index] = self.results[chunk.indexes[original]]

    def records_settled(
        self, partition: int, chunk: Chunk, outcomes: Sequence[bytes | LogError]
    ) -> None:
        """Settle the first records of a chunk, each with its entry ID or its error, and remove them
        from the chunk."""
        settled = chunk.indexes[: len(outcomes)]
        del chunk.indexes[: len(outcomes)]
        for index, outcome in zip(settled, outcomes, strict=True):
            if isinstance(outcome, LogError):
                self.results[index] = outcome
            else:
                self.results[index] = Position(self.topic, partition, offset_of(outcome))

    def chunk_refused(self, chunk: Chunk, error: LogError) -> None:
        """Settle a chunk that was refused because of its owner. The chunks behind it are still
        sent: a key has one owner, so no order is lost."""
        for index in chunk.all_indexes():
            self.results[index] = error

    def chunk_failed(self, partition: int, error: LogError) -> None:
        """Fail a partition's next chunk, which was not (certainly) written, and those behind it,
        which must not overtake it."""
        first, *behind = reversed(self.chunks.pop(partition))
        for index in first.all_indexes():
            self.results[index] = error
        not_sent = Unavailable(f"{self.topic}/{partition}: not sent, as a record before it failed")
        for chunk in behind:
            for index in chunk.all_indexes():
                self.results[index] = not_sent


class _SentChunk(NamedTuple):
    """A partition's chunk that was sent, and the range of its answers."""

    partition: int
    first_reply: int
    end_of_replies: int


class _SentChunks(NamedTuple):
    """Chunks that were sent together."""

    pipeline: Pipeline
    chunks: list[_SentChunk]


class Writer:
    """Writes appends. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics
        self._settings = client.settings
        seconds = self._settings.dedup_seconds or max(1.0, 3 * self._settings.append_timeout)
        self._rotation_ms = str(int(seconds * 1000))
        self._unfinished = 0
        self._idle = threading.Condition()
        self._closing = threading.Event()

    def append(
        self,
        topic: str,
        records: Sequence[Record],
        on_appended: OnAppended,
        owners: Owners | None = None,
    ) -> None:
        """See :meth:`streams.log.protocol.Log.append`, and with owners
        :data:`streams.log.protocol.AppendAsOwners`."""
        with self._idle:
            self._unfinished += 1
        try:
            deduplicates = owners is not None or self._settings.dedup_seconds > 0
            append = PendingAppend(topic, records, deduplicates)
            try:
                info = self._topics.lookup(topic).info
                if info.is_event_topic:
                    raise events_only(topic, "published to")
                append.split(
                    info.partitions, None if owners is None else owners.resolved(self._topics)
                )
            except LogError as error:
                append.results = [error] * len(records)
            else:
                self._write(append)
            on_appended([each or LogError(f"{topic}: not written") for each in append.results])
        finally:
            with self._idle:
                self._unfinished -= 1
                self._idle.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until all appends that have begun are done."""
        with self._idle:
            if not self._idle.wait_for(lambda: self._unfinished == 0, timeout):
                raise Unavailable(f"{self._unfinished} appends have not ended after {timeout:g} s")

    def close(self) -> None:
        """Stop retrying."""
        self._closing.set()

    def _write(self, append: PendingAppend) -> None:
        """Send chunks until none is left, several at a time, and retry those that failed."""
        ready, in_flight = deque(append.chunks), deque[_SentChunks]()
        pause, until = RETRY_BACKOFF[0], 0.0
        while True:
            while ready and len(in_flight) < MAX_IN_FLIGHT:
                in_flight.append(self._send_chunks(append, ready))
            if in_flight:
                self._read_replies(append, in_flight.popleft(), ready)
                continue
            if not append.chunks:
                return
            now = time.monotonic()
            if not until:
                until = now + self._settings.append_timeout
            if now + pause >= until or self._closing.wait(pause):
                for partition, chunks in list(append.chunks.items()):
                    error = chunks[-1].error or LogError(f"{append.topic}: not written")
                    append.chunk_failed(partition, error)
            else:
                pause = min(RETRY_BACKOFF[1], 2 * pause)
                ready.extend(append.chunks)

    def _send_chunks(self, append: PendingAppend, ready: deque[int]) -> _SentChunks:
        """Send the first chunks of some partitions: one large chunk, or many small ones."""
        commands: list[Command] = []
        sent: list[_SentChunk] = []
        size = 0
        while ready and size < CHUNK_RECORDS // 2:
            partition = ready.popleft()
            chunk = append.chunks[partition][-1]
            size += len(chunk.indexes)
            start = len(commands)
            commands += self._commands(append, partition, chunk)
            sent.append(_SentChunk(partition, start, len(commands)))
        return _SentChunks(self._client.send_all(commands), sent)

    def _read_replies(self, append: PendingAppend, sent: _SentChunks, ready: deque[int]) -> None:
        """Read the answers to some chunks. A partition with more to write is ready at once; one
        whose chunk is to be sent again only when nothing is in flight."""
        replies = sent.pipeline.read_replies()
        for sent_chunk in sent.chunks:
            partition = sent_chunk.partition
            answers = replies[sent_chunk.first_reply : sent_chunk.end_of_replies]
            chunks = append.chunks[partition]
            if append.deduplicates:
                is_over = self._take_entry_ids(append, partition, answers)
            else:
                is_over = self._take_outcomes(append, partition, answers)
            if not is_over:
                continue
            chunks.pop()
            if chunks:
                ready.append(partition)
            else:
                del append.chunks[partition]

    def _take_entry_ids(self, append: PendingAppend, partition: int, replies: list[Any]) -> bool:
        """Take the replies to a partition's next chunk, which one script wrote.

        :returns: whether the chunk is done: written completely and to as many replicas as required,
            or refused because the owner in whose name it was written has lost the partition.
        """
        chunk = append.chunks[partition][-1]
        if chunk.owner is not None and replies[0] == 0:
            append.chunk_refused(chunk, _fenced_error(chunk.owner, chunk))
            return True
        error = self._client.write_failure(append.topic, replies)
        if error is None:
            append.chunk_written(partition, chunk, replies[0])
            return True
        chunk.outcome_unknown = chunk.outcome_unknown or isinstance(error, OutcomeUnknown)
        if chunk.outcome_unknown and not isinstance(error, OutcomeUnknown):
            error = OutcomeUnknown(f"sent before, and never answered; then: {error}")
        chunk.error = error
        if not isinstance(error, OutcomeUnknown) and not _was_not_written(error):
            append.chunk_failed(partition, error)
        return False

    def _take_outcomes(self, append: PendingAppend, partition: int, replies: list[Any]) -> bool:
        """Take the answers to a partition's next chunk, whose records were written one by one, as
        their IDs are not remembered. Returns whether the chunk is done, as above.

        A record is sent again only if it was certainly not written, nor any record behind it.
        """
        chunk = append.chunks[partition][-1]
        outcomes: list[bytes | LogError] = replies[: len(chunk.indexes)]
        failure: LogError | None = None
        if self._settings.wait_replicas:
            failure = self._client.replication_failure(append.topic, replies[-1])
        written = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, LogError)]
        if failure is not None:
            for number in written:
                outcomes[number] = failure
        end = written[-1] + 1 if written else 0
        is_final = any(isinstance(each, LogError) for each in outcomes[:end])
        errors = [each for each in outcomes[end:] if isinstance(each, LogError)]
        if not is_final and all(map(_was_not_written, errors)):
            append.records_settled(partition, chunk, outcomes[:end])
            chunk.error = errors[0] if errors else None
            return not errors
        error = next(each for each in outcomes if isinstance(each, LogError))
        append.records_settled(partition, chunk, outcomes)
        append.chunk_failed(partition, error)
        return False

    def _commands(self, append: PendingAppend, partition: int, chunk: Chunk) -> list[Command]:
        keys, records = self._topics.partition_keys(append.topic, partition), append.records
        context = str(keys)
        commands: list[Command] = []
        waits = bool(self._settings.wait_replicas)
        if append.deduplicates:
            args: list[Any] = [self._rotation_ms]
            names: tuple[bytes | str, ...] = ()
            count_index, count = -1, 0
            for index in chunk.indexes:
                record_names, values, identity_index = encode_fields(records[index])
                if record_names is not names and record_names != names:
                    if count:
                        args[count_index] = count
                    names, count_index, count = record_names, len(args), 0
                    args += (0, len(names), identity_index)
                    args += names
                args += values
                count += 1
            args[count_index] = count
            script_keys, owner = (keys.stream, *keys.id_hashes), chunk.owner
            if owner is not None:
                script_keys += (owner.group_key,)
                args += (owner.member, owner.epoch)
            name = "append" if owner is None else "append_as_owner"
            command = script_command(
                context, name, script_keys, *args, is_append=True, before_wait=waits
            )
            # A repeat could be refused because the lease was lost although the first attempt wrote
            # the chunk.
            command.is_repeatable = owner is None
            commands.append(command)
        else:
            for index in chunk.indexes:
                names, values, _ = encode_fields(records[index])
                pairs = [item for pair in zip(names, values, strict=False) for item in pair]
                call: tuple[Any, ...] = ("XADD", keys.stream, "*", *pairs)
                commands.append(
                    Command(context, keys.stream, *call, is_append=True, is_repeatable=False)
                )
        if waits:
            commands.append(self._client.wait_command(context, keys.stream, tuple(commands)))
        return commands


def _fenced_error(owner: Owner, chunk: Chunk) -> LogError:
    """The error for a chunk whose owner has lost its lease."""
    lost = f"{owner.name} has assigned it to another member"
    if chunk.outcome_unknown:
        return OutcomeUnknown(f"{lost}; sent before, and never answered")
    return Fenced(f"{lost}; nothing was stored")


def _was_not_written(error: LogError) -> bool:
    """Whether a record that got this error may be sent again: the server did not write it."""
    return isinstance(error, Unavailable) and not isinstance(error, WritesRefused)
