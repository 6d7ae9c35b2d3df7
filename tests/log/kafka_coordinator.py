"""A proxy before a Kafka broker whose coordinator says for a while that it is none any more.

While the coordinator of a group moves to another broker, the one that was asked answers with the
error NOT_COORDINATOR, and the client is to look for it again. A broker does this for milliseconds;
here it is done to as many requests for a group's offsets as a test wants.

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
NOT_COORDINATOR = 16


class MovingCoordinator:
    """The proxy. A context manager.

    :param address: the broker's host and port.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._refusals = 0
        self.refused = 0
        """Requests that were answered so."""

    @property
    def bootstrap(self) -> str:
        """The proxy's own address."""
        return f"127.0.0.1:{self._port}"

    @property
    def _port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def refuse(self, count: int) -> None:
        """Answer the next so many requests for offsets with NOT_COORDINATOR."""
        self._refusals = count

    def __enter__(self) -> MovingCoordinator:
        threading.Thread(target=self._accept, name="tests-coordinator", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(self._target)
                self._sockets += [client, broker]
                versions: dict[bytes, int] = {}
                """Of the requests to be refused, by their numbers."""
                for source, target, change in (
                    (client, broker, self._note(versions)),
                    (broker, client, self._answer(versions)),
                ):
                    threading.Thread(
                        target=_carry, args=(source, target, change), daemon=True
                    ).start()

    def _note(self, versions: dict[bytes, int]) -> Callable[[bytes], bytes]:
        def change(request: bytes) -> bytes:
            key, version = struct.unpack(">hh", request[:4])
            if key == OFFSET_FETCH:
                with self._lock:
                    if self._refusals > 0:
                        self._refusals -= 1
                        self.refused += 1
                        versions[request[4:8]] = version
            return request

        return change

    def _answer(self, versions: dict[bytes, int]) -> Callable[[bytes], bytes]:
        host, port = self._target
        here = host.encode()
        theirs, ours = here + struct.pack(">i", port), here + struct.pack(">i", self._port)

        def change(answer: bytes) -> bytes:
            version = versions.pop(answer[:4], None)
            if version is not None:
                return _refusal(answer, version)
            return answer.replace(theirs, ours)

        return change


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
