"""Logs that have lost what they acknowledged: said as such, and never continued as if nothing was.

After a failover or a power cut a history may end earlier than somebody knows it to, and others may
append until its number is the same again. Whoever decided upon what was lost must be told so.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import redis

from streams import Streams
from streams.eventsourcing import Aggregate, HistoryTruncated, Loaded, Snapshot
from streams.eventsourcing.states import StateLoader
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Appended, Base, EventAppend, EventLog, Head, Refused
from streams.log.names import partition_for
from streams.log.sqlite.log import SqliteLog
from streams.log.url import open_log
from tests.conformance.histories import append_all, event, history, values, versions
from tests.eventsourcing.bank import Account, Closed, Overdrawn, accounts, deposit, open_with
from tests.faults.ground import DURABLE
from tests.faults.proxy import Proxy
from tests.faults.sizes import SEED
from tests.servers.lifetime import Lifetime, until
from tests.servers.redis import Redis

# -- Redis: a replica is promoted that lacks the last writes ---------------------------------------


class Failover(NamedTuple):
    """A primary and its replica, and the address that clients have of whichever is in charge."""

    primary: Redis
    replica: Redis
    proxy: Proxy

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}"

    def catch_up(self) -> None:
        """Wait until the replica has all that the primary has."""
        with self.primary.client() as primary, self.replica.client() as replica:
            until(
                lambda: (
                    replica.info("replication").get("master_link_status") == "up"
                    and offset(replica, "slave_repl_offset")
                    >= offset(primary, "master_repl_offset")
                ),
                60,
                "the replica has everything",
            )

    def split(self) -> None:
        """The replica hears nothing of the primary any more."""
        with self.replica.client() as replica:
            replica.execute_command("REPLICAOF", "NO", "ONE")

    def fail_over(self) -> None:
        """The primary dies; clients find the replica in its place."""
        self.primary.kill()
        self.proxy.turn_to(self.replica.port)


def offset(client: redis.Redis, name: str) -> int:
    facts: Any = client.info("replication")
    return int(facts.get(name, -1))


@pytest.fixture
def servers(lifetime: Lifetime) -> Iterator[Failover]:
    quick = ("--repl-diskless-sync-delay", "0", *DURABLE)
    with Redis(lifetime, options=quick) as primary:
        follow = ("--replicaof", f"127.0.0.1 {primary.port}")
        with Redis(lifetime, options=(*follow, *quick)) as replica, Proxy(primary.port) as proxy:
            yield Failover(primary, replica, proxy)


async def test_a_failover_that_lost_writes_is_told_and_never_forks(
    servers: Failover, caplog: pytest.LogCaptureFixture
) -> None:
    mine, others = Streams(servers.url), Streams(servers.url)
    bank, their_bank = (
        accounts(app, snapshot=Snapshot(every=4), final=Closed) for app in (mine, others)
    )
    ids = ["matches", "shorter", "longer", "gone", "refused", "loaded", "closed"]
    async with mine:
        for id in ids:
            if id != "gone":
                await bank.decide(id, open_with, "ada", 100)
        await bank.decide("untouched", deposit, 7)
        await asyncio.to_thread(servers.catch_up)
        servers.split()
        for id in ids:
            for _ in range(3):
                await bank.decide(id, deposit, 1)  # acknowledged, and lost
        await bank.decide("closed", Account.close)  # the same
        servers.fail_over()
        async with others:
            assert (await their_bank.load("matches")).version == 2
            assert (await their_bank.load("gone")).version == 0
            for id, count in {"matches": 3, "shorter": 1, "longer": 9, "refused": 3}.items():
                for _ in range(count):
                    await their_bank.decide(id, deposit, 50)
            for id in ("matches", "shorter", "longer", "gone"):
                before = await stored(their_bank, id)
                with pytest.raises(HistoryTruncated, match=id):
                    await bank.decide(id, deposit, 1)
                assert await stored(their_bank, id) == before, "nothing was appended"
            # Neither is anybody refused, or told a state, by what is lost.
            with pytest.raises(HistoryTruncated):
                await bank.decide("refused", Account.withdraw, 10_000)
            with pytest.raises(HistoryTruncated):
                await bank.load("loaded")
            with pytest.raises(HistoryTruncated):
                await bank.decide("closed", deposit, 1)
            assert "has lost writes" in caplog.text
            # From then on it goes by what the log has, as the others do.
            assert await bank.load("matches") == Loaded(Account("ada", 250), 5)
            assert (await bank.decide("gone", deposit, 1)).version == 1
            with pytest.raises(Overdrawn):
                await bank.decide("refused", Account.withdraw, 10_000)
            assert (await bank.decide("loaded", Account.withdraw, 100)).version == 3
            assert (await bank.decide("closed", deposit, 1)).version == 3
            assert (await bank.decide("untouched", deposit, 7)).version == 2
            for id in [*ids, "untouched"]:
                assert await bank.load(id) == await their_bank.load(id)
                found = await stored(bank, id)
                assert found == await stored(their_bank, id)
                assert [version for version, _ in found] == list(range(1, len(found) + 1))


async def stored(bank: Aggregate[Any, Account], id: str) -> list[tuple[int, str]]:
    """Versions and IDs of a history."""
    return [(each.version, each.id) async for each in bank.read(id)]


# -- SQLite: the end of the write-ahead log is lost ------------------------------------------------

TOPIC = "accounts.events"
KEYS = [b"account-%d" % number for number in range(5)]

WRITER = """
import sys
from tests.faults.test_lost_histories import write_for_ever
write_for_ever(sys.argv[1])
"""


def write_for_ever(url: str) -> None:
    """Append to histories, and say of each append once it was acknowledged what it was."""
    # Nothing goes from the write-ahead log into the file, as that would be flushed before.
    log, random = open_log(url, config={"wal_autocheckpoint": 0}), Random(SEED)
    assert isinstance(log, EventLog)
    log.create_event_topic(TOPIC, 2)
    bases = dict.fromkeys(KEYS, NO_HISTORY)
    while True:
        chosen = random.sample(KEYS, 3)
        appends = [
            make_append(key, bases[key], [event() for _ in range(random.randrange(1, 5))])
            for key in chosen
        ]
        for key, append, outcome in zip(
            chosen, appends, append_all(log, TOPIC, appends), strict=True
        ):
            assert isinstance(outcome, Appended)
            bases[key] = append.head.base
            version, last_id = bases[key]
            sys.stdout.write(f"{key.decode()} {version} {last_id}\n")
        sys.stdout.flush()


def after_the_cut(place: Path, folder: Path, cut: int) -> str:
    """A copy of the file and its write-ahead log, of which so many bytes had reached the disk."""
    folder.mkdir()
    shutil.copy(place / "log.db", folder / "log.db")
    (folder / "log.db-wal").write_bytes((place / "log.db-wal").read_bytes()[:cut])
    return f"sqlite:///{folder / 'log.db'}?synchronous=normal"


def test_a_power_cut_that_lost_writes_leaves_whole_histories_and_is_told(tmp_path: Path) -> None:
    """With ``synchronous=normal`` the last acknowledged writes may be lost. Wherever the cut is,
    what is left is whole, and who knows of more is told, though the numbers are the same again."""
    place = tmp_path / "before"
    place.mkdir()
    url = f"sqlite:///{place / 'log.db'}?synchronous=normal"
    acknowledged: list[tuple[bytes, Base]] = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if not line.endswith("\n"):
                break  # the kill has cut it off
            key, version, last_id = line.split()
            acknowledged.append((key.encode(), Base(int(version), last_id)))
            if len(acknowledged) == 150:
                writer.send_signal(signal.SIGKILL)
    size = (place / "log.db-wal").stat().st_size
    random = Random(SEED)
    lost = 0
    cuts = [0, size, *(random.randrange(size) for _ in range(8))]
    for number, cut in enumerate(cuts):
        log = open_log(after_the_cut(place, tmp_path / f"cut-{number}", cut))
        assert isinstance(log, SqliteLog)
        try:
            lost += check_after_cut(log, acknowledged, random)
        finally:
            log.close()
    assert lost > 30


def check_after_cut(log: SqliteLog, acknowledged: list[tuple[bytes, Base]], random: Random) -> int:
    """What is there is whole; what was acknowledged is there, or its base is refused as lost. How
    often it was lost."""
    log.create_event_topic(TOPIC, 2)
    by_key = {key: history(log, TOPIC, key) for key in KEYS}
    for key, found in by_key.items():
        assert versions(found) == list(range(1, len(found.events) + 1))
        bases = [NO_HISTORY, *(Base(each.version, each.record.id) for each in found.events)]
        assert found.head == Head(bases[-1])
        ends = {base for each, base in acknowledged if each == key}
        # It ends where an append does: at one that was acknowledged, or the last, which was not.
        assert found.head.base in ends | {NO_HISTORY} or found.head.base.version > max(
            base.version for base in ends
        )
        assert [each.record.id for each in found.events] == plain_ids(log, key)
    lost = 0
    for key, base in acknowledged[:: max(1, len(acknowledged) // 25)]:
        found = by_key[key]
        ids = [each.record.id for each in found.events]
        is_there = len(ids) >= base.version and ids[base.version - 1] == base.last_id
        made = make_append(key, base, [event(b"decided upon what may be lost")])
        if not is_there:
            lost += 1
            grow_to(log, key, base.version, random)
        (outcome,) = append_all(log, TOPIC, [made])
        if is_there:
            # Others may have gone on from there, or it is continued.
            assert isinstance(outcome, Appended) or outcome.reason == "conflict"  # type: ignore[union-attr]
        else:
            assert isinstance(outcome, Refused)
            assert outcome.reason == "truncated"
            assert history(log, TOPIC, key, base).is_truncated
        by_key[key] = history(log, TOPIC, key)
    return lost


def plain_ids(log: SqliteLog, key: bytes) -> list[str]:
    """The IDs of a key's records, as any reader of the topic finds them."""
    partition = partition_for(key, "", 2)
    reader = log.reader(TOPIC, partition, *log.watermarks(TOPIC, partition))
    found: list[str] = []
    try:
        while (batch := reader.read(1_000)) is not None:
            found += [batch.id(n) for n, each in enumerate(batch.keys) if each == key]
    finally:
        reader.close()
    return found


