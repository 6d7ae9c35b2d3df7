"""The settings that decide whether a message that Redis acknowledged can be lost.

https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/: with ``appendfsync
everysec`` a server that is killed loses nothing, one whose machine loses its power up to a second.
A replica that must have a message before it is acknowledged (``?wait=1``) covers both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.errors import EventTopicError, LogError
from streams.log.protocol import DurabilityFact
from streams.log.redis.client import Client, Command
from streams.log.redis.stored_values import evicts_streams, parse_info
from streams.wire import parse_int

_CONFIG_NAMES = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")


def durability_facts(client: Client, context: str, key: bytes) -> tuple[DurabilityFact, ...]:
    """How durably the server that has this key stores its data."""
    ask_config = Command(context, key, "CONFIG", "GET", *_CONFIG_NAMES)
    ask_replication = Command(context, key, "INFO", "replication")
    config, replication = client.execute_all([ask_config, ask_replication])
    replicas = parse_int(parse_info(replication).get("connected_slaves"))
    replica_fact = _replica_fact(client.settings.wait_replicas, replicas)
    if isinstance(config, LogError):
        client.execute(Command(context, key, "PING"))  # the server answers, but refuses CONFIG GET
        advice = (
            "this login may not ask (CONFIG GET): see that appendonly is yes and appendfsync "
            "always, or that replicas are waited for"
        )
        return DurabilityFact("appendonly", "?", None, advice), replica_fact
    waits = client.settings.wait_replicas > 0
    return (*_persistence_facts(_decode_pairs(config), waits), replica_fact)


def _fact(name: str, value: str, is_safe: bool, advice: str) -> DurabilityFact:
    return DurabilityFact(name, value, is_safe, "" if is_safe else advice)


def _persistence_facts(config: Mapping[str, str], waits_for_replicas: bool) -> list[DurabilityFact]:
    append_only = config.get("appendonly") == "yes"
    advice = "a crash loses all writes since the last snapshot: set it to yes"
    found = [_fact("appendonly", config.get("appendonly", "?"), append_only, advice)]
    if append_only:
        sync = config.get("appendfsync", "?")
        advice = "a power cut may take the last second: set it to always, or wait for a replica"
        if sync == "no":
            advice = "the system decides when to write: set it to always, or wait for a replica"
        found.append(_fact("appendfsync", sync, sync == "always" or waits_for_replicas, advice))
    policy = config.get("maxmemory-policy", "?")
    never_evicts = not evicts_streams(policy, config.get("maxmemory", "0"))
    advice = "a full server evicts streams: set it to noeviction"
    return [*found, _fact("maxmemory-policy", policy, never_evicts, advice)]


def refuse_eviction(client: Client, topic: str, key: bytes) -> None:
    """Check that the server of this key does not evict histories, if this user may ask it.

    :raises EventTopicError: it evicts them when it is full.
    """
    (reply,) = client.execute_all([Command(topic, key, "INFO", "memory")])
    info = {} if isinstance(reply, LogError) else parse_info(reply)
    policy = info.get("maxmemory_policy", "noeviction")
    if evicts_streams(policy, info.get("maxmemory", "0")):
        raise EventTopicError(
            f"topic {topic!r}: the server has maxmemory-policy {policy}, so a full one evicts "
            "whole histories: set it to noeviction, or to a volatile- policy"
        )


def _replica_fact(wanted: int, connected: int | None) -> DurabilityFact:
    value = f"{'?' if connected is None else connected}, {wanted} waited for"
    is_safe: bool | None
    if wanted:
        is_safe = None if connected is None else connected >= wanted
        advice = "start as many as wait= asks for"
    else:
        is_safe = True if connected == 0 else None
        advice = "a failover may lose what no replica has yet: say ?wait=1"
    return DurabilityFact("replicas", value, is_safe, "" if is_safe else advice)


def _decode_pairs(reply: Any) -> dict[str, str]:
    texts = [bytes(each).decode("utf-8", "replace") for each in reply]
    return dict(zip(texts[::2], texts[1::2], strict=False))
