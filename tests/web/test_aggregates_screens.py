"""The screens of aggregates: their IDs; one with the state after each event; what the app's code
cannot go on with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, DecisionRefused, Snapshot, Streams
from streams.web import Dashboard
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, Deposited, Overdrawn, accounts, deposit, open_with
from tests.views.bank import unique
from tests.web.visiting import Seen, Visitor, eventually, visit


class Opened(Struct, tag="opened", frozen=True):
    """All that older code knows."""

    owner: str


def open_account(account: Account, event: Opened) -> Account:
    return Account(event.owner)


@asynccontextmanager
async def bank(stage: Stage) -> AsyncIterator[tuple[Streams, Aggregate[object, Account]]]:
    """Ada's account with 7 events, and Bob's, which is closed."""
    app = stage.app()
    found = accounts(app, unique())
    async with app:
        await found.decide("ada-l", open_with, "Ada", 100)
        for cents in range(1, 5):
            await found.decide("ada-l", deposit, cents)
        await found.decide("ada-l", Account.withdraw, 30)
        await found.decide("bob-m", open_with, "Bob", 1)
        await found.decide("bob-m", Account.close)
        yield app, found


async def get(visitor: Visitor, path: str) -> Seen:
    """A page, once the log knows which events count."""
    found: list[Seen] = []

    async def is_there() -> bool:
        found[:] = [await visitor.get(path)]
        return "is finding out which events count" not in found[0].text

    await eventually(is_there)
    return found[0]


@pytest.mark.everywhere
async def test_an_aggregate_is_found_with_the_state_after_each_event(stage: Stage) -> None:
    async with bank(stage) as (app, found), visit(Dashboard(app, access="all")) as visitor:
        listed = await visitor.get("/aggregates")
        kind = await get(visitor, listed.link(found.name))
        assert "ada-l" in kind.text
        assert "bob-m" in kind.text
        ada = await visitor.get(kind.link("ada-l"))
        assert "Version 7" in ada.text
        assert '"cents": 80' in ada.text  # the state now
        assert "Withdrawn" in ada.text
        assert '{"owner":"Ada","cents":110}' in ada.text  # before that
        before = await visitor.get(f"{kind.link('ada-l')}&at=2")
        assert "shown as of version 2" in before.text
        assert '"cents": 100' in before.text
        assert "Withdrawn" not in before.text
        missing = await visitor.get(
            f"/aggregates/history?aggregate={found.name}&key=zoe", status=404
        )
        assert "There is no aggregate of this ID." in missing.text


async def test_without_the_app_events_are_shown_as_they_are_stored(stage: Stage) -> None:
    async with bank(stage) as (_, found), visit(Dashboard(stage.app(), access="all")) as visitor:
        seen = await get(visitor, f"/aggregates/history?aggregate={found.name}&key=ada-l")
        assert '{"type":"withdrawn","cents":30}' in seen.text
        assert "State at version" not in seen.text
        kind = await get(visitor, f"/aggregates/show?aggregate={found.name}")
        assert "events are shown as they are stored" in kind.text


@pytest.mark.everywhere
async def test_stored_refusals_are_shown_among_the_events(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bank(stage) as (app, found):
        for number in range(3):
            step = found.with_options(cause=f"wish-{number}", refusals=Overdrawn)
            with suppress(DecisionRefused):
                await step.decide("ada-l", Account.withdraw, 5_000)
            await found.decide("ada-l", deposit, 1)
        path = f"/aggregates/history?aggregate={found.name}&key=ada-l"
        async with visit(Dashboard(app, access="all")) as visitor:
            seen = await get(visitor, path)
            order = ["refused at version 9", "refused at version 8", "refused at version 7"]
            places = [seen.text.index(text) for text in order]
            assert places == sorted(places)
            assert seen.text.count("Overdrawn") == 3
            assert all(f"wish-{number}" in seen.text for number in range(3))
            assert "Only the last refusals" not in seen.text
            before = await visitor.get(f"{path}&at=7")
            assert "wish-0" in before.text
            assert "wish-1" not in before.text
            monkeypatch.setattr("streams.web.screens.aggregates.MAX_REFUSALS", 2)
            few = await visitor.get(path)
            assert "wish-0" not in few.text
            assert "wish-1" in few.text
            assert "Only the last refusals are shown." in few.text


async def test_while_events_are_indexed_the_page_says_so_and_is_loaded_once_they_are(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bank(stage) as (app, found):
        path = f"/aggregates/show?aggregate={found.name}"
        async with visit(Dashboard(app, access="all")) as visitor:
            await get(visitor, path)
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(app.log, "index_progress", lambda topic: (3, 7))
                assert "3 of 7 checked" in (await visitor.get(path)).text
                asked = await visitor.get(path, headers={"hx-request": "true"})
                assert "hx-refresh" not in asked.response.headers
            asked = await visitor.get(path, headers={"hx-request": "true"})
            assert asked.response.headers["hx-refresh"] == "true"


async def test_what_older_code_cannot_go_on_with_is_listed(stage: Stage) -> None:
    async with bank(stage) as (_, found):
        older = stage.app()
        Aggregate(older, found.name, Opened, Account, open_account, partitions=2)
        async with visit(Dashboard(older, access="all")) as visitor:
            kind = await get(visitor, f"/aggregates/show?aggregate={found.name}")
            listed = await visitor.get(kind.link("What the code cannot go on with"))
            assert "2 aggregates were checked." in listed.text
            assert "event 2 cannot be decoded" in listed.text
            ada = await visitor.get(listed.link("ada-l"))
            assert "code cannot go on:" in ada.text
            assert '"owner": "Ada"' in ada.text  # the state before that
            assert "It cannot be decoded:" in ada.text
        async with visit(Dashboard(older, access="read")) as reader:
            path = f"/aggregates/stopped?aggregate={found.name}"
            await reader.get(path, status=403)


async def test_long_histories_and_many_ids_come_in_pages(stage: Stage) -> None:
    app = stage.app()
    found = accounts(app, unique())
    async with app, visit(Dashboard(app, access="all")) as visitor:
        for _ in range(60):
            await found.decide("long", deposit, 1)
        for number in range(55):
            await found.decide(f"a-{number:02}", deposit, 1)
        seen = await get(visitor, f"/aggregates/history?aggregate={found.name}&key=long")
        assert '"cents": 60' in seen.text
        older = await visitor.get(f"/aggregates/history{seen.link('older events')}")
        assert '"cents": 10' in older.text
        assert "older events" not in older.text
        kind = await get(visitor, f"/aggregates/show?aggregate={found.name}")
        assert "a-49" in kind.text
        assert "a-50" not in kind.text
        assert "long" in (await visitor.get(f"/aggregates/show{kind.link('next')}")).text
        few = await visitor.get(f"/aggregates/show?aggregate={found.name}&prefix=a-5")
        assert "a-49" not in few.text
        assert "a-54" in few.text


async def test_snapshots_are_shown_and_make_loading_begin_there(stage: Stage) -> None:
    app = stage.app()
    found = accounts(app, unique(), snapshot=Snapshot(every=10))
    async with app:
        for _ in range(65):
            await found.decide("a", deposit, 1)

        def kept() -> bool:
            log = stage.anchor
            return bool(log.list_snapshots(found.events.name, b"a"))  # type: ignore[attr-defined]

        await stage.until(kept)
        async with visit(Dashboard(app, access="all")) as visitor:
            seen = await get(visitor, f"/aggregates/history?aggregate={found.name}&key=a")
            assert '"cents": 65' in seen.text
            assert found.definition.fingerprint in seen.text
            assert seen.text.count("Deposited") == 50


async def test_what_is_in_events_is_not_shown_without_the_permission(stage: Stage) -> None:
    async with bank(stage) as (app, found):
        async with visit(Dashboard(app, access="read")) as visitor:
            kind = await get(visitor, f"/aggregates/show?aggregate={found.name}&prefix=a")
            assert "ada-l" not in kind.html
            assert b"ada-l".hex() not in kind.html  # nor a key as digits
            for behind in (b"a", b"ada-l", b"z"):  # which would tell where hidden keys stand
                path = f"/aggregates/show?aggregate={found.name}&after={behind.hex()}"
                assert (await get(visitor, path)).html.count("<tr") == kind.html.count("<tr") > 1
            seen = await get(visitor, f"/aggregates/history?aggregate={found.name}&key=ada-l")
            assert "not shown" in seen.text
            assert "Ada" not in seen.html
            assert "cents" not in seen.html
        async with visit(Dashboard(app, access="all", redact=lambda each: b"***")) as visitor:
            path = f"/aggregates/show?aggregate={found.name}"
            kind = await get(visitor, path)
            assert "ada-l" not in kind.html
            assert "version" in kind.text
            rows = kind.html.count("<tr")
            assert (await get(visitor, f"{path}&prefix=ada")).html.count("<tr") < rows
            assert (await get(visitor, f"{path}&prefix=***")).html.count("<tr") <= rows
            await visitor.get(f"{path}&after={b'ada'.hex()}", status=400)
            seen = await get(visitor, f"/aggregates/history?aggregate={found.name}&key=ada-l")
            assert "Ada" not in seen.html
            assert "cents" not in seen.html


async def test_what_is_no_aggregate_is_said_so(stage: Stage) -> None:
    app = stage.app()
    declared = accounts(app, unique())
    plain = stage.app()
    topic = plain.topic("plain-" + stage.group + ".events", int, partitions=1)
    async with plain.connected():
        await stage.publish(topic, 1)
    async with visit(Dashboard(app, access="all")) as visitor:
        listed = await visitor.get("/aggregates")
        assert f"{declared.name} does not exist yet" in listed.text
        assert f"plain-{stage.group}" not in listed.text
        for name in (declared.name, "nobody", "", "a/b", f"plain-{stage.group}"):
            await visitor.get(f"/aggregates/show?aggregate={name}", status=404)
            await visitor.get(f"/aggregates/history?aggregate={name}&key=a", status=404)
            await visitor.get(f"/aggregates/stopped?aggregate={name}", status=404)


class Reminded(Struct, tag="reminded", frozen=True):
    """An event that is none any more."""

    text: str


class Moved(Struct, tag="moved", frozen=True):
    """An event that is two today."""

    cents: int


class Listed(Struct, tag="listed", frozen=True):
    """An event of today whose fields are of any depth."""

    tree: Any


async def test_an_old_event_is_shown_as_the_app_reads_it_too(stage: Stage) -> None:
    name = unique()
    before: Aggregate[Any, Account] = Aggregate(
        stage.app(), name, Reminded | Moved | Deposited, Account, lambda state, event: state,
        partitions=1,
    )  # fmt: skip
    async with before.app.connected():
        events = [Reminded("<b>pay</b>"), Moved(30), Deposited(5)]
        stored = await before.append("a", events, expected="new")
    bank = accounts(stage.app(), name, partitions=1)
    bank.upcast(Reminded)(lambda old: None)
    bank.upcast(Moved)(lambda old: [Deposited(-old.cents), Deposited(old.cents)])
    today, none = "As the app reads it today", "No event: an upcast leaves it out."
    async with bank.app.connected():
        paths = [
            f"/topics/{bank.events.name}/messages/0/{each.offset}" for each in stored.positions
        ]
        async with visit(Dashboard(bank.app, access="all")) as visitor:
            left_out, moved, same = [await visitor.get(path) for path in paths]
            assert today in left_out.text
            assert none in left_out.text
            assert '"text": "<b>pay</b>"' in left_out.text  # as it is stored
            assert moved.text.count('"type": "deposited"') == 2
            assert moved.text.count('"type": "moved"') == 1
            assert '"cents": -30' in moved.text
            assert today not in same.text
        hidden = b'{"type":"deposited","cents":0}'
        for redact in (
            lambda payload: None if b"-30" in payload.data else payload.data,
            lambda payload: hidden if payload.kind == "value" else payload.data,
        ):
            async with visit(Dashboard(bank.app, access="all", redact=redact)) as visitor:
                assert today not in (await visitor.get(paths[1])).text
    async with visit(Dashboard(before.app, access="all")) as visitor:  # the older code, too
        assert today not in (await visitor.get(paths[1])).text


async def test_a_deep_event_of_today_is_shown() -> None:
    url = f"memory://{unique()}"
    before: Aggregate[Any, Account] = Aggregate(
        Streams(url), "deep", Moved, Account, lambda state, event: state, partitions=1
    )
    today: Aggregate[Any, Account] = Aggregate(
        Streams(url), "deep", Listed, Account, lambda state, event: state, partitions=1
    )
    tree: list[Any] = []
    for _ in range(300):
        tree = [tree]
    today.upcast(Moved)(lambda old: Listed(tree))
    async with Streams(url).connected(), before.app.connected():
        done = await before.append("a", [Moved(1)], expected="new")
        async with today.app.connected(), visit(Dashboard(today.app, access="all")) as visitor:
            shown = await visitor.get(f"/topics/deep.events/messages/0/{done.positions[0].offset}")
    assert "As the app reads it today" in shown.text
    assert shown.text.count("[") > 300
