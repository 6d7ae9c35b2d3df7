"""What only Redis can do to us: everything deleted, groups gone, entries trimmed, memory or disk
full."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis as Client

from streams import Flow, Message, Streams
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.protocol import Assignment, Commit
from streams.log.url import open_log
from streams.message import Position, Record
from tests.faults.load import answers, stored
from tests.faults.run import PARTITIONS, Run
from tests.faults.sizes import on
from tests.servers.lifetime import Lifetime, until
from tests.servers.redis import Redis

QUICK = Flow(commit=0.05)


def client(run: Run) -> Client:
    server = run.ground.server
    assert isinstance(server, Redis)
    return server.client()


def streams_of(run: Run) -> list[bytes]:
    return [b"{%s:%d}" % (run.topic.encode(), number) for number in range(PARTITIONS)]


async def wait_for(over: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, over, 60, what)


@on("redis")
async def test_flushall_is_survived_and_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Streams, leases, positions and the topic's own record are gone at once."""
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes, partitions=PARTITIONS)
    calls: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=QUICK)
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)

    with caplog.at_level(logging.WARNING, logger="streams"), client(run) as plain:
        async with app:
            for number in range(20):
                await topic.publish(b"x", key=f"k{number}", id=f"before{number}")
            await wait_for(run.at_end, "handled and committed")
            plain.flushall()
            for number in range(20):
                await topic.publish(b"x", key=f"k{number}", id=f"after{number}")
            await wait_for(
                lambda: {f"after{number}" for number in range(20)} <= set(calls), "goes on"
            )
            await wait_for(run.at_end, "commits again")
    assert len(set(calls)) == 40
    # The leases are gone too, so what was handled and not yet committed anew may come again.
    assert all(calls.count(f"before{number}") == 1 for number in range(20))
    assert all(calls.count(f"after{number}") <= 2 for number in range(20))
    assert any(record.levelno >= logging.WARNING for record in caplog.records), "nothing was said"


@on("redis")
async def test_the_native_group_is_destroyed(run: Run) -> None:
    """NOGROUP for Redis's own tools; our positions stand beside it, and it is made again."""
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes, partitions=PARTITIONS)
    calls: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=QUICK)
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)

    with client(run) as plain:
        async with app:
            for number in range(20):
                await topic.publish(b"x", key=f"k{number}", id=f"m{number}")
            await wait_for(run.at_end, "handled and committed")
            for stream in streams_of(run):
                plain.xgroup_destroy(stream, run.group)
            for number in range(20, 40):
                await topic.publish(b"x", key=f"k{number}", id=f"m{number}")
            await wait_for(lambda: len(calls) >= 40, "goes on")
            await wait_for(run.at_end, "commits again")
            groups: Any = [plain.xinfo_groups(stream) for stream in streams_of(run)]
    assert len(calls) == len(set(calls)) == 40
    shown = [group for each in groups for group in each]
    assert shown, "no native group was made again"
    assert all(group["lag"] == 0 for group in shown)


@on("redis")
async def test_entries_that_others_trimmed_are_reported(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes, partitions=PARTITIONS)
    calls: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=QUICK)
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)

    async with app:
        await topic.publish(b"x", key="k", id="first")
        await wait_for(run.at_end, "handled and committed")
    async with app.connected():
        where = [await topic.publish(b"x", key="k", id=f"m{number}") for number in range(10)]
        with client(run) as plain:
            plain.xtrim(streams_of(run)[where[0].partition], maxlen=4, approximate=False)
    with caplog.at_level(logging.ERROR, logger="streams"):
        async with app:
            await wait_for(lambda: len(calls) >= 5, "what is left is handled")
            await wait_for(run.at_end, "commits again")
    assert calls == ["first", "m6", "m7", "m8", "m9"]
    assert "deleted before they were" in caplog.text


