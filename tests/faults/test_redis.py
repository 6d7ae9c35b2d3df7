"""What only Redis can do to us: everything deleted, groups gone, entries trimmed, memory full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis import Redis as Client

from streams import Flow, Message, Streams
from streams.errors import LogError, OutcomeUnknown
from streams.log.protocol import Assignment, Commit
from streams.log.url import open_log
from streams.message import Position, Record
from tests.faults.load import answers
from tests.faults.run import PARTITIONS, Run
from tests.faults.sizes import on
from tests.servers.lifetime import until
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
    app = Streams(f"{run.ground.direct}&timeout=1")
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
    older_log, newer_log = open_log(run.ground.through), open_log(run.ground.direct)
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
    places = run.log.group(run.group).positions
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
