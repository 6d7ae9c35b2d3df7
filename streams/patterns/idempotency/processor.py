"""One execution a key, among any number of callers in any number of processes.

How: a caller claims its key in the store. Whoever gets the claim runs the operation, renewing the
claim meanwhile, and puts the outcome in its place; the others wait for that outcome, or take over
when the claim is released (the operation failed) or over (its owner is gone). Callers of one
process first line up among themselves, so that a process asks the store once a key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeForm, TypeVar

from stream_codecs import Codec, CodecError
from streams.errors import (
    ConfigError,
    LogError,
    NotRunning,
    OutcomeUnknown,
    Unavailable,
    config_error,
)
from streams.log.claims import Claim, Complete, Entry, Release
from streams.patterns.idempotency import outcome
from streams.patterns.idempotency.desk import Desk
from streams.patterns.idempotency.errors import ClaimLost, InProgress, KeyReused
from streams.patterns.idempotency.flights import Flight, Flights
from streams.patterns.idempotency.keeping import kept
from streams.patterns.idempotency.store import (
    DAY,
    LEASE,
    IdempotencyStore,
    bind,
    digest,
    new_token,
    seconds,
)
from streams.patterns.operation import call, check, is_plain
from streams.shielding import to_the_end

__all__ = ["IdempotentProcessor"]

T = TypeVar("T", default=Any)

LOOKS = 0.005, 0.25
"""Seconds between two looks at another process's claim, at first and at most."""


class _Stored(NamedTuple):
    """An outcome as it is stored, and the fingerprint of its request."""

    mark: str
    value: bytes


