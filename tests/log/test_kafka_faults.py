"""The Kafka log when something goes wrong: frozen and killed brokers, stopped members, TLS, logins.

The brokers are these tests' own, as they are frozen and killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from streams.errors import Fatal, LogError, OutcomeUnknown, Unavailable
from streams.log.kafka import consumer as consumer_module
from streams.log.kafka.log import CAPABILITIES, KafkaLog
from streams.log.kafka.topics import PartitionCount
from streams.log.protocol import Commit
from streams.log.url import open_log
from streams.message import Position
from tests.conformance.logs import Case
from tests.conformance.records import append, record
from tests.conformance.world import World
from tests.log.kafka_child import LATE
from tests.servers.kafka import PASSWORD, USER, Kafka
from tests.servers.lifetime import Lifetime, until

# One broker for all of them: one of pytest's workers runs them.
pytestmark = pytest.mark.xdist_group("kafka-faults")

ROOT = Path(__file__).parents[2]
CASE = Case("kafka_url", CAPABILITIES, trims=False)
SESSION = 3.0


@pytest.fixture(scope="module")
def broker(lifetime: Lifetime) -> Iterator[Kafka]:
    config = {"group.consumer.session.timeout.ms": str(int(SESSION * 1000))}
    with Kafka(lifetime, secure=True, config=config) as kafka:
        yield kafka


@pytest.fixture
def world(broker: Kafka) -> Iterator[World]:
    # A session that outlasts what a test does to the broker, on a busy machine, too.
    settings = {
        "session.timeout.ms": 60_000, "heartbeat.interval.ms": 500, "socket.timeout.ms": 20_000,
    }  # fmt: skip
    opened = World(CASE, f"{broker.url}?{urlencode(settings)}")
    yield opened
    opened.close()


# -- a member that is stopped ---------------------------------------------------------------------


class Child:
    """The member of ``kafka_child``, as its parent sees it."""

    def __init__(self, url: str, group: str, topic: str, *options: str) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.log.kafka_child", url, group, topic, *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def go_on(self) -> None:
        """What it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def until(self, *wanted: Any) -> list[list[Any]]:
        """What it says up to this."""
        said: list[list[Any]] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.append(json.loads(line))
            if said[-1][: len(wanted)] == list(wanted):
                return said
        raise AssertionError(f"it ended by itself, having said {said}")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_member_stopped_beyond_its_session_starts_and_commits_nothing(
    broker: Kafka, world: World, protocol: str
) -> None:
    settings: dict[str, object] = {"group.protocol": protocol}
    if protocol == "classic":
        settings["session.timeout.ms"] = int(SESSION * 1000)
    url = f"{broker.url}?{urlencode(settings)}"
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    with Child(url, group, topic) as child:
        child.until("certain", True)
        child.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        other = world.member(group, topic, log=world_handle(world, url))
        other.until_owns(1)  # its session is over
        world.append(topic, [b"1", b"2"])
        other.until_delivered(2)
        stopped = time.monotonic() - began
        child.process.send_signal(signal.SIGCONT)
        said = child.until("stopped")
        while said[-1][1] < stopped - 0.5:  # it had stood still before
            said += child.until("stopped")
        assert said[-1][2] is False
        if not [each for each in said if each[0] == "lost"]:
            said += child.until("lost")
        assert ["certain", True] not in said
    world.history.until(lambda: world.position(group, topic) == 2, "the new owner's commit stands")
    assert world.position(group, topic) != LATE


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_former_owner_that_commits_what_is_stored_already_is_no_owner_for_that(
    broker: Kafka, world: World, protocol: str
) -> None:
    settings: dict[str, object] = {"group.protocol": protocol}
    if protocol == "classic":
        settings["session.timeout.ms"] = int(SESSION * 1000)
    url = f"{broker.url}?{urlencode(settings)}"
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    with Child(url, group, topic, "again") as child:
        child.until("waiting")
        child.process.send_signal(signal.SIGSTOP)
        other = world.member(group, topic, log=world_handle(world, url))
        other.until_owns(1)
        child.process.send_signal(signal.SIGCONT)
        child.go_on()
        assert child.until("again")[-1] == ["again", False]
        child.until("lost")
        assert other.owned


def world_handle(world: World, url: str) -> Any:
    log = open_log(url)
    world._logs.append(log)
    return log


