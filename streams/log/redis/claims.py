"""Claims in Redis: a hash a key, ``streams:claims:<name>:<key>``, which the server lets expire.

=============== ===========================================================================
``token``       the owner's, or that of the owner which completed it
``fingerprint`` of the request
``until``       when the lease ends (ms by the server's clock); absent once completed
``value``       the outcome; absent until then
=============== ===========================================================================

Each request is one script, and a call is one pipeline. All time is the server's. With ``?wait=``
a write counts once so many replicas have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streams.clock import SYSTEM, Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
    CLAIM_GRACE,
    Answer,
    Claim,
    Complete,
    DeleteClaim,
    GetClaim,
    PutOutcome,
    Release,
    Renew,
    Request,
    StoredClaim,
)
from streams.log.protocol import OpenRequest
from streams.log.redis.client import Client, Command, script_command
from streams.log.redis.settings import Settings, read_settings

KEY_PREFIX = b"streams:claims:"

PIPELINE_REQUESTS = 500
"""Requests in one pipeline."""


class RedisClaimStore:
    """Claims on one server, behind Sentinels, or in a cluster."""

    clock: Clock = SYSTEM
    """Runs at the rate of the server's, which alone decides."""
    never_blocks = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._closed = False

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """See :meth:`streams.log.claims.ClaimStore.execute`."""
        if self._closed:
            raise Unavailable(f"{self._settings.name}: closed")
        answers: list[Answer | LogError] = []
        for start in range(0, len(requests), PIPELINE_REQUESTS):
            answers += self._execute_chunk(requests[start : start + PIPELINE_REQUESTS])
        return answers

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._client.close()

    def _execute_chunk(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        wanted = bool(self._settings.wait_replicas)
        commands = [_command(request, before_wait=wanted) for request in requests]
        waits = self._wait_commands(requests, commands) if wanted else []
        replies = self._client.execute_all([*commands, *(wait for wait, _ in waits)])
        answers = [
            reply if isinstance(reply, LogError) else _answer(request, reply)
            for request, reply in zip(requests, replies, strict=False)
        ]
        for (_, concerned), reply in zip(waits, replies[len(requests) :], strict=True):
            failure = self._client.replication_failure(self._settings.name, reply)
            for index in concerned if failure is not None else ():
                if not isinstance(answers[index], LogError):
                    answers[index] = failure
        return answers

    def _wait_commands(
        self, requests: Sequence[Request], commands: Sequence[Command]
    ) -> list[tuple[Command, list[int]]]:
        """The WAIT of each server that is written to, and which requests it is for."""
        keys: dict[Any, bytes] = {}
        concerned: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            if isinstance(request, GetClaim):
                continue
            key = KEY_PREFIX + request.key
            try:
                server = self._client.servers.address_of(key)
            except LogError:
                continue  # the request itself fails, too
            keys.setdefault(server, key)
            concerned.setdefault(server, []).append(index)
        return [
            (self._client.wait_command("WAIT", key, [commands[each] for each in indexes]), indexes)
            for key, indexes in zip(keys.values(), concerned.values(), strict=True)
        ]


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _command(request: Request, *, before_wait: bool) -> Command:
    key, grace = KEY_PREFIX + request.key, _milliseconds(CLAIM_GRACE)
    args: tuple[Any, ...] = ()
    match request:
        case Claim(_, token, lease, fingerprint):
            name, args = "claim_take", (token, _milliseconds(lease), grace, fingerprint)
        case Renew(_, token, lease):
            name, args = "claim_renew", (token, _milliseconds(lease), grace)
        case Complete(_, token, value, ttl):
            name, args = "claim_complete", (token, _milliseconds(ttl), value)
        case Release(_, token):
            name, args = "claim_release", (token,)
        case GetClaim():
            name = "claim_get"
        case PutOutcome(_, value, ttl):
            name, args = "claim_put", (_milliseconds(ttl), value)
        case DeleteClaim():
            return Command("claim", key, "DEL", key)
    return script_command("claim", name, [key], *args, before_wait=before_wait)


def _answer(request: Request, reply: Any) -> Answer:
    if not isinstance(request, Claim | GetClaim):
        return bool(reply)
    if reply is None:
        return None
    is_outcome, fingerprint, value, remaining = reply
    return StoredClaim(
        bytes(fingerprint).decode("utf-8", "backslashreplace"),
        bytes(value) if is_outcome else None,
        int(remaining) / 1000,
    )


def open_claims(request: OpenRequest) -> RedisClaimStore:
    """Claims in Redis. Nothing connects before the first request.

    :raises ConfigError: the URL or a setting cannot be used.
    """
    return RedisClaimStore(read_settings(request))
