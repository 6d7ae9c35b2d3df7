"""The settings that decide whether a message that Kafka acknowledged can be lost.

Brokers acknowledge from memory, so a message is safe because several have it: with ``acks=all``
(which our producer always uses) at least ``min.insync.replicas`` of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import TopicCollection

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import AdminClient, ResourceType  # type: ignore[attr-defined]

from streams.errors import LogError, NotFound
from streams.log.kafka.client import RequestRetry
from streams.log.kafka.topics import OFFSETS_TOPIC
from streams.log.names import topic_not_found
from streams.log.protocol import DurabilityFact


def durability_facts(requests: RequestRetry, topic: str) -> tuple[DurabilityFact, ...]:
    """How many brokers have a topic, and how many must.

    :raises NotFound: there is no such topic.
    """
    replicas, insync = replica_counts(requests, topic)
    config = topic_config(requests, topic)
    min_insync = int(config.get("min.insync.replicas", "0"))
    flushes_each = config.get("flush.messages") == "1"
    result = [
        DurabilityFact(
            "replication.factor", str(replicas), replicas >= 2 or flushes_each,
            "" if replicas >= 2 else "one broker's disk is all there is: use 3 replicas",
        ),
        DurabilityFact(
            "in sync", f"{insync} of {replicas}", insync >= max(1, min_insync),
            "" if insync >= max(1, min_insync)
            else "brokers are missing: see why they do not follow",
        ),
    ]  # fmt: skip
    if not config:
        advice = "this login may not ask: see that min.insync.replicas is 2"
        return (*result, DurabilityFact("min.insync.replicas", "?", None, advice))
    confirmed_safely = min_insync >= 2 or flushes_each
    advice = "one broker's memory is enough for an acknowledgement: set it to 2"
    if confirmed_safely and replicas == min_insync > 1:
        advice = "with one broker away nothing can be written: use one replica more"
    elif confirmed_safely:
        advice = ""
    unclean = config.get("unclean.leader.election.enable") == "true"
    unclean_advice = "a broker that lacks messages may become the leader: set it to false"
    result += [
        DurabilityFact("min.insync.replicas", str(min_insync), confirmed_safely, advice),
        DurabilityFact(
            "unclean.leader.election.enable", str(unclean).lower(), not unclean,
            unclean_advice if unclean else "",
        ),
        DurabilityFact("max.message.bytes", config.get("max.message.bytes", "?"), True),
    ]  # fmt: skip
    return (*result, *_offsets_topic_facts(requests))


def _offsets_topic_facts(requests: RequestRetry) -> tuple[DurabilityFact, ...]:
    try:
        replicas, _ = replica_counts(requests, OFFSETS_TOPIC)
    except LogError:  # there has been no group yet; or this login may not ask
        return ()
    advice = "with its broker all groups lose their positions: give it 3 replicas"
    enough = replicas >= 2
    return (
        DurabilityFact("replicas of positions", str(replicas), enough, "" if enough else advice),
    )


def replica_counts(requests: RequestRetry, topic: str) -> tuple[int, int]:
    """The fewest replicas, and the fewest in-sync replicas, of any partition."""
    wanted = TopicCollection([topic])
    try:
        description = requests.run_admin(
            f"asking for topic {topic}", AdminClient.describe_topics, wanted
        )
    except NotFound as error:
        raise topic_not_found(topic) from error
    return (
        min(len(part.replicas) for part in description.partitions),
        min(len(part.isr) for part in description.partitions),
    )


def topic_config(requests: RequestRetry, topic: str) -> Mapping[str, str]:
    """The topic's effective settings; none where this login may not ask."""
    operation = f"asking for the settings of {topic}"
    try:
        config = requests.read_config(operation, ResourceType.TOPIC, topic)
    except LogError:
        return {}
    return {name: value for name, value in config.items() if value is not None}
