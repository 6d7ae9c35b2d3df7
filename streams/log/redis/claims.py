"""Claims in Redis: a hash a key, ``streams:claims:<name>:<key>``, which the server lets expire.

=============== ===========================================================================
``token``       the owner's, or of whoever completed it
``fingerprint`` of the request
``until``       when the lease is over (ms by the server's clock); absent once completed
``value``       the outcome; absent until then
=============== ===========================================================================

Each request is one script, and a call is one pipeline. All time is the server's. With ``?wait=``
what was written counts once so many replicas have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streams.clock import SYSTEM, Clock
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.claims import (
    GRACE,
    Answer,
    Claim,
    Complete,
    Entry,
    Forget,
    Look,
    Put,
    Release,
    Renew,
    Request,
)
from streams.log.protocol import Opened
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.settings import Settings, read

PREFIX = b"streams:claims:"

CHUNK = 500
"""Requests in one pipeline."""


class RedisClaims:
    """Claims on one server, behind Sentinels, or in a cluster."""

    clock: Clock = SYSTEM
    """Runs like the server's, which alone decides."""
    immediate = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._closed = False

    def run(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order, or why there is none.

        :raises Unavailable: it is closed.
        """
        if self._closed:
            raise Unavailable(f"{self._settings.name}: closed")
        answers: list[Answer | LogError] = []
        for start in range(0, len(requests), CHUNK):
            answers += self._chunk(requests[start : start + CHUNK])
        return answers

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        self._client.close()

    def _chunk(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        commands = [_command(request) for request in requests]
        waits = self._waits(requests) if self._settings.wait else {}
        found = self._client.run_all([*commands, *(wait for wait, _ in waits.values())])
        answers = [
            reply if isinstance(reply, LogError) else _answer(request, reply)
            for request, reply in zip(requests, found, strict=False)
        ]
        for (_, concerned), reply in zip(waits.values(), found[len(requests) :], strict=True):
            if isinstance(reply, LogError) or int(reply) < self._settings.wait:
                for index in concerned:
                    if not isinstance(answers[index], LogError):
                        answers[index] = self._alone(reply)
        return answers

    def _waits(self, requests: Sequence[Request]) -> dict[Any, tuple[Command, list[int]]]:
        """For each server that is written to: its WAIT, and which requests that is for."""
        found: dict[Any, tuple[Command, list[int]]] = {}
        milliseconds = int(self._settings.wait_timeout * 1000)
        for index, request in enumerate(requests):
            if isinstance(request, Look):
                continue
            key = PREFIX + request.key
            try:
                server = self._client.servers.of(key)
            except LogError:
                continue  # the request itself is told so
            if server not in found:
                wait = Command("WAIT", key, "WAIT", self._settings.wait, milliseconds)
                found[server] = (wait, [])
            found[server][1].append(index)
        return found

    def _alone(self, reply: Any) -> LogError:
        if isinstance(reply, LogError):
            return reply
        return OutcomeUnknown(
            f"{self._settings.name}: {int(reply)} of {self._settings.wait} replicas have it after "
            f"{self._settings.wait_timeout:g} s"
        )


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _command(request: Request) -> Command:
    key = PREFIX + request.key
    match request:
        case Claim(_, token, lease, fingerprint):
            times = _milliseconds(lease), _milliseconds(GRACE)
            return scripted("claim", "claim_take", [key], token, *times, fingerprint)
        case Renew(_, token, lease):
            times = _milliseconds(lease), _milliseconds(GRACE)
            return scripted("claim", "claim_renew", [key], token, *times)
        case Complete(_, token, value, ttl):
            return scripted("claim", "claim_done", [key], token, _milliseconds(ttl), value)
        case Release(_, token):
            return scripted("claim", "claim_release", [key], token)
        case Look():
            return scripted("claim", "claim_look", [key])
        case Put(_, value, ttl):
            return scripted("claim", "claim_put", [key], _milliseconds(ttl), value)
        case Forget():
            return Command("claim", key, "DEL", key)


def _answer(request: Request, reply: Any) -> Answer:
    if not isinstance(request, Claim | Look):
        return bool(reply)
    if reply is None:
        return None
    done, fingerprint, value, left = reply
    return Entry(
        bytes(fingerprint).decode("utf-8", "backslashreplace"),
        bytes(value) if done else None,
        int(left) / 1000,
    )


def open_claims(opened: Opened) -> RedisClaims:
    """Claims in Redis. Nothing connects before the first request.

    :raises ConfigError: the URL or a setting cannot be used.
    """
    return RedisClaims(read(opened))
