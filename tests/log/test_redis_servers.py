"""Servers of every kind: TLS and ACLs, a primary that fails over, a cluster that moves slots."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from streams.errors import Fatal, LogError
from streams.log.names import partition_for
from streams.log.redis import RedisLog
from streams.log.redis.keys import PartitionKeys
from streams.message import Position
from tests.log.redis_support import (
    PATIENCE,
    Member,
    SlotMove,
    append,
    name,
    open_redis,
    outcomes,
    patient,
    position,
    record,
)
from tests.servers.lifetime import Lifetime
from tests.servers.redis import (
    Redis,
    RedisCluster,
    RedisSentinel,
    redis_program,
    valkey_program,
)

SHORT = "lease=1&socket_timeout=0.5"
"""The streams are looked at once a lease. No other member is there that could take anything."""

RIGHTS = (
    "+@stream +@hash +@set +@keyspace +@scripting +@connection "
    "+time +info +wait +client|id +client|unblock"
)
"""As docs/redis.md gives them."""


@pytest.fixture(scope="module", params=[redis_program, valkey_program], ids=["redis", "valkey"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param())


def test_tls(lifetime: Lifetime) -> None:
    with Redis(lifetime, redis_program(), tls=True) as server:  # the other is built without it
        log = open_redis(server.url)
        topic = log.create_topic(name("topic"), 2).name
        values = [b"%05d" % n * 40 for n in range(5_000)]
        append(log, topic, values)
        member = Member(log, name("group"), topic)
        member.take_in(5_000)
        assert sorted(filter(None, member.values)) == values
        append(log, topic, [b"later"])
        member.take_in(5_001)
        member.subscription.close()
        log.close()
        stranger = open_redis(server.url.partition("?")[0])
        with pytest.raises(Fatal, match=r"certificate verify failed.*ssl_ca_certs"):
            stranger.describe_topics()
        stranger.close()


def test_the_documented_rights_are_enough(lifetime: Lifetime, program: str) -> None:
    with Redis(lifetime, program) as server, server.client() as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys=["*"], commands=RIGHTS.split()
        )
        log = patient(open_redis(f"redis://app:pw@{server.address}?wait=0&{SHORT}"))
        topic, group = log.create_topic(name("topic"), 2).name, name("group")
        append(log, topic, [b"%d" % n for n in range(10)])
        log.initialize_offsets(group, topic, {0: 0, 1: 0})
        member = Member(log, group, topic)
        member.take_in(10)
        member.subscription.close()
        assert log.describe_topics()
        assert log.describe_group(group).positions
        log.delete_group(group)
        log.delete_topic(topic)
        log.close()
        poor = open_redis(f"redis://app:pw@{server.address}")
        client.acl_setuser("app", enabled=True, commands=["-@scripting"])
        with pytest.raises(Fatal, match="ACL"):
            poor.create_topic(name("topic"), 1)
        poor.close()


def test_a_failover_is_followed(lifetime: Lifetime, program: str) -> None:
    with RedisSentinel(lifetime, program, ("--repl-diskless-sync-delay", "0")) as servers:
        url = f"redis+sentinel://127.0.0.1:{servers.port}/{RedisSentinel.NAME}?{SHORT}"
        log = patient(open_redis(f"{url}&timeout=40"))
        safe = patient(open_redis(f"{url}&wait=1&wait_timeout=60"))
        topic, group = log.create_topic(name("topic"), 1).name, name("group")
        member = Member(log, group, topic)
        append(safe, topic, [b"%d" % n for n in range(10)])
        member.take_in(10)
        append(safe, topic, [b"%d" % n for n in range(10, 20)])
        servers.primary.kill()
        # This one waits for the other to be promoted.
        append(log, topic, [b"20"])
        member.take_in(21)
        wanted = [b"%d" % n for n in range(21)]
        # What was committed last may not have reached the replica: then it comes again.
        assert list(dict.fromkeys(member.values)) == wanted
        member.poll_until(
            lambda: (
                member.commit_all() and log.lag(topic, 0, position(log, group, topic).position) == 0
            ),
            "the new primary has the place",
        )
        member.subscription.close()
        log.close()
        safe.close()


# -- clusters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(lifetime: Lifetime, program: str) -> Iterator[RedisCluster]:
    with RedisCluster(lifetime, program, options=("--appendonly", "yes")) as cluster:
        yield cluster


@pytest.fixture
def log(cluster: RedisCluster) -> Iterator[RedisLog]:
    nodes = ",".join(node.address for node in cluster.nodes)
    log = patient(open_redis(f"redis+cluster://{nodes}?{SHORT}&timeout=40"))
    yield log
    log.close()


def spread(log: RedisLog, cluster: RedisCluster) -> tuple[str, dict[int, int]]:
    """A topic with partitions on every node: which partition is on which."""
    while True:
        topic = log.create_topic(name("topic"), 6).name
        places = {}
        for partition in range(6):
            _, port = log._client.servers.address_of(PartitionKeys(topic, partition, 6).stream)
            places[partition] = [node.port for node in cluster.nodes].index(port)
        if set(places.values()) == {0, 1, 2}:
            return topic, places


def write(log: RedisLog, topic: str, numbers: range) -> None:
    append(log, topic, [record(b"%d" % n, b"k%d" % (n % 50)) for n in numbers])


def partition_of(number: int) -> int:
    """Where :func:`write` puts a number, of six partitions."""
    return partition_for(b"k%d" % (number % 50), "", 6)


def in_order(member: Member) -> bool:
    """Whether the messages of each key came in order, each once."""
    last: dict[int, int] = {}
    for value in member.values:
        number = int(value or b"-1")
        if last.get(number % 50, -1) >= number:
            return False
        last[number % 50] = number
    return True


def test_a_slot_that_moves_is_followed(log: RedisLog, cluster: RedisCluster) -> None:
    topic, places = spread(log, cluster)
    group = name("group")
    member = Member(log, group, topic)
    write(log, topic, range(500))
    member.take_in(500)
    stream = PartitionKeys(topic, 0, 6).stream
    slot, source = key_slot(stream), cluster.nodes[places[0]]
    target = cluster.nodes[(places[0] + 1) % 3]
    move = SlotMove(slot, source, target)
    assert stream in move.begin()
    # Every request for this slot is sent on by ASK now; one of several keys that are not all
    # there has to wait until the slot has moved.
    writer = threading.Thread(target=write, args=(log, topic, range(500, 1_000)))
    writer.start()
    elsewhere = sum(partition_of(number) != 0 for number in range(500, 1_000))
    member.take_in(500 + elsewhere)
    move.end()
    writer.join(PATIENCE)
    member.take_in(1_000)
    # And by MOVED, until it is known.
    write(log, topic, range(1_000, 1_500))
    member.take_in(1_500)
    assert in_order(member)
    assert log._client.servers.address_of(stream)[1] == target.port
    assert ("lost", 0) not in member.events
    assert topic in [each.name for each in log.describe_topics()]
    member.subscription.close()
    log.delete_group(group)
    log.delete_topic(topic)


def test_a_node_that_is_gone_stops_only_its_own(log: RedisLog, cluster: RedisCluster) -> None:
    topic, places = spread(log, cluster)
    group = name("group")
    member = Member(log, group, topic)
    write(log, topic, range(500))
    member.take_in(500)
    # One that has neither the group's members nor anything but partitions that must go on.
    _, port = log._client.servers.address_of(b"{group:%s}:members" % group.encode())
    gone = next(n for n, node in enumerate(cluster.nodes) if node.port != port)
    cluster.nodes[gone].kill()
    try:
        others = [partition for partition, node in places.items() if node != gone]
        numbers = iter(range(500, 10_000))
        for _ in range(20):
            batch = [record(b"%d" % next(numbers), partition=each) for each in others]
            assert all(isinstance(each, Position) for each in outcomes(log, topic, batch))
        count = 500 + 20 * len(others)
        member.take_in(count)
        impatient = open_redis(
            f"redis+cluster://{cluster.nodes[gone - 1].address}?{SHORT}&timeout=0.2"
        )
        silent = next(partition for partition, node in places.items() if node == gone)
        (found,) = outcomes(impatient, topic, [record(b"x", partition=silent)])
        assert isinstance(found, LogError)
        impatient.close()
    finally:
        cluster.nodes[gone].restart()
    write(log, topic, range(10_000, 10_050))
    member.take_in(count + 50)
    member.subscription.close()


def test_a_node_that_has_failed_is_asked_last_where_slots_are(cluster: RedisCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        address = silent.getsockname()[:2]
        log = open_redis(f"redis+cluster://127.0.0.1:{address[1]},{cluster.nodes[0].address}")
        servers: Any = log._client.servers
        servers._last_answered = address  # as if it were a node that answered before
        servers.report_failure(address)
        assert servers.address_of(b"key") != address
        with pytest.raises(BlockingIOError):
            silent.accept()  # nobody has called
        log.close()


def test_a_clusters_node_is_no_single_server(cluster: RedisCluster) -> None:
    log = open_redis(cluster.url)
    with pytest.raises(Fatal, match=r"redis\+cluster://"):
        for number in range(50):
            log.create_topic(f"topic-{number}", 1)
    log.close()
