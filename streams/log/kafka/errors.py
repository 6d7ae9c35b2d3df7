"""The driver's errors in our words: one table, looked at once, at the log's boundary.

What an error *means* depends on whether a write may already be in the log, so writes have a short
table of their own that is asked first. A code in no table goes by what the driver itself says
about it (fatal, worth trying again).

What the driver says of a connection is cut down to the broker's address and the reason
(:func:`connection`); the names of its threads, states and durations help nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException

from streams.errors import (
    ConfigError,
    Fatal,
    GroupLive,
    LogError,
    MemberFenced,
    NotFound,
    OutcomeUnknown,
    StreamsError,
    TooLarge,
    Unavailable,
)
from streams.log.away import advice

Kind = type[StreamsError]

_NAMES: Mapping[Kind, str] = {
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
    GroupLive: "GROUP_SUBSCRIBED_TO_TOPIC NON_EMPTY_GROUP",
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
        TOPIC_AUTHORIZATION_FAILED UNRELEASED_INSTANCE_ID UNSUPPORTED_ASSIGNOR
        UNSUPPORTED_COMPRESSION_TYPE UNSUPPORTED_SASL_MECHANISM UNSUPPORTED_VERSION""",
}

_WRITE_NAMES: Mapping[Kind, str] = {
    # The record was sent, or may have been, and nobody said what became of it. One that is purged
    # from the queue may have been sent before and wait there to be sent again.
    OutcomeUnknown: """
        _MSG_TIMED_OUT _PURGE_INFLIGHT _PURGE_QUEUE _TIMED_OUT _TRANSPORT DUPLICATE_SEQUENCE_NUMBER
        INVALID_PRODUCER_EPOCH NETWORK_EXCEPTION NOT_ENOUGH_REPLICAS_AFTER_APPEND
        OUT_OF_ORDER_SEQUENCE_NUMBER REQUEST_TIMED_OUT UNKNOWN_PRODUCER_ID
        _FATAL _GAPLESS_GUARANTEE""",
}


def _table(names: Mapping[Kind, str]) -> dict[int, Kind]:
    return {
        getattr(KafkaError, name): kind for kind, text in names.items() for name in text.split()
    }


_FENCED = KafkaError.FENCED_INSTANCE_ID
_FENCED_SAID = KafkaError(_FENCED).str()

CODES: Mapping[int, Kind] = _table(_NAMES)
"""What a code means where nothing was written."""

WRITES: Mapping[int, Kind] = _table(_WRITE_NAMES)
"""What a code means for a record that was handed to the producer; asked before :data:`CODES`."""

_HINTS: Mapping[int, str] = {
    KafkaError._AUTHENTICATION: "check user, password and sasl.mechanism",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check user, password and sasl.mechanism",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "set sasl.mechanism to one the broker offers",
    KafkaError._SSL: "check ssl.ca.location, and that this is the broker's TLS port",
    KafkaError._ALL_BROKERS_DOWN: advice("Kafka", ["elsewhere"]),
    KafkaError._RESOLVE: "is the host's name right?",
    KafkaError._TIMED_OUT: advice("Kafka", ["elsewhere"]),
    KafkaError.MSG_SIZE_TOO_LARGE: (
        "see the topic's max.message.bytes; where it is below 1 MB, batch.size must be, too"
    ),
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user needs an ACL for the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user needs an ACL for the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: (
        "this user needs an ACL (IDEMPOTENT_WRITE for a broker before 2.8)"
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


def error_of(raised: KafkaException | KafkaError) -> KafkaError | None:
    """The driver's error inside what it raised."""
    if isinstance(raised, KafkaError):
        return raised
    first = raised.args[0] if raised.args else None
    return first if isinstance(first, KafkaError) else None


def kind_of(error: KafkaError, *, write: bool = False) -> Kind:
    """Which of our errors this is."""
    code = error.code()
    if write and code in WRITES:
        return WRITES[code]
    if error.fatal() or code == KafkaError._FATAL:
        if write:
            return OutcomeUnknown
        # A fatal state is told with the code that caused it, or with that one's text alone.
        return MemberFenced if code == _FENCED or _FENCED_SAID in error.str() else Fatal
    found = CODES.get(code)
    if found is None:
        found = Unavailable if error.retriable() else LogError
    return found


def translate(
    raised: KafkaException | KafkaError,
    doing: str,
    scrub: Callable[[str], str] = str,
    *,
    write: bool = False,
) -> StreamsError:
    """Our error for the driver's: one line that says what was tried and what to do.

    :param doing: what was tried, as a person would say it.
    :param scrub: takes secrets out of a text.
    :param write: it concerns a record that was handed to the producer.
    """
    error = error_of(raised)
    if error is None:
        return LogError(f"Kafka, {doing}: {_line(scrub(str(raised)))}")
    whole = error.str() or error.name()
    text = scrub(whole)
    if text != whole and isinstance(raised, KafkaException):
        # It becomes our error's cause, which tracebacks show.
        raised.args = (KafkaError(error.code(), text, error.fatal(), error.retriable()),)
    text = _line(text)
    said = connection(text)
    kind = kind_of(error, write=write)
    hint = _HINTS.get(_FENCED if kind is MemberFenced else error.code())
    return kind(f"Kafka, {doing}: {said or text}" + (f"; {hint}" if hint else ""))


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


# -- connections -----------------------------------------------------------------------------------


class Said(NamedTuple):
    """What the driver says of one broker's connection."""

    address: str
    """``host:port``."""
    why: str

    def __str__(self) -> str:
        return f"{self.address}: {self.why}"


_SAID = re.compile(
    r"(?:GroupCoordinator: )?(?:(?:plaintext|ssl|sasl_plaintext|sasl_ssl)://)?"
    r"(?P<address>\S+:\d+)(?:/(?:bootstrap|\d+))?: (?P<why>.+)",
    re.IGNORECASE,
)
_NOISE = re.compile(
    r" \(after \d+ms.*|: receive 0 after POLLIN|error:[0-9A-F]+:SSL routines::"
    r"|: broker certificate could not be verified, verify that ssl\.ca\.location.*"
    r"|^Connect to \S+ failed: |^Failed to resolve '\S+': |^SSL handshake failed: (?=disconn)",
    re.IGNORECASE,
)


def connection(text: str) -> Said | None:
    """The broker's address and the reason, from a line of the driver's; None if it is no such."""
    found = _SAID.fullmatch(_line(text))
    if found is None:
        return None
    why = _NOISE.sub("", found["why"])
    if "Invalid response size" in why:
        why = "what answers there does not speak Kafka's protocol"
    if "not valid in current SASL state" in why:
        why = "it takes no login (SASL)"
    if why[1:2].islower():  # no acronym
        why = why[0].lower() + why[1:]
    return Said(found["address"], why)


def unreachable(doing: str, hosts: str, said: Iterable[Said], *, tls: bool) -> Unavailable:
    """The error for a question that no broker answered.

    :param hosts: the brokers, as the URL names them.
    :param said: what the driver said of its connections meanwhile.
    :param tls: connections are encrypted.
    """
    text = "; ".join(dict.fromkeys(map(str, said))) or f"no answer from {hosts}"
    if "PLAINTEXT" in text:
        hint = "without TLS it is kafka://"
    elif CLOSED in text:
        hint = f"does it want {'' if tls else 'TLS (kafka+ssl://) or '}a login (user:password@)?"
    else:
        hint = advice("Kafka", hosts.split(","))
    return Unavailable(f"Kafka, {doing}: {text}; {hint}")


CLOSED = "it closes the connection"
"""What the driver tells only as the number of brokers that are down."""
