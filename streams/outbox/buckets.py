"""Shares the keys out among relays.

The keys are in :data:`~streams.outbox.tables.BUCKETS` buckets, and each bucket has one owner at a
time, so that rows of one key are published by one relay, in their order. Each relay sends a
heartbeat every few seconds: it raises its *beat* in the database. It is dead

* when its beat has not changed for a whole lease, by the observer's own clock (no clock that can be
  set decides, and no two clocks are compared), as happens when its process is frozen or cut off;
* at once when the lock that it holds becomes free (a connection holds it on PostgreSQL, the process
  on SQLite): then that has ended, as it does when the process is killed.

Its buckets are then free. Live relays share the buckets evenly; a relay with too many gives some up
once none of their rows are in flight. The statement that reads rows also checks the ownership
(:meth:`streams.outbox.tables.Dialect.fetch_rows`), and the rows are published only while this relay
knows by its own clock that no other can have taken it for dead, and no statement has failed: a
relay that loses its connection loses the lock, and until it notices, may publish rows that others
publish, too. A relay that was taken for dead registers again, which begins another *term*: rows
that it read in an earlier one are forgotten. A relay that is still registered, however late its
heartbeat, was not taken for dead, and its term goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from streams.clock import Clock
from streams.databases.protocol import Steps
from streams.outbox.databases import RelayDatabase
from streams.outbox.tables import statement
from streams.text import get_logger

logger = get_logger("streams")

MARGIN = 0.8
"""The share of its lease for which a relay relies on owning its buckets."""


@dataclass(slots=True)
class _SeenHeartbeat:
    """Another relay's heartbeat count, and since when it has not changed, by this relay's clock."""

    beat: int
    since: float


@dataclass(slots=True)
class _RelayScan:
    """The result of one pass over the relays' tables.

    :param registered: whether this pass registered this relay.
    :param was_dead: whether other relays had taken it for dead and removed it.
    :param dead: the relays that were removed as dead, and why.
    :param added: the number of buckets that had no row and got one.
    :param seen: the other live relays.
    :param owned: the buckets that this relay may read.
    """

    registered: bool = False
    was_dead: bool = False
    dead: dict[str, str] = field(default_factory=dict)
    added: int = 0
    seen: dict[str, _SeenHeartbeat] = field(default_factory=dict)
    owned: frozenset[int] = frozenset()


class Buckets:
    """The buckets of one relay.

    :param lease: seconds after which a relay without a heartbeat is dead.
    """

    def __init__(self, database: RelayDatabase, clock: Clock, lease: float) -> None:
        self._database = database
        self._clock = clock
        self.lease = lease
        self.relay = secrets.token_hex(8)
        """This relay's name."""
        self._lock_number = 0
        self.owned: frozenset[int] = frozenset()
        """The buckets that may be read, without those that are being given up."""
        self.term = 0
        """How often this relay has registered."""
        self._seen: dict[str, _SeenHeartbeat] = {}
        self._registered = False
        self._valid_until = 0.0

    async def take_lock(self) -> None:
        """Take a new lock, on a new connection; the next heartbeat registers this relay."""
        self._registered = False
        self._seen.clear()
        self.give_up()
        self._lock_number = secrets.randbits(62)  # a new one: the former connection may linger
        await self._database.take_lock(self._lock_number)

    def give_up(self) -> None:
        """Give up the buckets, which other relays may own from now on."""
        self.owned = frozenset()
        self._valid_until = 0.0

    @property
    def is_certain(self) -> bool:
        """Whether no other relay can have taken this one for dead since its last heartbeat."""
        return self._clock.monotonic() < self._valid_until

    def is_certain_since(self, term: int) -> bool:
        """Whether no other relay can have taken this one for dead since that term began."""
        return term == self.term and self.is_certain

    async def send_heartbeat(self, in_flight: Collection[int]) -> None:
        """Send a heartbeat, find the other live relays, and take or give up buckets.

        :param in_flight: buckets with rows in flight to the log.
        """
        began = self._clock.monotonic()
        found = await self._database.transaction(self._scan_relays(frozenset(in_flight)))
        if found.was_dead:
            logger.warning("outbox: this relay was taken for dead; starting over")
        for name, why in found.dead.items():
            logger.info("outbox: relay %s %s; its keys are relayed by others", name, why)
        if found.added:
            logger.warning(
                "outbox %s: %d buckets of keys were missing, so no relay had those keys: added",
                self._database.dialect.tables.table, found.added,
            )  # fmt: skip
        self._seen = found.seen
        self.owned = found.owned
        self._registered = True
        self.term += found.registered
        self._valid_until = began + self.lease * MARGIN

    def _scan_relays(self, in_flight: Collection[int]) -> Steps[_RelayScan]:
        dialect, found = self._database.dialect, _RelayScan()
        yield from self._database.lock_relays()
        me = {"relay": self.relay}
        is_there = self._registered and bool((yield statement(dialect.send_heartbeat(), me)))
        if not is_there:
            found.registered, found.was_dead = True, self._registered
            yield statement(dialect.leave_relays(), me)
            yield statement(dialect.register_relay(), {**me, "lock": self._lock_number})
        yield from self._remove_dead(found)
        yield from self._balance_buckets(found, in_flight)
        return found

    def _remove_dead(self, found: _RelayScan) -> Steps[None]:
        """Remove the relays that are dead."""
        now, dialect = self._clock.monotonic(), self._database.dialect
        for relay, beat, lock_number in (
            yield statement(dialect.other_relays(), {"relay": self.relay})
        ):
            if not _is_relay(relay, beat, lock_number):
                continue
            known = self._seen.get(relay)
            if known is None or known.beat != beat:
                known = _SeenHeartbeat(beat, now)
            has_ended = yield from self._database.is_gone(lock_number)
            if has_ended or now - known.since >= self.lease:
                dead = {"relay": relay, "beat": beat}
                if (yield statement(dialect.remove_relay(), dead)):
                    found.dead[relay] = "has ended" if has_ended else "stands still"
                    continue
            found.seen[relay] = known

    def _balance_buckets(self, found: _RelayScan, in_flight: Collection[int]) -> Steps[None]:
        """Take or give up buckets, so that all live relays have equally many."""
        dialect = self._database.dialect
        owners: dict[int, str] = dict((yield statement(dialect.bucket_owners())))
        # A copy of the schema alone has no buckets.
        for bucket in set(range(dialect.bucket_count)) - owners.keys():
            yield statement(dialect.add_bucket(), {"bucket": bucket})
            owners[bucket] = ""
            found.added += 1
        share = -(-len(owners) // (1 + len(found.seen)))
        mine = sorted(bucket for bucket, owner in owners.items() if owner == self.relay)
        free = [
            bucket
            for bucket, owner in owners.items()
            if owner != self.relay and owner not in found.seen
        ]
        taken = free[: max(0, share - len(mine))]
        if taken:
            yield statement(
                dialect.set_owner(), {"owner": self.relay, "buckets": dialect.list_parameter(taken)}
            )
        leaving = sorted(set(mine[share:]) - set(in_flight))
        if leaving:
            yield statement(
                dialect.set_owner(), {"owner": None, "buckets": dialect.list_parameter(leaving)}
            )
        found.owned = frozenset(mine[:share]) | frozenset(taken)

    async def leave(self) -> None:
        """Give up the buckets and the registration in an orderly way."""
        self.give_up()
        if self._registered:
            self._registered = False
            await self._database.execute(
                self._database.dialect.leave_relays(), {"relay": self.relay}
            )


def _is_relay(relay: object, beat: object, lock_number: object) -> bool:
    """Whether a relay wrote this row: SQLite accepts values of any type there."""
    is_name = isinstance(relay, str) and relay.isascii()
    return is_name and isinstance(beat, int) and isinstance(lock_number, int)