def test_a_member_stopped_within_its_session_goes_on(broker: Kafka, world: World) -> None:
    topic, group = world.topic(), world.group()
    with Child(f"{broker.url}?session.timeout.ms=30000", group, topic) as child:
        child.until("certain", True)
        child.process.send_signal(signal.SIGSTOP)
        world.append(topic, [b"1"])
        time.sleep(1.5)  # well within its session, and long enough for it to notice
        child.process.send_signal(signal.SIGCONT)
        said = child.until("stopped")
        assert said[-1][2] is True
        if ["messages", 0, [0]] not in said:
            said += child.until("messages", 0, [0])
    assert not [each for each in said if each[0] in ("lost", "revoked", "assigned")]


# -- a broker that is frozen or killed ------------------------------------------------------------


def freeze(broker: Kafka) -> None:
    """Stop the broker; returns once all of its threads stand still."""
    broker.pause()
    os.waitpid(broker.nodes[0].process.pid, os.WUNTRACED)


def test_what_a_frozen_broker_was_sent_is_not_acknowledged_and_not_lost(
    broker: Kafka, world: World
) -> None:
    topic, group = world.topic(), world.group()
    member = world.member(group, topic)
    world.append(topic, [b"1"])
    member.until_delivered(1)
    told: list[Any] = []
    finished = threading.Event()

    def done(outcomes: Sequence[Position | LogError]) -> None:
        told.extend(outcomes)
        finished.set()

    freeze(broker)
    world.log.append(topic, [record(b"2")], done)
    with pytest.raises(Unavailable):
        world.log.flush(1.0)
    assert told == []
    broker.resume()
    assert finished.wait(30)
    assert isinstance(told[0], Position)
    world.history.until(lambda: b"2" in member.delivered(), "it goes on")
    assert world.values(topic) == [b"1", b"2"]


