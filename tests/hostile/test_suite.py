"""Whatever stands in a topic, the group goes on, health tells, and commands list it.

One app reads every kind of topic the toolkit has, on every log. Each example writes some hostile
records to all of them, and then one good message of each kind, which must be handled. Afterwards
the app is started again over all of it, and each command that lists is run.

``STREAMS_TEST_EXAMPLES`` says how many examples a log gets; ``make faults`` runs 2,500 each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile.commands import Ended, command, lists
from tests.hostile.generate import bundle
from tests.hostile.ground import Ground
from tests.hostile.patterns import Patterns, Views
from tests.hostile.service import GOOD, Running, Service

T = TypeVar("T")
R = TypeVar("R", bound=Running)

EXAMPLES = int(os.environ.get("STREAMS_TEST_EXAMPLES", "5"))
UNHURRIED: list[Any] = list(HealthCheck)
LONG = int(os.environ.get("STREAMS_TEST_EXAMPLES", "2500"))


@pytest.mark.timeout(600)
def test_the_group_goes_on_and_commands_list(stage: Ground) -> None:
    attack(Service(stage), EXAMPLES, listed)


@pytest.mark.timeout(600)
@pytest.mark.only("memory", "sqlite", "redis")
def test_the_patterns_go_on(stage: Ground) -> None:
    attack(Patterns(stage), EXAMPLES, patterns_listed)


@pytest.mark.timeout(600)
@pytest.mark.only("kafka")  # where each of them takes seconds: the others run with the long ones
def test_views_go_on(stage: Ground) -> None:
    attack(Views(stage), min(2, EXAMPLES), views_listed)


@pytest.mark.faults
@pytest.mark.timeout(7_200)
def test_ten_thousand_examples(stage: Ground) -> None:
    attack(Service(stage), LONG, listed)


@pytest.mark.faults
@pytest.mark.timeout(7_200)
def test_ten_thousand_examples_of_patterns(stage: Ground) -> None:
    attack(Patterns(stage), LONG, patterns_listed)


def attack(service: R, examples: int, listed: Callable[[R], None]) -> None:
    stage = service.ground
    # Made before anything runs: Hypothesis minds that threads beside it use random numbers. They
    # are not shrunk, as what was written before stays written, and an app that died stays dead.
    bundles = made(bundle(service.kinds()), examples)
    service.start()
    try:
        for number, found in enumerate(bundles):
            for topic, records in found.items():
                stage.write(topic, records)
            try:
                service.goes_on()
            except BaseException as error:
                error.add_note(f"after example {number}: {found}")
                raise
    finally:
        service.stop()
    service.start()  # over everything that is there by now
    try:
        service.goes_on()
        listed(service)
        service.goes_on()
    finally:
        service.stop()


def made(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """So many examples."""
    found: list[T] = []

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=UNHURRIED)
    @given(strategy)
    def note(example: T) -> None:
        found.append(example)

    note()
    return found


def listed(service: Service) -> None:
    """Each command lists what there is; the good messages are among it."""
    stage, url, group = service.ground, service.ground.url, service.group
    if stage.case.name in ("memory", "sqlite"):  # the others hold the whole session's
        lists(url, "topics", "ls")
        lists(url, "groups", "ls", "--all")
        lists(url, "dead", "ls")
    lists(url, "groups", "show", group)
    lists(url, "reset", group, service.name("orders"), "--to", "earliest", "--dry-run")
    all_are_shown(service, *service.kinds())
    for name in ("orders", "ordered", "events"):
        topic = service.name(name)
        lists(url, "topics", "show", topic)
        documents = command(url, "tail", topic, "--from", "earliest", "--json").documents
        good = [each for each in documents if str(GOOD + 1) in str(each.get("value"))]
        assert good, f"the good message of {name} is not listed"
    orders, ordered, saga = (service.name(name) for name in ("orders", "ordered", "saga"))
    letters = lists(url, "dead", "ls", group, orders, "--all").documents[0]
    for letter in letters[:2]:
        lists(url, "dead", "show", group, orders, letter["place"])
    closed = lists(url, "dead", "keys", group, ordered)
    names_what_is_left_out(closed, f"{ordered}.{group}.parked")
    for key in closed.documents[0][:2]:
        command(url, "dead", "show", group, ordered, "--key", key["key"])
    listing = lists(url, "saga", "ls", saga, "--all")
    names_what_is_left_out(listing, f"{saga}.saga")
    sagas = listing.documents[0]
    assert f"good-{GOOD + 1}" in {each["id"] for each in sagas}
    for each in sagas[-2:]:
        command(url, "saga", "status", saga, each["id"])
    found = service.app.wait(service.letters.get_dead_letters(limit=10_000, everything=True))
    assert len(found) >= len(letters)  # also those that name no group, or another one
    waiting = lists(
        url, "dead", "ls", group, orders, "--error", "e", "--since", "2000-01-01T00:00Z"
    )
    lists(url, "dead", "purge", group, orders, "--key", "k1", "--dry-run")
    for letter in waiting.documents[0][:2]:
        command(url, "dead", "edit", group, orders, letter["place"], "--value", "{}")
        command(url, "dead", "retry", group, orders, letter["id"])
    command(url, "dead", "retry", group, orders, "--yes")


def names_what_is_left_out(ended: Ended, topic: str) -> None:
    """On standard error, and not more of it than people read."""
    (line,) = [each for each in ended.err.splitlines() if each.startswith(f"{topic}: ")]
    assert re.search(rf"left out .*: {re.escape(topic)}/0/", line), line
    assert 1 <= line.count(f"{topic}/0/") <= 5
    assert len(line) < 1_000


def all_are_shown(service: Running, *topics: str) -> None:
    """What stands in each of these topics, whatever it is."""
    for topic in topics:
        tail = command(service.ground.url, "tail", topic, "-n", "500")
        everything = command(service.ground.url, "replay", topic)
        assert tail.status == everything.status == 0, (tail, everything)
        assert tail.out.count("\n") == min(500, len(everything.documents))


def views_listed(service: Views) -> None:
    """What people see of views."""
    url = service.ground.url
    all_are_shown(service, service.keyed)
    for view in (service.sums, service.by_number):
        shown = lists(url, "views", "show", view.name).documents[0]
        assert shown["promoted"] == 1, shown
        lists(url, "views", "stopped", view.name)


def patterns_listed(patterns: Patterns) -> None:
    """The same, and of queues, steps and managers."""
    url, queue = patterns.ground.url, patterns.queue_name
    views_listed(patterns)
    all_are_shown(patterns, *(topic for topic in patterns.kinds() if topic != patterns.keyed))
    lists(url, "groups", "show", queue)
    lists(url, "dead", "ls", queue, queue, "--all")
    documents = command(url, "tail", patterns.bus_name, "--from", "earliest", "--json").documents
    assert [each for each in documents if str(GOOD + 1) in str(each.get("value"))]
