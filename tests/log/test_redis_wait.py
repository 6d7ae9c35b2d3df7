"""``?wait=N``: what is acknowledged has reached so many replicas, whatever the server forgot."""

from __future__ import annotations

from typing import Any

from streams.errors import OutcomeUnknown
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY
from tests.conformance.histories import append_all, event
from tests.conformance.records import append, record
from tests.log.redis_support import name, open_redis, until
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis


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
        log = open_redis(f"{server.url}?wait=1&wait_timeout=0.1&timeout=0.5")
        topic, events = name("topic"), name("events")
        log.create_topic(topic, 1)
        log.create_event_topic(events, 1)

        def has_everything() -> bool:
            facts: Any = client.info("replication")
            return bool(facts["slave0"]["offset"] == facts["master_repl_offset"])

        until(has_everything, "the replica has said that it has everything")
        replica.pause()
        for _ in range(2):
            client.script_flush()
            (outcome,) = append(log, topic, [record(b"1", id=name("id"))])
            assert isinstance(outcome, OutcomeUnknown), outcome
            client.script_flush()
            made = make_append(name("key").encode(), NO_HISTORY, [event()])
            (decided,) = append_all(log, events, [made])
            assert isinstance(decided, OutcomeUnknown), decided
        replica.resume()
        log.close()
