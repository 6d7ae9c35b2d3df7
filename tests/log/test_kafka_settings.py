"""What a Kafka URL and driver settings come to, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from streams.config import Flow
from streams.errors import ConfigError
from streams.log.kafka.settings import (
    CONSUMER_ONLY,
    PRODUCER_ONLY,
    Settings,
    prefetch_bytes,
    prefetch_config,
    read_settings,
)
from streams.log.protocol import OpenRequest
from streams.log.url import open_log

SECRET = "p@ss/word"

MESSAGE_OVERHEAD = 350
"""Bytes that the driver spends on each message in its queue, beside key and value (measured)."""


def read(url: str = "kafka://h", config: dict[str, Any] | None = None, **options: str) -> Settings:
    query = {name.replace("_", "."): value for name, value in options.items()}
    return read_settings(OpenRequest(url, "", query, config or {}))


def refused(url: str = "kafka://h", config: dict[str, Any] | None = None, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(url, config, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("kafka://h", "h:9092"),
        ("kafka://h:1", "h:1"),
        ("kafka://a:1,b,c:3", "a:1,b:9092,c:3"),
        ("kafka://[::1]:9093,h/", "[::1]:9093,h:9092"),
        ("kafka://u:p@a,b?linger.ms=5", "a:9092,b:9092"),
    ],
)
def test_brokers_are_read_from_the_url(url: str, hosts: str) -> None:
    assert read(url).hosts == hosts
    assert read(url).admin_config()["bootstrap.servers"] == hosts


@pytest.mark.parametrize(
    "url",
    ["kafka://", "kafka://h:0", "kafka://h:99999", "kafka://a,,b", "kafka://h:x", "kafka://ü ü"],
)
def test_what_is_no_broker_is_refused(url: str) -> None:
    assert "no host:port" in refused(url)


def test_a_brokers_name_is_ascii() -> None:
    assert "ASCII" in refused("kafka://ü")


def test_nothing_may_follow_the_brokers() -> None:
    assert "nothing may follow" in refused("kafka://h/topic")


@pytest.mark.parametrize(
    ("url", "protocol", "mechanism"),
    [
        ("kafka://h", "plaintext", None),
        ("kafka://u:p@h", "sasl_plaintext", "SCRAM-SHA-512"),
        ("kafka+ssl://h", "ssl", None),
        ("kafka+ssl://u:p@h", "sasl_ssl", "SCRAM-SHA-512"),
    ],
)
def test_scheme_and_user_make_the_security_protocol(
    url: str, protocol: str, mechanism: str | None
) -> None:
    conf = read(url).producer_config()
    assert conf["security.protocol"] == protocol
    assert conf.get("sasl.mechanism") == mechanism


def test_a_user_and_password_may_hold_anything_when_quoted() -> None:
    conf = read("kafka+ssl://us%40er:p%40ss%2Fword@h", sasl_mechanisms="PLAIN").admin_config()
    assert (conf["sasl.username"], conf["sasl.password"]) == ("us@er", SECRET)
    assert conf["sasl.mechanism"] == "PLAIN"


def test_tls_is_not_taken_back_by_a_setting() -> None:
    assert "kafka+ssl" in refused("kafka+ssl://h", security_protocol="plaintext")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("enable.auto.commit", "true", "settled"),
        ("auto.commit.enable", "true", "settled"),
        ("enable.auto.offset.store", True, "settled"),
        ("auto.offset.reset", "earliest", "never skipped"),
        ("enable.idempotence", False, "twice"),
        ("acks", "1", "lost"),
        ("request.required.acks", 1, "lost"),
        ("queuing.strategy", "lifo", "order"),
        ("delivery.report.only.error", "true", "confirmed"),
        ("group.id", "mine", "group="),
        ("transactional.id", "mine", "transactional"),
        ("bootstrap.servers", "h", "URL"),
        ("metadata.broker.list", "h", "URL"),
        ("statistics.interval.ms", "0", "owns"),
        ("plugin.library.paths", "evil.so", "shared libraries"),
        ("ssl.engine.location", "evil.so", "shared library"),
        ("ssl.providers", "evil", "providers"),
        ("sasl.kerberos.kinit.cmd", "rm -rf", "shell"),
        ("on_commit", print, "own"),
        ("rebalance_cb", print, "own"),
        ("linger.ms", object(), "text, a number"),
        ("error_cb", "print", "callable"),
    ],
)
def test_what_would_break_a_promise_or_run_code_is_refused(name: str, value: Any, why: str) -> None:
    text = refused("kafka://h", {name: value})
    assert name in text
    assert why in text


def test_a_url_can_hold_no_callable() -> None:
    with pytest.raises(ConfigError, match="callable given in config="):
        read_settings(OpenRequest("kafka://h", "", {"stats_cb": "print"}, {}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable.auto.commit", False),
        ("acks", "all"),
        ("acks", -1),
        ("enable.idempotence", "true"),
        ("auto.offset.reset", "error"),
    ],
)
def test_saying_what_is_so_anyway_is_harmless(name: str, value: Any) -> None:
    read("kafka://h", {name: value})


def test_every_setting_reaches_the_clients_that_know_it_and_no_other() -> None:
    found = read(
        "kafka://h",
        {"compression.type": "lz4", "check.crcs": True, "socket.keepalive.enable": True},
        linger_ms="1",
        fetch_wait_max_ms="7",
    )
    clients = {
        "admin": found.admin_config(),
        "producer": found.producer_config(),
        "reader": found.reader_config(1 << 20),
        "member": found.member_config("g", Flow(), print),
    }
    for conf in clients.values():
        assert conf["socket.keepalive.enable"] == "true"
    for name in ("reader", "member"):
        assert clients[name]["fetch.wait.max.ms"] == "7"
        assert clients[name]["check.crcs"] == "true"
        assert not PRODUCER_ONLY - {"message.max.bytes"} & set(clients[name])
    assert clients["producer"]["queue.buffering.max.ms"] == "1"
    assert clients["producer"]["compression.type"] == "lz4"
    for name in ("admin", "producer"):
        assert not CONSUMER_ONLY & set(clients[name])


def test_code_wins_over_the_url() -> None:
    found = read_settings(OpenRequest("kafka://h", "", {"linger.ms": "1"}, {"linger.ms": 2}))
    assert found.producer_config()["queue.buffering.max.ms"] == 2


def test_promises_are_in_the_configuration_whatever_is_given() -> None:
    found = read()
    producer, member = found.producer_config(), found.member_config("g", Flow(), print)
    assert (producer["enable.idempotence"], producer["acks"]) == (True, "all")
    assert producer["partitioner"] == "murmur2_random"
    assert member["enable.auto.commit"] is False
    assert member["enable.auto.offset.store"] is False
    assert member["auto.offset.reset"] == "error"
    assert member["isolation.level"] == "read_committed"
    assert member["partition.assignment.strategy"] == "cooperative-sticky"
    assert found.session_timeout == 10


def test_a_group_protocol_takes_only_its_own_settings() -> None:
    found = read(group_protocol="consumer")
    assert found.kip848
    assert not {"session.timeout.ms", "partition.assignment.strategy"} & set(
        found.member_config("g", Flow(), print)
    )
    for name, value in (
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "500"),
        ("partition.assignment.strategy", "range"),
        ("group.instance.id", "one"),
    ):
        config = {"group.protocol": "consumer", name: value}
        assert name in refused("kafka://h", config)
    assert "a third" in refused(session_timeout_ms="3000", heartbeat_interval_ms="2000")
    assert (
        read(session_timeout_ms="3000").member_config("g", Flow(), print)["heartbeat.interval.ms"]
        == 1000
    )


def test_eager_assignors_are_known() -> None:
    assert read(partition_assignment_strategy="range").eager
    assert not read().eager
    assert not read(group_protocol="consumer").eager


@pytest.mark.parametrize("size", [1, 100_000, 1 << 20, 64 << 20, 1 << 40])
def test_the_prefetch_stays_within_its_share_of_the_flow(size: int) -> None:
    share = prefetch_bytes(Flow(bytes=size))
    assert share <= max(64 * 1024, size // 2)
    conf = prefetch_config(share)
    assert conf["max.partition.fetch.bytes"] <= conf["fetch.max.bytes"]
    # A full queue, and the fetch that was under way when it became full, of messages of any size.
    for message in (100, 200, 1_000, 10_000):
        count = min(
            conf["queued.max.messages.kbytes"] * 1024 // message, conf["queued.min.messages"]
        )
        fetched = conf["fetch.max.bytes"] // message
        assert (count + fetched) * (message + MESSAGE_OVERHEAD) <= share


def test_a_message_that_never_finds_room_is_refused_at_once() -> None:
    assert "message.max.bytes" in refused("kafka://h", {"message.max.bytes": 64 << 20})
    read("kafka://h", {"message.max.bytes": 64 << 20, "queue.buffering.max.kbytes": 131_072})
    assert "more than 0" in refused("kafka://h", {"message.max.bytes": "big"})


def test_replication_is_a_number() -> None:
    assert read(replication_factor="3").replication == 3
    assert "at least 1" in refused(replication_factor="many")


def test_secrets_show_nowhere() -> None:
    found = read(
        "kafka+ssl://app:p%40ss%2Fword@h",
        {"ssl.key.password": "keypw", "ssl.key.pem": "PRIVATE", "linger.ms": 3},
    )
    assert SECRET not in repr(found)
    assert found.scrub(f"bad {SECRET} keypw PRIVATE 3") == "bad *** *** *** 3"


@pytest.mark.parametrize(
    "query",
    ["nonsense=1", "linger.ms=fast", "sasl.mechanism=NOPE", "ssl.ca.location=/nowhere/ca.pem"],
)
def test_what_the_driver_does_not_take_is_said_when_the_log_is_opened(query: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_log(f"kafka+ssl://app:{SECRET.replace('/', '%2F')}@127.0.0.1:1?{query}")
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text


# -- static members


@pytest.mark.parametrize(
    ("url", "config", "words"),
    [
        (
            "kafka://h?group.instance.id=blue",
            {},
            "group.instance.id on Kafka, which is set to 'blue'",
        ),
        ("kafka://h", {"group.instance.id": "blue"}, "leave one of them out"),
        ("kafka://h?group.protocol=consumer", {}, "use the classic protocol"),
    ],
)
def test_a_members_name_that_cannot_be(url: str, config: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_log(url, config, member="shop-3")


def test_a_members_name_is_its_group_instance_id() -> None:
    opened = OpenRequest("kafka://h", "h", member="shop-3")
    conf = read_settings(opened).member_config("g", Flow(), lambda _: None, "shop-3-second")
    assert conf["group.instance.id"] == "shop-3-second"
    assert "group.instance.id" not in read_settings(opened).member_config(
        "g", Flow(), lambda _: None
    )
