"""Looks up offsets in a partition, and reads ranges of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from streams.errors import LogError, Unavailable
from streams.log.protocol import READ_TIMEOUT, Reader
from streams.log.redis.batch import RawEntries, RedisBatch
from streams.log.redis.client import Client, Command, Pipeline, key_command, script_command
from streams.log.redis.keys import MAX_OFFSET, PartitionKeys, entry_id, entry_id_before, offset_of
from streams.log.redis.topics import Topics

SCAN_STEP = 1_000
"""Entries that a script counts at once: about a millisecond of the server's time."""

MAX_COUNTED = 100_000
"""The most entries that are counted for a lag that is not known otherwise."""


class StreamInfo(NamedTuple):
    """The server's facts about one stream."""

    added: int
    """Entries ever added."""
    length: int
    first: int
    """Offset of the first entry; 0 while there is none."""
    last: int
    """The greatest offset ever added."""
    deleted: int
    """The greatest offset deleted by XDEL."""

    @property
    def removed(self) -> int:
        """The number of entries that were trimmed or deleted."""
        return self.added - self.length

    @property
    def end(self) -> int:
        """The smallest offset that the next entry can get."""
        return self.last + 1 if self.last else 0

    def entries_below(self, position: int) -> int | None:
        """How many of the entries ever added have a smaller offset; None if that is unknown."""
        if position > self.last or not self.added:
            return self.added
        if self.length and position <= self.first and self.deleted < self.first:
            return self.removed
        return None


def parse_stream_info(
    added: int, length: int, first: bytes, last: bytes, deleted: bytes
) -> StreamInfo:
    """Parse the facts that our scripts return about a stream; the last three are entry IDs."""
    return StreamInfo(
        int(added), int(length), offset_of(first), offset_of(last), offset_of(deleted)
    )


class _GroupLag(NamedTuple):
    """The lag of a native group according to Redis: the entries from a position on."""

    position: int
    lag: int


class OffsetLookup:
    """Offset lookups and counts in a log. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics

    def stream_info(self, keys: PartitionKeys) -> tuple[StreamInfo, list[dict[bytes, Any]]]:
        """A partition's stream and its native groups."""
        context, key = str(keys), keys.stream
        info, groups = self._client.execute_all(
            [Command(context, key, "XINFO", what, key) for what in ("STREAM", "GROUPS")]
        )
        for reply in (info, groups):
            if isinstance(reply, LogError):
                if "no such key" in str(reply):
                    return StreamInfo(0, 0, 0, 0, 0), []
                raise reply
        facts = _pairs(info)
        found = parse_stream_info(
            facts[b"entries-added"],
            facts[b"length"],
            facts[b"recorded-first-entry-id"],
            facts[b"last-generated-id"],
            facts[b"max-deleted-entry-id"],
        )
        return found, [_pairs(group) for group in groups]

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """See :meth:`streams.log.protocol.Log.watermarks`.

        Any position between the last removed entry and the first that exists may be reported as the
        first one: reading from it misses nothing. While nothing was removed, that is 0-0. Redis
        does not keep the ID of the last entry that XTRIM removed; but a group that has read as many
        entries as were removed has read just those, so its position is returned: otherwise a
        comparison of that position with the first one would show a loss in every gap.
        """
        found, groups = self.stream_info(self._topics.partition_keys(topic, partition))
        if not found.removed:
            return 0, found.end
        if not found.length:
            return found.end, found.end
        first = found.first
        if found.deleted < found.first:
            for group in groups:
                if group[b"entries-read"] == found.removed:
                    first = min(first, offset_of(group[b"last-delivered-id"]) + 1)
        return first, found.end

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        """See :meth:`streams.log.protocol.Log.offset_for_time`."""
        keys = self._topics.partition_keys(topic, partition)
        start = max(0, math.ceil(round(time * 1000, 3))) << 64
        if start <= MAX_OFFSET:
            count, last_id = self._scan(keys, "XRANGE", entry_id(start), b"+", 1)
            if count:
                return offset_of(last_id)
        found, _ = self.stream_info(keys)
        return found.end

    def _scan(
        self, keys: PartitionKeys, command: str, start: bytes, end: bytes, limit: int
    ) -> tuple[int, bytes]:
        """The number of entries that XRANGE or XREVRANGE finds, and the ID of the last one."""
        count, last_id = self._client.execute(
            script_command(str(keys), "scan", [keys.stream], command, start, end, limit)
        )
        return count, last_id

    def offset_before(self, topic: str, partition: int, position: int, count: int) -> int:
        """See :meth:`streams.log.protocol.Log.offset_before`."""
        keys = self._topics.partition_keys(topic, partition)
        while count > 0 and position > 0:
            step = min(count, SCAN_STEP)
            found, last_id = self._scan(keys, "XREVRANGE", entry_id_before(position), b"-", step)
            if not found:
                first, _ = self.watermarks(topic, partition)
                return max(position, first)
            position = offset_of(last_id)
            if found < step:
                break
            count -= found
        return position

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        """See :meth:`streams.log.protocol.Log.lag`: the lag of the native group with the nearest
        position, corrected by the entries between the two positions, of which at most
        :data:`MAX_COUNTED` are counted."""
        keys = self._topics.partition_keys(topic, partition)
        found, groups = self.stream_info(keys)
        if position > found.last or not found.length:
            return 0
        if position <= found.first:
            return found.length
        known = [
            _GroupLag(offset_of(group[b"last-delivered-id"]) + 1, int(group[b"lag"]))
            for group in groups
            if group[b"lag"] is not None
        ]
        below = max((each for each in known if each.position <= position), default=None)
        if below is not None:
            between = self.count_entries(keys, below.position, MAX_COUNTED, position - 1)
            if between is not None:
                return max(0, below.lag - between)
        above = min((each for each in known if each.position > position), default=None)
        if above is not None:
            between = self.count_entries(keys, position, MAX_COUNTED, above.position - 1)
            return None if between is None else above.lag + between
        return self.count_entries(keys, position, MAX_COUNTED)

    def count_entries(
        self, keys: PartitionKeys, position: int, limit: int, last: int = MAX_OFFSET
    ) -> int | None:
        """The number of entries from a position up to and including the offset ``last``; None if
        more than ``limit``."""
        total = 0
        end = entry_id(last)
        while total < limit:
            if position > last:
                return total
            count, last_id = self._scan(keys, "XRANGE", entry_id(position), end, SCAN_STEP)
            total += count
            if count < SCAN_STEP:
                return total
            position = offset_of(last_id) + 1
        return None

    def entries_below(self, keys: PartitionKeys, position: int) -> int | None:
        """How many of the entries ever added are below a position; None if that cannot be known."""
        found, _ = self.stream_info(keys)
        known = found.entries_below(position)
        if known is None and found.deleted < found.first:
            entries_from = self.count_entries(keys, position, MAX_COUNTED, found.last)
            known = None if entries_from is None else found.added - entries_from
        return known

    def reader(self, topic: str, partition: int, start: int, end: int) -> RedisReader:
        """See :meth:`streams.log.protocol.Log.reader`."""
        keys = self._topics.partition_keys(topic, partition)
        return RedisReader(self._client, self, keys, start, end)


