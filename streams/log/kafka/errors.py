"""The driver's errors and log lines in our words.

**Errors** are translated by one table, at the log's boundary. What an error *means* depends on
whether a write may already be in the log, so writes have a short table of their own that comes
first. For a code in no table the driver's own flags decide (fatal, retriable).

A message about a connection is cut down to the broker's address and the reason
(:func:`parse_connection_failure`); the driver's threads, states and durations help nobody.

**Log lines** go into Python's logging, without repetitions. librdkafka logs every attempt to
connect, for every client and several times a second while a broker is away. Such lines are cut down
to the broker and the reason and get level INFO: a caller that needs the broker gets an error or a
warning of ours. The same line, from any client, is logged again after :data:`FIRST_QUIET` seconds,
then after twice that and so on up to :data:`LAST_QUIET`, with the number of suppressed ones.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException

from streams.errors import (
    ConfigError,
    Fatal,
    GroupNotEmpty,
    LogError,
    MemberFenced,
    NotFound,
    OutcomeUnknown,
    StreamsError,
    TooLarge,
    Unavailable,
)
from streams.log.advice import unreachable_advice

ErrorClass = type[StreamsError]

_ERROR_NAMES: Mapping[ErrorClass, str] = {
    Unavailable: """
        _ALL_BROKERS_DOWN _ASSIGNMENT_LOST _DESTROY _DESTROY_BROKER _INTR _IN_PROGRESS
        _MAX_POLL_EXCEEDED _NODE_UPDATE _OUTDATED _PREV_IN_PROGRESS _QUEUE_FULL _RESOLVE _RETRY
        _TIMED_OUT _TIMED_OUT_QUEUE _TRANSPORT _WAIT_CACHE _WAIT_COORD _STATE
        BROKER_NOT_AVAILABLE CONCURRENT_TRANSACTIONS COORDINATOR_LOAD_IN_PROGRESS
        COORDINATOR_NOT_AVAILABLE ELIGIBLE_LEADERS_NOT_AVAILABLE FENCED_LEADER_EPOCH
        FETCH_SESSION_ID_NOT_FOUND FENCED_MEMBER_EPOCH ILLEGAL_GENERATION
        INVALID_FETCH_SESSION_EPOCH KAFKA_STORAGE_ERROR LEADER_NOT_AVAILABLE NETWORK_EXCEPTION
        NOT_CONTROLLER NOT_COORDINATOR NOT_ENOUGH_REPLICAS NOT_LEADER_FOR_PARTITION
        OFFSET_NOT_AVAILABLE PREFERRED_LEADER_NOT_AVAILABLE REASSIGNMENT_IN_PROGRESS
        REBALANCE_IN_PROGRESS REBOOTSTRAP_REQUIRED REPLICA_NOT_AVAILABLE REQUEST_TIMED_OUT
        STALE_BROKER_EPOCH STALE_MEMBER_EPOCH THROTTLING_QUOTA_EXCEEDED UNKNOWN_LEADER_EPOCH
        UNKNOWN_MEMBER_ID UNSTABLE_OFFSET_COMMIT""",
    NotFound: """
        _UNKNOWN_GROUP _UNKNOWN_PARTITION _UNKNOWN_TOPIC GROUP_ID_NOT_FOUND RESOURCE_NOT_FOUND
        UNKNOWN_TOPIC_ID UNKNOWN_TOPIC_OR_PART""",
    TooLarge: """
        INVALID_COMMIT_OFFSET_SIZE INVALID_MSG_SIZE MSG_SIZE_TOO_LARGE OFFSET_METADATA_TOO_LARGE
        RECORD_LIST_TOO_LARGE""",
    GroupNotEmpty: "GROUP_SUBSCRIBED_TO_TOPIC NON_EMPTY_GROUP",
    ConfigError: """
        _INVALID_ARG _NOT_CONFIGURED INVALID_CONFIG INVALID_PARTITIONS
        INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT POLICY_VIOLATION TOPIC_EXCEPTION""",
    MemberFenced: "FENCED_INSTANCE_ID",
    Fatal: """
        _AUTHENTICATION _BAD_COMPRESSION _BAD_MSG _CRIT_SYS_RESOURCE _FATAL _FENCED _SSL
        _UNKNOWN_PROTOCOL _UNSUPPORTED_FEATURE CLUSTER_AUTHORIZATION_FAILED
        GROUP_AUTHORIZATION_FAILED GROUP_MAX_SIZE_REACHED ILLEGAL_SASL_STATE
        INCONSISTENT_GROUP_PROTOCOL INVALID_GROUP_ID INVALID_MSG INVALID_REGISTRATION
        INVALID_SESSION_TIMEOUT SASL_AUTHENTICATION_FAILED SECURITY_DISABLED
        TOPIC_AUTHORIZATION_FAILED TRANSACTIONAL_ID_AUTHORIZATION_FAILED UNRELEASED_INSTANCE_ID
        UNSUPPORTED_ASSIGNOR
        UNSUPPORTED_COMPRESSION_TYPE UNSUPPORTED_SASL_MECHANISM UNSUPPORTED_VERSION""",
}

_WRITE_ERROR_NAMES: Mapping[ErrorClass, str] = {
    # The record was sent, or may have been, and the result is unknown. One that is purged from the
    # queue may have been sent before and wait there for a retry.
    OutcomeUnknown: """
        _MSG_TIMED_OUT _PURGE_INFLIGHT _PURGE_QUEUE _TIMED_OUT _TRANSPORT DUPLICATE_SEQUENCE_NUMBER
        INVALID_PRODUCER_EPOCH NETWORK_EXCEPTION NOT_ENOUGH_REPLICAS_AFTER_APPEND
        OUT_OF_ORDER_SEQUENCE_NUMBER REQUEST_TIMED_OUT UNKNOWN_PRODUCER_ID
        _FATAL _GAPLESS_GUARANTEE"""
}


def _classes_by_code(names: Mapping[ErrorClass, str]) -> dict[int, ErrorClass]:
    return {
        getattr(KafkaError, name): error_class
        for error_class, text in names.items()
        for name in text.split()
    }


_FENCED_CODE = KafkaError.FENCED_INSTANCE_ID
_FENCED_TEXT = KafkaError(_FENCED_CODE).str()

ERROR_CLASSES: Mapping[int, ErrorClass] = _classes_by_code(_ERROR_NAMES)
"""The error class of a code for requests that write nothing."""

GROUP_REFUSED: int = KafkaError.GROUP_AUTHORIZATION_FAILED
"""The driver (2.16) looks for the coordinator even of a consumer that joins no group, and says what
becomes of that. Whoever only reads needs no right to a group."""

OUT_OF_RANGE = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})
"""Errors where the log no longer has an offset."""

WRITE_ERROR_CLASSES: Mapping[int, ErrorClass] = _classes_by_code(_WRITE_ERROR_NAMES)
"""The error class of a code for a record that was handed to the producer; takes precedence over
:data:`ERROR_CLASSES`."""

_HINTS: Mapping[int, str] = {
    KafkaError._AUTHENTICATION: "check user, password and sasl.mechanism",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check user, password and sasl.mechanism",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "set sasl.mechanism to one the broker offers",
    KafkaError._SSL: "check ssl.ca.location, and that this is the broker's TLS port",
    KafkaError._ALL_BROKERS_DOWN: unreachable_advice("Kafka", ["elsewhere"]),
    KafkaError._RESOLVE: "is the host's name right?",
    KafkaError._TIMED_OUT: unreachable_advice("Kafka", ["elsewhere"]),
    KafkaError.MSG_SIZE_TOO_LARGE: (
        "see the topic's max.message.bytes; where it is below 1 MB, batch.size must be, too"
    ),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user needs an ACL for the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user needs an ACL for the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: (
        "this user needs an ACL (IDEMPOTENT_WRITE for a broker before 2.8)"
    ),
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: (
        "this user needs an ACL for transactional IDs that begin with the name of the topic, or of "
        "the group of an exactly-once processor"
    ),
    KafkaError.UNRELEASED_INSTANCE_ID: "another member with this group.instance.id is in the group",
    KafkaError.FENCED_INSTANCE_ID: (
        "another process has joined under this member's name; give each process a name of its own, "
        "and start this one again only then"
    ),
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: (
        "the group's other members use another protocol or partition.assignment.strategy"
    ),
    KafkaError.INVALID_SESSION_TIMEOUT: (
        "session.timeout.ms is outside the broker's group.min/max.session.timeout.ms"
    ),
    KafkaError.UNSUPPORTED_VERSION: "the broker is too old for this",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "was the topic deleted? `streams topics create` makes it",
    KafkaError.INVALID_REPLICATION_FACTOR: "replication.factor is more than there are brokers",
}


def kafka_error_of(raised: KafkaException | KafkaError) -> KafkaError | None:
    """The driver's error inside what it raised."""
    if isinstance(raised, KafkaError):
        return raised
    first = raised.args[0] if raised.args else None
    return first if isinstance(first, KafkaError) else None


