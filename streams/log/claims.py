"""Claims: who may do a thing that is to be done once, and what came of it.

A log's servers can also keep *claims*. Under a key stands nothing, a claim (somebody works on it,
until its lease ends), or an outcome (bytes, until their time is over). :class:`ClaimStore` is what
a log's package implements, in its module ``claims``; Kafka has no such thing.

Rules every implementation keeps (``tests/patterns/test_idempotency_claims.py``):

* **One request is atomic**, whoever else asks at the same time, in whatever process. Requests of
  one call are done in order as far as they concern the same key.
* **A claim is known by its token**, which its owner makes up. Renewing, completing and releasing
  name the token and are refused once another one has the key. Asking the same thing again under
  the same token is harmless, so a request whose answer was lost may be repeated.
* **A lease is over when its time has passed**: then whoever asks next gets the claim. Until
  somebody does, the former owner may still renew it or complete it: nobody else has begun, and an
  outcome that is known is better than work done twice. After :data:`CLAIM_GRACE` it is forgotten.
* **What is over is removed** by the implementation itself.

Requests are handed over many at a time, so that they share a transaction or a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from streams.clock import Clock
from streams.errors import LogError

__all__ = [
    "CLAIM_GRACE",
    "Claim",
    "ClaimStore",
    "Complete",
    "DeleteClaim",
    "GetClaim",
    "PutOutcome",
    "Release",
    "Renew",
    "Request",
    "StoredClaim",
]

CLAIM_GRACE = 600.0
"""Seconds for which a claim whose lease is over is still known to its owner, if nobody takes it."""


class Claim(NamedTuple):
    """Take the key for ``lease`` seconds. Answer: None, it is yours; else what stands there."""

    key: bytes
    token: str
    lease: float
    fingerprint: str = ""


class Renew(NamedTuple):
    """From now on for ``lease`` seconds more. Answer: whether it was still yours; what you have
    completed is, and stays as it is (a completion's answer may have been lost)."""

    key: bytes
    token: str
    lease: float


class Complete(NamedTuple):
    """Put the outcome in the claim's place for ``ttl`` seconds. Answer: whether it was yours."""

    key: bytes
    token: str
    value: bytes
    ttl: float


class Release(NamedTuple):
    """Give the key back without an outcome. Answer: whether it was yours."""

    key: bytes
    token: str


class GetClaim(NamedTuple):
    """What stands there. Answer: an :class:`StoredClaim`, or None."""

    key: bytes


class PutOutcome(NamedTuple):
    """Put an outcome there for ``ttl`` seconds, whatever it replaces. Answer: True."""

    key: bytes
    value: bytes
    ttl: float


class DeleteClaim(NamedTuple):
    """Remove what stands there. Answer: whether anything did."""

    key: bytes


Request = Claim | Renew | Complete | Release | GetClaim | PutOutcome | DeleteClaim


class StoredClaim(NamedTuple):
    """What stands under a key.

    :param fingerprint: of the request, as its claim named it; empty if it named none.
    :param value: the outcome, None while somebody works on it.
    :param expires_in: seconds until the lease is over, or the outcome is forgotten.
    """

    fingerprint: str
    value: bytes | None
    expires_in: float


Answer = StoredClaim | bool | None


class ClaimStore(Protocol):
    """Where claims are kept. Used by one thread at a time; nothing is opened before it is used."""

    @property
    def clock(self) -> Clock:
        """What leases are counted on, or runs like it (a server's clock is the machine's)."""
        ...

    @property
    def never_blocks(self) -> bool:
        """Whether :meth:`execute` never waits for anything, so that an event loop may call it."""
        ...

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order, or why there is none.

        :raises LogError: nothing of it was done.
        """
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


# -- the decision, for the logs that do not leave it to a server -----------------------------------


class ClaimState(NamedTuple):
    """What is kept under a key, as far as a decision depends on it."""

    token: str
    fingerprint: str
    value: bytes | None
    """The outcome, None while somebody works on it."""
    expires_in: float
    """Seconds until the lease is over, or the outcome is forgotten; below 0 where it is."""

    def as_stored_claim(self) -> StoredClaim | None:
        """As others see it."""
        if self.expires_in <= 0:
            return None
        return StoredClaim(self.fingerprint, self.value, self.expires_in)


class WriteClaim(NamedTuple):
    """Keep a claim for ``lease`` seconds, whatever it replaces."""

    token: str
    fingerprint: str
    lease: float


class WriteOutcome(NamedTuple):
    """Keep an outcome for ``ttl`` seconds, whatever it replaces."""

    token: str
    fingerprint: str
    value: bytes
    ttl: float


class DeleteRow(NamedTuple):
    """Keep nothing under the key."""


Write = WriteClaim | WriteOutcome | DeleteRow


def decide(request: Request, state: ClaimState | None) -> tuple[Answer, Write | None]:
    """A request's answer, and what is to be written because of it.

    :param state: what is kept under the key; None if there is nothing, or it is forgotten.
    """
    is_owner = state is not None and state.token == getattr(request, "token", None)
    match request:
        case Claim(_, token, lease, fingerprint):
            found = state.as_stored_claim() if state is not None else None
            if found is not None and (found.value is not None or not is_owner):
                return found, None
            return None, WriteClaim(token, fingerprint, lease)
        case Renew(_, token, lease):
            if state is None or not is_owner:
                return False, None
            write = WriteClaim(token, state.fingerprint, lease) if state.value is None else None
            return True, write
        case Complete(_, token, value, ttl):
            if state is None or not is_owner:
                return False, None
            if state.value is not None:
                return True, None
            return True, WriteOutcome(token, state.fingerprint, value, ttl)
        case Release():
            if state is None or not is_owner or state.value is not None:
                return False, None
            return True, DeleteRow()
        case GetClaim():
            return (state.as_stored_claim() if state is not None else None), None
        case PutOutcome(_, value, ttl):
            return True, WriteOutcome("", "", value, ttl)
        case DeleteClaim():
            return state is not None, DeleteRow()
