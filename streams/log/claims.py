"""Claims: which caller may do an operation that is to be done once, and what its outcome was.

A log's servers can also keep *claims*. A key has nothing, a claim (its owner is working, until the
lease ends), or an outcome (bytes, until they expire). A log's package implements
:class:`ClaimStore` in its module ``claims``; Kafka has no claims.

Rules every implementation keeps (``tests/patterns/test_idempotency_claims.py``):

* **A request is atomic** across threads and processes. Requests of one call that concern the same
  key are done in order.
* **A claim is identified by its token**, which its owner generates. Renewing, completing and
  releasing name the token and are refused once another token has the key. Repeating a request under
  the same token is harmless, so one whose answer was lost may be repeated.
* **A lease ends when its time has passed**: then the next caller that claims the key gets it. Until
  that happens the former owner may still renew or complete the claim: no other owner has begun, and
  a known outcome is better than work done twice. After :data:`CLAIM_GRACE` (on Redis after an hour)
  it is forgotten.
* **No clock that can be set ends a lease.** Where claimants share no other clock (Redis), a claim
  is over for a process that has seen it unchanged for its lease's length, by the process's own
  monotonic clock.
* **Expired entries are removed** by the implementation itself.

A call takes many requests, which share a transaction or a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from streams.clock import Clock
from streams.errors import LogError

CLAIM_GRACE = 600.0
"""Seconds for which a claim whose lease has ended is still its owner's, unless it is taken over."""


class Claim(NamedTuple):
    """Take the key for ``lease`` seconds. Answer: None if the key was claimed, else the
    :class:`StoredClaim` that it has."""

    key: bytes
    token: str
    lease: float
    fingerprint: str = ""


class Renew(NamedTuple):
    """Extend the lease to ``lease`` seconds from now. Answer: whether the key still had the
    caller's claim. The caller's completed claim counts as one and stays unchanged (a completion's
    answer may have been lost)."""

    key: bytes
    token: str
    lease: float


class Complete(NamedTuple):
    """Replace the claim by its outcome for ``ttl`` seconds. Answer: whether the key had the
    caller's claim."""

    key: bytes
    token: str
    value: bytes
    ttl: float


class Release(NamedTuple):
    """Give the key back without an outcome. Answer: whether it had the caller's claim."""

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
    """The claim or the outcome of a key.

    :param fingerprint: the fingerprint of the request, which its claim named; empty if it named
        none.
    :param value: the outcome; None while the owner is working on it.
    :param expires_in: seconds until the lease ends, as far as the caller can know, or the outcome
        is forgotten.
    """

    fingerprint: str
    value: bytes | None
    expires_in: float


Answer = StoredClaim | bool | None


class ClaimStore(Protocol):
    """A store of claims (one thread at a time). Nothing is opened before the first use."""

    @property
    def clock(self) -> Clock:
        """The clock by which leases are measured."""
        ...

    @property
    def never_blocks(self) -> bool:
        """Whether :meth:`execute` never waits, so that an event loop may call it."""
        ...

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """The answers to all requests, in order; an error takes the place of a failed one's.

        :raises LogError: nothing of the call was done.
        """
        ...

    def close(self) -> None:
        """Close everything."""
        ...


# -- the decision, for logs whose server does not make it ----------------------------------------


class ClaimState(msgspec.Struct, frozen=True, gc=False):
    """The state of a key. It has no reference cycles, so a million of them cost the garbage
    collector nothing."""

    token: str
    fingerprint: str
    value: bytes | None
    """The outcome; None while the owner is working on it."""
    until: float
    """When the lease ends or the outcome is forgotten, in seconds on the clock of ``now``."""

    def as_stored_claim(self, now: float) -> StoredClaim | None:
        """The state as a claim for callers."""
        if self.until <= now:
            return None
        return StoredClaim(self.fingerprint, self.value, self.until - now)


def decide(
    request: Request, state: ClaimState | None, now: float
) -> tuple[Answer, ClaimState | None]:
    """A request's answer, and the key's state after it: ``state`` itself, if it is unchanged.

    :param state: the state of the key; None if it has none, or the state is forgotten.
    :param now: the time in seconds, on the clock of ``state.until``.
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