def error_class_of(error: KafkaError, *, write: bool = False) -> ErrorClass:
    """Which of our errors this is."""
    code = error.code()
    if write and code in WRITE_ERROR_CLASSES:
        return WRITE_ERROR_CLASSES[code]
    if error.fatal() or code == KafkaError._FATAL:
        if write:
            return OutcomeUnknown
        # A fatal state is reported with the code that caused it, or with that one's text alone.
        return MemberFenced if code == _FENCED_CODE or _FENCED_TEXT in error.str() else Fatal
    error_class = ERROR_CLASSES.get(code)
    if error_class is None:
        error_class = Unavailable if error.retriable() else LogError
    return error_class


def translate(
    raised: KafkaException | KafkaError,
    operation: str,
    scrub: Callable[[str], str] = str,
    *,
    write: bool = False,
) -> StreamsError:
    """Our error for the driver's: one line that says what was tried and what to do.

    :param operation: what was tried, as a person would say it.
    :param scrub: takes secrets out of a text.
    :param write: it concerns a record that was handed to the producer.
    """
    error = kafka_error_of(raised)
    if error is None:
        return LogError(f"Kafka, {operation}: {_one_line(scrub(str(raised)))}")
    original = error.str() or error.name()
    text = scrub(original)
    if text != original and isinstance(raised, KafkaException):
        # It becomes our error's cause, which tracebacks show.
        raised.args = (KafkaError(error.code(), text, error.fatal(), error.retriable()),)
    text = _one_line(text)
    failure = parse_connection_failure(text)
    error_class = error_class_of(error, write=write)
    hint = _HINTS.get(_FENCED_CODE if error_class is MemberFenced else error.code())
    return error_class(f"Kafka, {operation}: {failure or text}" + (f"; {hint}" if hint else ""))


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


