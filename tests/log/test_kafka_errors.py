"""The driver's errors become ours by one table, and what it says of connections one clear line."""

from __future__ import annotations

import logging
import time

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.errors import (
    ConfigError,
    Fatal,
    GroupNotEmpty,
    LogError,
    NotFound,
    OutcomeUnknown,
    StreamsError,
    TooLarge,
    Unavailable,
)
from streams.log.kafka import client, errors, topics
from streams.log.kafka.errors import (
    ERROR_CLASSES,
    LAST_QUIET,
    WRITE_ERROR_CLASSES,
    ConnectionFailure,
    DriverLogger,
    error_class_of,
    parse_connection_failure,
    translate,
)
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from streams.secrets import Secrets
from tests.servers.lifetime import free_port


@pytest.mark.parametrize(
    ("name", "kind", "write"),
    [
        ("_ALL_BROKERS_DOWN", Unavailable, False),
        ("_TIMED_OUT", Unavailable, False),
        ("_TIMED_OUT", OutcomeUnknown, True),
        ("_MSG_TIMED_OUT", OutcomeUnknown, True),
        ("_PURGE_INFLIGHT", OutcomeUnknown, True),
        ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", OutcomeUnknown, True),
        ("NOT_ENOUGH_REPLICAS", Unavailable, True),
        ("REBALANCE_IN_PROGRESS", Unavailable, False),
        ("UNKNOWN_MEMBER_ID", Unavailable, False),
        ("MSG_SIZE_TOO_LARGE", TooLarge, True),
        ("OFFSET_METADATA_TOO_LARGE", TooLarge, False),
        ("UNKNOWN_TOPIC_OR_PART", NotFound, False),
        ("GROUP_ID_NOT_FOUND", NotFound, False),
        ("NON_EMPTY_GROUP", GroupNotEmpty, False),
        ("INVALID_REPLICATION_FACTOR", ConfigError, False),
        ("SASL_AUTHENTICATION_FAILED", Fatal, False),
        ("TOPIC_AUTHORIZATION_FAILED", Fatal, True),
        ("UNRELEASED_INSTANCE_ID", Fatal, False),
        ("_KEY_DESERIALIZATION", LogError, False),
    ],
)
def test_a_code_means_one_thing(name: str, kind: type[StreamsError], write: bool) -> None:
    error = KafkaError(getattr(KafkaError, name))
    assert error_class_of(error, write=write) is kind
    assert type(translate(KafkaException(error), "trying", write=write)) is kind


def test_no_code_is_in_two_rows() -> None:
    for names in (errors._ERROR_NAMES, errors._WRITE_ERROR_NAMES):
        words = [word for text in names.values() for word in text.split()]
        assert len(words) == len(set(words))
    assert len(ERROR_CLASSES) > len(WRITE_ERROR_CLASSES) > 0


def test_what_is_in_no_table_goes_by_the_drivers_own_word() -> None:
    unknown = KafkaError._NOOP
    assert unknown not in ERROR_CLASSES
    assert error_class_of(KafkaError(unknown)) is LogError
    assert error_class_of(KafkaError(unknown, retriable=True)) is Unavailable
    assert error_class_of(KafkaError(unknown, fatal=True)) is Fatal
    assert error_class_of(KafkaError(unknown, fatal=True), write=True) is OutcomeUnknown


def test_a_message_is_one_line_with_what_was_tried_what_failed_and_what_to_do() -> None:
    error = KafkaError(KafkaError._AUTHENTICATION, "bad\n  password hunter2.")
    text = str(translate(error, "joining", lambda text: text.replace("hunter2", "***")))
    assert text == "Kafka, joining: bad password ***; check user, password and sasl.mechanism"


def test_an_exception_without_an_error_is_still_ours() -> None:
    assert type(translate(KafkaException("odd"), "trying")) is LogError


# -- connections -----------------------------------------------------------------------------------

