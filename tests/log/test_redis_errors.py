"""What is said of a Redis that cannot be reached: where, why, and what to look at, on one line."""

from __future__ import annotations

import pytest
from redis import exceptions as redis

from streams.errors import ConfigError, Fatal, LogError, OutcomeUnknown, StreamsError, Unavailable
from streams.log.redis.errors import translate, unreachable_error
from streams.log.url import open_log
from tests.servers.lifetime import Lifetime, free_port
from tests.servers.redis import Redis

CASES: list[tuple[Exception, bool, type[LogError], str, str]] = [
    (
        redis.ConnectionError("Error 111 connecting to h:6379. Connection refused."),
        False,
        Unavailable,
        "Redis at h:6379: connection refused; is Redis running, and is the address right?",
        "docker",
    ),
    (
        redis.ConnectionError("Error -2 connecting to h:6379. Name or service not known."),
        True,
        Unavailable,
        "Redis at h:6379: name or service not known; is Redis running",
        "docker",
    ),
    (
        redis.ConnectionError(
            "Error 1 connecting to h:6379. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify "
            "failed: self-signed certificate in certificate chain (_ssl.c:1006)."
        ),
        True,
        Fatal,
        (
            "Redis at h:6379: certificate verify failed: self-signed certificate in certificate "
            "chain; check ssl_ca_certs"
        ),
        "_ssl.c",
    ),
    (
        redis.ConnectionError("Error 2 connecting to h:6379. No such file or directory."),
        True,
        Fatal,
        "Redis at h:6379: no such file or directory; check ssl_ca_certs",
        "running",
    ),
    (
        redis.ConnectionError(
            "Error while reading from h:6379 : (104, 'Connection reset by peer')"
        ),
        False,
        Unavailable,
        "Redis at h:6379: connection reset by peer; is that Redis's port, or does it want TLS",
        "104",
    ),
    (
        redis.ConnectionError("Connection closed by server."),
        True,
        Unavailable,
        "Redis at h:6379: connection closed by server; is that Redis's port, and one for TLS?",
        "running",
    ),
    (
        redis.TimeoutError("Timeout connecting to server"),
        True,
        Unavailable,
        "Redis at h:6379: timeout connecting to server; is that Redis's port, and one for TLS?",
        "running",
    ),
    (
        redis.TimeoutError("Timeout connecting to server"),
        False,
        Unavailable,
        "Redis at h:6379: timeout connecting to server; is Redis running",
        "TLS",
    ),
    (
        redis.AuthenticationError("invalid username-password pair or user is disabled."),
        False,
        Fatal,
        "Redis at h:6379: invalid username-password pair or user is disabled; check user and",
        "running",
    ),
    (
        redis.BusyLoadingError("Redis is loading the dataset in memory"),
        False,
        Unavailable,
        "Redis at h:6379: Redis is loading the dataset in memory; the server is loading its data",
        "running",
    ),
]


@pytest.mark.parametrize(("error", "tls", "kind", "text", "not_said"), CASES)
def test_a_connection_that_cannot_be_made(
    error: Exception, tls: bool, kind: type[LogError], text: str, not_said: str
) -> None:
    found = unreachable_error(error, "h", 6379, tls=tls)
    assert type(found) is kind
    assert str(found).startswith(text)
    assert not_said not in str(found)


def test_one_that_was_reached_before_needs_no_advice() -> None:
    error = redis.ConnectionError("Connection closed by server.")
    found = unreachable_error(error, "h", 6379, tls=False, connected_before=True)
    assert str(found) == "Redis at h:6379: connection closed by server"


def test_on_this_machine_how_to_do_without_and_nothing_of_a_file_that_only_a_checkout_has() -> None:
    text = str(unreachable_error(redis.ConnectionError("x"), "localhost", 6379, tls=False))
    assert text.endswith("To try it without a server: sqlite:///events.db")
    assert "compose" not in text


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("unknown command 'SENTINEL', with args: 'MASTERS'", Fatal, "write redis:// for"),
        ("unknown command 'XAUTOCLAIM', with args", Fatal, "Redis 7.0 or newer"),
        ("This instance has cluster support disabled", Fatal, "write redis://"),
        ("MISCONF Errors writing to the AOF file: No space left on device", Unavailable, "disk"),
        ("MISCONF Redis is configured to save RDB snapshots", Unavailable, "disk"),
        ("OOM command not allowed when used memory > 'maxmemory'", LogError, "OOM"),
        ("something else.", LogError, "something else"),
    ],
)
def test_what_a_server_answers(text: str, kind: type[LogError], words: str) -> None:
    found = translate(redis.ResponseError(text), "orders/0")
    assert isinstance(found, kind)
    assert words in str(found)
    assert not str(found).endswith(".")


def test_a_write_without_an_answer_is_unknown_but_a_refusal_is_not() -> None:
    gone = redis.ConnectionError("Connection closed by server.")
    assert isinstance(translate(gone, "orders/0", unanswered_write=True), OutcomeUnknown)
    refused = redis.ResponseError("MISCONF Errors writing to the AOF file: No space left")
    assert not isinstance(translate(refused, "orders/0", unanswered_write=True), OutcomeUnknown)


def said(url: str) -> StreamsError:
    """How a first question to it fails."""
    with pytest.raises(StreamsError) as caught:
        open_log(url).describe_topics()
    assert "\n" not in str(caught.value)
    return caught.value


def test_where_nobody_listens(closing: int) -> None:
    port = free_port()
    found = said(f"redis://127.0.0.1:{port}")
    assert isinstance(found, Unavailable)
    assert str(found).startswith(f"Redis at 127.0.0.1:{port}: connection refused; is Redis running")
    for scheme, hint in (("redis", "want TLS (rediss://)"), ("rediss", "redis://")):
        found = said(f"{scheme}://127.0.0.1:{closing}")
        assert isinstance(found, Unavailable)
        assert hint in str(found)
    found = said(f"redis+sentinel://127.0.0.1:{port}/main")
    assert "no Sentinel answers that names a primary for 'main'" in str(found)
    found = said(f"redis+cluster://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: connection refused" in str(found)


def test_a_server_that_is_of_another_kind_or_wants_a_password(lifetime: Lifetime) -> None:
    with Redis(lifetime) as server:
        assert "write redis:// for the server" in str(said(f"redis+sentinel://{server.address}/x"))
        assert "that is no cluster" in str(said(f"redis+cluster://{server.address}"))
        with server.client() as client:
            client.config_set("requirepass", "hush")
            for url in (f"redis://{server.address}", f"redis://:wrong@{server.address}"):
                found = said(url)
                assert isinstance(found, Fatal)
                assert "check user and password" in str(found)
                assert "wrong@" not in str(found)


@pytest.mark.parametrize(
    ("url", "example"),
    [
        ("redis://", "write redis://localhost:6379/0"),
        ("redis://h:x", "write redis://localhost:6379/0"),
        ("rediss+cluster://", "write redis+cluster://localhost:6379"),
        ("redis+sentinel://,h/main", "write redis+sentinel://localhost:26379/main"),
    ],
)
def test_a_url_without_a_server_is_answered_with_an_example(url: str, example: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_log(url)
    assert str(caught.value).endswith(example)