# -- connections -----------------------------------------------------------------------------------


CONNECTION_CLOSED = "it closes the connection"
"""The reason where the driver reports only the number of brokers that are down."""


class ConnectionFailure(NamedTuple):
    """Why a connection to a broker failed."""

    address: str
    """``host:port``."""
    reason: str

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


_CONNECTION_LINE = re.compile(
    r"(?:GroupCoordinator: )?(?:(?:plaintext|ssl|sasl_plaintext|sasl_ssl)://)?"
    r"(?P<address>\S+:\d+)(?:/(?:bootstrap|\d+))?: (?P<why>.+)",
    re.IGNORECASE,
)
_CONNECTION_NOISE = re.compile(
    r" \(after \d+ms.*|: receive 0 after POLLIN|error:[0-9A-F]+:SSL routines::"
    r"|: broker certificate could not be verified, verify that ssl\.ca\.location.*"
    r"|^Connect to \S+ failed: |^Failed to resolve '\S+': |^SSL handshake failed: (?=disconn)",
    re.IGNORECASE,
)


def parse_connection_failure(text: str) -> ConnectionFailure | None:
    """The broker's address and the reason, from a text of the driver's; None if it is another."""
    match = _CONNECTION_LINE.fullmatch(_one_line(text))
    if match is None:
        return None
    reason = _CONNECTION_NOISE.sub("", match["why"])
    if "Invalid response size" in reason:
        reason = "what answers there does not speak Kafka's protocol"
    if "not valid in current SASL state" in reason:
        reason = "it takes no login (SASL)"
    if reason[1:2].islower():  # no acronym
        reason = reason[0].lower() + reason[1:]
    return ConnectionFailure(match["address"], reason)


