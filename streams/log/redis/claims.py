"""Claims in Redis: one hash per key, ``streams:claims:<name>:<key>``, which the server expires.

=============== ===========================================================================
``token``       the owner's, or that of the owner which completed the claim
``fingerprint`` of the request
``beat``        how often the owner has renewed it; this and the next two are absent once completed
``lease``       the lease's length (ms), from each renewal
``until``       when the lease should end (ms by the server's clock): only for people to read
``value``       the outcome; absent until then
=============== ===========================================================================

Each request is one script, and a call is one pipeline. With ``?wait=`` a write counts once that
number of replicas has it.

A server's clock can be stepped, so it decides about no lease. A process that finds another's claim
notes when it saw it, and takes it over once it has been unchanged for the lease's length on the
process's own monotonic clock; the script compares the claim with the one that was seen. Outcomes
expire by the server's clock, and so do claims an hour after their lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streams.clock import SYSTEM, Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
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
from streams.log.membership import StalenessTracker
from streams.log.protocol import OpenRequest
from streams.log.redis.client import Client, Command, script_command
from streams.log.redis.settings import Settings, read_settings

KEY_PREFIX = b"streams:claims:"

PIPELINE_REQUESTS = 500
"""Requests in one pipeline."""

CLAIM_KEPT = 3_600.0
"""Seconds for which the server keeps a claim whose lease has ended, by its own clock: stepping that
clock forward by less than this takes no claim from its owner. A process that ends sooner than a
lease never sees a claim unchanged for a whole lease; its key is free again after this time."""

MAX_CLAIMS_SEEN = 65_536
"""Claims of others that are remembered; for a forgotten one the wait for its lease starts over."""

_UNKNOWN_LEASE = 60.0
"""Seconds assumed for the lease of a claim whose length is unknown, where the request names
none."""


class RedisClaimStore:
    """Claims on one server, behind Sentinels, or in a cluster."""

    clock: Clock = SYSTEM
    """Measures how long a claim has been unchanged."""
    never_blocks = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        # All time counts: an owner that cannot renew its claim in time interrupts the operation.
        self._staleness = StalenessTracker(max_rows=MAX_CLAIMS_SEEN)
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
        self._staleness.observe(self.clock.monotonic())
        wanted = bool(self._settings.wait_replicas)
        commands = [
            _command(request, self._staleness.expired(request.key) or (), before_wait=wanted)
            for request in requests
        ]
        waits = self._wait_commands(requests, commands) if wanted else []
        replies = self._client.execute_all([*commands, *(wait for wait, _ in waits)])
        self._staleness.observe(self.clock.monotonic())
        answers = [
            reply if isinstance(reply, LogError) else self._answer(request, reply)
            for request, reply in zip(requests, replies, strict=False)
        ]
        for (_, concerned), reply in zip(waits, replies[len(requests) :], strict=True):
            failure = self._client.replication_failure(self._settings.name, reply)
            for index in concerned if failure is not None else ():
                if not isinstance(answers[index], LogError):
                    answers[index] = failure
        return answers

    def _answer(self, request: Request, reply: Any) -> Answer:
        key = request.key
        if not isinstance(request, Claim | GetClaim):
            return bool(reply)
        if reply is None:
            self._staleness.forget(key)
            return None
        is_over, *stored = reply
        if is_over:
            self._staleness.forget(key)
            return _outcome(*stored)
        fingerprint, lease_ms, *state = stored
        own = request.lease if isinstance(request, Claim) else _UNKNOWN_LEASE
        version = tuple(map(bytes, state))  # its token, beat and ``until``
        left = self._staleness.remaining(key, version, int(lease_ms) / 1000 or own)
        if left <= 0 and isinstance(request, GetClaim):
            return None
        # A claim whose lease is over by now is taken over by the next request for it.
        return StoredClaim(_text(fingerprint), None, max(left, 0.001))

    def _wait_commands(
        self, requests: Sequence[Request], commands: Sequence[Command]
    ) -> list[tuple[Command, list[int]]]:
        """A WAIT for each server that is written to, with the indexes of its requests."""
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


def _command(request: Request, expired: tuple[bytes, ...], *, before_wait: bool) -> Command:
    """The script call for a request.

    :param expired: the claim under the key as it was last seen, if its lease is over; else empty.
    """
    key, kept = KEY_PREFIX + request.key, _milliseconds(CLAIM_KEPT)
    args: tuple[Any, ...] = ()
    match request:
        case Claim(_, token, lease, fingerprint):
            name, args = "claim_take", (token, _milliseconds(lease), kept, fingerprint, *expired)
        case Renew(_, token, lease):
            name, args = "claim_renew", (token, _milliseconds(lease), kept)
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


def _outcome(fingerprint: Any, value: Any, remaining: Any) -> StoredClaim:
    return StoredClaim(_text(fingerprint), bytes(value), int(remaining) / 1000)


def _text(fingerprint: Any) -> str:
    return bytes(fingerprint).decode("utf-8", "backslashreplace")


def open_claims(request: OpenRequest) -> RedisClaimStore:
    """Claims in Redis. Nothing connects before the first request.

    :raises ConfigError: the URL or a setting cannot be used.
    """
    return RedisClaimStore(read_settings(request))
