"""A retention as Kafka's settings, and back; and deleting what nobody needs."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Retention
from streams.errors import EventTopicError, LogError
from streams.log.events import EventLog
from streams.log.kafka.topics import _config_of, _retention_of
from streams.log.protocol import RecordDeleter
from streams.log.url import open_log
from streams.message import Record
from tests.conformance.records import append
from tests.servers.find import KafkaAddress

DEFAULTS = {"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"}
"""What a topic has that is kept for ever."""


@given(
    st.builds(
        Retention,
        seconds=st.none() | st.integers(1, 10**12).map(lambda millis: millis / 1000),
        bytes=st.none() | st.integers(1, 10**15),
        compacted=st.booleans(),
    )
)
def test_what_is_written_is_read(retention: Retention) -> None:
    assert _retention_of({**DEFAULTS, **_config_of(retention)}) == retention


@given(st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.none() | st.text(max_size=30)))
def test_settings_of_others_are_never_an_error(settings: dict[str, str | None]) -> None:
    _retention_of(settings)


@pytest.mark.parametrize(
    ("settings", "retention"),
    [
        ({}, Retention()),
        ({"retention.ms": "9223372036854775807"}, Retention()),
        ({"retention.ms": "604800000", "retention.bytes": "-1"}, Retention(seconds=604_800)),
        ({"cleanup.policy": "compact", "retention.ms": "604800000"}, Retention(compacted=True)),
        (
            {"cleanup.policy": "compact, delete", "retention.ms": "1000"},
            Retention(seconds=1, compacted=True),
        ),
        ({"cleanup.policy": ""}, Retention()),
    ],
)
def test_settings_that_others_made(settings: dict[str, str | None], retention: Retention) -> None:
    assert _retention_of(settings) == retention


def test_what_is_below_a_position_is_deleted_when_told(kafka: KafkaAddress) -> None:
    topic, log = f"deleted-{uuid4().hex[:8]}", open_log(kafka.url)
    try:
        assert isinstance(log, RecordDeleter)
        assert isinstance(log, EventLog)
        log.create_topic(topic, 2)
        append(log, topic, [Record(b"%d" % n, b"k", f"m{n}", (), 1) for n in range(10)])
        log.delete_before(topic, 1, 7)
        assert log.watermarks(topic, 1) == (7, 10)
        assert log.watermarks(topic, 0) == (0, 0)
        log.delete_before(topic, 1, 3)  # gone already
        assert log.watermarks(topic, 1) == (7, 10)
        with pytest.raises(LogError):
            log.delete_before(topic, 1, 99)
        with pytest.raises(LogError):
            log.delete_before(f"{topic}-nowhere", 0, 1)
        log.create_event_topic(f"{topic}.events", 1)
        with pytest.raises(EventTopicError, match="cannot be trimmed"):
            log.delete_before(f"{topic}.events", 0, 1)
    finally:
        log.close()
