"""A retention as Kafka's settings, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Retention
from streams.log.kafka.topics import _config_of, _retention_of

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
