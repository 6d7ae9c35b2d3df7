"""URLs and settings: every form, and what is refused, with what to do."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from streams.errors import ConfigError
from streams.log.redis.keys import PartitionKeys, parse_offset, topic_key
from streams.log.redis.settings import Settings
from streams.log.url import open_log
from tests.log.redis_support import open_redis

PASSWORD = "s3cr3t"


def settings(url: str, **config: Any) -> Settings:
    """What the log makes of a URL."""
    log = open_redis(url, **config)
    log.close()
    return log._client.settings


@pytest.mark.parametrize(
    ("url", "kind", "addresses", "service", "db"),
    [
        ("redis://host", "single", [("host", 6379)], "", None),
        ("redis://host:1/3", "single", [("host", 1)], "", 3),
        ("redis://[::1]:7/", "single", [("::1", 7)], "", None),
        ("rediss://host:1", "single", [("host", 1)], "", None),
        (
            "redis+sentinel://a:1,b/main",
            "sentinel",
            [("a", 1), ("b", 26379)],
            "main",
            None,
        ),
        ("rediss+sentinel://a:1/main/2", "sentinel", [("a", 1)], "main", 2),
        ("redis+cluster://a:1,b:2", "cluster", [("a", 1), ("b", 2)], "", None),
    ],
)
def test_every_form_of_url(
    url: str, kind: str, addresses: list[tuple[str, int]], service: str, db: int | None
) -> None:
    found = settings(url)
    assert (found.topology, list(found.addresses), found.service) == (kind, addresses, service)
    assert found.connection.get("db") == db
    assert found.tls == url.startswith("rediss")


def test_logins_may_hold_anything_and_are_never_shown() -> None:
    log = open_redis(f"redis://app:{PASSWORD}%40@x@host:1/0?client_name=c")
    found = log._client.settings
    assert found.connection["username"] == "app"
    assert found.connection["password"] == f"{PASSWORD}@@x"
    assert found.connection["client_name"] == "c"
    assert PASSWORD not in f"{found!r}{log!r}{log._client.servers!r}"
    log.close()


def test_options_and_driver_settings() -> None:
    found = settings(
        "rediss://h?lease=3&once=60&timeout=2&wait=1&wait_timeout=0.5&ssl_check_hostname=no",
        socket_timeout=1,
        password=PASSWORD,
    )
    assert (found.terms.lease, found.dedup_seconds, found.append_timeout) == (3, 60, 2)
    assert (found.wait_replicas, found.wait_timeout) == (1, 0.5)
    assert found.connection["ssl_check_hostname"] is False
    assert found.connection["socket_timeout"] == 1
    assert found.connection["password"] == PASSWORD


@pytest.mark.parametrize(
    ("url", "config", "says"),
    [
        ("redis://", {}, "host:port"),
        ("redis://h:port", {}, "host:port"),
        ("redis://h:99999", {}, "host:port"),
        ("redis://h/one", {}, "database is a number"),
        ("redis://h/1/2", {}, "database is a number"),
        ("redis://a,b", {}, "redis+cluster://"),
        ("redis+sentinel://a", {}, "name the service"),
        ("redis+cluster://a/1", {}, "no databases"),
        ("redis://h?lease=no", {}, "number"),
        ("redis://h?lease=0.1", {}, "half a second"),
        ("redis://h?once=5", {}, "three times as long"),
        ("redis://h?wait=-1", {}, "whole number"),
        ("redis://h?socket_timeout=8", {}, "half its lease"),
        ("redis://h?nonsense=1", {}, "no setting 'nonsense'"),
        ("redis://h?ssl_ca_certs=x", {}, "rediss://"),
        ("redis://h?socket_keepalive=maybe", {}, "true or false"),
        ("redis://h?credential_provider=x", {}, "config="),
        ("redis://h?sentinel_password=x", {}, "redis+sentinel://"),
        ("redis://h", {"retry": object()}, "written twice"),
        ("redis://h", {"decode_responses": True}, "bytes"),
        ("redis://h", {"host": "x"}, "URL"),
        ("redis://h", {"parser_class": object}, "code of its own"),
        ("redis://h", {"redis_connect_func": print}, "code of its own"),
        ("redis://h", {"protocol": 3}, "nothing may come between"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(url: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as found:
        open_log(url.replace("://", f"://user:{PASSWORD}@", 1), config)
    assert says in str(found.value)
    assert "\n" not in str(found.value)
    assert PASSWORD not in str(found.value)


def test_a_scheme_of_others_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no log is called 'redis\+nonsense'"):
        open_log("redis+nonsense://h")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("ssl_cert_reqs", "maybe", "none, optional, required"),
        ("ssl_cert_reqs", "Required", "none, optional, required"),
        ("ssl_ciphers", "nonsense", "no such ciphers"),
        ("ssl_check_hostname", "perhaps", "true or false"),
        ("ssl_validate_ocsp", "2", "true or false"),
    ],
)
def test_a_value_that_is_none_of_a_closed_set_is_refused(key: str, value: str, says: str) -> None:
    for url, config in ((f"rediss://h?{key}={value}", {}), ("rediss://h", {key: value})):
        with pytest.raises(ConfigError, match=says):
            open_log(url, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ssl_cert_reqs", None),
        ("ssl_cert_reqs", 2),
        ("ssl_min_version", "TLSv1.2"),
        ("ssl_min_version", 771),
        ("ssl_include_verify_flags", "X509_STRICT"),
        ("ssl_include_verify_flags", [1]),
        ("ssl_check_hostname", None),
        ("ssl_ca_certs", 5),
        ("socket_timeout", "soon"),
        ("socket_timeout", None),
        ("socket_keepalive", "often"),
        ("socket_read_size", 1.5),
        ("password", 5),
        ("sentinel_password", 5),
        ("lease", object()),
    ],
)
def test_a_value_given_in_code_is_of_the_setting_s_type(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        open_log("rediss+sentinel://h/main", {key: value})


def test_the_values_that_there_are() -> None:
    for reqs in ("none", "optional", "required"):
        found = settings(f"rediss://h?ssl_cert_reqs={reqs}").connection["ssl_cert_reqs"]
        assert found is settings("rediss://h", ssl_cert_reqs=found).connection["ssl_cert_reqs"]
        assert found.name == f"CERT_{reqs.upper()}"
    found = settings(
        "rediss://h",
        ssl_min_version=ssl.TLSVersion.TLSv1_3,
        ssl_include_verify_flags=[ssl.VERIFY_X509_STRICT],
        ssl_ciphers="HIGH",
        ssl_ca_certs=Path("ca.pem"),
        socket_keepalive=True,
    ).connection
    assert found["ssl_min_version"] is ssl.TLSVersion.TLSv1_3
    with pytest.raises(ConfigError, match="give one"):
        open_log("rediss://h?ssl_validate_ocsp=1&ssl_validate_ocsp_stapled=1")


@pytest.mark.parametrize("partitions", [1, 3])
def test_what_belongs_to_a_partition_is_in_its_slot(partitions: int) -> None:
    for partition in range(partitions):
        part = PartitionKeys("orders", partition, partitions)
        slot = key_slot(part.stream)
        assert {key_slot(key) for key in (part.group_key("billing"), *part.id_hashes)} == {slot}
    assert key_slot(topic_key("orders")) == key_slot(b"orders")


def test_a_topic_with_one_partition_is_the_plain_stream() -> None:
    assert PartitionKeys("orders", 0, 1).stream == b"orders"
    assert PartitionKeys("orders", 2, 3).stream == b"{orders:2}"


def test_offsets_as_people_write_them() -> None:
    log = open_redis("redis://host")
    assert log.format_offset(log.parse_offset("1700000000000-3")) == "1700000000000-3"
    assert parse_offset("5") == 5 << 64
    for text in ("", "5-", "-5", "5-5-5", "18446744073709551616-0", str(1 << 128), "x", "٣"):
        with pytest.raises(ConfigError):
            log.parse_offset(text)
    log.close()


def test_nothing_connects_before_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("connects"))
    log = open_redis("redis://nowhere.invalid")
    log.flush(0)
    log.close()
