"""What decides whether a message that Redis acknowledged can be lost.

https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/: with ``appendfsync
everysec`` a server that is killed loses nothing, one whose machine loses its power up to a second.
A replica that must have a message before it is acknowledged (``?wait=1``) covers both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.errors import LogError
from streams.log.protocol import Fact
from streams.log.redis.client import Client, Command
from streams.log.redis.settings import Settings

_ASKED = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")


def facts(client: Client, where: str, key: bytes) -> tuple[Fact, ...]:
    """How the server that has this key keeps what it is given.

    :raises LogError: it does not answer.
    """
    config, replication = client.run_all(
        [
            Command(where, key, "CONFIG", "GET", *_ASKED),
            Command(where, key, "INFO", "replication"),
        ]
    )
    replicas = _replicas(replication)
    if isinstance(config, LogError):
        client.run(Command(where, key, "PING"))  # it answers, and only does not tell
        return (
            Fact(
                "appendonly", "?", None,
                "this login may not ask (CONFIG GET): see that appendonly is yes and appendfsync "
                "always, or that replicas are waited for",
            ),
            _waited(client.settings, replicas),
        )  # fmt: skip
    return (*_kept(_pairs(config), client.settings.wait > 0), _waited(client.settings, replicas))


def _kept(config: Mapping[str, str], waits: bool) -> list[Fact]:
    on = config.get("appendonly") == "yes"
    sync = config.get("appendfsync", "?")
    found = [
        Fact(
            "appendonly", config.get("appendonly", "?"), on,
            "" if on else "what came since the last snapshot goes with the process: set it to yes",
        )
    ]  # fmt: skip
    if on:
        synced = sync == "always" or waits
        advice = "a power cut may take the last second: set it to always, or wait for a replica"
        if sync == "no":
            advice = "the system writes when it likes: set it to always, or wait for a replica"
        found.append(Fact("appendfsync", sync, synced, "" if synced else advice))
    policy = config.get("maxmemory-policy", "?")
    keeps = not policy.startswith("allkeys") or config.get("maxmemory", "0") == "0"
    advice = "a full server throws streams away: set it to noeviction"
    found.append(Fact("maxmemory-policy", policy, keeps, "" if keeps else advice))
    return found


def _waited(settings: Settings, replicas: int | None) -> Fact:
    there = "?" if replicas is None else str(replicas)
    value = f"{there}, {settings.wait} waited for"
    if settings.wait:
        enough = None if replicas is None else replicas >= settings.wait
        return Fact("replicas", value, enough, "" if enough else "start as many as are waited for")
    return Fact(
        "replicas", value, True if replicas == 0 else None,
        "" if replicas == 0 else "a failover may lose what no replica has yet: say ?wait=1",
    )  # fmt: skip


def _replicas(answer: Any) -> int | None:
    if not isinstance(answer, bytes):
        return None
    for line in answer.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name == "connected_slaves" and value.isdecimal():
            return int(value)
    return None


def _pairs(answer: Any) -> dict[str, str]:
    texts = [bytes(each).decode("utf-8", "replace") for each in answer]
    return dict(zip(texts[::2], texts[1::2], strict=False))
