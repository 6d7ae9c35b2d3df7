"""Claims: who may do a thing that is to be done once, and what its outcome was.

A log's servers can also keep *claims*. A key has nothing, a claim (somebody works on it, until the
lease ends), or an outcome (bytes, until they expire). A log's package implements
:class:`ClaimStore` in its module ``claims``; Kafka has no such thing.

Rules every implementation keeps (``tests/patterns/test_idempotency_claims.py``):

* **A request is atomic** across threads and processes. Requests of one call that concern the same
  key are done in order.
* **A claim is known by its token**, which its owner makes up. Renewing, completing and releasing
  name the token and are refused once another one has the key. Repeating a request under the same
  token is harmless, so one whose answer was lost may be repeated.
* **A lease ends when its time has passed**: then the next to claim the key gets it. Until then the
  former owner may still renew or complete it: nobody else has begun, and a known outcome is better
  than work done twice. After :data:`CLAIM_GRACE` (on Redis after an hour) it is forgotten.
* **No clock that can be set ends a lease.** Where claimants share no other (Redis), a claim is over
  for whoever has seen it stand unchanged for its whole length, by its own monotonic clock.
* **Expired entries are removed** by the implementation itself.

Requests come many at a time, so that they share a transaction or a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from streams.clock import Clock
from streams.errors import LogError

CLAIM_GRACE = 600.0
"""Seconds for which a claim whose lease has ended is still its owner's, if nobody takes it."""


class Claim(NamedTuple):
    """Take the key for ``lease`` seconds. Answer: None if it is yours, else what it has."""

    key: bytes
    token: str
    lease: float
    fingerprint: str = ""


class Renew(NamedTuple):
    """Extend the lease to ``lease`` seconds from now. Answer: whether it was still yours. What you
    have completed is, and stays as it is (a completion's answer may have been lost)."""

    key: bytes
    token: str
    lease: float


class Complete(NamedTuple):
    """Replace the claim by its outcome for ``ttl`` seconds. Answer: whether it was yours."""

    key: bytes
    token: str
    value: bytes
    ttl: float


class Release(NamedTuple):
    """Give the key back without an outcome. Answer: whether it was yours."""

    key: bytes
    token: str


class GetClaim(NamedTuple):
    """Look the key up. Answer: a :class:`StoredClaim`, or None."""

    key: bytes


class PutOutcome(NamedTuple):
    """Store an outcome for ``ttl`` seconds, whatever it replaces. Answer: True."""

    key: bytes
    value: bytes
    ttl: float


class DeleteClaim(NamedTuple):
    """Delete the key. Answer: whether it had anything."""

    key: bytes


Request = Claim | Renew | Complete | Release | GetClaim | PutOutcome | DeleteClaim


class StoredClaim(NamedTuple):
    """What a key has.

    :param fingerprint: of the request, as its claim named it; empty if it named none.
    :param value: the outcome, None while somebody works on it.
    :param expires_in: seconds until the lease ends, as far as whoever asks can know, or the outcome
        is forgotten.
    """

    fingerprint: str
    value: bytes | None
    expires_in: float


Answer = StoredClaim | bool | None


class ClaimStore(Protocol):
    """Where claims are kept (one thread at a time). Nothing is opened before the first use."""

    @property
    def clock(self) -> Clock:
        """The clock of leases."""
        ...

    @property
    def never_blocks(self) -> bool:
        """Whether an event loop may call :meth:`execute`, as it never waits for anything."""
        ...

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order, or the error instead of one.

        :raises LogError: nothing of it was done.
        """
        ...

    def close(self) -> None:
        """Close everything."""
        ...


# -- the decision, for logs whose server does not make it ----------------------------------------


class ClaimState(msgspec.Struct, frozen=True, gc=False):
    """What a key has. Without cycles, so a million of them cost the garbage collector nothing."""

    token: str
    fingerprint: str
    value: bytes | None
    """The outcome, None while somebody works on it."""
    until: float
    """When the lease ends, or the outcome is forgotten: seconds, on the clock of ``now``."""

    def as_stored_claim(self, now: float) -> StoredClaim | None:
        """As others see it."""
        if self.until <= now:
            return None
        return StoredClaim(self.fingerprint, self.value, self.until - now)


def decide(
    request: Request, state: ClaimState | None, now: float
) -> tuple[Answer, ClaimState | None]:
    """A request's answer, and what the key has then: ``state`` itself, if that is as it was.

    :param state: what the key has; None if there is nothing, or it is forgotten.
    :param now: in seconds, on the clock of ``state.until``.
    """
    match request:
        case Claim(_, token, lease, fingerprint):
            found = state.as_stored_claim(now) if state is not None else None
            if state is None or found is None or (state.value is None and state.token == token):
                return None, ClaimState(token, fingerprint, None, now + lease)
            return found, state
        case Complete(_, token, value, ttl):
            if state is None or state.token != token:
                return False, state
            if state.value is not None:
                return True, state
            return True, ClaimState(token, state.fingerprint, value, now + ttl)
        case Renew(_, token, lease):
            if state is None or state.token != token:
                return False, state
            if state.value is not None:
                return True, state
            return True, ClaimState(token, state.fingerprint, None, now + lease)
        case Release(_, token):
            if state is None or state.token != token or state.value is not None:
                return False, state
            return True, None
        case GetClaim():
            return (state.as_stored_claim(now) if state is not None else None), state
        case PutOutcome(_, value, ttl):
            return True, ClaimState("", "", value, now + ttl)
        case DeleteClaim():
            return state is not None, None