class RedisReader(Reader):
    """Reads one range of a partition; requests the next batch before the last one is handled."""

    def __init__(
        self, client: Client, lookup: OffsetLookup, keys: PartitionKeys, start: int, end: int
    ) -> None:
        self._client = client
        self._offsets = lookup
        self._keys = keys
        self._position = start
        self._end = min(end, MAX_OFFSET)
        self._fetched: RawEntries = []
        """Entries that were read and not returned yet."""
        self._read_ahead: Pipeline | None = None
        """The request for the next entries, sent ahead."""

    def read(self, limit: int, timeout: float = READ_TIMEOUT) -> RedisBatch | None:
        """See :meth:`streams.log.protocol.Reader.read`."""
        limit = max(1, limit)
        until = time.monotonic() + timeout
        while not self._fetched:
            if self._position >= self._end:
                self.close()
                return None
            self._fetch(limit, until)
        rows, self._fetched = self._fetched[:limit], self._fetched[limit:]
        return RedisBatch(self._keys.topic, self._keys.partition, rows)

    def close(self) -> None:
        """See :meth:`streams.log.protocol.Reader.close`."""
        self._end = self._position = 0
        self._fetched = []
        if self._read_ahead is not None:
            self._read_ahead.discard()
            self._read_ahead = None

    def _fetch(self, limit: int, until: float) -> None:
        rows = self._next_entries(limit)
        if not rows and self._end <= self._stream_end():
            rows = self._next_entries(limit)  # written before the end was read
            if not rows:
                self._position = self._end
                return
        if rows:
            self._fetched = rows
            last_id, _ = rows[-1]
            self._position = offset_of(last_id) + 1
            if len(rows) == limit and self._position < self._end:
                self._read_ahead = self._client.send_all([self._range_command(limit)])
            return
        # The end is beyond the stream's: wait for the next entry.
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise Unavailable(f"{self._keys}: nothing came in time")
        max_block = self._client.settings.connection["socket_timeout"] / 2
        block = max(1, int(min(remaining, max_block) * 1000))
        stream = self._keys.stream
        self._client.execute(
            Command(
                str(self._keys), stream,
                "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", stream,
                entry_id_before(self._position),
            )
        )  # fmt: skip

    def _stream_end(self) -> int:
        found, _ = self._offsets.stream_info(self._keys)
        return found.end

    def _next_entries(self, limit: int) -> RawEntries:
        """The next entries of the range that exist now."""
        pipeline, self._read_ahead = self._read_ahead, None
        entries: RawEntries | LogError
        if pipeline is not None:
            (entries,) = pipeline.read_replies()
            if not isinstance(entries, LogError):
                return entries
            # The connection may have been idle for a long time since: ask again.
        found: RawEntries = self._client.execute(self._range_command(limit))
        return found

    def _range_command(self, limit: int) -> Command:
        start, stop = entry_id(self._position), entry_id_before(self._end)
        stream, context = self._keys.stream, str(self._keys)
        return key_command(context, "XRANGE", stream, start, stop, "COUNT", limit)


def _pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
