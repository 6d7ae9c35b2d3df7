"""``?wait=N``: what is acknowledged has reached so many replicas, whatever the server forgot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from threading import Thread

import pytest
import redis
from redis.crc import key_slot

from streams.errors import LogError, OutcomeUnknown
from streams.log.claims import Claim, Complete, GetClaim
from streams.log.documents import Checkpoint, DocumentChange, StoredDocument
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY
from streams.log.redis import RedisLog
from streams.log.url import open_claims
from streams.message import Position
from tests.conformance.histories import append_all, event
from tests.conformance.records import append, record
from tests.log.redis_support import (
    PATIENCE,
    Member,
    SlotMove,
    has_everything,
    name,
    open_redis,
    until,
)
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, RedisCluster


def test_a_server_that_forgot_its_scripts_acknowledges_nothing_too_early(
    lifetime: Lifetime, server: Redis
) -> None:
    """WAIT waits for what its own connection wrote. A script that is sent again over another one
    would be acknowledged although the replica stands still."""
    options = ("--replicaof", f"127.0.0.1 {server.port}")
    with (
        Redis(lifetime, server.program, options) as replica,
        replica.client() as follower,
        server.client() as client,
    ):
        until(lambda: follower.info("replication")["master_link_status"] == "up", "it follows")
        log = open_redis(f"{server.url}?wait=1&wait_timeout=0.1&timeout=0.5&lease=600")
        claims = open_claims(f"{server.url}?wait=1&wait_timeout=0.1")
        topic, events = name("topic"), name("events")
        log.create_topic(topic, 1)
        log.create_event_topic(events, 1)

        def write_message() -> object:
            return append(log, topic, [record(b"1", id=name("id"))])[0]

        def write_event() -> object:
            made = make_append(name("key").encode(), NO_HISTORY, [event()])
            return append_all(log, events, [made])[0]

        def claim() -> object:
            return claims.execute([Claim(name("key").encode(), "a", 60.0)])[0]

        member = Member(log, name("group"), topic)
        member.owns(1)

        def write_as_owner() -> object:
            return append(log, topic, [record(b"1", id=name("id"))], member.owned[topic, 0])[0]

        for write in (write_message, write_as_owner, write_event, claim):
            until(lambda: has_everything(client), "the replica has said that it has everything")
            replica.pause()
            client.script_flush()
            outcome = write()
            assert isinstance(outcome, OutcomeUnknown), outcome
            replica.resume()
        member.subscription.close()
        log.close()
        claims.close()


def test_what_is_sent_again_over_another_connection_is_waited_for(
    lifetime: Lifetime, server: Redis
) -> None:
    """It stands there already, so nothing is written: a WAIT alone would wait for nothing."""
    options = ("--replicaof", f"127.0.0.1 {server.port}")
    url = f"{server.url}?wait=1&wait_timeout=0.1&timeout=0.5"
    with (
        Redis(lifetime, server.program, options) as replica,
        replica.client() as follower,
        server.client() as client,
    ):
        until(lambda: follower.info("replication")["master_link_status"] == "up", "it follows")

        with closing(open_redis(url)) as log:
            topic = log.create_event_topic(name("events"), 1).name
        key = name("key").encode()
        with closing(open_claims(url)) as claims:
            claims.execute([Claim(key, "a", 60.0)])
        until(lambda: has_everything(client), "the replica has said that it has everything")
        replica.pause()
        made = make_append(name("key").encode(), NO_HISTORY, [event()])
        for _ in range(2):
            with closing(open_redis(url)) as log:
                outcome = append_all(log, topic, [made])[0]
                assert isinstance(outcome, OutcomeUnknown), outcome
            with closing(open_claims(url)) as claims:
                (answer,) = claims.execute([Complete(key, "a", b"done", 60.0)])
                assert isinstance(answer, OutcomeUnknown), answer
        replica.resume()


def write_message(log: RedisLog) -> object:
    topic = log.create_topic(name("topic"), 1).name
    return append(log, topic, [record(b"1", id=name("id"))])[0]


def write_event(log: RedisLog) -> object:
    topic = log.create_event_topic(name("events"), 1).name
    return append_all(log, topic, [make_append(name("key").encode(), NO_HISTORY, [event()])])[0]


def write_document(log: RedisLog) -> object:
    collection = name("documents")
    log.documents.create(collection, 1)
    writer = log.documents.claim(collection, 0)
    try:
        writer.write([DocumentChange(b"key", StoredDocument(b"1"))], Checkpoint(1))
    except LogError as error:
        return error
    return None


@pytest.mark.parametrize("write", [write_message, write_event, write_document])
def test_what_was_written_is_unknown_where_the_wait_for_it_gets_no_answer(
    server: Redis, client: redis.Redis, write: Callable[[RedisLog], object]
) -> None:
    """The server has confirmed the write; no replica is there, and the connection is lost while
    that is waited for. It was written, so it is not unavailable."""
    log = open_redis(
        f"{server.url}?wait=1&wait_timeout=60&lease=600&socket_timeout=100&timeout=0.01"
    )
    found: list[object] = []
    writer = Thread(target=lambda: found.append(write(log)))
    writer.start()

    def waiting() -> list[str]:
        return [each["id"] for each in client.client_list() if each["cmd"] == "wait"]

    for connection in until(waiting, "it waits for a replica"):
        client.client_kill_filter(_id=connection)
    writer.join(PATIENCE)
    assert isinstance(found[0], OutcomeUnknown), found
    assert "written" in str(found[0])
    log.close()


def test_where_a_slot_has_moved_the_former_node_s_replica_confirms_nothing(
    lifetime: Lifetime,
) -> None:
    """A write is sent to the former node and done by the new one, which has no replica. The WAIT
    behind it went to the former node, whose replica has everything."""
    topic, options = name("topic"), ("--repl-diskless-sync-delay", "0")
    with RedisCluster(lifetime, nodes=2, options=options) as cluster:
        slot = key_slot(topic.encode())
        source = cluster.nodes[slot * 2 // 16_384]
        (target,) = (node for node in cluster.nodes if node is not source)
        with (
            Redis(lifetime, source.program, ("--replicaof", f"127.0.0.1 {source.port}")) as replica,
            replica.client() as follower,
        ):
            until(lambda: follower.info("replication")["master_link_status"] == "up", "it follows")
            url = cluster.url.replace("redis://", "redis+cluster://")
            log = open_redis(f"{url}?wait=1&wait_timeout=60&lease=600&socket_timeout=100")
            topic_key = log.create_topic(topic, 1).name.encode()
            assert isinstance(append(log, topic, [record(b"1")])[0], Position)
            log.close()
            stale = open_redis(f"{url}?wait=1&wait_timeout=0.01&timeout=0.01")
            claims = open_claims(f"{url}?wait=1&wait_timeout=0.01")
            stale.watermarks(topic, 0)  # they know where the slot was
            keys = [b"%d:{%s}" % (number, topic_key) for number in range(2)]
            claims.execute([GetClaim(keys[0])])
            move = SlotMove(slot, source, target)
            move.begin()
            move.end()
            (moved,) = append(stale, topic, [record(b"2")])
            assert isinstance(moved, OutcomeUnknown), moved
            answers = claims.execute([Claim(key, "a", 60.0) for key in keys])
            assert {type(answer) for answer in answers} == {OutcomeUnknown}
            stale.close()
            claims.close()
