"""/metrics, /healthz and /readyz: what they say while an app lives, and beside ``streams run``."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import Any

import pytest

from streams import ConfigError, ProcessorDied, Streams, Unavailable
from streams.cli.command_errors import UsageError
from streams.cli.options import parse_address
from streams.cli.supervisor import _http_arguments
from streams.log.memory import MemoryLog
from streams.patterns import MonitoringServer
from streams.patterns.monitoring.http_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES
from tests.cli.conftest import Run, Shell, eventually
from tests.monitoring.conftest import come, get
from tests.test_text import unfit


def health(server: MonitoringServer, page: str) -> tuple[int, Any]:
    status, text = get(server, page)
    return status, json.loads(text)


async def ask(server: MonitoringServer, page: str) -> tuple[int, Any]:
    return await asyncio.to_thread(health, server, page)


@pytest.fixture
def served() -> Iterator[MonitoringServer]:
    with MonitoringServer(Streams("memory://"), port=0) as server:
        yield server


def connected(server: MonitoringServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=30)


def closed(connection: socket.socket) -> bool:
    """The server has closed a connection to which it says nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_request_that_comes_byte_by_byte_is_given_up(served: MonitoringServer) -> None:
    served._server.request_timeout = 0.5
    with connected(served) as connection:
        connection.settimeout(0.05)  # a byte twenty times a second: each wait is far from 0.5 s
        with suppress(ConnectionError):
            for byte in itertools.chain(b"GET /healthz HTTP/1.0\r\n", itertools.cycle(b"X: y\r\n")):
                connection.sendall(bytes((byte,)))
                try:
                    found = connection.recv(1)
                except TimeoutError:
                    continue
                assert found == b""
                break
    assert get(served, "/healthz")[0] == 200


