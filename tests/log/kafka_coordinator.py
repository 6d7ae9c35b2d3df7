"""A proxy before a Kafka broker, which does what a coordinator does that moves or is lost.

While the coordinator of a group moves to another broker, the one that was asked answers with the
error NOT_COORDINATOR, and the client is to look for it again. A broker does this for milliseconds;
here it is done to as many requests for a group's offsets as a test wants. And a broker that is
still named as the coordinator may not answer at all: then clients are sent to a port where nobody
does until the test has it so. A connection over which a member waits for the others to join gets no
other answer meanwhile.

Kafka's protocol: a request and its answer are each a length and that many bytes. A request begins
with its API's key, version and a number, and the answer with the same number. Addresses in answers
are a host and four bytes for the port, so the broker's own port is replaced by the proxy's.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

OFFSET_FETCH = 9
FIND_COORDINATOR = 10
JOIN_GROUP = 11
NOT_COORDINATOR = 16


class MovingCoordinator:
    """The proxy. A context manager.

    :param address: the broker's host and port.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._silent = socket.create_server(("127.0.0.1", 0))
        """Connections to it are made, and nothing is said."""
        self._coordinator = self._listener
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._refusals = 0
        self._answers_members = threading.Event()
        self._answers_members.set()
        self.refused = 0
        """Requests that were answered so."""

    @property
    def bootstrap(self) -> str:
        """The proxy's own address."""
        return f"127.0.0.1:{_port(self._listener)}"

    def refuse(self, count: int) -> None:
        """Answer the next so many requests for offsets with NOT_COORDINATOR."""
        self._refusals = count

    def hold_members(self) -> None:
        """Tell members no offsets, as if others had still to join."""
        self._answers_members.clear()

    def release_members(self) -> None:
        """Answer them."""
        self._answers_members.set()

    def fall_silent(self) -> None:
        """Send whoever looks for a coordinator to where nobody answers."""
        self._coordinator = self._silent

    def speak(self) -> None:
        """Answer there, too, also who has waited, and send nobody there any more."""
        self._coordinator = self._listener
        self._serve(self._silent)

    def __enter__(self) -> MovingCoordinator:
        self._serve(self._listener)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._answers_members.set()
        for each in [self._listener, self._silent, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self, listener: socket.socket) -> None:
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                broker = socket.create_connection(self._target)
                self._sockets += [client, broker]
                asked: dict[bytes, tuple[int, int]] = {}
                """Requests to whose answers something is done, by their numbers."""
                for source, target, change in (
                    (client, broker, self._note(asked)),
                    (broker, client, self._answer(asked)),
                ):
                    threading.Thread(
                        target=_carry, args=(source, target, change), daemon=True
                    ).start()

    def _note(self, asked: dict[bytes, tuple[int, int]]) -> Callable[[bytes], bytes]:
        def change(request: bytes) -> bytes:
            key, version = struct.unpack(">hh", request[:4])
            if key == JOIN_GROUP:
                asked[_IS_MEMBER] = key, version
            if key == OFFSET_FETCH and _IS_MEMBER in asked:
                asked[request[4:8]] = JOIN_GROUP, version
            if key == FIND_COORDINATOR or (key == OFFSET_FETCH and self._refuses()):
                asked[request[4:8]] = key, version
            return request

        return change

    def _refuses(self) -> bool:
        with self._lock:
            if not self._refusals:
                return False
            self._refusals -= 1
            self.refused += 1
            return True

    def _answer(self, asked: dict[bytes, tuple[int, int]]) -> Callable[[bytes], bytes]:
        host, port = self._target

        def change(answer: bytes) -> bytes:
            key, version = asked.pop(answer[:4], (0, 0))
            if key == JOIN_GROUP:
                self._answers_members.wait()
            if key == OFFSET_FETCH:
                return _refusal(answer, version)
            ours = self._coordinator if key == FIND_COORDINATOR else self._listener
            return answer.replace(_address(host, port), _address(host, _port(ours)))

        return change


_IS_MEMBER = b"member"
"""Not the number of a request: it stands for that somebody joined over this connection."""


def _port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def _address(host: str, port: int) -> bytes:
    return host.encode() + struct.pack(">i", port)


def _refusal(answer: bytes, version: int) -> bytes:
    """An answer to the same request without any offset: the error alone.

    From version 8 on: number, tags, throttle time, an array of one group (its length and one), the
    group's name, an empty array of topics, the error, tags of the group, tags. The answer has one
    group, whose name is short.
    """
    assert version >= 8, f"the driver asks in version {version}: write its answer here"
    name_at = 4 + 1 + 4 + 1
    name_end = name_at + answer[name_at]  # a length is one more than it says, and its byte is one
    return answer[:name_end] + struct.pack(">bhbb", 1, NOT_COORDINATOR, 0, 0)


def _carry(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
    with contextlib.suppress(OSError), source.makefile("rb") as stream:
        while len(head := stream.read(4)) == 4:
            frame = change(stream.read(struct.unpack(">i", head)[0]))
            target.sendall(struct.pack(">i", len(frame)) + frame)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