SAID = [
    (
        (
            "127.0.0.1:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection "
            "refused (after 0ms in state CONNECT, 1 identical error(s) suppressed)"
        ),
        "127.0.0.1:9092: connection refused",
    ),
    (
        (
            "sasl_ssl://kafka.example:9093/2: Connect to ipv6#[::1]:9093 failed: "
            "Connection refused (after 12ms in state CONNECT)"
        ),
        "kafka.example:9093: connection refused",
    ),
    (
        (
            "nosuch.invalid:9092/bootstrap: Failed to resolve 'nosuch.invalid:9092': Name "
            "or service not known (after 1ms in state CONNECT)"
        ),
        "nosuch.invalid:9092: name or service not known",
    ),
    (
        (
            "ssl://[::1]:9093/bootstrap: SSL handshake failed: error:0A000086:SSL "
            "routines::certificate verify failed: broker certificate could not be "
            "verified, verify that ssl.ca.location is correctly configured or root CA "
            "certificates are installed (after 5ms in state X)"
        ),
        "[::1]:9093: SSL handshake failed: certificate verify failed",
    ),
    (
        (
            "sasl_ssl://h:9092/bootstrap: SSL handshake failed: Disconnected: SSL "
            "connection closed by peer: connecting to a PLAINTEXT broker listener? (after "
            "2ms in state SSL_HANDSHAKE)"
        ),
        (
            "h:9092: disconnected: SSL connection closed by peer: connecting to a "
            "PLAINTEXT broker listener?"
        ),
    ),
    (
        (
            "h:80/bootstrap: Receive failed: Invalid response size 1213486160 "
            "(0..100000000): increase receive.message.max.bytes (after 2ms in state "
            "APIVERSION_QUERY)"
        ),
        "h:80: what answers there does not speak Kafka's protocol",
    ),
    (
        ("GroupCoordinator: h:9092: Connect to ipv4#127.0.0.1:9092 failed: Connection refused"),
        "h:9092: connection refused",
    ),
]


@pytest.mark.parametrize(("line", "said"), SAID)
def test_of_a_connection_the_address_and_the_reason_are_left(line: str, said: str) -> None:
    found = parse_connection_failure(line)
    assert found is not None
    assert str(found) == said


@pytest.mark.parametrize("line", ["1/1 brokers are down", "Local: Timed out", ""])
def test_a_line_that_is_of_no_connection_is_none(line: str) -> None:
    assert parse_connection_failure(line) is None


@pytest.mark.parametrize(
    ("hosts", "said", "tls", "words", "not_said"),
    [
        ("localhost:9092", [("localhost:9092", "connection refused")], False,
         ("localhost:9092: connection refused; is Kafka running",
          "To try it without a server: sqlite:///events.db"), ("docker",)),
        ("kafka1:9092,kafka2:9092", [("kafka1:9092", "x"), ("kafka2:9092", "y")], False,
         ("kafka1:9092: x; kafka2:9092: y; is Kafka running",), ("docker", "sqlite")),
        ("h:9092", [], False, ("no answer from h:9092", "is the address right"), ("docker",)),
        ("h:9092", [("h:9092", errors.CONNECTION_CLOSED)], False,
         ("kafka+ssl://", "login"), ("running",)),
        ("h:9092", [("h:9092", errors.CONNECTION_CLOSED)], True, ("want a login",), ("kafka+ssl://",)),
        ("h:9092", [("h:9092", "a PLAINTEXT listener?")], True, ("it is kafka://",), ("login",)),
    ],
)  # fmt: skip
def test_what_no_broker_answers_says_where_why_and_what_to_look_at(
    hosts: str,
    said: list[tuple[str, str]],
    tls: bool,
    words: tuple[str, ...],
    not_said: tuple[str, ...],
) -> None:
    error = errors.unreachable_error(
        "asking", hosts, [ConnectionFailure(*each) for each in said], tls=tls
    )
    assert type(error) is Unavailable
    assert "\n" not in str(error)
    assert [word for word in words if word not in str(error)] == []
    assert [word for word in not_said if word in str(error)] == []


