"""The rivals of :mod:`benchmarks.aggregates`: the least that a program must do to keep histories by
itself.

An event is appended if its history is as long as the program expects, and the deciding code has the
state of each account at hand. There is nothing else: no events of other types or of former ones, no
causes, no snapshots, no readers of the whole, no answer for an append without a reply. On SQLite
the loop is not asynchronous, so that it waits for no thread; it blocks the rest of its program.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any
from uuid import uuid4

import apsw
import msgspec
from redis.asyncio import Redis

from benchmarks.aggregates import (
    AT_ONCE,
    Account,
    AccountEvent,
    Opened,
    account_id,
    deposit,
    evolve,
    timed,
)
from benchmarks.ours import Answer, run

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AccountEvent).decode

FIRST = Account("ada")
"""Each account's state when it was opened."""


def _fold(values: Iterable[Any]) -> Account:
    return reduce(evolve, map(_decode, values), Account())


# -- SQLite ----------------------------------------------------------------------------------------

_CREATE = """
CREATE TABLE events (key TEXT, version INTEGER, id TEXT, value BLOB, PRIMARY KEY (key, version))
WITHOUT ROWID
"""
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?)"
_SELECT = "SELECT value FROM events WHERE key = ? ORDER BY version"


@contextmanager
def _file(folder: str) -> Iterator[apsw.Connection]:
    """A new file, with the durability of ours."""
    with (
        tempfile.TemporaryDirectory(dir=folder or None) as place,
        closing(apsw.Connection(str(Path(place, "by-hand.db")))) as db,
    ):
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(_CREATE)
        yield db


def _fill(db: apsw.Connection, accounts: int, events: int) -> None:
    with db:
        for number in range(accounts):
            key = account_id(number)
            made = [Opened("ada"), *[deposit(FIRST, 5)] * (events - 1)]
            for version, event in enumerate(made, 1):
                db.execute(_INSERT, (key, version, uuid4().hex, _encode(event)))


def decide_in_sqlite(folder: str, accounts: int, decisions: int) -> Answer:
    """Deposit, one after the other: the table refuses a second event of the same version."""
    with _file(folder) as db:
        _fill(db, accounts, 1)
        states = [(FIRST, 1)] * accounts
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(decisions):
            at = number % accounts
            state, version = states[at]
            event = deposit(state, 5)
            db.execute(_INSERT, (account_id(at), version + 1, uuid4().hex, _encode(event)))
            states[at] = evolve(state, event), version + 1
        return timed(decisions, (), began, cpu)


def load_from_sqlite(folder: str, accounts: int, events: int, loads: int) -> Answer:
    """Read and fold accounts of ``events`` events, one after the other."""
    with _file(folder) as db:
        _fill(db, accounts, events)
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(loads):
            values = db.execute(_SELECT, (account_id(number % accounts),)).fetchall()
            _fold(value for (value,) in values)
        return timed(loads, (), began, cpu)


# -- Redis -----------------------------------------------------------------------------------------

_APPEND = """
if redis.call('LLEN', KEYS[2]) ~= tonumber(ARGV[1]) then return false end
local entry = redis.call('XADD', KEYS[1], '*', 'id', ARGV[2], 'key', ARGV[3], 'value', ARGV[4])
redis.call('RPUSH', KEYS[2], entry)
return entry
"""

_READ = """
local entries = {}
for place, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  entries[place] = redis.call('XRANGE', KEYS[1], entry, entry)[1]
end
return entries
"""


class _Bank:
    """Histories in a stream: each key has a list with the entry IDs of its events."""

    def __init__(self, redis: Redis, append: str, read: str) -> None:
        self._redis = redis
        self._append = append
        self._read = read
        self._name = f"by-hand-{uuid4().hex}"

    def arguments(self, at: int, version: int, event: AccountEvent) -> tuple[Any, ...]:
        """The arguments of an append."""
        key = account_id(at)
        names = self._name, f"{self._name}:{key}"
        return self._append, 2, *names, version, uuid4().hex, key, _encode(event)

    async def append(self, at: int, version: int, event: AccountEvent) -> None:
        """Append an event to a history of ``version`` events."""
        if not await self._redis.evalsha(*self.arguments(at, version, event)):
            raise RuntimeError("somebody else has appended")

    async def load(self, at: int) -> Account:
        """The state of an account."""
        names = self._name, f"{self._name}:{account_id(at)}"
        entries = await self._redis.evalsha(self._read, 2, *names)
        return _fold(fields[5] for _, fields in entries)

    async def fill(self, accounts: int, events: int) -> None:
        """Open accounts with ``events`` events each."""
        for start in range(0, accounts * events, AT_ONCE):
            chosen: list[tuple[int, int, AccountEvent]] = []
            for number in range(start, min(start + AT_ONCE, accounts * events)):
                version, at = divmod(number, accounts)
                chosen.append((at, version, deposit(FIRST, 5) if version else Opened("ada")))
            await self.append_together(chosen)

    async def append_together(self, events: list[tuple[int, int, AccountEvent]]) -> None:
        """Append many events in one pipeline."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for each in events:
            pipeline.evalsha(*self.arguments(*each))
        if not all(await pipeline.execute()):
            raise RuntimeError("somebody else has appended")


def _on_redis(url: str, measure: Callable[[_Bank], Awaitable[Answer]]) -> Answer:
    async def main() -> Answer:
        async with Redis.from_url(url) as redis:
            scripts = [await redis.script_load(script) for script in (_APPEND, _READ)]
            return await measure(_Bank(redis, *scripts))

    answer: Answer = run(main)
    return answer


def decide_in_redis(url: str, accounts: int, decisions: int, *, at_once: bool = False) -> Answer:
    """Deposit, one after the other or a thousand in one pipeline: a script compares the length."""

    async def measure(bank: _Bank) -> Answer:
        await bank.fill(accounts, 1)
        states = [(FIRST, 1)] * accounts

        def decided(at: int) -> tuple[int, int, AccountEvent]:
            state, version = states[at]
            event = deposit(state, 5)
            states[at] = evolve(state, event), version + 1
            return at, version, event

        began, cpu = time.perf_counter(), time.process_time()
        if at_once:
            for start in range(0, decisions, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, decisions))
                await bank.append_together([decided(number % accounts) for number in numbers])
        else:
            for number in range(decisions):
                await bank.append(*decided(number % accounts))
        return timed(decisions, (), began, cpu)

    return _on_redis(url, measure)


def load_from_redis(url: str, accounts: int, events: int, loads: int) -> Answer:
    """Read and fold accounts of ``events`` events, one after the other."""

    async def measure(bank: _Bank) -> Answer:
        await bank.fill(accounts, events)
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(loads):
            await bank.load(number % accounts)
        return timed(loads, (), began, cpu)

    return _on_redis(url, measure)


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task
    for task in (decide_in_sqlite, load_from_sqlite, decide_in_redis, load_from_redis)
}
