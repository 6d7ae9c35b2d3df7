"""Reading ahead: the next batch is asked for before this one, unless it is small, is handed out.

One ``XREAD … BLOCK`` is under way on a connection nearly all the time, over all partitions that
are wanted, from this member's own positions. It costs the server nothing while it waits, and
while there is a backlog the server works on the next batch as the handlers work on this one.
Nobody ever blocks *in* the driver: the thread waits for the socket to become readable, together
with a socket that :meth:`Waiter.wake` writes to, and reads only what has begun to come. So the
length of the server's BLOCK has nothing to do with the socket's timeout.

On a cluster one command cannot span slots, so there is one feed, and one connection, for each
partition; elsewhere one for all.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence

from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from streams.errors import LogError
from streams.log.redis.client import Client
from streams.log.redis.columns import Rows
from streams.log.redis.errors import lost, moved_away, translate
from streams.log.redis.link import Link
from streams.log.redis.membership import Owned

BLOCK = 5.0
"""Seconds the server waits for news before it answers that there is none."""

_OVERDUE = 5.0
"""Seconds an answer may be late before the connection counts as dead."""


class Waiter:
    """Waits for any of some sockets to become readable, or to be woken."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._poll.register(self._inside, select.POLLIN)

    def watch(self, fileno: int) -> None:
        """Wait for this one too."""
        self._poll.register(fileno, select.POLLIN)

    def unwatch(self, fileno: int) -> None:
        """Not any more."""
        try:
            self._poll.unregister(fileno)
        except KeyError:
            pass

    def wake(self) -> None:
        """Have :meth:`wait` return soon (any thread)."""
        try:
            self._outside.send(b"\0")
        except OSError:
            pass  # full of wakes already, or closed

    def wait(self, seconds: float) -> tuple[set[int], bool]:
        """Wait: which sockets are readable, and whether it was woken."""
        readable = {fileno for fileno, _ in self._poll.poll(max(0.0, seconds) * 1000)}
        woken = self._inside.fileno() in readable
        if woken:
            try:
                while self._inside.recv(4096):
                    pass
            except BlockingIOError:
                pass
        return readable, woken

    def close(self) -> None:
        """Give the sockets back."""
        self._inside.close()
        self._outside.close()


class Feed:
    """One connection that reads ahead for some partitions. Used by one thread at a time."""

    def __init__(self, client: Client, waiter: Waiter) -> None:
        self.owned: list[Owned] = []
        self.asked: list[Owned] = []
        """Whom the answer under way is for; empty while none is."""
        self.count = 0
        """Entries a partition that were asked for."""
        self._client = client
        self._waiter = waiter
        self._link: Link | None = None
        self._fileno = -1
        self._number: int | None = None
        """The connection's number at the server, to be unblocked by."""
        self._due = 0.0
        self._elsewhere: tuple[str, int] | None = None
        """Where ASK sent the next request."""

    def ask(self, owned: Sequence[Owned], count: int, block: float) -> None:
        """Ask for the next entries of these partitions.

        :raises LogError: there is no connection to be had.
        """
        where = owned[0].part
        link = self._link
        try:
            if link is None:
                link = self._connect(where.stream)
            if self._elsewhere is not None:
                link.ask("ASKING")
            link.send(
                "XREAD", "COUNT", count, "BLOCK", int(block * 1000), "STREAMS",
                *(each.part.stream for each in owned), *(each.cursor for each in owned),
            )  # fmt: skip
        except (RedisError, OSError) as error:
            if link is not None:
                self._client.failed(link.address)
            self.drop()
            raise translate(error, str(where)) from error
        self.asked = list(owned)
        self.count = count
        self._due = time.monotonic() + block + _OVERDUE

    def ready(self, readable: set[int]) -> bool:
        """Whether an answer has begun to come. Only one is ever under way, so nothing of it can
        be in the driver's buffers, or TLS's, while the socket itself has nothing.

        :raises LogError: the connection is dead.
        """
        if not self.asked:
            return False
        if self._fileno in readable:
            return True
        if time.monotonic() > self._due:
            raise self._failed(OSError("no answer, long after it was due"))
        return False

    def answer(self) -> list[tuple[Owned, Rows]]:
        """What was asked for: entries by partition.

        :raises LogError: the server refused, or the connection is dead; it may be asked again.
        """
        link, asked = self._link, self.asked
        if link is None:
            return []
        try:
            reply = link.receive()
        except (RedisError, OSError) as error:
            raise self._failed(error) from error
        self.asked = []
        if self._elsewhere is not None:
            # One request was to be made there; the next one goes home again.
            self.drop()
        if not reply:
            return []
        if len(asked) == 1:
            return [(asked[0], reply[0][1])]
        found = {each.part.stream: each for each in asked}
        return [(found[name], rows) for name, rows in reply]

    def interrupt(self) -> None:
        """Have the server answer what is under way at once, so that something else can be asked.

        Where it will not (its ACL, or it is gone), the connection is closed instead.
        """
        if not self.asked or self._link is None:
            return
        try:
            if self._link.readable():
                return
            if self._number is not None:
                control, _ = self._client.pool.take(self._link.address)
                try:
                    control.ask("CLIENT", "UNBLOCK", self._number)
                except BaseException:
                    control.close()
                    raise
                self._client.pool.give(control.address, control)
                return
        except (RedisError, OSError, LogError):
            pass
        self.drop()

    def astray(self) -> bool:
        """Whether the partitions are to be read from another server by now."""
        link = self._link
        if link is None or not self.owned:
            return False
        return self._client.servers.of(self.owned[0].part.stream) != link.address

    def drop(self) -> None:
        """Close the connection; what was asked for on it is asked for again."""
        link, self._link = self._link, None
        self.asked = []
        self._elsewhere = None
        if self._fileno >= 0:
            self._waiter.unwatch(self._fileno)
            self._fileno = -1
        if link is not None:
            link.close()

    def _connect(self, key: bytes) -> Link:
        link = self._client.pool.new(self._elsewhere or self._client.servers.of(key))
        self._link = link
        try:
            self._number = int(link.ask("CLIENT", "ID"))
        except ResponseError:
            self._number = None  # not allowed to
        self._fileno = link.socket.fileno()
        self._waiter.watch(self._fileno)
        return link

    def _failed(self, error: BaseException) -> LogError:
        where, link = self.asked[0].part, self._link
        address = link.address if link is not None else None
        self.drop()
        if isinstance(error, MovedError | AskError) and address is not None:
            target = (error.host or address[0], error.port)
            if isinstance(error, MovedError):
                self._client.servers.moved(where.stream, target)
            else:
                self._elsewhere = target
        elif address is not None and (lost(error) or moved_away(error)):
            self._client.failed(address)
        return translate(error, str(where))