@on("redis")
async def test_memory_is_full(run: Run) -> None:
    """No false acknowledgement; a group goes on; publishing goes on once there is room."""
    app = Streams(run.ground.direct)
    topic = app.topic(run.topic, bytes, partitions=PARTITIONS)
    calls: list[str] = []

    @app.processor(topic, group=run.group, concurrency=8, flow=QUICK)
    async def work(value: bytes, message: Message[bytes]) -> None:
        calls.append(message.id)

    acknowledged: list[str] = []
    with client(run) as plain:
        used = int(plain.info("memory")["used_memory"])
        try:
            async with app:
                refused: list[LogError] = []
                plain.config_set("maxmemory", used + (1 << 20))
                for number in range(1_000):
                    record = topic.record(b"x" * 10_000, key=f"k{number}", id=f"m{number}")
                    (answer,) = await answers(app, run.topic, [record])
                    if isinstance(answer, Position):
                        acknowledged.append(record.id)
                    else:
                        refused.append(answer)
                        break
                assert refused, "memory never was full"
                assert not isinstance(refused[0], OutcomeUnknown), "it is known to be refused"
                await wait_for(lambda: set(acknowledged) <= set(calls), "what is there is handled")
                plain.config_set("maxmemory", 0)
                await topic.publish(b"y", key="k", id="last")
                await wait_for(lambda: "last" in calls, "goes on")
                await wait_for(run.at_end, "commits")
        finally:
            plain.config_set("maxmemory", 0)
    assert sorted(calls) == sorted([*acknowledged, "last"])


ROOM = 256 * 1024
"""Bytes to which the append-only file may grow."""


class FullDisk(Redis):
    """A server whose append-only file finds no more room.

    The limit is the process's own (RLIMIT_FSIZE): a write fails with EFBIG as it would with ENOSPC,
    and root is not exempt.
    """

    def __init__(self, lifetime: Lifetime, fsync: str) -> None:
        super().__init__(lifetime, options=("--appendonly", "yes", "--appendfsync", fsync))
        self._free = self.process.command
        # The signal would end it; what is ignored stays so in the program that sh becomes.
        cramp = f"trap '' XFSZ; ulimit -S -f {ROOM // 512}; exec \"$@\""
        self.process.command = ["sh", "-c", cramp, "sh", *self._free]

    def __enter__(self) -> FullDisk:
        self.start()
        return self

    def mend(self) -> None:
        """There is room again; a server that ended is started."""
        self.process.command = self._free
        if self.process.alive:
            if sys.platform == "linux":
                _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        else:
            self.restart()


# Only Linux lets another process's limit be raised: elsewhere a server that lives on stays cramped.
POLICIES = ["always", *(["everysec"] if sys.platform == "linux" else [])]


@pytest.mark.parametrize("fsync", POLICIES)
async def test_the_disk_is_full(
    fsync: str, lifetime: Lifetime, caplog: pytest.LogCaptureFixture
) -> None:
    """What was acknowledged is there afterwards, the rest was said to have failed.

    With ``everysec`` the server refuses writes until there is room; with ``always`` it ends.
    """
    name = f"disk-{uuid4().hex[:8]}"
    calls: list[str] = []
    acknowledged: list[str] = []
    with FullDisk(lifetime, fsync) as server:
        app = Streams(f"{server.url}?lease=2&timeout=6")
        topic = app.topic(name, bytes, partitions=2)

        @app.processor(topic, group=name, concurrency=8, flow=QUICK)
        async def work(value: bytes, message: Message[bytes]) -> None:
            calls.append(message.id)

        async def publish(number: int) -> LogError | None:
            """Why it failed, if it did."""
            record = topic.record(b"x" * 10_000, key=f"k{number}", id=f"m{number}")
            (answer,) = await answers(app, name, [record])
            if isinstance(answer, LogError):
                return answer
            acknowledged.append(record.id)
            return None

        async def refusal() -> tuple[int, LogError]:
            for number in range(1_000):
                if (error := await publish(number)) is not None:
                    return number, error
            raise AssertionError("the disk never was full")

        async def insist(number: int) -> None:
            while (error := await publish(number)) is not None:
                assert isinstance(error, (Unavailable, OutcomeUnknown))
                await asyncio.sleep(0.1)

        def caught_up() -> bool:
            places = app.log.committed(name, name)
            return all(
                places[part].position >= app.log.watermarks(name, part)[1] for part in range(2)
            )

        with caplog.at_level(logging.WARNING, logger="streams"):
            async with app:
                number, error = await refusal()
                why = "cannot write to its disk" if fsync == "everysec" else "connection"
                if fsync == "everysec":
                    assert isinstance(error, Unavailable), "it is known to be refused"
                    assert why in str(error)
                    assert await publish(number) is not None, "it stays full"
                else:
                    assert isinstance(error, (Unavailable, OutcomeUnknown))
                    await wait_for(lambda: not server.process.alive, "the server gives up")
                await wait_for(lambda: why in caplog.text, "the group says what it waits for")
                server.mend()
                for again in (number, number + 1):
                    await insist(again)
                await wait_for(lambda: set(acknowledged) <= set(calls), "goes on by itself")
                await wait_for(caught_up, "commits")
        assert len(acknowledged) > 5
        assert set(calls) == set(acknowledged)
        # What was handled and could not be committed any more may come again.
        assert all(calls.count(id) <= 2 for id in acknowledged)
        # It is on the disk, each once.
        server.stop()
        server.restart()
        log = open_log(server.url)
        assert sorted(stored(log, name).values()) == sorted(acknowledged)
        log.close()


