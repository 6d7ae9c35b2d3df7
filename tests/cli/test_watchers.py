"""What answers in Prometheus' place: whatever it says, and however slowly, is told as it is."""

from __future__ import annotations

import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import ConfigError
from streams.inspection.doctor import prometheus
from streams.inspection.doctor.prometheus import PrometheusClient

HEADERS = b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 999

Serve = Callable[[socket.socket], None]


@contextmanager
def answering(serve: Serve, heard: list[bytes] | None = None) -> Iterator[str]:
    """Something that answers each request as it likes; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client, suppress(OSError):
                        found = client.recv(65_536)
                        if heard is not None:
                            heard.append(found)
                        serve(client)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def saying(body: bytes, length: int | None = None, status: str = "200 OK") -> Serve:
    head = f"HTTP/1.0 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return lambda client: client.sendall(head.encode() + body)


def asked(address: str) -> list[Any]:
    found = PrometheusClient(f"http://{address}")
    return [found.processor_names(), found.alert_names(), found.has_alertmanager()]


ANSWERS: list[tuple[Serve, str]] = [
    (saying(b""), "malformed|truncated"),
    (saying(b"<html>it works</html>"), "malformed"),
    (saying(b'{"data": {"result": [', 1_000_000), "IncompleteRead|truncated"),
    (saying(b'{"data": {"result": ['), "truncated"),
    (saying(b"\xff\xfe"), "malformed|JSON"),
    (saying(b'{"data": "\xff"}'), "UTF-8|Expected"),
    (saying(b"[" * 100_000), "Expected|malformed"),
    (saying(b'{"data": ' + b"[" * 100_000), "truncated|recursion|malformed"),
    (saying(b"[]"), "Expected"),
    (saying(b"null"), "Expected"),
    (saying(b'{"status": "error"}'), "Expected"),
    (saying(b'{"data": {"result": 3, "groups": 3, "activeAlertmanagers": 3}}'), "Expected"),
    (
        saying(b'{"data": {"result": [3], "groups": [3], "activeAlertmanagers": {}}}'),
        "Expected",
    ),
    (
        saying(
            b'{"data": {"result": [{"metric": {"processor": 1}}],'
            b' "groups": [{"rules": [{"name": null}]}], "activeAlertmanagers": ""}}'
        ),
        "Expected",
    ),
    (saying(b"", status="500 \x1b[31m"), "answers 500"),
    (saying(b"", status="abc"), "no Prometheus"),
    (lambda client: client.sendall(b"\x1b[31mSSH-2.0-OpenSSH\r\n" * 9), "no Prometheus"),
    (
        lambda client: client.sendall(HEADERS),
        "no Prometheus",
    ),
    (lambda client: None, "no Prometheus|cannot be reached"),
]


@pytest.mark.parametrize(("serve", "says"), ANSWERS, ids=map(str, range(len(ANSWERS))))
def test_what_is_no_prometheus_is_said_to_be_none(serve: Serve, says: str) -> None:
    with answering(serve) as address:
        for found in asked(address):
            assert isinstance(found, str)
            assert any(word.lower() in found.lower() for word in says.split("|")), found
            assert found.isprintable()


NAMES = ["data", "result", "metric", "processor", "groups", "rules", "name", "activeAlertmanagers"]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(_JSON)
def test_no_shape_of_an_answer_is_an_error(found: object) -> None:
    with answering(saying(json.dumps({"data": found}).encode())) as address:
        for each in asked(address):
            assert isinstance(each, (str, set, bool))


def test_an_answer_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_RESPONSE", 1_000)
    with answering(saying(b" " * 1_001)) as address:
        assert all("more than 1,000 bytes" in str(each) for each in asked(address))


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while not over.wait(0.02):
            client.sendall(b" ")

    monkeypatch.setattr(prometheus, "REQUEST_TIMEOUT", 0.5)
    with answering(drip) as address:
        began = time.monotonic()
        found = PrometheusClient(f"http://{address}").processor_names()
        assert time.monotonic() - began < 60  # and not for ever
        over.set()
    # Where all stood still for so long, the thread's own wait for a byte has ended as well.
    assert found in (
        "Prometheus takes longer than 0.5 s to answer",
        "what answers there is no Prometheus (query: timed out)",
    )


def test_a_login_is_sent_and_never_shown() -> None:
    heard: list[bytes] = []
    with answering(saying(b'{"data": {"result": []}}'), heard) as address:
        found = PrometheusClient(f"http://me:p%40ss%3AHunter2@{address}/prom/")
        assert found.processor_names() == set()
    assert b"GET /prom/api/v1/query?" in heard[0]
    login = heard[0].partition(b"Authorization: Basic ")[2].partition(b"\r")[0]
    assert b64decode(login) == b"me:p@ss:Hunter2"
    assert "Hunter2" not in str(found.url)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:Hunter2#secret@h",
        "http://me:Hunter2/secret@h",
        "http://me:Hunter2?secret@h",
        "http://me:Hunter2secret",
        "http://h/?token=Hunter2secret",
        "ftp://me:Hunter2secret@h",
        "me:Hunter2secret@h",
        "http://h:99999999",
        "http://a,b",
        "http://h\x1b[31m",
        "http://h/ü",
        "",
        " ",
    ],
)
def test_a_url_that_cannot_be_is_not_quoted(url: str) -> None:
    if not url:
        assert PrometheusClient(url).url is None
        return
    with pytest.raises(ConfigError) as caught:
        PrometheusClient(url)
    assert "Hunter2" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
