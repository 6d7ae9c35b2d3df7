"""eventsourcing: aggregates of one bank's accounts, in its SQLite recorder.

Its file has a write-ahead log and SQLite's default ``synchronous=full``, as ours has, so an event
that was saved is on the disk on both sides. It is synchronous: a thousand decisions at once are
taken one after the other, which is faster there than threads that wait for each other.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from uuid import UUID, uuid4

from benchmarks.peers.program import Answer, main

# Imported by name: type checkers run where it is not installed.
application: Any = importlib.import_module("eventsourcing.application")
domain: Any = importlib.import_module("eventsourcing.domain")
projection: Any = importlib.import_module("eventsourcing.projection")
persistence: Any = importlib.import_module("eventsourcing.persistence")
utils: Any = importlib.import_module("eventsourcing.utils")
sqlite: Any = importlib.import_module("eventsourcing.sqlite")
event: Any = domain.event

REFERENCE = "transfer 4711 of the savings plan, standing order 12"


class Account(domain.Aggregate):  # type: ignore[misc]
    """The account of ``benchmarks.aggregates``, in this toolkit's own manner."""

    @event("Opened")  # type: ignore[untyped-decorator]
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.cents = 0
        self.reference = ""

    @event("Deposited")  # type: ignore[untyped-decorator]
    def deposit(self, cents: int, reference: str) -> None:
        """Add to the balance."""
        self.cents += cents
        self.reference = reference


class Bank(application.Application[UUID]):  # type: ignore[misc]
    """The application with the bank's accounts."""


CACHE = {"AGGREGATE_CACHE_MAXSIZE": "10000", "AGGREGATE_CACHE_FASTFORWARD": "n"}
"""States are cached, and events of other processes are not searched for."""


@contextmanager
def _bank(folder: str, name: str = "", *, cached: bool = False) -> Iterator[Bank]:
    """A bank in a file; a new one unless ``name`` is given."""
    path = f"{folder}/{name or uuid4().hex}-eventsourcing.db"
    env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}
    with Bank({**env, **CACHE} if cached else env) as bank:
        yield bank


def _settings(said: str) -> Answer:
    return {
        "settings": {
            "toolkit": f"eventsourcing {version('eventsourcing')}",
            "app": said,
            "file": "journal_mode=WAL, synchronous=FULL, as it comes",
        }
    }


def _open(bank: Bank, accounts: int, events: int) -> list[UUID]:
    """Open accounts with ``events`` events each, saved a hundred at a time."""
    found: list[UUID] = []
    pending: list[Account] = []
    for number in range(accounts):
        account = Account(f"owner {number}")
        for _ in range(events - 1):
            account.deposit(5, REFERENCE)
        found.append(account.id)
        pending.append(account)
        if len(pending) == 100:
            bank.save(*pending)
            pending.clear()
    bank.save(*pending)
    return found


class _Timing:
    """Measures calls per second, and the CPU time of each."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def of(self, calls: int) -> Answer:
        """The figures of a number of calls."""
        took, used = time.perf_counter() - self._began, time.process_time() - self._cpu
        return {"rate": calls / took, "cpu_us": used / calls * 1e6}


def decide(folder: str, accounts: int, decisions: int, *, cached: bool = False) -> Answer:
    """Deposit, one after the other, into each account in turn."""
    with _bank(folder, cached=cached) as bank:
        ids = _open(bank, accounts, 1)
        for id in ids:
            bank.repository.get(id)
        timing = _Timing()
        for number in range(decisions):
            account: Account = bank.repository.get(ids[number % accounts])
            account.deposit(5, REFERENCE)
            bank.save(account)
        answer = timing.of(decisions)
    settings = ", ".join(f"{name}={value}" for name, value in CACHE.items())
    return {**answer, **_settings(settings if cached else "as it comes")}


def load(folder: str, accounts: int, events: int, loads: int) -> Answer:
    """Read and fold accounts of ``events`` events, one after the other."""
    with _bank(folder) as bank:
        ids = _open(bank, accounts, events)
        timing = _Timing()
        for number in range(loads):
            bank.repository.get(ids[number % accounts])
        answer = timing.of(loads)
    return {**answer, **_settings("as it comes")}


def replay(folder: str, accounts: int, events: int) -> Answer:
    """Read every event of all accounts, in the order in which they were saved."""
    with _bank(folder, f"{accounts}-of-{events}") as bank:
        recorder, mapper = bank.recorder, bank.mapper
        if not recorder.max_notification_id():
            _open(bank, accounts, events)
        seen, last, timing = 0, 0, _Timing()
        while found := recorder.select_notifications(last, 1_000, inclusive_of_start=False):
            for each in found:
                mapper.to_domain_event(each)
            seen += len(found)
            last = found[-1].id
        answer = timing.of(seen)
    if seen != accounts * events:
        raise RuntimeError(f"{seen} events were read, {accounts * events} were saved")
    return {**answer, **_settings("select_notifications(limit=1000), mapper.to_domain_event")}


class Balances(sqlite.SQLiteTrackingRecorder):  # type: ignore[misc]
    """A table of documents: the projection's, with its tracking in one transaction."""

    def construct_create_table_statements(self) -> list[str]:
        """The table beside the tracking's."""
        table = "CREATE TABLE IF NOT EXISTS balances"
        columns = "(id TEXT PRIMARY KEY, owner TEXT, cents INTEGER, moves INTEGER)"
        return [*super().construct_create_table_statements(), f"{table} {columns} WITHOUT ROWID"]

    def open(self, id: UUID, owner: str, tracking: Any) -> None:
        """An account was opened."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute("INSERT OR REPLACE INTO balances VALUES (?, ?, 0, 0)", (str(id), owner))

    def add(self, id: UUID, cents: int, tracking: Any) -> None:
        """Money was paid in."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                "UPDATE balances SET cents = cents + ?, moves = moves + 1 WHERE id = ?",
                (cents, str(id)),
            )


class Projection(projection.Projection[Balances]):  # type: ignore[misc]
    """The view of ``benchmarks.views``, in this toolkit's own manner."""

    name = "balances"

    def process_event(self, domain_event: Any, tracking: Any) -> None:
        """An event, by its name."""
        if hasattr(domain_event, "cents"):
            self.view.add(domain_event.originator_id, domain_event.cents, tracking)
        else:
            self.view.open(domain_event.originator_id, domain_event.owner, tracking)


def project(folder: str, accounts: int, events: int) -> Answer:
    """A projection from the beginning: all events of all accounts, into a table of its own.

    Its runner needs a subscription, which the SQLite recorder does not have, so the projection is
    given the application's notifications in their order.
    """
    name = f"{accounts}-of-{events}"
    with _bank(folder, name) as bank:
        recorder, mapper = bank.recorder, bank.mapper
        if not recorder.max_notification_id():
            _open(bank, accounts, events)
        path = f"{folder}/{uuid4().hex}-balances.db"
        env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}
        factory = persistence.InfrastructureFactory.construct(utils.Environment("balances", env))
        found = Projection(factory.tracking_recorder(Balances))
        last, timing = 0, _Timing()
        while page := recorder.select_notifications(last, 1_000, inclusive_of_start=False):
            for each in page:
                tracking = persistence.Tracking(bank.name, each.id)
                found.process_event(mapper.to_domain_event(each), tracking)
            last = page[-1].id
        answer = timing.of(accounts * events)
        factory.close()
    return {**answer, **_settings("Projection, a transaction an event")}


TASKS: dict[str, Callable[..., Answer]] = {
    "decide": decide, "load": load, "replay": replay, "project": project,
}  # fmt: skip

if __name__ == "__main__":
    main(TASKS)
