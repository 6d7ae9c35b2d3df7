"""One execution per key, among any number of callers in any number of processes.

How: a caller claims its key in the store. The caller that gets the claim runs the operation,
renewing the claim meanwhile, and replaces it with the outcome; the others wait for that outcome, or
take over when the claim is released (the operation failed) or has expired (its owner is gone).
Callers of one process first wait for each other, so that a process asks the store once per key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeForm, TypeVar

from stream_codecs import Codec, CodecError
from streams.errors import (
    ConfigError,
    LogError,
    NotRunning,
    OutcomeUnknown,
    Unavailable,
    find_config_error,
)
from streams.log.claims import Claim, Complete, Release, StoredClaim
from streams.patterns.idempotency import outcome
from streams.patterns.idempotency.claim_renewal import renewed_claim
from streams.patterns.idempotency.claims_client import ClaimsClient
from streams.patterns.idempotency.errors import ClaimLost, InProgress, KeyReused
from streams.patterns.idempotency.single_flight import SharedCall, SingleFlight
from streams.patterns.idempotency.store import (
    DAY,
    DEFAULT_LEASE,
    IdempotencyStore,
    bind_codec,
    check_seconds,
    hash_fingerprint,
    new_token,
)
from streams.patterns.operation import await_call, call_operation, check_operation

T = TypeVar("T", default=Any)

POLL_PAUSES = 0.005, 0.25
"""Seconds between two polls of another process's claim, at first and at most."""


class _StoredOutcome(NamedTuple):
    """A stored outcome, and the fingerprint of its request."""

    fingerprint: str
    value: bytes


class _OperationCall(NamedTuple):
    """One call of :meth:`IdempotentProcessor.process`."""

    key: str
    store_key: bytes
    operation: Callable[[], Any]
    fingerprint: str
    """A hash of the request's fingerprint; empty: none was given."""
    waits: bool
    failures: list[Exception]
    """The failure of its operation, if that is its outcome."""


