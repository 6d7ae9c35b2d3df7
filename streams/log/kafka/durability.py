"""What decides whether a message that Kafka acknowledged can be lost.

Brokers acknowledge from memory, so what keeps a message is that several have it: with ``acks=all``
(which the toolkit's producer always asks for) at least ``min.insync.replicas`` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import TopicCollection

# Documented there, though the package's __all__ does not list all of them.
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams.errors import LogError, NotFound
from streams.log.kafka.asking import ANSWER, Asking
from streams.log.kafka.client import Shared
from streams.log.names import no_topic
from streams.log.protocol import Fact

POSITIONS = "__consumer_offsets"
"""Where Kafka keeps the groups' positions."""


def facts(client: Shared[AdminClient], asking: Asking, topic: str) -> tuple[Fact, ...]:
    """How many brokers have a topic, and how many must.

    :raises NotFound: there is no such topic.
    """
    replicas, insync = _replicas(client, asking, topic)
    config = _config(client, asking, topic)
    least = int(config.get("min.insync.replicas", "0"))
    synced = config.get("flush.messages") == "1"
    found = [
        Fact(
            "replication.factor", str(replicas), replicas >= 2 or synced,
            "" if replicas >= 2 else "one broker's disk is all there is: use 3 replicas",
        ),
        Fact(
            "in sync", f"{insync} of {replicas}", insync >= max(1, least),
            "" if insync >= max(1, least) else "brokers are missing: see why they do not follow",
        ),
    ]  # fmt: skip
    if not config:
        advice = "this login may not ask: see that min.insync.replicas is 2"
        return (*found, Fact("min.insync.replicas", "?", None, advice))
    confirmed = least >= 2 or synced
    advice = "one broker's memory is enough for an acknowledgement: set it to 2"
    if confirmed and replicas == least > 1:
        advice = "with one broker away nothing can be written: use one replica more"
    elif confirmed:
        advice = ""
    unclean = config.get("unclean.leader.election.enable") == "true"
    lacking = "a broker that lacks messages may become the leader: set it to false"
    found += [
        Fact("min.insync.replicas", str(least), confirmed, advice),
        Fact(
            "unclean.leader.election.enable", str(unclean).lower(), not unclean,
            lacking if unclean else "",
        ),
        Fact("max.message.bytes", config.get("max.message.bytes", "?"), True),
    ]  # fmt: skip
    return (*found, *_positions(client, asking))


def _positions(client: Shared[AdminClient], asking: Asking) -> tuple[Fact, ...]:
    try:
        replicas, _ = _replicas(client, asking, POSITIONS)
    except LogError:  # it comes with the first group; or this login may not ask
        return ()
    advice = "with its broker all groups lose their places: give it 3 replicas"
    many = replicas >= 2
    return (Fact("replicas of positions", str(replicas), many, "" if many else advice),)


def _replicas(client: Shared[AdminClient], asking: Asking, topic: str) -> tuple[int, int]:
    """Of the partition that has the fewest: how many replicas, and how many of them in sync."""

    def question(admin: AdminClient) -> Any:
        futures = admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER)
        return asking.answer(futures[topic])

    try:
        found = asking.ask(f"asking for topic {topic}", client, question)
    except NotFound as error:
        raise no_topic(topic) from error
    return (
        min(len(part.replicas) for part in found.partitions),
        min(len(part.isr) for part in found.partitions),
    )


def _config(client: Shared[AdminClient], asking: Asking, topic: str) -> Mapping[str, str]:
    """The topic's settings as they apply; none where this login may not ask."""
    resource = ConfigResource(ResourceType.TOPIC, topic)

    def question(admin: AdminClient) -> Any:
        futures = admin.describe_configs([resource], request_timeout=ANSWER)
        return asking.answer(futures[resource])

    try:
        found = asking.ask(f"asking for the settings of {topic}", client, question)
    except LogError:
        return {}
    return {name: str(entry.value) for name, entry in found.items() if entry.value is not None}
