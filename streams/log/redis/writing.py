"""Appending, each message ID once.

Records go to their partitions, and each partition's in chunks that one script takes whole, so a
chunk is in the log altogether or not at all. A partition has one chunk under way at a time: a
later one can never overtake an earlier one that has to be sent again. Partitions go side by side.

A chunk that got no answer is sent again, with the same message IDs, until it gets one or
``timeout`` seconds are over: where it had been written, the answer is what it got then.
So a lost answer, a failover or a restart ends in a certain outcome, and only if it lasts too long
in :class:`~streams.errors.OutcomeUnknown`. With ``once=0`` nothing is remembered, so nothing that
was sent is ever sent again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from streams.errors import LogError, OutcomeUnknown, TooLarge, Unavailable
from streams.log.names import places
from streams.log.protocol import Done
from streams.log.redis.client import Client, Command, Flight, scripted
from streams.log.redis.columns import fields, identity_of_record
from streams.log.redis.errors import Refusing
from streams.log.redis.scripts import ARGUMENTS
from streams.log.redis.topics import Topics
from streams.message import Position, Record

CHUNK = 1_000
"""Records of one script call at most: 1,000 of them take the server about 5 ms."""

BYTES = 4 << 20
"""Their bytes; a single larger record goes alone."""

WINDOW = 4
"""Chunks under way at once, of different partitions."""

LARGEST = 512_000_000
"""Bytes of one key, value or header (``proto-max-bulk-len`` is 512 MB unless set otherwise)."""

FIELDS = 3_900
"""Fields of one entry at most: name and value each are an argument of one XADD."""

PAUSE = 0.05, 1.0
"""Seconds before a chunk is sent again: at first, and at most."""

_numbers = msgspec.json.Decoder(list[int])


class Chunk:
    """Records of one partition that are written together."""

    __slots__ = ("echoes", "error", "indexes", "unknown")

    def __init__(self) -> None:
        self.indexes: list[int] = []
        """Which of the append's records."""
        self.echoes: list[tuple[int, int]] = []
        """Records whose ID the chunk has already: which, and where in ``indexes`` it is."""
        self.unknown = False
        """It was sent, and got no answer."""
        self.error: LogError | None = None


class Append:
    """One append under way."""

    def __init__(self, topic: str, records: Sequence[Record], once: bool) -> None:
        self.topic = topic
        self.records = records
        self.results: list[Position | LogError | None] = [None] * len(records)
        self.once = once
        self.lanes: dict[int, list[Chunk]] = {}
        """Chunks by partition, the next one last."""

    def plan(self, partitions: int) -> None:
        """Share the records out into chunks."""
        open_: dict[int, tuple[Chunk, dict[str, int], int, int]] = {}
        placed = zip(self.records, places(self.records, partitions), strict=True)
        for index, (record, at) in enumerate(placed):
            value, key, id = record.value, record.key, record.id
            headers = record.headers
            width = 4 + len(headers)
            size = (len(value) if value is not None else 0) + (len(key) if key is not None else 0)
            for _, data in headers:
                size += len(data) if data is not None else 0
            if size > LARGEST or width > FIELDS:
                what = f"{size} bytes and {len(headers)} headers"
                self.results[index] = TooLarge(
                    f"{self.topic}: a record of {what}; at most {LARGEST} and {FIELDS - 4}"
                )
                continue
            if not id:
                self.results[index] = LogError(f"{self.topic}: a record without an ID")
                continue
            if not 0 <= at < partitions:
                self.results[index] = LogError(f"{self.topic} has no partition {at}")
                continue
            chunk, ids, args, bytes_ = open_.get(at) or self._chunk(at)
            if headers:
                id = identity_of_record(record)
            if self.once and id in ids:
                chunk.echoes.append((index, ids[id]))
                continue
            # A record may begin a run of its own: its names, and three numbers more.
            args, bytes_ = args + 2 * width + 3, bytes_ + size
            if chunk.indexes and (
                args > ARGUMENTS or bytes_ > BYTES or len(chunk.indexes) >= CHUNK
            ):
                chunk, ids, _, _ = self._chunk(at)
                args, bytes_ = 2 * width + 3, size
            ids[id] = len(chunk.indexes)
            chunk.indexes.append(index)
            open_[at] = (chunk, ids, args, bytes_)
        for chunks in self.lanes.values():
            chunks.reverse()

    def _chunk(self, partition: int) -> tuple[Chunk, dict[str, int], int, int]:
        chunk = Chunk()
        self.lanes.setdefault(partition, []).append(chunk)
        return chunk, {}, 1, 0

    def settle(self, partition: int, chunk: Chunk, entries: Sequence[bytes]) -> None:
        """A chunk was written: these are its entries."""
        topic, results = self.topic, self.results
        numbers = _numbers.decode(b"[%s]" % b",".join(entries).replace(b"-", b","))
        pairs = zip(*[iter(numbers)] * 2, strict=True)
        for index, (high, low) in zip(chunk.indexes, pairs, strict=True):
            results[index] = Position(topic, partition, high << 64 | low)
        for index, at in chunk.echoes:
            results[index] = results[chunk.indexes[at]]

    def fail(self, partition: int, chunk: Chunk, error: LogError) -> None:
        """A chunk was not (certainly) written; what stands behind it must not overtake it."""
        results = self.results
        for index in (*chunk.indexes, *(echo for echo, _ in chunk.echoes)):
            results[index] = error
        behind = Unavailable(f"{self.topic}/{partition}: not sent, as a record before it failed")
        for other in self.lanes.pop(partition, ()):
            for index in (*other.indexes, *(echo for echo, _ in other.echoes)):
                results[index] = behind