def grow_to(log: EventLog, key: bytes, version: int, random: Random) -> None:
    """Others append until the history is at least so long again; sometimes it is not yet."""
    head = history(log, TOPIC, key).head
    missing = version - head.base.version
    if missing > 0 and random.random() < 0.8:
        append: EventAppend = make_append(key, head.base, [event() for _ in range(missing)])
        (outcome,) = append_all(log, TOPIC, [append])
        assert isinstance(outcome, Appended)
        assert len(values(history(log, TOPIC, key))) == version


def states_of(bank: Aggregate[Any, Account]) -> StateLoader:
    states = bank._runtime._states
    assert states is not None
    return states


async def test_a_file_that_was_put_back_is_told_and_never_forks(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    app, others = Streams(f"sqlite:///{file}"), Streams(f"sqlite:///{file}")
    bank, their_bank = accounts(app), accounts(others)
    async with app:
        for id in ("a", "b", "c"):
            await bank.decide(id, deposit, 1)
    shutil.copy(file, tmp_path / "earlier.db")
    async with app:
        for id in ("a", "b"):
            await bank.decide(id, deposit, 1)
        known = states_of(bank).cache
    shutil.copy(tmp_path / "earlier.db", file)
    async with others:
        await their_bank.decide("a", deposit, 50)
    async with app:
        states_of(bank).cache = known  # as of one that was not closed meanwhile
        for id in ("a", "b"):
            with pytest.raises(HistoryTruncated, match=id):
                await bank.decide(id, deposit, 1)
        assert await bank.load("a") == Loaded(Account("", 51), 2)
        assert (await bank.decide("b", deposit, 1)).version == 2
        assert (await bank.decide("c", deposit, 1)).version == 2
