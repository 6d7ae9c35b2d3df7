"""Claims in Redis: a hash a key, ``streams:claims:<name>:<key>``, which the server lets expire.

=============== ===========================================================================
``token``       the owner's, or that of the owner which completed it
``fingerprint`` of the request
``beat``        how often its owner has renewed it; this and the next two are absent once completed
``lease``       for how long (ms) its owner counts on that
``until``       when the lease seems to end (ms by the server's clock): for people
``value``       the outcome; absent until then
=============== ===========================================================================

Each request is one script, and a call is one pipeline. With ``?wait=`` a write counts once so many
replicas have it.

A server's clock can be set, so it decides about no lease. Whoever finds a claim notes when it saw
it, and takes it once it stood unchanged for its whole length on the finder's own monotonic clock;
the script that takes it compares it with what was seen. Outcomes expire by the server's clock, and
so do claims that nobody has taken for an hour.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from streams.log.protocol import OpenRequest
from streams.log.redis.client import Client, Command, script_command
from streams.log.redis.settings import Settings, read_settings

KEY_PREFIX = b"streams:claims:"

PIPELINE_REQUESTS = 500
"""Requests in one pipeline."""

CLAIM_KEPT = 3_600.0
"""Seconds for which the server keeps a claim whose lease has ended. By its clock: one that is set
forward by less than this takes no claim away from its owner. Who does not wait, in processes that
end sooner than a lease, sees no claim stand for its whole length, and gets the key after this."""

MAX_SIGHTINGS = 65_536
"""Claims of others that are remembered; who forgets one sees it stand for its whole length anew."""

_UNKNOWN_LEASE = 60.0
"""Seconds that a claim is taken to last whose length is not known, where no own one is named."""


class _Sighting(NamedTuple):
    """A claim of somebody else, as it was when it was first seen so."""

    state: tuple[bytes, ...]
    """Its token, beat and ``until``."""
    lease: float
    """Its length in seconds."""
    since: float
    """When that was, at the latest, on the own clock."""

    def left(self, now: float) -> float:
        """Seconds for which it has yet to stand."""
        return self.since + self.lease - now


class _Sightings:
    """The claims of others that this store has found, by key.

    Unlike a group's leases (:class:`~streams.log.membership.StalenessTracker`), time in which the
    server did not answer counts: whoever cannot renew a claim in time interrupts its operation.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, _Sighting] = OrderedDict()

    def over(self, key: bytes, now: float) -> _Sighting | None:
        """The claim under a key, if it stood for its whole length."""
        found = self._found.get(key)
        return found if found is not None and found.left(now) <= 0 else None

    def note(self, key: bytes, sighting: _Sighting) -> _Sighting:
        """Note a claim that was just found; the first sighting of it as it is."""
        known = self._found.get(key)
        if known is not None and known.state == sighting.state:
            sighting = known
        self._found[key] = sighting
        self._found.move_to_end(key)
        if len(self._found) > MAX_SIGHTINGS:
            self._found.popitem(last=False)
        return sighting

    def forget(self, key: bytes) -> None:
        """There is no such claim any more."""
        self._found.pop(key, None)


class RedisClaimStore:
    """Claims on one server, behind Sentinels, or in a cluster."""

    clock: Clock = SYSTEM
    """On which it is seen how long a claim stands."""
    never_blocks = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._sightings = _Sightings()
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
        now = self.clock.monotonic()
        wanted = bool(self._settings.wait_replicas)
        commands = [
            _command(request, self._sightings.over(request.key, now), before_wait=wanted)
            for request in requests
        ]
        waits = self._wait_commands(requests, commands) if wanted else []
        replies = self._client.execute_all([*commands, *(wait for wait, _ in waits)])
        now = self.clock.monotonic()
        answers = [
            reply if isinstance(reply, LogError) else self._answer(request, reply, now)
            for request, reply in zip(requests, replies, strict=False)
        ]
        for (_, concerned), reply in zip(waits, replies[len(requests) :], strict=True):
            failure = self._client.replication_failure(self._settings.name, reply)
            for index in concerned if failure is not None else ():
                if not isinstance(answers[index], LogError):
                    answers[index] = failure
        return answers

    def _answer(self, request: Request, reply: Any, now: float) -> Answer:
        key = request.key
        if not isinstance(request, Claim | GetClaim):
            return bool(reply)
        if reply is None or reply[0]:
            self._sightings.forget(key)
            return None if reply is None else _outcome(*reply[1:])
        _, fingerprint, lease, *state = reply
        own = request.lease if isinstance(request, Claim) else _UNKNOWN_LEASE
        found = _Sighting(tuple(map(bytes, state)), int(lease) / 1000 or own, now)
        left = self._sightings.note(key, found).left(now)
        if left <= 0 and isinstance(request, GetClaim):
            return None
        # One that is over by now is taken when it is asked for again.
        return StoredClaim(_text(fingerprint), None, max(left, 0.001))

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


def _command(request: Request, over: _Sighting | None, *, before_wait: bool) -> Command:
    """The script that does it.

    :param over: the claim under its key, if it was seen to be over.
    """
    key, kept = KEY_PREFIX + request.key, _milliseconds(CLAIM_KEPT)
    args: tuple[Any, ...] = ()
    match request:
        case Claim(_, token, lease, fingerprint):
            name, args = "claim_take", (token, _milliseconds(lease), kept, fingerprint)
            args += over.state if over is not None else ()
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