class Hears:
    """A listener that keeps what it is told, and reads from where the group is."""

    def __init__(self) -> None:
        self.owned: list[Assignment] = []
        self.told_lost: list[Assignment] = []

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self.owned += assignments

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self.owned = [each for each in self.owned if each not in assignments]

    def lost(self, assignments: Sequence[Assignment]) -> None:
        self.told_lost += assignments
        self.revoked(assignments)


@on("redis")
def test_of_two_owners_the_older_is_fenced_in_everything(run: Run) -> None:
    topic = run.topic
    # Only the older one's lease ends while the test runs.
    newer_url = f"{run.ground.direct.partition('?')[0]}?lease=60"
    older_log, newer_log = open_log(run.ground.through), open_log(newer_url)
    older, newer = Hears(), Hears()
    first = older_log.subscribe(run.group, [topic], older)
    until(lambda: first.poll(1, 0.1) or len(older.owned) == PARTITIONS, 30, "the older owns all")
    had = list(older.owned)
    # Cut off, it cannot renew: the newer one takes all of it.
    run.ground.proxy.shut()
    second = newer_log.subscribe(run.group, [topic], newer)
    until(lambda: second.poll(1, 0.1) or len(newer.owned) == PARTITIONS, 30, "the newer owns all")
    second.commit([Commit(each, 7 << 64, "1rA", 1) for each in newer.owned])
    run.ground.proxy.open()
    records = [Record(b"x", f"k{number}".encode(), f"m{number}") for number in range(50)]
    outcome: list[Any] = []
    newer_log.append(topic, records, outcome.extend)
    until(lambda: len(outcome) == 50, 30, "written")
    # Whatever the older one tries now counts for nothing.
    first.commit([Commit(each, 9 << 64, "1rB", 99) for each in had])
    places = run.log.describe_group(run.group).positions
    assert {places[topic, number].position for number in range(PARTITIONS)} == {7 << 64}
    assert all(each.valid_until == float("-inf") for each in had)
    stolen: list[Any] = []

    def told() -> bool:
        stolen.extend(first.poll(100, 0.1))
        return len(older.told_lost) == PARTITIONS

    until(told, 30, "the older one is told")
    assert [batch for batch in stolen if batch.assignment in had] == []
    # And it took no entry from the newer one.
    got: list[str | None] = []

    def all_there() -> bool:
        for batch in second.poll(100, 0.1):
            if batch.assignment in newer.owned:
                got.extend(batch.ids)
        for batch in first.poll(100, 0.0):
            assert batch.assignment not in had
            got.extend(batch.ids)
        return len(got) >= 50

    until(all_there, 30, "every entry is delivered")
    assert sorted(map(str, got)) == sorted(f"m{number}" for number in range(50))
    for each in (first, second):
        each.close()
    for log in (older_log, newer_log):
        log.close()
