"""Lists leave out what the toolkit keeps for itself, say how much that is, and show all of it when
asked to."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import DeadLetters, Reject, Retry, Streams
from streams.cli.root import run as run_command
from streams.log.url import open_log
from streams.patterns import (
    Delays,
    EventBus,
    MessageQueue,
    QueueMessage,
    SagaOrchestrator,
    SagaStep,
)
from streams.patterns.internal_topics import INTERNAL_SUFFIXES, internal_topics, is_internal_group
from tests.cli.conftest import Run, Shell


@dataclasses.dataclass
class Trip:
    city: str


async def serve(url: str) -> tuple[set[str], set[str]]:
    """Let every pattern work once; the user's own topics and groups."""
    app = Streams(url)
    names = {name: f"{name}.of.{id(app)}" for name in ("orders", "mails", "bus", "trips", "later")}
    with closing(open_log(url)) as log:
        for name in (names["orders"], names["mails"], names["bus"], f"{names['trips']}.saga"):
            log.create_topic(name, 1)
    orders = app.topic(names["orders"], int)
    logged = Retry(attempts=2, delay=0.001, durable=True)
    sequenced = DeadLetters(sequenced=True)
    ended = asyncio.Event()

    @app.processor(orders, group="billing", retry=logged)
    def bill(n: int) -> None:
        raise Reject("never")

    @app.processor(orders, group="closing", dead_letters=sequenced)
    def close(n: int) -> None: ...

    async def send(message: QueueMessage[Any]) -> None: ...

    async def book(trip: Trip) -> None:
        ended.set()

    queue = MessageQueue(app)
    consumer = queue.subscribe(names["mails"], send)
    EventBus(app, names["bus"]).subscribe("seen", lambda event: None, group="watching")
    trips = SagaOrchestrator(app, names["trips"], context=Trip)
    trips.add_step(SagaStep("book", book))
    delays = Delays(app, names["later"])
    async with app:
        _ = await consumer
        await orders.publish(1)
        await queue.publish(names["mails"], 1, delay=3_600)
        await delays.publish(orders, 2, delay=3_600)
        await trips.execute(Trip("Rome"), id="ann")
    own = {names["orders"], names["mails"], names["bus"]}
    return own, {"billing", "closing", names["mails"], "watching"}


def names_of(listed: Any, kind: str) -> set[str]:
    return {each[kind] for each in listed.json}


async def test_lists_show_what_is_the_users(shell: Shell, run: Run) -> None:
    topics, groups = await serve(f"sqlite:///{shell.folder / 'shop.db'}")
    mark = "of"
    assert names_of(run("topics", "ls", "--json"), "topic") == topics
    assert names_of(run("groups", "ls", "--json"), "group") == groups
    everything = names_of(run("topics", "ls", "--all", "--json"), "topic")
    (orders,) = (name for name in topics if name.startswith("orders"))
    assert mark in orders
    for kind in ("dead", "retry", "delay", "attempts"):
        assert f"{orders}.billing.{kind}" in everything
    assert f"{orders}.closing.parked" in everything
    assert any(name.endswith(".saga") for name in everything)
    hidden = len(everything - topics)
    said = run("topics", "ls")
    assert f"{hidden} topics of the toolkit's own are not shown; --all shows all" in said.err
    every_group = names_of(run("groups", "ls", "--all", "--json"), "group")
    assert any(name.endswith(".floor") for name in every_group)
    hidden = len(every_group - groups)
    said = run("groups", "ls")
    assert (
        f"{hidden} groups that read only the toolkit's own topics are not shown; --all shows all"
        in said.err
    )
    assert "not shown" not in run("topics", "ls", "--all").err + run("groups", "ls", "--all").err


@pytest.mark.parametrize("server", ["redis_server", "kafka"])
async def test_it_is_the_same_on_a_server(
    server: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    found = request.getfixturevalue(server)
    url = found.url if server == "redis_server" else f"kafka://{found.bootstrap}"
    topics, _ = await serve(url)
    mark = next(iter(topics)).rpartition(".")[2]
    capfd.readouterr()
    assert run_command(["topics", "ls", "--json", "--url", url]) == 0
    listed = {each["topic"] for each in json.loads(capfd.readouterr().out)}
    assert {name for name in listed if mark in name} == topics


@given(
    st.sets(st.from_regex(r"[a-c]{1,2}(\.[a-c]{1,2}){0,2}", fullmatch=True)),
    st.sets(st.from_regex(r"[a-c]{1,2}", fullmatch=True)),
)
def test_a_name_of_a_users_is_never_hidden(topics: set[str], groups: set[str]) -> None:
    assert internal_topics(topics, groups) == set()
    beside = {
        f"{topic}.{group}.{kind}"
        for topic in topics
        for group in groups
        for kind in INTERNAL_SUFFIXES
    }
    assert internal_topics(topics | beside, groups) == beside
    assert internal_topics(beside, groups) & topics == set()


def test_a_name_alone_may_deceive() -> None:
    assert internal_topics({"left.for.dead", "retry", "a.dead", ".saga"}, set()) == set()
    assert internal_topics({"left", "left.for.dead"}, set()) == {"left.for.dead"}
    assert internal_topics({"d", "d.dead", "d.retry"}, {"d.floor"}) == {"d", "d.dead", "d.retry"}


def test_a_group_without_topics_is_somebodys() -> None:
    assert not is_internal_group("g", [], {"t"})
    assert is_internal_group("g", ["t.saga"], {"t.saga"})
    assert not is_internal_group("g", ["orders", "orders.g.retry"], {"orders.g.retry"})


def test_what_a_view_keeps_is_known_by_the_group_that_folds_it() -> None:
    kept = {"__streams.views.events", "a.b.v1.keyed", "a.b.v1.documents"}
    groups = {"a.b.v1", "a.b.v1.keyed"}
    assert internal_topics({*kept, "a.events"}, groups) == kept
    assert internal_topics({"a.b.v1.keyed", "my.documents"}, set()) == set()
    assert not is_internal_group("a.b.v1", ["a.events"], kept)


def test_what_an_event_topic_has_beside_it_on_kafka() -> None:
    kept = {"a.events.snapshots", "a.events.index"}
    assert internal_topics({"a.events", *kept}, set()) == kept
    assert internal_topics({"a.events", "a.events.index", "orders", "orders.index"}, set()) == set()
