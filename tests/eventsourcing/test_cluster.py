"""Decisions on a Redis Cluster of which one primary is away: those on the other shards go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from redis.crc import key_slot

from streams import Streams
from streams.errors import NotRunning, OutcomeUnknown, Unavailable
from streams.eventsourcing import Aggregate, Cache, Decided
from streams.log.names import partition_for
from streams.log.redis.keys import PartitionKeys
from tests.conformance.stage import PATIENCE, keys_of_all_partitions
from tests.eventsourcing.bank import Deposited, Opened, accounts, deposit, open_with
from tests.servers.lifetime import Lifetime, until
from tests.servers.redis import RedisCluster

pytestmark = pytest.mark.anyio

PARTITIONS = 9

ways = pytest.mark.parametrize("way", ["frozen", "killed"])

WAITING = "lease=20&socket_timeout=10&once=0&timeout=600"
"""An append is tried for ten minutes: whoever waited for the end of that would wait too long."""


@pytest.fixture(scope="module")
def cluster(lifetime: Lifetime) -> Iterator[RedisCluster]:
    # Nobody gives up a node that is away, so it is in order as soon as it is back.
    options = ("--appendonly", "yes", "--cluster-node-timeout", "300000")
    with RedisCluster(lifetime, options=options) as cluster:
        yield cluster


@contextmanager
def away(cluster: RedisCluster, way: str) -> Generator[None]:
    """The first node is frozen, or killed."""
    node = cluster.nodes[0]
    node.kill() if way == "killed" else node.pause()
    try:
        yield
    finally:
        node.restart() if way == "killed" else node.resume()
        client: Any
        with node.client() as client:
            until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
                PATIENCE,
                "the node is back in the cluster",
            )


class Accounts(NamedTuple):
    """The IDs of a bank's accounts, each in a partition of its own.

    :param away: those on the first node.
    """

    away: list[str]
    there: list[str]


def bank_on(
    cluster: RedisCluster, options: str = WAITING, **more: Any
) -> tuple[Streams, Aggregate[Any, Any], Accounts]:
    """A new bank, of which each node has several partitions."""
    nodes = ",".join(node.address for node in cluster.nodes)
    app = Streams(f"redis+cluster://{nodes}?{options}")
    while True:
        name = f"bank-{uuid4().hex[:8]}"
        ids = Accounts([], [])
        for id in keys_of_all_partitions(PARTITIONS):
            partition = partition_for(id.encode(), "", PARTITIONS)
            slot = key_slot(PartitionKeys(f"{name}.events", partition, PARTITIONS).stream)
            (ids.away if slot < 16_384 // len(cluster.nodes) else ids.there).append(id)
        if len(ids.away) > 1 and len(ids.there) > 1:
            return app, accounts(app, name, partitions=PARTITIONS, **more), ids


async def decided_at_last(bank: Aggregate[Any, Any], id: str) -> Decided[Any, Any]:
    """A node that could not be connected to is left alone for up to a second."""
    while True:
        try:
            return await bank.decide(id, deposit, 1)
        except Unavailable:
            await asyncio.sleep(0.05)


async def events(bank: Aggregate[Any, Any], id: str) -> list[Any]:
    return [each.event async for each in bank.read(id)]


def own_threads(bank: Aggregate[Any, Any]) -> list[str]:
    """Threads of partitions that have calls of their own."""
    start = f"streams-{bank.events.name}-"
    names = [each.name for each in threading.enumerate() if each.name.startswith(start)]
    return [each for each in names if each not in {f"{start}reader", f"{start}writer"}]


@ways
async def test_a_shard_that_is_away_holds_up_no_decision_on_another(
    cluster: RedisCluster, way: str
) -> None:
    app, bank, ids = bank_on(cluster)
    async with app:
        for id in (*ids.away, *ids.there):
            await bank.decide(id, deposit, 1)  # their states are in the cache
        with away(cluster, way):
            waiting = [asyncio.create_task(bank.decide(id, open_with, "a", 5)) for id in ids.away]
            async with asyncio.timeout(PATIENCE):
                for version in range(2, 52):
                    found = await asyncio.gather(*(bank.decide(id, deposit, 1) for id in ids.there))
                    assert {each.version for each in found} == {version}
            assert [each for each in waiting if each.done()] == []
            assert len(own_threads(bank)) <= len(ids.away)
        async with asyncio.timeout(PATIENCE):
            assert {each.version for each in await asyncio.gather(*waiting)} == {3}
            for id in ids.away:
                assert await events(bank, id) == [Deposited(1), Opened("a"), Deposited(5)]
                assert (await bank.decide(id, deposit, 1)).version == 4
            for id in ids.there:
                assert await events(bank, id) == [Deposited(1)] * 51
            histories = bank._runtime._histories
            assert histories is not None
            assert not histories._apart
        await asyncio.to_thread(until, lambda: not own_threads(bank), PATIENCE, "threads end")


@ways
async def test_a_shard_that_is_away_fails_no_load_from_another(
    cluster: RedisCluster, way: str
) -> None:
    """Decisions and loads that share calls of the log with those that cannot be."""
    app, bank, ids = bank_on(cluster, cache=Cache(0))
    async with app:
        for id in (*ids.away, *ids.there):
            await bank.decide(id, deposit, 1)
        with away(cluster, way):
            failing: list[asyncio.Task[Any]]
            failing = [asyncio.create_task(bank.load(id)) for id in ids.away]
            failing += [asyncio.create_task(bank.decide(id, deposit, 1)) for id in ids.away]
            async with asyncio.timeout(PATIENCE):
                for version in range(2, 52):
                    found = await asyncio.gather(*(bank.decide(id, deposit, 1) for id in ids.there))
                    assert {each.version for each in found} == {version}
                for each in failing:
                    with pytest.raises(Unavailable):
                        await each
        async with asyncio.timeout(PATIENCE):
            for id in ids.away:
                assert (await decided_at_last(bank, id)).version == 2


@ways
async def test_an_app_is_closed_while_a_shard_is_away(cluster: RedisCluster, way: str) -> None:
    app, bank, ids = bank_on(cluster, "lease=20&socket_timeout=10&once=0&timeout=1")
    with ExitStack() as stack:
        async with asyncio.timeout(PATIENCE), app:
            for id in (*ids.away, *ids.there):
                await bank.decide(id, deposit, 1)
            stack.enter_context(away(cluster, way))
            waiting = [asyncio.create_task(bank.decide(id, open_with, "a", 5)) for id in ids.away]
            await asyncio.gather(*(bank.decide(id, deposit, 1) for id in ids.there))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.to_thread(until, lambda: not own_threads(bank), PATIENCE, "threads end")
    assert {type(each) for each in found} <= {OutcomeUnknown, Unavailable, NotRunning}
    if way == "frozen":  # what was sent may be done when the node goes on
        assert type(found[0]) is OutcomeUnknown
    async with app:
        for id in ids.away:
            assert (await events(bank, id))[1:] in ([], [Opened("a"), Deposited(5)])
