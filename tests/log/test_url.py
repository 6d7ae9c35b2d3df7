"""Opening a log by URL: what is accepted, what is said, and what is never shown."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import ConfigError
from streams.log.url import URL_FORMS, open_log, redact


@pytest.mark.parametrize(
    "url", ["", "events.db", "sqlite:events.db", "postgres://host/db", "memory:/name", None, 7]
)
def test_a_url_that_is_none_is_answered_with_all_forms_on_one_line(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_log(url)
    assert "\n" not in str(caught.value)
    for form in URL_FORMS:
        assert form in str(caught.value)


@pytest.mark.parametrize("query", ["novalue", "a=1&a=2", "a=1&&b"])
def test_settings_that_cannot_be_read_are_refused(query: str) -> None:
    with pytest.raises(ConfigError, match=r"name=value|twice"):
        open_log(f"memory://?{query}")


def test_a_missing_driver_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("streams.log.kafka")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)  # importing it fails
    with pytest.raises(ConfigError, match="confluent_kafka"):
        open_log("kafka://localhost:9092")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hush@localhost", "redis://:***@localhost"),
        ("redis://hush@localhost", "redis://***@localhost"),
        ("kafka://app:hush@a:9092,b:9092", "kafka://app:***@a:9092,b:9092"),
        ("kafka://a?sasl.password=hush&client.id=x", "kafka://a?***"),
        (
            "kafka://a?sasl%2Epassword=hush&replication.factor=3",
            "kafka://a?replication.factor=3&***",
        ),
        ("redis://h/0?lease=5&password=hush", "redis://h/0?lease=5&***"),
        ("redis://me@corp:hush@h", "redis://***@h"),
        ("redis://hush:@h", "redis://***@h"),
        ("redis://h?timeout=hush", "redis://h?***"),
        ("redis+sentinel://[::1]:7,h/main", "redis+sentinel://[::1]:7,h/main"),
        ("kafka://shop:hush#more@h", "kafka://***"),
        ("hush", "***"),
        ("sqlite:///events.db?synchronous=full", "sqlite:///events.db?synchronous=full"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert redact(url) == shown


secrets = st.text("h@:/?#&%= ", min_size=3).map(lambda text: f"hush{text}hush")


@given(secrets, st.sampled_from(["redis://:{}@host/0", "kafka://app:{}@host:9092", "app:{}@host"]))
def test_no_error_shows_a_password_however_badly_it_is_written(secret: str, form: str) -> None:
    url = form.format(secret)
    assert "hush" not in redact(url)
    with pytest.raises(ConfigError) as caught:
        open_log(url.replace("redis", "rabbit").replace("kafka", "amqp"))
    assert "hush" not in str(caught.value)
