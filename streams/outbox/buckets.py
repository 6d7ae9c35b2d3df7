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
relay knows by its own clock that nobody can have taken it for dead, or until a statement fails: who
loses its connection loses the lock, and may send until it notices what others send, too. A relay
that was taken for dead registers again, which begins another *term*: what it read in a former one
is forgotten. One that finds itself registered still, however late, was not taken for dead, and its
term goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from streams.clock import Clock
from streams.databases.protocol import Steps
from streams.outbox.databases import Database
from streams.outbox.tables import statement
from streams.text import get_logger

logger = get_logger("streams")

MARGIN = 0.8
"""The share of its lease for which a relay relies on owning its buckets."""


@dataclass(slots=True)
class _Seen:
    """Another relay's heartbeat count, and since when it has not changed, by our clock."""

    beat: int
    since: float


@dataclass(slots=True)
class _Found:
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
    seen: dict[str, _Seen] = field(default_factory=dict)
    owned: frozenset[int] = frozenset()


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
        self.term = 0
        """How often this relay has registered."""
        self._seen: dict[str, _Seen] = {}
        self._registered = False
        self._valid_until = 0.0

    async def join(self) -> None:
        """Be there, on a new connection."""
        self._registered = False
        self._seen.clear()
        self.forget()
        self._lock_number = secrets.randbits(62)  # another one: the former connection may linger
        await self._database.take_lock(self._lock_number)

    def forget(self) -> None:
        """Others may have the buckets from now on."""
        self.owned = frozenset()
        self._valid_until = 0.0

    @property
    def is_certain(self) -> bool:
        """Nobody can have taken this relay for dead since it has said last that it is there."""
        return self._clock.monotonic() < self._valid_until

    def holds(self, term: int) -> bool:
        """Nobody can have taken this relay for dead since that term began."""
        return term == self.term and self.is_certain

    async def tick(self, in_flight: Collection[int]) -> None:
        """Say that this relay is there, see who else is, and take or give up buckets.

        :param in_flight: buckets of which something is on its way to the log.
        """
        began = self._clock.monotonic()
        found = await self._database.transaction(self._look(frozenset(in_flight)))
        if found.was_dead:
            logger.warning("outbox: this relay was taken for dead, and begins again")
        for name, why in found.dead.items():
            logger.info("outbox: relay %s %s; its keys are relayed by others", name, why)
        if found.added:
            logger.warning(
                "outbox %s: %d buckets of keys were missing, and nobody relayed those keys: added",
                self._database.dialect.tables.table, found.added,
            )  # fmt: skip
        self._seen = found.seen
        self.owned = found.owned
        self._registered = True
        self.term += found.registered
        self._valid_until = began + self.lease * MARGIN

    def _look(self, in_flight: Collection[int]) -> Steps[_Found]:
        dialect, found = self._database.dialect, _Found()
        yield from self._database.lock_relays()
        me = {"relay": self.relay}
        is_there = self._registered and bool((yield statement(dialect.beat(), me)))
        if not is_there:
            found.registered, found.was_dead = True, self._registered
            yield statement(dialect.leave(), me)
            yield statement(dialect.register(), {**me, "lock": self._lock_number})
        yield from self._remove_dead(found)
        yield from self._share(found, in_flight)
        return found

    def _remove_dead(self, found: _Found) -> Steps[None]:
        """Remove the relays that are dead."""
        now, dialect = self._clock.monotonic(), self._database.dialect
        for relay, beat, lock_number in (yield statement(dialect.others(), {"relay": self.relay})):
            if not _is_relay(relay, beat, lock_number):
                continue
            known = self._seen.get(relay)
            if known is None or known.beat != beat:
                known = _Seen(beat, now)
            has_ended = yield from self._database.is_gone(lock_number)
            if has_ended or now - known.since >= self.lease:
                dead = {"relay": relay, "beat": beat}
                if (yield statement(dialect.remove_relay(), dead)):
                    found.dead[relay] = "has ended" if has_ended else "stands still"
                    continue
            found.seen[relay] = known

    def _share(self, found: _Found, in_flight: Collection[int]) -> Steps[None]:
        """Take or give up buckets, so that all who live have as many."""
        dialect = self._database.dialect
        owners: dict[int, str] = dict((yield statement(dialect.owners())))
        # A copy of the schema alone has none.
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
                dialect.own(), {"owner": self.relay, "buckets": dialect.list_parameter(taken)}
            )
        leaving = sorted(set(mine[share:]) - set(in_flight))
        if leaving:
            yield statement(
                dialect.own(), {"owner": None, "buckets": dialect.list_parameter(leaving)}
            )
        found.owned = frozenset(mine[:share]) | frozenset(taken)

    async def leave(self) -> None:
        """Give everything up, in order."""
        self.forget()
        if self._registered:
            self._registered = False
            await self._database.execute(self._database.dialect.leave(), {"relay": self.relay})


def _is_relay(relay: object, beat: object, lock_number: object) -> bool:
    """Whether a relay wrote this row: SQLite keeps whatever anybody writes there."""
    is_name = isinstance(relay, str) and relay.isascii()
    return is_name and isinstance(beat, int) and isinstance(lock_number, int)
