"""eventsourcing: aggregates of one bank's accounts, in its SQLite recorder.

Its file has a write-ahead log and SQLite's default ``synchronous=full``, as ours has, so an event
that was saved is on the disk on both sides. It is synchronous: a thousand decisions at once are
taken one after the other, which is faster there than threads that wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from benchmarks.peers.program import Answer, main

OPENED = 1
"""The first event of every account, beside those that are asked for."""


class Account(Aggregate):
    """The account of ``benchmarks.accounts``, in this toolkit's own manner."""

    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.cents = 0

    @event("Deposited")
    def deposit(self, cents: int) -> None:
        """Add to the balance."""
        self.cents += cents


class Bank(Application[UUID]):
    """Its accounts."""


@contextmanager
def _bank(path: str, *, cached: bool = False) -> Iterator[Bank]:
    env = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}
    if cached:
        env |= {"AGGREGATE_CACHE_MAXSIZE": "10000", "AGGREGATE_CACHE_FASTFORWARD": "n"}
    with Bank(env) as bank:
        yield bank


def _settings(said: str) -> Answer:
    return {
        "settings": {
            "toolkit": f"eventsourcing {version('eventsourcing')}",
            "app": said,
            "file": "journal_mode=WAL, synchronous=FULL, its defaults",
        }
    }


def _open(bank: Bank, accounts: int, events: int) -> list[UUID]:
    """Accounts with so many events each, saved a hundred at a time."""
    found: list[UUID] = []
    pending: list[Account] = []
    for number in range(accounts):
        account = Account(f"owner {number}")
        for _ in range(events - OPENED):
            account.deposit(5)
        found.append(account.id)
        pending.append(account)
        if len(pending) == 100:
            bank.save(*pending)
            pending.clear()
    bank.save(*pending)
    return found


def decide(path: str, accounts: int, decisions: int, *, cached: bool = False) -> Answer:
    """Deposits, one after the other, into each account in turn."""
    with _bank(path, cached=cached) as bank:
        ids = _open(bank, accounts, OPENED)
        for id in ids:
            bank.repository.get(id)
        began = time.perf_counter()
        for number in range(decisions):
            account: Account = bank.repository.get(ids[number % accounts])
            account.deposit(5)
            bank.save(account)
        rate = decisions / (time.perf_counter() - began)
    said = "AGGREGATE_CACHE_MAXSIZE=10000, AGGREGATE_CACHE_FASTFORWARD=n" if cached else "defaults"
    return {"rate": rate, **_settings(said)}


def load(path: str, accounts: int, events: int, loads: int) -> Answer:
    """Accounts of so many events, read and folded one after the other."""
    with _bank(path) as bank:
        ids = _open(bank, accounts, events)
        began = time.perf_counter()
        for number in range(loads):
            bank.repository.get(ids[number % accounts])
        rate = loads / (time.perf_counter() - began)
    return {"rate": rate, **_settings("defaults")}


def replay(path: str, events: int) -> Answer:
    """Every event there is, in the order in which they were saved."""
    with _bank(path) as bank:
        _open(bank, events // 100, 100)
        recorder, mapper = bank.recorder, bank.mapper
        seen, start, began = 0, 0, time.perf_counter()
        while True:
            found = recorder.select_notifications(start, 1_000, inclusive_of_start=False)
            if not found:
                break
            for each in found:
                mapper.to_domain_event(each)
            seen += len(found)
            start = found[-1].id
        rate = seen / (time.perf_counter() - began)
    if seen != events:
        raise RuntimeError(f"{seen} events were read, {events} were saved")
    return {"rate": rate, **_settings("select_notifications(limit=1000), mapper.to_domain_event")}


TASKS: dict[str, Any] = {"decide": decide, "load": load, "replay": replay}

if __name__ == "__main__":
    main(TASKS)
