"""A TCP proxy between a client and a real server, which does to connections what networks do.

It runs an event loop in a thread of its own and listens on loopback; its methods may be called from
any thread and have taken effect when they return. It knows nothing of the protocol it carries, so
it works for Redis as it is, and for Kafka where the broker advertises the proxy's port.

* :meth:`Proxy.cut` resets every connection (new ones are let in);
* :meth:`Proxy.shut` resets them and lets no new one in until :meth:`Proxy.open`;
* :meth:`Proxy.turn_to` resets them and carries new ones to another server;
* :meth:`Proxy.block` resets a connection instead of letting a certain request through;
* :attr:`Proxy.delay` holds back each piece, in both directions, without changing the order;
* :meth:`Proxy.lose_reply` lets a request through, waits until the server has answered it, throws
  the answer away and resets the connection: what was asked for is done, and the client cannot know.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PIECE = 64 * 1024
"""Bytes carried at once."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST, as a cut connection looks like to both ends."""


class _Link:
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.losing = False
        """The next thing the server says is thrown away, and the link cut."""

    def cut(self) -> None:
        for end in self.ends:
            raw = end.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()


class Proxy:
    """The proxy. A context manager.

    :param port: the server's, on loopback.
    :param listen: the port to listen on; any free one if not given.
    """

    def __init__(self, port: int, *, listen: int = 0) -> None:
        self._target = port
        self._listen = listen
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tests-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._shut = False
        self._marker = b""
        self._lost = threading.Event()
        self._blocked = b""
        self.delay = 0.0
        """Seconds that each piece is held back."""
        self.cuts = 0
        """Connections reset so far."""

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listen

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    # -- what it does to them

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        return self._do(self._cut)

    def shut(self) -> int:
        """Reset every connection, and every new one at once; how many there were."""

        def shut() -> int:
            self._shut = True
            return self._cut()

        return self._do(shut)

    def open(self) -> None:
        """Let connections in again."""

        def open() -> None:
            self._shut = False

        self._do(open)

    def turn_to(self, port: int) -> None:
        """Reset every connection, and carry new ones to another server."""

        def turn() -> None:
            self._target = port
            self._cut()

        self._do(turn)

    def block(self, marker: bytes) -> None:
        """Reset each connection in whose requests ``marker`` stands, before the server has it.

        Empty: let everything through again. A marker is found only within one piece.
        """

        def block() -> None:
            self._blocked = marker

        self._do(block)

    def lose_reply(self, marker: bytes) -> threading.Event:
        """Of the next request in which ``marker`` stands, lose the reply; set once it is lost.

        A marker is found only within one piece, so it should be short.
        """
        if not marker:
            raise ValueError("a marker is needed: bytes of the request")
        event = threading.Event()

        def arm() -> None:
            self._marker, self._lost = marker, event

        self._do(arm)
        return event

    # -- in its thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _do(self, act: Callable[[], T]) -> T:
        async def do() -> T:
            return act()

        return self._call(do())

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._listen)
        self._listen = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _cut(self) -> int:
        count = len(self._links)
        for link in self._links:
            link.cut()
        self._links.clear()
        self.cuts += count
        return count

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, back)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(link, reader, back))
                group.create_task(self._replies(link, there, writer))
        except* OSError:
            link.cut()
        finally:
            self._links.discard(link)
            for end in link.ends:
                end.close()

    async def _requests(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(PIECE):
            await self._hold()
            if self._blocked and self._blocked in piece:
                self.cuts += 1
                link.cut()
                return
            if self._marker and self._marker in piece:
                self._marker, link.losing = b"", True
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def _replies(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(PIECE):
            if link.losing:
                self.cuts += 1
                link.cut()
                self._lost.set()
                return
            await self._hold()
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def _hold(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
