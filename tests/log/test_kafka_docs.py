"""What docs/kafka.md says of settings, rights and TLS, compared with the code and a broker."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlencode

import pytest

from streams import Flow, MessageQueue, Retention, Retry, Streams
from streams.errors import ConfigError, Fatal
from streams.log.kafka import offsets
from streams.log.kafka import settings as module
from streams.log.kafka.settings import CALLBACKS, FIXED, MANAGED, RUNS_CODE, Settings
from streams.log.protocol import Committed
from streams.log.url import open_log
from tests.log.secured import SECURED, TEXT, TOOLS, SecuredKafka, secured
from tests.servers.lifetime import until

__all__ = ["secured"]

pytestmark = SECURED


def section(title: str) -> str:
    """The text between a heading and the next one."""
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


# -- settings --------------------------------------------------------------------------------------


def defaults() -> dict[str, Any]:
    """What a producer and a member are given where nothing is set."""
    plain = Settings("h")
    member = plain.member_config("g", Flow(), lambda _: None)
    del member["message.max.bytes"]  # means the producer's everywhere else
    return {**member, **plain.producer_config()}


def test_the_table_of_settings_is_what_clients_are_given() -> None:
    named = module.ALIASES
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \| (\S+) \|", section("Settings"), re.MULTILINE)
    given = {name: str(value).lower() for name, value in defaults().items()}
    for name, here, theirs in rows:
        assert given.pop(named.get(name, name)) == here, name
        assert here != theirs or name == "max.partition.fetch.bytes"
    documented = set(re.findall(r"`([\w.]+)`", TEXT))
    # The rest is a promise's (refused below), or a callback, or librdkafka's own default.
    same = {"batch.size": "1000000", "isolation.level": "read_committed"}
    same |= {"heartbeat.interval.ms": "3000", "receive.message.max.bytes": "100000000"}
    for name, value in given.items():
        assert name in CALLBACKS or name in documented or name == "acks" or same[name] == value


def test_what_may_not_be_set_is_listed_and_refused() -> None:
    listed = set(re.findall(r"`([\w.]+)`", section("What may not be set")))
    listed -= {"all", "config"} | CALLBACKS
    refused = {*FIXED, *MANAGED, *RUNS_CODE}
    assert {module.ALIASES.get(name, name) for name in listed} == refused
    for name in listed:
        with pytest.raises(ConfigError, match=re.escape(name)):
            open_log("kafka://h", {name: "no such value"})


# -- the walk through TLS, a login and rights ------------------------------------------------------


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_these_rights_are_enough_for_a_service(secured: SecuredKafka, protocol: str) -> None:
    """Publishing, handling, a dead letter, reading, and moving a group that is stopped."""
    url = secured.url
    settings = {"group.protocol": protocol}
    app = Streams(f"{url}&{urlencode(settings)}")
    orders = app.topic("orders", dict[str, Any], key="customer", partitions=4)
    seen: list[int] = []

    @app.processor(orders, group="billing", retry=Retry(attempts=1), flow=Flow(commit=0.1))
    async def bill(order: dict[str, Any]) -> None:
        seen.append(order["n"])
        if order["n"] == 3:
            raise ValueError("no")

    def settled() -> bool:
        log = app.log
        found = log.committed("billing", "orders")
        return all(log.lag("orders", part, found[part].position) == 0 for part in range(4))

    def letters() -> int:
        topic = "orders.billing.dead"
        return sum(
            app.log.watermarks(topic, p)[1] for p in range(app.log.describe_topic(topic).partitions)
        )

    async with app:
        for n in range(6):
            await orders.publish({"customer": f"c{n}", "n": n})
        await asyncio.to_thread(
            until, lambda: set(seen) == set(range(6)) and settled(), 60, "all is settled"
        )
        assert await asyncio.to_thread(letters) >= 1

    def look() -> None:
        log = open_log(url)
        assert "billing" in log.list_groups()
        assert {"orders", "orders.billing.dead"} <= {each.name for each in log.describe_topics()}
        log.reset_offsets("billing", "orders", {0: Committed(log.watermarks("orders", 0)[1])})
        with pytest.raises(Fatal, match="needs an ACL for the group"):
            log.delete_group("billing")
        with pytest.raises(Fatal, match="needs an ACL for the topic"):
            log.delete_topic("orders")
        with pytest.raises(Fatal, match="needs an ACL for Create on the topic"):
            log.create_topic("others", 1)
        assert not log.describe_topic("orders").retention_known, "it may not DescribeConfigs"
        log.close()

    await asyncio.to_thread(look)


async def test_a_queue_that_may_not_be_created_says_what_an_administrator_would_run(
    secured: SecuredKafka,
) -> None:
    broker, url = secured
    acl = "--add --allow-principal User:shop --topic mails --operation Describe"
    await asyncio.to_thread(broker.tool, TOOLS["kafka-acls.sh"], *acl.split())
    app = Streams(f"{url}&replication.factor=1")
    MessageQueue(app, retention=Retention(seconds=3600)).declare("mails")
    with pytest.raises(Fatal) as caught:
        async with app.connected():
            pass
    said = str(caught.value)
    hosts = broker.secure_client()["bootstrap.servers"].replace("127.0.0.1", "localhost")
    assert said == (
        "Kafka: this user may not create topic 'mails' (8 partitions, replication factor 1, "
        "retention.ms=3600000): it needs an ACL for Create on the topic, or an administrator runs "
        f"`kafka-topics.sh --bootstrap-server {hosts} --create --topic mails --partitions 8 "
        "--replication-factor 1 --config retention.ms=3600000`"
    )
    # What it says is right.
    words = said.partition(" --create ")[2].removesuffix("`").split()
    await asyncio.to_thread(broker.tool, "topics", "--create", *words)
    async with app.connected():
        found = app.log.describe_topic("mails")
    assert (found.partitions, found.retention_known) == (8, False)


def test_without_the_rights_that_are_named_there_is_an_error_that_names_them(
    secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver waits so long for a coordinator that it is not told of.
    monkeypatch.setattr(offsets, "REQUEST_TIMEOUT", 6.0)
    broker, url = secured
    plain = open_log(broker.url)
    plain.create_topic("orders", 4)  # there already, if the service was run before
    plain.close()
    log = open_log(url)
    with pytest.raises(Fatal, match="needs an ACL for the group"):
        log.initialize_offsets("others", "orders", {0: 0})
    log.close()


def test_what_a_wrong_url_says_is_what_the_page_explains(
    secured: SecuredKafka,
) -> None:
    broker, url = secured
    explained = re.findall(
        r"^\| `([^`]+)` \|", section("TLS, logins and rights, step by step"), re.MULTILINE
    )
    place = broker.secure_client()["bootstrap.servers"]
    wrong = {
        "it closes the connection; does it want TLS …": f"kafka://{place}",
        "connecting to a PLAINTEXT broker listener?": f"kafka+ssl://{broker.bootstrap}",
        "certificate verify failed": f"kafka+ssl://{place}",
        "SASL authentication error": url.replace("shop-secret", "wrong"),
        "connection refused": "kafka://127.0.0.1:1",
    }
    for text, tried in wrong.items():
        assert text in explained
        log = open_log(tried)
        said = re.escape(text.removesuffix(" …"))
        if "PLAINTEXT" in text:
            said += (
                "|SSL connection closed by peer"  # which of the two comes first, the broker knows
            )
        with pytest.raises(Exception, match=said) as caught:
            log.describe_topics()
        assert "wrong" not in str(caught.value)
        log.close()
