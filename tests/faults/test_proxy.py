"""The proxy itself, between plain sockets and a server that remembers what it was asked."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.proxy import Proxy
from tests.servers.lifetime import until


class Echo(socketserver.ThreadingTCPServer):
    """Answers each line with itself; remembers all of them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Echo)
        try:
            for line in self.rfile:
                self.server.lines.append(line)
                self.wfile.write(line)
        except OSError:
            return


@contextmanager
def serving() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with serving() as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.server_address[1]) as opened:
        yield opened


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line)
    answer = b""
    while not answer.endswith(b"\n"):
        piece = client.recv(1_000_000)
        if not piece:
            raise ConnectionError("closed")
        answer += piece
    return answer


def test_it_carries_what_is_said_unchanged_and_large(proxy: Proxy) -> None:
    large = bytes(range(11, 256)) * 5_000 + b"\n"
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"a\n") == b"a\n"
        assert ask(other, large) == large
        assert proxy.connections == 2
    assert until(lambda: proxy.connections == 0, 60, "closed connections are let go")


def test_a_cut_resets_what_is_open_and_lets_new_ones_in(proxy: Proxy) -> None:
    with connect(proxy) as one:
        ask(one, b"a\n")
        assert proxy.cut() == 1
        with pytest.raises(ConnectionError):
            ask(one, b"b\n")
    with connect(proxy) as one:
        assert ask(one, b"c\n") == b"c\n"


def test_nothing_passes_while_it_is_shut(proxy: Proxy, echo: Echo) -> None:
    proxy.shut()
    with connect(proxy) as one, pytest.raises(ConnectionError):
        ask(one, b"a\n")
    proxy.open()
    with connect(proxy) as one:
        ask(one, b"b\n")
    assert echo.lines == [b"b\n"]


def test_what_is_blocked_does_not_reach_the_server(proxy: Proxy, echo: Echo) -> None:
    proxy.block(b"dead")
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"alive\n") == b"alive\n"
        with pytest.raises(ConnectionError):
            ask(one, b"a dead letter\n")
        proxy.block(b"")
        assert ask(other, b"a dead letter\n") == b"a dead letter\n"
    assert echo.lines == [b"alive\n", b"a dead letter\n"]


def test_a_delay_holds_back_both_ways_and_keeps_the_order(proxy: Proxy) -> None:
    proxy.delay = 0.05
    with connect(proxy) as one:
        began = time.monotonic()
        assert ask(one, b"a\n") == b"a\n"
        assert time.monotonic() - began >= 0.1
        for number in range(20):
            one.sendall(b"%d\n" % number)
        answers = b""
        while not answers.endswith(b"19\n"):
            answers += one.recv(1_000)
        assert answers.split() == [b"%d" % number for number in range(20)]


def test_a_lost_reply_leaves_the_request_done_and_the_client_without_an_answer(
    proxy: Proxy, echo: Echo
) -> None:
    lost = proxy.lose_reply(b"write")
    with connect(proxy) as one, connect(proxy) as other:
        assert ask(one, b"read\n") == b"read\n"
        with pytest.raises(ConnectionError):
            ask(one, b"write\n")
        assert lost.wait(60)
        assert echo.lines == [b"read\n", b"write\n"]
        assert ask(other, b"write\n") == b"write\n", "only one reply is lost"


def test_another_server_takes_over(proxy: Proxy, echo: Echo) -> None:
    with serving() as second, connect(proxy) as one:
        assert ask(one, b"first\n") == b"first\n"
        proxy.turn_to(second.server_address[1])
        with pytest.raises(ConnectionError):
            ask(one, b"cut\n")
        with connect(proxy) as other:
            assert ask(other, b"second\n") == b"second\n"
        assert (echo.lines, second.lines) == ([b"first\n"], [b"second\n"])


def test_a_server_that_is_not_there_refuses_through_it(echo: Echo) -> None:
    with socket.socket() as nobody:  # it has the port and does not listen: nobody else gets it
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with Proxy(port) as proxy, connect(proxy) as one, pytest.raises(ConnectionError):
            ask(one, b"a\n")
