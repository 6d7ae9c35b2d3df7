"""The driver's errors become ours by one table."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.errors import (
    ConfigError,
    Fatal,
    GroupLive,
    LogError,
    NotFound,
    OutcomeUnknown,
    StreamsError,
    TooLarge,
    Unavailable,
)
from streams.log.kafka import errors
from streams.log.kafka.errors import CODES, WRITES, kind_of, translate


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
        ("NON_EMPTY_GROUP", GroupLive, False),
        ("INVALID_REPLICATION_FACTOR", ConfigError, False),
        ("SASL_AUTHENTICATION_FAILED", Fatal, False),
        ("TOPIC_AUTHORIZATION_FAILED", Fatal, True),
        ("UNRELEASED_INSTANCE_ID", Fatal, False),
        ("_KEY_DESERIALIZATION", LogError, False),
    ],
)
def test_a_code_means_one_thing(name: str, kind: type[StreamsError], write: bool) -> None:
    error = KafkaError(getattr(KafkaError, name))
    assert kind_of(error, write=write) is kind
    assert type(translate(KafkaException(error), "trying", write=write)) is kind


def test_no_code_is_in_two_rows() -> None:
    for names in (errors._NAMES, errors._WRITE_NAMES):
        words = [word for text in names.values() for word in text.split()]
        assert len(words) == len(set(words))
    assert len(CODES) > len(WRITES) > 0


def test_what_is_in_no_table_goes_by_the_drivers_own_word() -> None:
    unknown = KafkaError._NOOP
    assert unknown not in CODES
    assert kind_of(KafkaError(unknown)) is LogError
    assert kind_of(KafkaError(unknown, retriable=True)) is Unavailable
    assert kind_of(KafkaError(unknown, fatal=True)) is Fatal
    assert kind_of(KafkaError(unknown, fatal=True), write=True) is OutcomeUnknown


def test_a_message_is_one_line_with_what_was_tried_what_failed_and_what_to_do() -> None:
    error = KafkaError(KafkaError._AUTHENTICATION, "bad\n  password hunter2.")
    text = str(translate(error, "joining", lambda text: text.replace("hunter2", "***")))
    assert text == "Kafka, joining: bad password ***; check user, password and sasl.mechanism"


def test_an_exception_without_an_error_is_still_ours() -> None:
    assert type(translate(KafkaException("odd"), "trying")) is LogError