class IdempotentProcessor(Generic[T]):
    """Runs an operation once a key.

    :param store: where outcomes and claims are.
    :param ttl: seconds for which an outcome is remembered.
    :param lease: seconds after which others take over from a process that was killed. It is renewed
        while the operation runs, so it need not be as long as that.
    :param wait: whether callers wait while somebody else works under their key; False: they get
        :class:`InProgress`.
    :param errors: exception types that are outcomes: remembered like a result, and raised for every
        caller as :class:`OperationFailed`. After any other the key is free again, and after a
        :class:`~streams.ConfigError` always.
    :param type: what results are; None, 0 and "" are results like any other. Every caller, the one
        whose operation ran included, gets the result as it was decoded.
    :param codec: how results are written; by default as bytes, text or JSON, as the type is.
    :raises ConfigError: a parameter cannot be.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        ttl: float = DAY,
        *,
        lease: float = LEASE,
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
        self.ttl = seconds("ttl", ttl, ConfigError)
        self.lease = seconds("lease", lease, ConfigError)
        self.wait = wait
        self._errors = _kinds(errors)
        self._bound = bind(type, codec)
        self._flights: Flights[_Stored] = Flights()

    @property
    def _desk(self) -> Desk:
        return self.store.desk  # another one each time that the store is opened

    async def process(
        self,
        key: str,
        operation: Callable[[], Awaitable[T]] | Callable[[], T],
        *,
        fingerprint: object = None,
        wait: bool | None = None,
    ) -> T:
        """The outcome under ``key``: of ``operation``, unless somebody else's was first.

        Cancelled, it cancels the operation and frees the key for the next caller. A plain function
        runs in a worker thread, which cannot be interrupted: its result is stored first.

        :param key: names the operation and its request: ``"charge:order-17"``.
        :param operation: ``async def`` without parameters, a lambda around a call of one, or a
            plain function.
        :param fingerprint: the request, or what of it must be the same under the same key: bytes,
            or what can be written as JSON. A digest of it is stored.
        :param wait: instead of the processor's.
        :raises InProgress: somebody else works on it, and ``wait`` is False.
        :raises InvalidValue: the key or the fingerprint cannot be one.
        :raises KeyReused: the key was used with another fingerprint.
        :raises OperationFailed: it failed with one of ``errors``, or with a result that cannot be
            stored.
        :raises ClaimLost: the claim ended while the operation ran.
        :raises LogError: the store cannot be reached; the operation was not begun.
        """
        check(operation, "process(key, operation)")
        place = self.store.place(key)
        mark = digest(fingerprint)
        patient = self.wait if wait is None else wait
        failed: list[Exception] = []

        async def lead(flight: Flight[_Stored]) -> _Stored:
            flight.mark, flight.running = mark, False
            return await self._lead(key, place, operation, mark, patient, flight, failed)

        flight = self._flights.get(key)
        if flight is not None:
            if _differ(flight.mark, mark):
                raise KeyReused(key)
            if flight.running and not patient:
                raise InProgress(key, self.lease)
        if flight is not None and not patient:
            stored = await lead(Flight())  # the store knows by now whether it has begun
        else:
            stored, _ = await self._flights.join(key, lead)
        if _differ(stored.mark, mark):
            raise KeyReused(key)
        try:
            result: T = outcome.read(key, stored.value, self._bound.decode)
        except Exception as error:
            if failed:
                raise error from failed[0]
            raise
        return result

    async def _lead(
        self,
        key: str,
        place: bytes,
        operation: Callable[[], Any],
        mark: str,
        patient: bool,
        flight: Flight[_Stored],
        failed: list[Exception],
    ) -> _Stored:
        """Claim the key, or wait for what comes of another's claim."""
        token = new_token()
        pause, longest = LOOKS
        while True:
            asked = self._desk.clock.monotonic()
            try:
                there = await self._desk.ask(Claim(place, token, self.lease, mark))
            except NotRunning:
                raise
            except BaseException:
                # Perhaps it was granted, and nobody would know.
                self._desk.tell(Release(place, token))
                raise
            if not isinstance(there, Entry):
                flight.running = True
                work = self._execute(key, place, token, asked, operation, mark, failed)
                return await (to_the_end(work) if is_plain(operation) else work)
            if _differ(there.fingerprint, mark):
                raise KeyReused(key)
            if there.value is not None:
                return _Stored(there.fingerprint, there.value)
            if not patient:
                raise InProgress(key, there.left)
            await asyncio.sleep(min(pause, self._desk.clock.timeout(there.left)))
            pause = min(longest, 2 * pause)

    async def _execute(
        self,
        key: str,
        place: bytes,
        token: str,
        asked: float,
        operation: Callable[[], Any],
        mark: str,
        failed: list[Exception],
    ) -> _Stored:
        """Run the operation under the claim, and store its outcome."""
        async with kept(self._desk, key, place, token, self.lease, asked):
            try:
                result = await call(operation)
            except Exception as error:
                if not isinstance(error, self._errors) or config_error(error) is not None:
                    await self._release(place, token)
                    raise
                failed.append(error)
                value = outcome.failure(error)
            except BaseException:
                # Cancelled: not a moment to wait for an answer.
                self._desk.tell(Release(place, token))
                raise
            else:
                try:
                    value = outcome.result(self._bound.encode(result))
                except CodecError as error:
                    # It has been done, so it must not be done again.
                    failed.append(error)
                    value = outcome.failure(error)
            if not await self._complete(Complete(place, token, value, self.ttl)):
                raise ClaimLost(key, "somebody else has taken it over")
        return _Stored(mark, value)

    async def _complete(self, request: Complete) -> bool:
        """Store an outcome, through an outage as long as the claim lasts (else it is lost)."""
        pause, longest = LOOKS
        while True:
            try:
                return bool(await self._desk.ask(request))
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(pause)
                pause = min(longest, 2 * pause)

    async def _release(self, place: bytes, token: str) -> None:
        try:
            await self._desk.ask(Release(place, token))
        except (LogError, NotRunning):
            return  # then the claim ends with its lease


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _kinds(errors: object) -> tuple[type[Exception], ...]:
    given: tuple[object, ...] = errors if isinstance(errors, tuple) else (errors,)
    kinds: list[type[Exception]] = []
    for kind in given:
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise ConfigError(
                f"IdempotentProcessor(errors=...): a tuple of exception types, not {kind!r}"
            )
        kinds.append(kind)
    return tuple(kinds)