@pytest.mark.parametrize("start", [b"GET /", b"GET /healthz HTTP/1.0\r\nX-Long: "])
def test_a_request_without_an_end_is_refused(served: MonitoringServer, start: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(start + b"x" * MAX_REQUEST_BYTES)
        assert b" 431 " in connection.recv(200)


def test_connections_that_only_wait_shut_nobody_out(served: MonitoringServer) -> None:
    with ExitStack() as stack:
        waiting = [stack.enter_context(connected(served)) for _ in range(2 * MAX_CONNECTIONS)]
        assert get(served, "/healthz")[0] == 200
        # The oldest were given up, and their threads with them; the youngest wait.
        assert all(closed(connection) for connection in waiting[:MAX_CONNECTIONS])
        waiting[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in waiting[-1].recv(100)

        def handling() -> int:
            return sum("process_request" in each.name for each in threading.enumerate())

        eventually(lambda: handling() <= MAX_CONNECTIONS)


def test_answers_that_take_long_are_not_given_up_for_others(served: MonitoringServer) -> None:
    served._server._max_connections = 2
    free, begun = threading.Event(), list[str]()

    def slow(accept: str) -> Any:
        begun.append(accept)
        free.wait(30)
        return HTTPStatus.OK, "text/plain", b"at last"

    served._server.routes["/slow"] = slow
    try:
        with connected(served) as one, connected(served) as two:
            for each in (one, two):
                each.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            eventually(lambda: len(begun) == 2 and not served._server._incomplete)
            with connected(served) as third:
                assert closed(third)
            free.set()
            for each in (one, two):
                with each.makefile("rb") as answer:
                    assert answer.read().endswith(b"at last")
        eventually(lambda: served._server._open_count == 0)  # that ends behind the answer
        assert get(served, "/healthz")[0] == 200
    finally:
        free.set()


def test_a_request_in_a_log_line_is_one_line(
    served: MonitoringServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="streams"), connected(served) as connection:
        connection.sendall(b"GET /\x1b[31m\xc2\x9b\r2026 forged HTTP/1.0\r\n\r\n")
        connection.recv(100)
        eventually(lambda: "forged" in caplog.text)
    for record in caplog.records:
        assert not unfit(record.getMessage())


async def test_health_follows_the_apps_life() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    hold = asyncio.Event()

    async def wait(value: int) -> None:
        await hold.wait()

    app.processor(topic, group="g")(wait)
    with MonitoringServer(app, port=0) as server:
        assert (await ask(server, "/healthz"))[0] == 200  # it is on its way: no reason to kill it
        assert (await ask(server, "/readyz"))[0] == 503
        async with app:
            status, said = await ask(server, "/readyz")
            assert (status, said["ok"]) == (200, True)
            assert said["processors"]["wait"] == {
                "running": True, "paused": False, "reachable": True, "overdue": 0,
                "losses": 0, "rejected": 0, "contested": 0, "error": None,
                "database_reachable": True, "held_back": 0,
            }  # fmt: skip
            assert (await ask(server, "/healthz"))[0] == 200
            app.processors[0].pause()
            assert (await ask(server, "/readyz"))[1]["processors"]["wait"]["paused"]
            app.processors[0].resume()
            await topic.publish(1)
            await come(lambda: app.stats().processors["wait"].running)
            leaving = asyncio.create_task(app.__aexit__(None, None, None))
            await come(lambda: health(server, "/readyz")[1]["stopping"])
            assert (await ask(server, "/readyz"))[0] == 503
            assert (await ask(server, "/healthz"))[0] == 200  # it finishes what is in flight
            hold.set()
            await leaving
        assert (await ask(server, "/readyz"))[0] == 503


async def test_a_log_that_is_away_is_not_ready_and_a_restart_would_not_help() -> None:
    app = Streams("memory://")
    app.processor(app.topic("orders", int), group="g")(lambda value: None)

    def away(point: str, name: str) -> None:
        if point == "poll":
            raise Unavailable("the cable is out")

    with MonitoringServer(app, port=0) as server:
        async with app:
            log = app.log
            assert isinstance(log, MemoryLog)
            log.fault(away)
            await come(lambda: health(server, "/readyz")[0] == 503)
            assert (await ask(server, "/healthz"))[0] == 200
            log.fault(None)
            await come(lambda: health(server, "/readyz")[0] == 200)


async def test_a_processor_that_died_is_told_without_its_words() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)

    @app.processor(topic, group="g")
    async def die(value: int) -> None:
        raise SystemExit("password=hunter2")

    found: list[tuple[int, Any]] = []
    with MonitoringServer(app, port=0) as server:
        with pytest.raises(ProcessorDied):
            async with app:
                await topic.publish(1)
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    found = [await asyncio.shield(ask(server, page)) for page in PAGES]
                    raise
        assert len(found) == len(PAGES)
        for status, said in found:
            assert (status, said["ok"]) == (503, False)
            assert said["processors"]["die"]["error"] == "SystemExit"
            assert "hunter2" not in json.dumps(said)


PAGES = ("/healthz", "/readyz")


async def test_a_loop_that_is_stuck_fails_its_health_and_no_scrape() -> None:
    app = Streams("memory://")
    app.processor(app.topic("orders", int), group="g")(lambda value: None)
    go_on = threading.Event()
    with MonitoringServer(app, port=0, stuck=0.2) as server:
        async with app:
            stuck: list[tuple[int, Any]] = []
            scraped: list[int] = []

            def look() -> None:
                stuck.append(health(server, "/healthz"))
                scraped.append(get(server, "/metrics")[0])
                go_on.set()

            looking = asyncio.create_task(asyncio.to_thread(look))
            await asyncio.sleep(0)
            go_on.wait(30)  # noqa: ASYNC251, RUF100 - that is the point
            await looking
            assert stuck == [(503, stuck[0][1])]
            assert stuck[0][1]["loop"] == "stuck"
            assert scraped == [200]
            await come(lambda: health(server, "/healthz")[1]["loop"] == "ok")


def test_requests_of_every_kind() -> None:
    app = Streams("memory://")
    with MonitoringServer(app, port=0) as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
        connection.request("HEAD", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0
        connection.close()
        status, text = get(server, "/")
        assert (status, text) == (404, "there are /metrics /healthz /readyz\n")
        assert get(server, "/metrics?x=1")[0] == 200
        for method, wanted in (("POST", 501), ("DELETE", 501)):
            connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
            connection.request(method, "/metrics")
            assert connection.getresponse().status == wanted
            connection.close()
        with socket.create_connection((server.host, server.port)) as rude:
            rude.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert get(server, "/healthz")[0] == 200


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    with MonitoringServer(Streams("memory://"), port=0) as server:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
        accept = "application/openmetrics-text; version=1.0.0"
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")
        connection.close()


def test_an_address_that_is_taken_or_none_is_said_in_one_line() -> None:
    app = Streams("memory://")
    with MonitoringServer(app, port=0) as server:
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*in use"):
            MonitoringServer(app, port=server.port)
        assert get(server, "/metrics")[0] == 200  # the first one's collector is still there
    with MonitoringServer(app, port=server.port) as again:  # it was given back
        assert get(again, "/metrics")[0] == 200
    with pytest.raises(ConfigError, match="cannot listen on no such host:1"):
        MonitoringServer(app, "no such host", 1)
    with pytest.raises(ConfigError, match="a Streams app is needed"):
        MonitoringServer("shop:app")  # type: ignore[arg-type]


def test_without_the_package_health_is_served_and_metrics_say_what_is_missing() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
import logging
logging.basicConfig(format="%(message)s")
from urllib.error import HTTPError
from urllib.request import urlopen
from streams import Streams
from streams.patterns import MonitoringServer
from streams.patterns.monitoring.http_server import MAX_CONNECTIONS, MAX_REQUEST_BYTES
with MonitoringServer(Streams("memory://"), port=0) as server:
    base = f"http://{server.host}:{server.port}"
    print(urlopen(base + "/healthz").status)
    try:
        urlopen(base + "/metrics")
    except HTTPError as error:
        print(error.code, error.read().decode(), end="")
from streams.patterns import MetricsCollector
MetricsCollector(Streams("memory://"))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "200\n501 the package prometheus-client is not installed\n"
    assert ended.stderr.splitlines()[-1] == (
        "streams.errors.ConfigError: metrics need the package prometheus-client (the extra "
        "prometheus): pip install prometheus-client"
    )
    assert "/metrics has nothing to say: pip install" in ended.stderr


# -- beside streams run ----------------------------------------------------------------------------


def listening(process: subprocess.Popen[bytes], servers: int = 1) -> list[str]:
    """Where the process, or its workers, said they listen."""
    found: list[str] = []
    assert process.stderr is not None
    while len(found) < servers:
        line = process.stderr.readline().decode()
        assert line, "it ended"
        found += re.findall(r"metrics and health on (\S+)", line)
    return found


def test_run_serves_them_until_it_ends(shell: Shell) -> None:
    with shell.start("run", "shop:app", "--http", "127.0.0.1:0") as process:
        (place,) = listening(process)
        eventually(lambda: get(place, "/readyz")[0] == 200)
        status, text = get(place, "/metrics")
        assert status == 200
        assert 'streams_processor_up{group="billing",processor="bill"} 1.0' in text
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(OSError):
        get(place, "/healthz")


def test_each_worker_has_its_own_port(shell: Shell) -> None:
    with shell.start("run", "shop:app", "--http", "127.0.0.1:0", "--workers", "2") as process:
        places = listening(process, 2)
        assert len(set(places)) == 2
        for place in places:
            assert get(place, "/metrics")[0] == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert _http_arguments(("0.0.0.0", 9100), 3) == ["--http", "0.0.0.0:9103"]
    assert _http_arguments(("::1", 9100), 0) == ["--http", "[::1]:9100"]
    assert _http_arguments(("::1", 0), 2) == ["--http", "[::1]:0"]
    assert _http_arguments(None, 2) == []


def test_addresses() -> None:
    assert parse_address("localhost:9100") == ("localhost", 9100)
    assert parse_address("[::1]:9100") == ("::1", 9100)
    assert parse_address(":9100") == ("0.0.0.0", 9100)
    for wrong in (
        "9100",
        "localhost",
        "localhost:",
        "localhost:http",
        "::1:9100",
        "a:70000",
        "a:-1",
    ):
        with pytest.raises(UsageError):
            parse_address(wrong)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--http", "9100"), "'9100': an address is written as HOST:PORT, such as 0.0.0.0:9100"),
        (("--http", ":99999"), "':99999': there is no port 99999; the highest is 65535"),
        (
            ("--http", ":65535", "--workers", "2"),
            "--http 0.0.0.0:65535: 2 workers need that many ports from there",
        ),
    ],
)
def test_addresses_that_cannot_be(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run("run", "shop:app", *words)
    assert (result.status, result.err) == (2, f"streams: {said}\n")


def test_a_port_that_is_taken_ends_it_with_a_line(shell: Shell) -> None:
    with MonitoringServer(Streams("memory://"), port=0) as server:
        result = shell("run", "shop:app", "--http", f"127.0.0.1:{server.port}")
    assert result.status == 2
    assert re.fullmatch(
        rf"streams: shop:app: cannot listen on 127\.0\.0\.1:{server.port}: .*in use",
        result.err.splitlines()[-1],
    )
