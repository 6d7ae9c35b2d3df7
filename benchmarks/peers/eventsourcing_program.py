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

# By name: type checkers run where it is not installed.
application: Any = importlib.import_module("eventsourcing.application")
domain: Any = importlib.import_module("eventsourcing.domain")
persistence: Any = importlib.import_module("eventsourcing.persistence")
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
    """Its accounts."""


CACHE = {"AGGREGATE_CACHE_MAXSIZE": "10000", "AGGREGATE_CACHE_FASTFORWARD": "n"}
"""States are kept, and no events are looked for that another process may have saved."""


@contextmanager
def _bank(folder: str, name: str = "", *, cached: bool = False) -> Iterator[Bank]:
    """A bank in a file; a new one unless it has a name."""
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
    """Accounts with so many events each, saved a hundred at a time."""
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
    """Calls a second, and the CPU time of each."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def of(self, calls: int) -> Answer:
        """What so many calls took."""
        took, used = time.perf_counter() - self._began, time.process_time() - self._cpu
        return {"rate": calls / took, "cpu_us": used / calls * 1e6}


def decide(folder: str, accounts: int, decisions: int, *, cached: bool = False) -> Answer:
    """Deposits, one after the other, into each account in turn."""
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
    """Accounts of so many events, read and folded one after the other."""
    with _bank(folder) as bank:
        ids = _open(bank, accounts, events)
        timing = _Timing()
        for number in range(loads):
            bank.repository.get(ids[number % accounts])
        answer = timing.of(loads)
    return {**answer, **_settings("as it comes")}


def replay(folder: str, accounts: int, events: int) -> Answer:
    """Every event of so many accounts, in the order in which they were saved."""
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
    """A materialised view in this toolkit's own manner: a row an account, changed together with
    the position in the application's sequence."""

    def construct_create_table_statements(self) -> list[str]:
        """Its table, beside that of the positions."""
        statements: list[str] = super().construct_create_table_statements()
        columns = "id TEXT PRIMARY KEY, owner TEXT, cents INTEGER, reference TEXT"
        return [*statements, f"CREATE TABLE IF NOT EXISTS balances ({columns}) WITHOUT ROWID"]

    def take(self, found: Any, tracking: Any) -> None:
        """Change a row by an event."""
        with self.datastore.transaction(commit=True) as cursor:
            if hasattr(found, "owner"):
                cursor.execute(
                    "INSERT INTO balances VALUES (?, ?, 0, '')",
                    (str(found.originator_id), found.owner),
                )
            else:
                cursor.execute(
                    "UPDATE balances SET cents = cents + ?, reference = ? WHERE id = ?",
                    (found.cents, found.reference, str(found.originator_id)),
                )
            self._insert_tracking(cursor, tracking)


def project(folder: str, accounts: int, events: int) -> Answer:
    """A projection of every event into a new table, as far as a few seconds reach: its rate does
    not depend on how many there are."""
    with _bank(folder, f"{accounts}-of-{events}") as bank:
        recorder, mapper = bank.recorder, bank.mapper
        if not recorder.max_notification_id():
            _open(bank, accounts, events)
        datastore = sqlite.SQLiteDatastore(f"{folder}/{uuid4().hex}-balances.db")
        view = Balances(datastore)
        view.create_table()
        seen, last, timing = 0, 0, _Timing()
        while seen < MOST_PROJECTED and (
            found := recorder.select_notifications(last, 1_000, inclusive_of_start=False)
        ):
            for each in found:
                view.take(mapper.to_domain_event(each), persistence.Tracking(bank.name, each.id))
            seen += len(found)
            last = found[-1].id
        answer = timing.of(seen)
        datastore.close()
    return {**answer, **_settings("SQLiteTrackingRecorder, a transaction an event, as it comes")}


MOST_PROJECTED = 20_000
"""Events that one projection takes in, at most."""

TASKS: dict[str, Callable[..., Answer]] = {
    "decide": decide, "load": load, "replay": replay, "project": project
}  # fmt: skip

if __name__ == "__main__":
    main(TASKS)
