"""Which relay owns which keys.

The keys are in :data:`~streams.outbox.tables.BUCKETS` buckets, and each bucket has one owner at a
time, so that rows of one key are published by one relay, in their order. Each relay says every few
seconds that it is there: it raises its *beat* in the database. It is dead

* when its beat has stood still for a whole lease, by the clock of whoever looks at it (no clock
  that can be set decides, and none is compared with another one), as that of a process which is
  frozen, or is cut off, does;
* at once when the lock which it holds can be had (PostgreSQL's connection holds one, on SQLite its
  process does): then that has ended, as it does when the process is killed.

Its buckets are then anybody's. Relays that live share them evenly; who has too many gives some up
once nothing of them is on its way. What is read under an ownership asks for it in the same
statement (:meth:`streams.outbox.tables.Dialect.fetch`), and is handed to the log only while this
relay knows by its own clock that nobody can have taken it for dead.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from streams.clock import Clock
from streams.outbox.databases import Database, Transaction
from streams.text import get_logger

logger = get_logger("streams")

MARGIN = 0.8
"""The share of a lease in which a relay trusts that it is not taken for dead."""


@dataclass(slots=True)
class _Seen:
    """A relay's beat, and since when it stands there, by our clock."""

    beat: int
    since: float


class Buckets:
    """The buckets of one relay.

    :param lease: seconds after which a relay that stands still is dead.
    """

    def __init__(self, database: Database, clock: Clock, lease: float) -> None:
        self._database = database
        self._clock = clock
        self.lease = lease
        self.relay = secrets.token_hex(8)
        """This relay's name."""
        self._lock_number = 0
        self.owned: frozenset[int] = frozenset()
        """What may be read; without those that are being given up."""
        self._leaving: set[int] = set()
        self._seen: dict[str, _Seen] = {}
        self._registered = False
        self._valid_until = 0.0

    async def join(self) -> None:
        """Be there, on a new connection."""
        self._registered = False
        self._seen.clear()
        self._forget()
        self._lock_number = secrets.randbits(62)  # another one: the former connection may linger
        await self._database.take_lock(self._lock_number)

    def _forget(self) -> None:
        self.owned = frozenset()
        self._leaving.clear()
        self._valid_until = 0.0

    @property
    def is_certain(self) -> bool:
        """Nobody can have taken this relay for dead."""
        return self._clock.monotonic() < self._valid_until

    async def tick(self, in_flight: Collection[int]) -> None:
        """Say that this relay is there, see who else is, and take or give up buckets.

        :param in_flight: buckets of which something is on its way to the log.
        """
        began, dialect = self._clock.monotonic(), self._database.dialect
        async with self._database.transaction() as transaction:
            await self._database.lock_relays(transaction)
            me = {"relay": self.relay}
            if not self._registered or not await transaction.execute(dialect.beat(), me):
                if self._registered:
                    logger.warning("outbox: this relay was taken for dead, and begins again")
                self._forget()
                await transaction.execute(dialect.leave(), me)
                await transaction.execute(dialect.register(), {**me, "lock": self._lock_number})
            living = 1 + await self._bury(transaction)
            await self._share(transaction, living, in_flight)
        self._registered = True
        self._valid_until = began + self.lease * MARGIN

    async def _bury(self, transaction: Transaction) -> int:
        """Remove the relays that are dead; how many of the others live."""
        now, dialect, living = self._clock.monotonic(), self._database.dialect, 0
        seen: dict[str, _Seen] = {}
        for relay, beat, lock_number in await transaction.execute(
            dialect.others(), {"relay": self.relay}
        ):
            if not _is_relay(relay, beat, lock_number):
                continue
            known = self._seen.get(relay)
            if known is None or known.beat != beat:
                known = _Seen(beat, now)
            stands_still = now - known.since >= self.lease
            if stands_still or await self._database.is_gone(transaction, lock_number):
                dead = {"relay": relay, "beat": beat}
                if await transaction.execute(dialect.remove_relay(), dead):
                    why = "stands still" if stands_still else "has ended"
                    logger.info("outbox: relay %s %s; its keys are relayed by others", relay, why)
                    continue
            seen[relay] = known
            living += 1
        self._seen = seen
        return living

    async def _share(
        self, transaction: Transaction, living: int, in_flight: Collection[int]
    ) -> None:
        dialect = self._database.dialect
        owners: dict[int, str] = dict(await transaction.execute(dialect.owners()))
        share = -(-len(owners) // living)
        mine = sorted(bucket for bucket, owner in owners.items() if owner == self.relay)
        free = [
            bucket
            for bucket, owner in owners.items()
            if owner != self.relay and owner not in self._seen
        ]
        taken = free[: max(0, share - len(mine))]
        if taken:
            await transaction.execute(
                dialect.own(), {"owner": self.relay, "buckets": dialect.list_parameter(taken)}
            )
        self._leaving = set(mine[share:])
        given_up = sorted(self._leaving - set(in_flight))
        if given_up:
            await transaction.execute(
                dialect.own(), {"owner": None, "buckets": dialect.list_parameter(given_up)}
            )
        self.owned = frozenset(mine[:share]) | frozenset(taken)

    async def leave(self) -> None:
        """Give everything up, in order."""
        self._forget()
        if self._registered:
            self._registered = False
            await self._database.execute(self._database.dialect.leave(), {"relay": self.relay})


def _is_relay(relay: object, beat: object, lock_number: object) -> bool:
    """Whether a relay wrote this row: SQLite keeps whatever anybody writes there."""
    is_name = isinstance(relay, str) and relay.isascii()
    return is_name and isinstance(beat, int) and isinstance(lock_number, int)