def unreachable_error(
    operation: str, hosts: str, failures: Iterable[ConnectionFailure], *, tls: bool
) -> Unavailable:
    """The error for a request that no broker answered.

    :param hosts: the brokers, as the URL names them.
    :param failures: failures of connections meanwhile.
    :param tls: connections are encrypted.
    """
    text = "; ".join(dict.fromkeys(map(str, failures))) or f"no answer from {hosts}"
    if "PLAINTEXT" in text:
        hint = "without TLS it is kafka://"
    elif CONNECTION_CLOSED in text:
        hint = f"does it want {'' if tls else 'TLS (kafka+ssl://) or '}a login (user:password@)?"
    else:
        hint = unreachable_advice("Kafka", hosts.split(","))
    return Unavailable(f"Kafka, {operation}: {text}; {hint}")


# -- log lines -------------------------------------------------------------------------------------

FIRST_QUIET = 30.0
"""Seconds for which a line is not repeated, at first."""

LAST_QUIET = 900.0
"""Seconds for which a line is not repeated, at most."""

_MAX_REMEMBERED = 500
"""Different lines that are remembered."""

_TRANSIENT_FACILITIES = frozenset({"ERROR", "FAIL", "GETPID", "REQTMOUT"})
"""Lines about connections, and about what the driver retries by itself."""

# The parts that differ between two lines about the same problem: thread names and durations.
_THREAD_PREFIX = re.compile(r"^\[thrd:[^]]*\]: ")
_VARYING_DETAIL = re.compile(r"\(after \d+ms[^)]*\)|\d+ ?ms|\b\d+(\.\d+)?s\b")


class _LoggedLine(NamedTuple):
    """A line that was logged before."""

    since: float
    """When it was logged."""
    quiet: float
    """Seconds from then on for which it is suppressed."""
    suppressed: int
    """How often it was suppressed."""


class DriverLogger:
    """The ``logger`` of a client of the driver.

    :param highest: the highest level used: more severe lines of the driver are logged at it.
    """

    def __init__(
        self,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        scrub: Callable[[str], str] = str,
        highest: int = logging.CRITICAL,
    ) -> None:
        self._logger = logger
        self._highest = highest
        self._scrub = scrub
        self._clock = clock
        self._lock = threading.Lock()
        self._last_logged: dict[str, _LoggedLine] = {}

    def log(self, level: int, text: str, facility: str, client: str, line: str) -> None:
        """Log a line of the driver; ``text`` is a format for the three arguments after it."""
        level, line = min(level, self._highest), self._scrub(_THREAD_PREFIX.sub("", line))
        if facility in _TRANSIENT_FACILITIES and level >= logging.INFO:
            # At level INFO the driver reports a connection that was closed while idle.
            level = logging.INFO if level > logging.INFO else logging.DEBUG
            failure = parse_connection_failure(line)
            if failure is not None:
                text, facility, client, line = "%s%s%s", "", "", str(failure)
        if not self._logger.isEnabledFor(level):
            return
        suppressed = (
            self._take_suppressed(f"{facility} {_VARYING_DETAIL.sub('', line)}")
            if level > logging.DEBUG
            else 0
        )
        if suppressed is None:
            return
        suffix = f" (and {suppressed} more like this)" if suppressed else ""
        self._logger.log(level, text + "%s", facility, client, line, suffix)

    def _take_suppressed(self, key: str) -> int | None:
        """How often this line was suppressed; None if it is suppressed now."""
        now = self._clock()
        with self._lock:
            last = self._last_logged.get(key, _LoggedLine(float("-inf"), 0.0, 0))
            if now - last.since < last.quiet:
                self._last_logged[key] = last._replace(suppressed=last.suppressed + 1)
                return None
            # A line that did not come for long is new again.
            recurring = now - last.since < 3 * last.quiet
            quiet = min(LAST_QUIET, 2 * last.quiet) if recurring else FIRST_QUIET
            if len(self._last_logged) >= _MAX_REMEMBERED:
                self._last_logged.clear()
            self._last_logged[key] = _LoggedLine(now, quiet, 0)
            return last.suppressed
