"""Random reads: where a partition begins and ends, and one range of it after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from streams.errors import LogError, Unavailable
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.columns import Entries, Row
from streams.log.redis.errors import translate
from streams.log.redis.keys import HIGH, Part, before, entry_id, offset
from streams.log.redis.link import Link
from streams.log.redis.topics import Topics

STEP = 1_000
"""Entries a script steps over at once: about a millisecond of the server's time."""

FAR = 100_000
"""Entries counted one by one for a lag that nothing else tells."""


class Stream(NamedTuple):
    """What the server knows of one stream."""

    added: int
    """Entries ever added."""
    length: int
    first: int
    """Offset of the first entry; 0 while there is none."""
    last: int
    """The greatest offset there ever was."""
    deleted: int
    """The greatest offset deleted by XDEL."""

    @property
    def removed(self) -> int:
        """Entries that are gone."""
        return self.added - self.length

    @property
    def end(self) -> int:
        """The position the next entry will get or exceed."""
        return self.last + 1 if self.last else 0

    def read_below(self, position: int) -> int | None:
        """How many of the entries ever added have a smaller offset; None where that is unknown."""
        if position > self.last or not self.added:
            return self.added
        if self.length and position <= self.first and self.deleted < self.first:
            return self.removed
        return None


def stream_of(answer: Sequence[Any]) -> Stream:
    """From what our scripts return of a stream."""
    added, length, first, last, deleted = answer
    return Stream(int(added), int(length), offset(first), offset(last), offset(deleted))