def test_a_commit_to_a_frozen_broker_does_not_wait_without_end(
    broker: Kafka, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = world.topic(), world.group()
    positions = world.append(topic, [b"%d" % i for i in range(10)])
    member = world.member(group, topic, commit=False)
    member.until_delivered(10)
    mine = member.owned[topic, 0]

    def commit(version: int) -> None:
        member.subscription.commit([Commit(mine, positions[version].offset, "", version)])

    member.do(lambda: commit(1))
    freeze(broker)
    monkeypatch.setattr(consumer_module, "REQUEST_TIMEOUT", 1.0)  # from now on there is none
    for version in (2, 3):
        with pytest.raises(Unavailable):
            member.do(partial(commit, version))
    broker.resume()
    monkeypatch.undo()

    def later() -> bool:
        try:
            member.do(lambda: commit(4))
        except Unavailable:
            return False
        return True

    # Either the membership outlived it, or the partition came back as another assignment.
    world.history.until(lambda: later() or len(member.past) > 1, "committed or assigned anew")
    place = world.position(group, topic)
    assert place in {positions[version].offset for version in (1, 2, 4)}, "3 overtook 2"


def test_a_frozen_coordinator_does_not_hold_up_the_end(
    broker: Kafka, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = world_handle(world, world.url)
    topic = world.topic()
    member = world.member(world.group(), topic, log=log)
    member.until_owns(1)
    told: list[Any] = []
    freeze(broker)
    monkeypatch.setattr(consumer_module, "REQUEST_TIMEOUT", 1.0)  # from now on there is none
    try:
        log.append(topic, [record(b"v")], told.extend)
        world.leave(member)
        log.close()
    finally:
        broker.resume()
    (outcome,) = told
    assert isinstance(outcome, OutcomeUnknown)
    assert [event.what for event in world.history.events][-2:] == ["revoking", "revoked"]


def test_a_write_that_times_out_is_unknown(broker: Kafka, world: World) -> None:
    log = world_handle(world, f"{world.url}&message.timeout.ms=1000")
    topic = world.topic()

    def write(value: bytes) -> bool:
        return isinstance(append(log, topic, [record(value)])[0], Position)

    until(lambda: write(b"1"), 60, "the first is written")
    freeze(broker)
    try:
        (outcome,) = append(log, topic, [record(b"2")])
    finally:
        broker.resume()
    assert isinstance(outcome, OutcomeUnknown)
    until(lambda: write(b"3"), 60, "the third is written")
    found = list(dict.fromkeys(world.values(topic)))  # what timed out may stand there as well
    assert found in ([b"1", b"3"], [b"1", b"2", b"3"])


def test_a_broker_killed_and_started_again_keeps_what_it_acknowledged(
    broker: Kafka, world: World
) -> None:
    topic, group = world.topic(2), world.group()
    world.append(topic, [b"%d" % i for i in range(100)])
    member = world.member(group, topic)
    member.until_delivered(100)
    member.freeze()  # what it polls meanwhile is this test's
    told: list[Any] = []
    finished = threading.Event()

    def done(outcomes: Sequence[Position | LogError]) -> None:
        told.extend(outcomes)
        finished.set()

    broker.kill()
    world.log.append(topic, [record(b"%d" % i) for i in range(100, 200)], done)
    broker.restart()
    assert finished.wait(60)
    assert all(isinstance(outcome, Position) for outcome in told)

    def go_on() -> None:
        """Poll as a poller does: what is unavailable now is waited for."""
        while len(set(world.history.values())) < 200:
            try:
                batches = member.subscription.poll(100, 1.0)
            except Unavailable:
                continue
            for batch in batches:
                with contextlib.suppress(Unavailable):  # it is noted before it is committed
                    member.deliver(batch)

    member.thaw(go_on)
    world.history.until(lambda: len(set(world.history.values())) == 200, "it goes on by itself")
    for partition in range(2):
        values = world.values(topic, partition)
        assert list(dict.fromkeys(world.history.values((topic, partition)))) == values
        assert len(values) == len(set(values))


# -- tools, TLS and logins ------------------------------------------------------------------------


def test_kafkas_own_tools_see_what_is_there(broker: Kafka, world: World) -> None:
    topic, group = world.topic(), world.group()
    broker.tool("produce", "--topic", topic, input="from the console\n")
    world.append(topic, [b"ours", b"more"])
    member = world.member(group, topic, commit=False)
    member.until_delivered(3)
    assert member.delivered() == [b"from the console", b"ours", b"more"]
    member.do(lambda: member.subscription.commit([member.place(member.owned[topic, 0], 1)]))
    said = broker.tool("groups", "--describe", "--group", group)
    (row,) = [line.split() for line in said.splitlines() if topic in line]
    assert row[:6] == [group, topic, "0", "1", "3", "2"]  # committed, end, lag
    arguments = ("--from-beginning", "--max-messages", "3", "--timeout-ms", "20000")
    assert broker.tool("consume", "--topic", topic, *arguments).splitlines() == [
        "from the console",
        "ours",
        "more",
    ]


def secure_url(broker: Kafka, password: str = PASSWORD, **settings: str) -> str:
    assert broker.certificates is not None
    hosts = broker.secure_client()["bootstrap.servers"]
    query = {"ssl.ca.location": str(broker.certificates.authority), **settings}
    return f"kafka+ssl://{USER}:{quote(password, safe='')}@{hosts}?{urlencode(query)}"


def test_tls_and_scram(broker: Kafka) -> None:
    secure = World(CASE, secure_url(broker))
    topic, group = secure.topic(2), secure.group()
    secure.append(topic, [record(b"%d" % i, b"k%d" % i) for i in range(20)])
    member = secure.member(group, topic)
    member.until_delivered(20)
    assert len(secure.values(topic, 0)) + len(secure.values(topic, 1)) == 20
    assert len(secure.log.describe_group(group).members) == 1
    secure.close()


def test_a_wrong_password_is_fatal_soon_and_never_shown(
    broker: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "wr0ng/p@ss word"
    secure = open_log(secure_url(broker, wrong))
    (outcome,) = append(secure, "any", [record(b"v")])
    with pytest.raises(Fatal, match="check user, password"):
        secure.list_groups()
    secure.close()
    assert isinstance(outcome, Fatal)
    texts = [repr(outcome), repr(secure), caplog.text]
    assert not [text for text in texts if wrong in text or quote(wrong, safe="") in text]


def test_a_member_that_may_not_log_in_ends(broker: Kafka, world: World) -> None:
    log = open_log(secure_url(broker, "wrong"))
    assert isinstance(log, KafkaLog)
    topic = world.topic()
    log._metadata._counts[topic] = PartitionCount(1, float("inf"))  # as if it had been seen before
    member = world.member(world.group(), topic, log=log)
    world.history.until(lambda: member.error is not None, "it is told")
    with pytest.raises(Fatal, match="check user, password"):
        world.leave(member)
    log.close()


def test_a_broker_whose_certificate_is_not_trusted_is_refused(broker: Kafka) -> None:
    hosts = broker.secure_client()["bootstrap.servers"]
    log = open_log(f"kafka+ssl://{USER}:{PASSWORD}@{hosts}")
    (outcome,) = append(log, "any", [record(b"v")])
    log.close()
    assert isinstance(outcome, Fatal)
    assert "ssl.ca.location" in str(outcome)