def test_where_nobody_listens_that_is_said_soon(
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    # So long that the test would fail if an answer were waited for to the end.
    monkeypatch.setattr(topics, "REQUEST_TIMEOUT", 10_000.0)
    port = free_port()
    log = open_log(f"kafka://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: connection refused; is Kafka runn"):
        log.describe_topics()
    log.close()
    # Nothing past Python's logging, and there a line a client, which is no warning.
    assert capfd.readouterr().err == ""
    lines = [each for each in caplog.records if "refused" in each.getMessage()]
    levels = [each.levelno for each in lines if each.levelno > logging.DEBUG]
    assert set(levels) == {logging.INFO}
    assert len(levels) <= 2


def test_a_port_that_hangs_up_is_perhaps_one_for_tls(closing: int) -> None:
    log = open_log(f"kafka://127.0.0.1:{closing}")
    with pytest.raises(Unavailable, match=f"127.0.0.1:{closing}: it closes .*kafka\\+ssl://"):
        log.describe_topic("orders")
    log.close()


def test_a_broker_that_answered_once_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_CONNECT_GRACE", 0.0)
    monkeypatch.setattr(topics, "REQUEST_TIMEOUT", 3.0)
    for answered in (False, True):
        log = open_log(f"kafka://127.0.0.1:{free_port()}")
        assert isinstance(log, KafkaLog)
        log._requests._ever_reached = answered
        start = time.monotonic()
        with pytest.raises(Unavailable, match="connection refused"):
            log.describe_topics()
        took = time.monotonic() - start
        log.close()
        assert took >= 2.9 or not answered


# -- the driver's own log lines --------------------------------------------------------------------

REFUSED = (
    "[thrd:h:9092/bootstrap]: h:9092/bootstrap: Connect to ipv4#1.2.3.4:9092 failed: Connection "
    "refused (after {}ms in state CONNECT)"
)


class Hand:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def tell(
    lines: DriverLogger, level: int, facility: str, line: str, client: str = "streams#c-1"
) -> None:
    lines.log(level, "%s [%s] %s", facility, client, line)


def test_a_connection_that_fails_again_and_again_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Hand()
    lines = DriverLogger(logging.getLogger("streams.kafka"), clock)
    for second in range(200):
        clock.now = float(second)
        for name in ("streams#producer-1", "streams#consumer-2"):
            tell(lines, logging.ERROR, "FAIL", REFUSED.format(second), name)
    assert [each.getMessage() for each in caplog.records] == [
        "h:9092: connection refused",
        "h:9092: connection refused (and 59 more like this)",
        "h:9092: connection refused (and 119 more like this)",
    ]
    assert {each.levelno for each in caplog.records} == {logging.INFO}
    caplog.clear()
    clock.now += 3 * LAST_QUIET  # it was mended meanwhile
    for second in range(100):
        clock.now += 1
        tell(lines, logging.ERROR, "FAIL", REFUSED.format(second))
    assert len(caplog.records) == 3  # at once, after 30 s, after 60 s more


def test_an_idle_connection_that_ends_is_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines = DriverLogger(logging.getLogger("streams.kafka"))
    tell(lines, logging.INFO, "FAIL", "[thrd:h:9092/1]: h:9092/1: Disconnected (after 600000ms)")
    (found,) = caplog.records
    assert (found.levelno, found.getMessage()) == (logging.DEBUG, "h:9092: disconnected")


def test_other_lines_keep_their_level_and_their_text(caplog: pytest.LogCaptureFixture) -> None:
    lines = DriverLogger(logging.getLogger("streams.kafka"))
    tell(lines, logging.WARNING, "MAXPOLL", "[thrd:main]: Application maximum poll interval")
    (found,) = caplog.records
    assert found.levelno == logging.WARNING
    assert found.getMessage() == "MAXPOLL [streams#c-1] Application maximum poll interval"


# -- secrets in what the driver says ---------------------------------------------------------------


def test_a_secret_that_the_driver_quotes_is_in_no_error_and_no_cause() -> None:
    secrets = Secrets(["QXZVJKqxzvjk"])
    for said in ('bad value "QXZVJKqxzvjk"', "h:9092/bootstrap: it said QXZVJKqxz"):
        raised = KafkaException(KafkaError(KafkaError._INVALID_ARG, said))
        found = translate(raised, "settings", secrets.hide)
        assert isinstance(found, ConfigError)
        for text in (str(found), str(raised), repr(raised.args)):
            assert "QXZVJK" not in text
            assert "***" in text
        assert raised.args[0].code() == KafkaError._INVALID_ARG


def test_a_secret_in_a_line_of_the_driver_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    lines = DriverLogger(logging.getLogger("streams.kafka"), scrub=Secrets(["QXZVJKqxzvjk"]).hide)
    with caplog.at_level(logging.DEBUG):
        tell(lines, logging.WARNING, "CONFWARN", "sasl.password is QXZVJKqxzvjk", "streams#1")
    assert "QXZVJK" not in caplog.text
    assert "sasl.password is ***" in caplog.text