class Reading:
    """Random reads of a log. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics

    def stream(self, part: Part) -> tuple[Stream, list[dict[bytes, Any]]]:
        """A partition's stream and its native groups."""
        where, key = str(part), part.stream
        info, groups = self._client.run_all(
            [
                Command(where, key, "XINFO", "STREAM", key),
                Command(where, key, "XINFO", "GROUPS", key),
            ]
        )
        for answer in (info, groups):
            if isinstance(answer, LogError):
                if "no such key" in str(answer):
                    return Stream(0, 0, 0, 0, 0), []
                raise answer
        facts = _pairs(info)
        found = Stream(
            facts[b"entries-added"],
            facts[b"length"],
            offset(facts[b"recorded-first-entry-id"]),
            offset(facts[b"last-generated-id"]),
            offset(facts[b"max-deleted-entry-id"]),
        )
        return found, [_pairs(group) for group in groups]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See :meth:`streams.log.protocol.Log.bounds`.

        Any position between the last entry that is gone and the first that is there may be called
        the first one: reading from it misses nothing. As long as nothing is gone, that is 0-0.
        Redis does not keep the ID of the last one that XTRIM took; but a group that has read as
        many entries as are gone has read just those, so its position is proved to be such a one,
        and is told: otherwise whoever compares a group's place with the beginning would see a loss
        in every gap.
        """
        found, groups = self.stream(self._topics.part(topic, partition))
        if not found.removed:
            return 0, found.end
        if not found.length:
            return found.end, found.end
        first = found.first
        if found.deleted < found.first:
            for group in groups:
                if group[b"entries-read"] == found.removed:
                    first = min(first, offset(group[b"last-delivered-id"]) + 1)
        return first, found.end

    def at(self, topic: str, partition: int, time: float) -> int:
        """See :meth:`streams.log.protocol.Log.at`."""
        part = self._topics.part(topic, partition)
        start = max(0, math.ceil(round(time * 1000, 3))) << 64
        return self._first(part, start)

    def _first(self, part: Part, start: int) -> int:
        """Offset of the first entry at or behind a position, the end if there is none."""
        if start <= HIGH:
            found = self._client.run(
                scripted(str(part), "walk", [part.stream], "XRANGE", entry_id(start), "+", 1)
            )
            if found[0]:
                return offset(found[1])
        return self.stream(part)[0].end

    def back(self, topic: str, partition: int, position: int, count: int) -> int:
        """See :meth:`streams.log.protocol.Log.back`."""
        part = self._topics.part(topic, partition)
        while count > 0 and position > 0:
            step = min(count, STEP)
            found = self._client.run(
                scripted(str(part), "walk", [part.stream], "XREVRANGE", before(position), "-", step)
            )
            if found[0]:
                position = offset(found[1])
                count -= found[0]
            if found[0] < step:
                return max(position, self.bounds(topic, partition)[0]) if not found[0] else position
        return position

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        """See :meth:`streams.log.protocol.Log.lag`: what the server knows of the group that stands
        nearest, and what lies between that one and the position; at most :data:`FAR` are counted.
        """
        part = self._topics.part(topic, partition)
        found, groups = self.stream(part)
        if position > found.last or not found.length:
            return 0
        if position <= found.first:
            return found.length
        known = [
            (offset(group[b"last-delivered-id"]) + 1, int(group[b"lag"]))
            for group in groups
            if group[b"lag"] is not None
        ]
        below = max((each for each in known if each[0] <= position), default=None)
        if below is not None:
            between = self.count(part, below[0], FAR, position - 1)
            if between is not None:
                return max(0, below[1] - between)
        above = min((each for each in known if each[0] > position), default=None)
        if above is not None:
            between = self.count(part, position, FAR, above[0] - 1)
            return None if between is None else above[1] + between
        return self.count(part, position, FAR)

    def count(self, part: Part, position: int, most: int, last: int = HIGH) -> int | None:
        """How many entries stand at or behind a position, up to and with the offset ``last``; None
        if more than ``most``."""
        total = 0
        end = entry_id(last)
        while total < most:
            if position > last:
                return total
            entries: int
            entries, at = self._client.run(
                scripted(str(part), "walk", [part.stream], "XRANGE", entry_id(position), end, STEP)
            )
            total += entries
            if entries < STEP:
                return total
            position = offset(at) + 1
        return None

    def read_below(self, part: Part, position: int) -> int | None:
        """How many of the entries ever added stand below a position, as far as it can be known."""
        found, _ = self.stream(part)
        known = found.read_below(position)
        if known is None and found.deleted < found.first:
            behind = self.count(part, position, FAR)
            known = None if behind is None else found.added - behind
        return known

    def reader(self, topic: str, partition: int, start: int, end: int) -> RedisReader:
        """See :meth:`streams.log.protocol.Log.reader`."""
        return RedisReader(self._client, self, self._topics.part(topic, partition), start, end)


class RedisReader:
    """Reads one range of a partition; asks for the next batch before the last one is handled."""

    def __init__(self, client: Client, reading: Reading, part: Part, start: int, end: int) -> None:
        self._client = client
        self._reading = reading
        self._part = part
        self._next = start
        self._end = min(end, HIGH)
        self._rows: list[tuple[bytes, Row]] = []
        """Came, and not given out yet."""
        self._link: Link | None = None
        self._asked = 0
        """How many entries the connection was asked for and has not answered yet."""

    def read(self, limit: int, timeout: float = 5.0) -> Entries | None:
        """The next messages, at least one and at most ``limit``; None at the reader's end.

        :raises Unavailable: nothing came within ``timeout`` seconds.
        """
        limit = max(1, limit)
        until = time.monotonic() + timeout
        while not self._rows:
            if self._next >= self._end:
                self.close()
                return None
            self._receive(limit, until)
        rows, self._rows = self._rows[:limit], self._rows[limit:]
        return Entries(self._part.topic, self._part.partition, rows)

    def close(self) -> None:
        """Give back what the reader holds."""
        link, self._link = self._link, None
        self._end = self._next = 0
        self._rows = []
        if link is not None:
            if self._asked:
                link.close()
            else:
                self._client.pool.give(link.address, link)

    def _receive(self, limit: int, until: float) -> None:
        rows = self._answer(limit)
        if rows:
            self._rows = rows
            self._next = offset(rows[-1][0]) + 1
            if len(rows) == limit and self._next < self._end and self._link is not None:
                self._ask(self._link, limit)
            return
        if self._end <= self._reading.stream(self._part)[0].end:
            self._next = self._end
            return
        # The end is still to come: wait for the next entry.
        left = until - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{self._part}: nothing came in time")
        patience = self._client.settings.connection["socket_timeout"] / 2
        block = max(1, int(min(left, patience) * 1000))
        stream = self._part.stream
        self._client.run(
            Command(
                str(self._part), stream,
                "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", stream, before(self._next),
            )
        )  # fmt: skip

    def _answer(self, limit: int) -> list[tuple[bytes, Row]]:
        """The next entries of the range there are now."""
        part, client = self._part, self._client
        if self._link is not None:
            try:
                if not self._asked:
                    self._ask(self._link, limit)
                self._asked = 0
                rows: list[tuple[bytes, Row]] = self._link.receive()
                return rows
            except (RedisError, OSError):
                # It may have been idle for long, or the slot has moved: once more, with care.
                self._link.close()
                self._link = None
        command = Command(str(part), part.stream, *self._range(limit))
        rows = client.run(command)
        if rows and self._link is None:
            self._link, _ = client.pool.take(client.servers.of(part.stream))
        return rows

    def _ask(self, link: Link, limit: int) -> None:
        try:
            link.send(*self._range(limit))
        except (RedisError, OSError) as error:
            link.close()
            self._link = None
            raise translate(error, str(self._part)) from error
        self._asked = limit

    def _range(self, limit: int) -> tuple[Any, ...]:
        start, stop = entry_id(self._next), before(self._end)
        return ("XRANGE", self._part.stream, start, stop, "COUNT", limit)


def _pairs(reply: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))