class _Wave(NamedTuple):
    """Chunks under way together."""

    flight: Flight
    spans: list[tuple[int, int, int]]
    """Of each: its partition, and where its answers begin and end."""


class Writer:
    """Writes appends. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics
        self._settings = client.settings
        self._turn = str(int(self._settings.once * 1000))
        self._running = 0
        self._idle = threading.Condition()
        self._closing = threading.Event()

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """See :meth:`streams.log.protocol.Log.append`."""
        with self._idle:
            self._running += 1
        try:
            work = Append(topic, records, once=self._settings.once > 0)
            try:
                work.plan(self._topics.facts(topic).info.partitions)
            except LogError as error:
                work.results = [error] * len(records)
            else:
                self._write(work)
            done([each or LogError(f"{topic}: not written") for each in work.results])
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def flush(self, timeout: float) -> None:
        """Wait until every append so far has ended.

        :raises Unavailable: some have not.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: self._running == 0, timeout):
                raise Unavailable(f"{self._running} appends have not ended after {timeout:g} s")

    def close(self) -> None:
        """Send nothing again any more."""
        self._closing.set()

    def _write(self, work: Append) -> None:
        """Send chunks until none is left, several at a time, and whichever failed again.

        While the server writes one chunk, the next is made ready here, and the one before told.
        """
        ready, flights = deque(work.lanes), deque[_Wave]()
        prepared: dict[int, list[Command]] = {}
        landed: list[tuple[int, Chunk, Sequence[bytes]]] = []
        pause, until = PAUSE[0], 0.0
        while True:
            while ready and len(flights) < WINDOW:
                flights.append(self._launch(work, ready, prepared))
            for partition, chunk, entries in landed:
                work.settle(partition, chunk, entries)
            landed = []
            if flights:
                wave = flights.popleft()
                for partition, _, _ in wave.spans:
                    self._prepare(work, partition, prepared)
                landed = self._land(work, wave, ready, prepared)
                continue
            failed = [partition for partition in work.lanes if partition not in ready]
            if not failed:
                return
            now = time.monotonic()
            if not until:
                pause, until = PAUSE[0], now + self._settings.timeout
            if now + pause >= until or self._closing.wait(pause):
                for partition in failed:
                    self._give_up(work, partition)
            else:
                pause = min(PAUSE[1], 2 * pause)
                ready.extend(failed)

    def _launch(self, work: Append, ready: deque[int], prepared: dict[int, list[Command]]) -> _Wave:
        """Send the first chunks of some partitions: one large one, or many small ones."""
        commands: list[Command] = []
        spans: list[tuple[int, int, int]] = []
        size = 0
        while ready and size < CHUNK // 2:
            partition = ready.popleft()
            chunk = work.lanes[partition][-1]
            size += len(chunk.indexes)
            start = len(commands)
            commands += prepared.pop(partition, []) or self._commands(work, partition, chunk)
            spans.append((partition, start, len(commands)))
        return _Wave(self._client.launch(commands), spans)

    def _prepare(self, work: Append, partition: int, prepared: dict[int, list[Command]]) -> None:
        """Make the chunk behind the first one ready to be sent."""
        chunks = work.lanes[partition]
        if len(chunks) > 1:
            prepared[partition] = self._commands(work, partition, chunks[-2])

    def _land(
        self,
        work: Append,
        wave: _Wave,
        ready: deque[int],
        prepared: dict[int, list[Command]],
    ) -> list[tuple[int, Chunk, Sequence[bytes]]]:
        """Read the answers of one wave: what was written. A partition with more to write is ready
        again; one whose chunk is to be sent once more is in neither."""
        answers = wave.flight.land()
        landed: list[tuple[int, Chunk, Sequence[bytes]]] = []
        for partition, start, stop in wave.spans:
            chunks = work.lanes[partition]
            chunk = chunks[-1]
            try:
                entries = self._entries(work, answers[start:stop])
            except LogError as error:
                chunk.unknown = chunk.unknown or isinstance(error, OutcomeUnknown)
                if chunk.unknown and not isinstance(error, OutcomeUnknown):
                    error = OutcomeUnknown(f"sent before, and never answered; then: {error}")
                chunk.error = error
                prepared.pop(partition, None)  # that is for the one behind
                if not self._again(work, error):
                    self._give_up(work, partition)
                continue
            landed.append((partition, chunk, entries))
            chunks.pop()
            if chunks:
                ready.append(partition)
            else:
                del work.lanes[partition]
        return landed

    def _give_up(self, work: Append, partition: int) -> None:
        chunk = work.lanes[partition].pop()
        work.fail(partition, chunk, chunk.error or LogError(f"{work.topic}: not written"))

    def _again(self, work: Append, error: LogError) -> bool:
        if isinstance(error, OutcomeUnknown):
            return work.once
        return isinstance(error, Unavailable) and not isinstance(error, Refusing)

    def _entries(self, work: Append, answers: list[Any]) -> Sequence[bytes]:
        """The entry IDs of a chunk from its answers.

        :raises LogError: it was not written, or not by as many servers as it should.
        """
        settings = self._settings
        replicas: int | LogError = answers.pop() if settings.wait else 0
        for answer in answers:
            if isinstance(answer, LogError):
                raise answer
        if isinstance(replicas, LogError):
            raise OutcomeUnknown(f"{work.topic}: written, but replicas did not answer: {replicas}")
        if replicas < settings.wait:
            raise OutcomeUnknown(
                f"{work.topic}: written, but {replicas} replicas have it after "
                f"{settings.wait_timeout:g} s, not {settings.wait}"
            )
        entries: Sequence[bytes] = answers[0] if work.once else answers
        return entries

    def _commands(self, work: Append, partition: int, chunk: Chunk) -> list[Command]:
        part, records = self._topics.part(work.topic, partition), work.records
        where = str(part)
        commands: list[Command] = []
        if work.once:
            args: list[Any] = [self._turn]
            names: tuple[bytes | str, ...] = ()
            count_at, count = -1, 0
            for index in chunk.indexes:
                fields_, values, place = fields(records[index])
                if fields_ is not names and fields_ != names:
                    if count:
                        args[count_at] = count
                    names, count_at, count = fields_, len(args), 0
                    args += (0, len(names), place)
                    args += names
                args += values
                count += 1
            args[count_at] = count
            keys = (part.stream, *part.ids)
            commands.append(scripted(where, "append", keys, *args, appends=True))
        else:
            for index in chunk.indexes:
                names, values, _ = fields(records[index])
                pairs = [item for pair in zip(names, values, strict=False) for item in pair]
                call: tuple[Any, ...] = ("XADD", part.stream, "*", *pairs)
                commands.append(Command(where, part.stream, *call, appends=True, again=False))
        if self._settings.wait:
            milliseconds = int(self._settings.wait_timeout * 1000)
            call = ("WAIT", self._settings.wait, milliseconds)
            commands.append(Command(where, part.stream, *call, again=False))
        for command in commands:
            self._client.pack(command)
        return commands