class IdempotentProcessor(Generic[T]):
    """Runs an operation once per key.

    :param store: the store of outcomes and claims.
    :param ttl: seconds for which an outcome is remembered.
    :param lease: seconds after which others take over from a process that was killed. It is renewed
        while the operation runs, so it may be shorter than that.
    :param wait: whether callers wait while another caller works under their key; False: they get
        :class:`InProgress`.
    :param errors: exception types that are outcomes: stored like a result, and raised for every
        caller as :class:`~streams.patterns.OperationFailed`. After any other exception the key is
        free again, and after a :class:`~streams.ConfigError` always.
    :param type: the type of results; None, 0 and "" are results like any other. Every caller, also
        the one that ran the operation, gets the decoded result.
    :param codec: how results are encoded; by default as bytes, text or JSON, depending on the type.
    :raises ConfigError: a parameter is impossible.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        ttl: float = DAY,
        *,
        lease: float = DEFAULT_LEASE,
        wait: bool = True,
        errors: tuple[type[Exception], ...] = (),
        type: TypeForm[T] = Any,
        codec: Codec | None = None,
    ) -> None:
        if not isinstance(store, IdempotencyStore):
            raise ConfigError(
                f"IdempotentProcessor({store!r}): an IdempotencyStore, such as "
                'IdempotencyStore("redis://localhost:6379/0")'
            )
        self.store = store
        self.ttl = check_seconds("ttl", ttl, ConfigError)
        self.lease = check_seconds("lease", lease, ConfigError)
        self.wait = wait
        self._errors = _exception_types(errors)
        self._bound = bind_codec(type, codec)
        self._single_flight: SingleFlight[_StoredOutcome] = SingleFlight()

    @property
    def _client(self) -> ClaimsClient:
        return self.store.client  # it is replaced each time that the store is opened

    async def process(
        self,
        key: str,
        operation: Callable[[], Awaitable[T]] | Callable[[], T],
        *,
        fingerprint: object = None,
        wait: bool | None = None,
    ) -> T:
        """The outcome under ``key``: of ``operation``, unless another caller's was first.

        If this is cancelled, the operation is cancelled and the key is free for the next caller. A
        plain function
        runs in a worker thread, which cannot be interrupted: its result is stored first.

        :param key: names the operation and its request: ``"charge:order-17"``.
        :param operation: ``async def`` without parameters, a lambda around a call of one, or a
            plain function.
        :param fingerprint: the request, or the part of it that must be the same under the same key:
            bytes, or a value that JSON can represent. A digest of it is stored.
        :param wait: overrides the processor's.
        :raises InProgress: another caller works on it, and ``wait`` is False.
        :raises InvalidValue: the key or the fingerprint cannot be one.
        :raises KeyReused: the key was used with another fingerprint.
        :raises OperationFailed: it failed with one of ``errors``, or with a result that cannot be
            stored.
        :raises ClaimLost: the claim ended while the operation ran, or the store refuses the
            outcome.
        :raises LogError: the store cannot be reached, or refuses; the operation was not begun.
        """
        check_operation(operation, "process(key, operation)")
        store_key = self.store.store_key(key)
        fingerprint_hash = hash_fingerprint(fingerprint)
        waits = self.wait if wait is None else wait
        call = _OperationCall(key, store_key, operation, fingerprint_hash, waits, [])

        async def run_as_leader(shared_call: SharedCall[_StoredOutcome]) -> _StoredOutcome:
            shared_call.fingerprint, shared_call.is_running = fingerprint_hash, False
            return await self._claim_or_wait(call, shared_call)

        call_ahead = self._single_flight.get(key)
        if call_ahead is not None:
            if _are_different(call_ahead.fingerprint, fingerprint_hash):
                raise KeyReused(key)
            if call_ahead.is_running and not waits:
                raise InProgress(key, self.lease)
        if call_ahead is not None and not waits:
            # The store knows by now whether it has begun.
            stored = await run_as_leader(SharedCall())
        else:
            stored, _ = await self._single_flight.run(key, run_as_leader)
        if _are_different(stored.fingerprint, fingerprint_hash):
            raise KeyReused(key)
        try:
            result: T = outcome.decode_outcome(key, stored.value, self._bound.decode)
        except Exception as error:
            if call.failures:
                raise error from call.failures[0]
            raise
        return result

    async def _claim_or_wait(
        self, call: _OperationCall, shared_call: SharedCall[_StoredOutcome]
    ) -> _StoredOutcome:
        """Claim the key, or wait for the outcome of another caller's claim."""
        token = new_token()
        claim = Claim(call.store_key, token, self.lease, call.fingerprint)
        pause, longest = POLL_PAUSES
        while True:
            claimed_at = self._client.clock.monotonic()
            try:
                existing = await self._client.send(claim)
            except NotRunning:
                raise
            except BaseException:
                # The claim may have been granted without this caller's knowledge.
                self._client.send_unanswered(Release(call.store_key, token))
                raise
            if not isinstance(existing, StoredClaim):
                shared_call.is_running = True
                return await await_call(call.operation, self._execute(call, token, claimed_at))
            if _are_different(existing.fingerprint, call.fingerprint):
                raise KeyReused(call.key)
            if existing.value is not None:
                return _StoredOutcome(existing.fingerprint, existing.value)
            if not call.waits:
                raise InProgress(call.key, existing.expires_in)
            await asyncio.sleep(min(pause, self._client.clock.real_timeout(existing.expires_in)))
            pause = min(longest, 2 * pause)

    async def _execute(self, call: _OperationCall, token: str, claimed_at: float) -> _StoredOutcome:
        """Run the operation under the claim, and store its outcome."""
        key, store_key, failures = call.key, call.store_key, call.failures
        async with renewed_claim(self._client, key, store_key, token, self.lease, claimed_at):
            try:
                result = await call_operation(call.operation)
            except Exception as error:
                if not isinstance(error, self._errors) or find_config_error(error) is not None:
                    await self._release_claim(store_key, token)
                    raise
                failures.append(error)
                value = outcome.encode_failure(error)
            except BaseException:
                # Cancelled: do not wait for an answer.
                self._client.send_unanswered(Release(store_key, token))
                raise
            else:
                try:
                    value = outcome.encode_result(self._bound.encode(result))
                except CodecError as error:
                    # It has been done, so it must not be done again.
                    failures.append(error)
                    value = outcome.encode_failure(error)
            try:
                is_stored = await self._store_outcome(Complete(store_key, token, value, self.ttl))
            except LogError as error:
                # The operation ran: the error must not say that it was not begun.
                raise ClaimLost(key, f"its outcome cannot be stored: {error}") from error
            if not is_stored:
                raise ClaimLost(key, "another caller has taken it over")
        return _StoredOutcome(call.fingerprint, value)

    async def _store_outcome(self, request: Complete) -> bool:
        """Store an outcome, retrying through an outage while the claim lasts (else it is lost)."""
        pause, longest = POLL_PAUSES
        while True:
            try:
                return bool(await self._client.send(request))
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(pause)
                pause = min(longest, 2 * pause)

    async def _release_claim(self, store_key: bytes, token: str) -> None:
        with suppress(LogError, NotRunning):  # if that fails, the claim ends with its lease
            await self._client.send(Release(store_key, token))


def _are_different(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _exception_types(errors: object) -> tuple[type[Exception], ...]:
    given: tuple[object, ...] = errors if isinstance(errors, tuple) else (errors,)
    kinds: list[type[Exception]] = []
    for kind in given:
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise ConfigError(
                f"IdempotentProcessor(errors=...): a tuple of exception types, not {kind!r}"
            )
        kinds.append(kind)
    return tuple(kinds)
