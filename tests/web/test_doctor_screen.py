"""The doctor's screen: what it found, what to do, and that it stands on the overview."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams import Dedup, Streams
from streams.eventsourcing.views.inspection import VersionInspector, read_view
from streams.web import Dashboard
from streams.web.screens import doctor
from tests.conformance.stage import PATIENCE, Stage
from tests.eventsourcing.bank import deposit
from tests.views.bank import Bank, fold_balance, unique
from tests.web.test_dead_screens import write_letters
from tests.web.visiting import Seen, Visitor, eventually, visit


async def looked(visitor: Visitor, path: str = "/doctor?verdict=all") -> Seen:
    """The findings, once they were made."""
    found: list[Seen] = []

    async def is_there() -> bool:
        found[:] = [await visitor.get(path)]
        return "being checked" not in found[0].text

    await eventually(is_there)
    return found[0]


@pytest.mark.everywhere
async def test_what_is_wrong_is_said_with_what_to_do_and_stands_on_the_overview(
    stage: Stage,
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, dedup=Dedup(window=0))(stage.recorder())
    async with app.connected():
        await stage.publish(topic, 1)
        async with visit(Dashboard(app, access="read")) as visitor:
            overview = await visitor.get("/")
            assert "Doctor" in [text for text, _ in overview.links]
            seen = await looked(visitor)
            assert "duplicates are handled again" in seen.text
            assert "leave dedup out" in seen.text
            wrong = await visitor.get("/doctor?verdict=no")
            assert "duplicates are handled again" in wrong.text
            right = await visitor.get("/doctor?verdict=yes")
            assert "duplicates are handled again" not in right.text
            overview = await visitor.get("/")
            assert "Doctor: idempotent" in overview.text
            await visitor.get("/doctor?verdict=maybe", status=400)
            again = await looked(visitor, "/doctor?again=1")
            assert "duplicates are handled again" in again.text


async def test_after_an_action_it_is_looked_again(stage: Stage) -> None:
    app = stage.app()
    app.processor(stage.topic(app), group=stage.group)(stage.recorder())
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 3)
        seen = await looked(visitor)
        assert f"3 dead letters in {name}" in seen.text
        letters = await visitor.get(f"/dead/show?name={name}")
        places = [text for text, href in letters.links if "/dead/letter?" in href]
        await visitor.post("/dead/drop", {"name": name, "letter": places[:2], "confirm": "2"})
        seen = await looked(visitor)
        assert f"1 dead letter in {name}" in seen.text


async def test_findings_on_the_overview_are_not_from_before_an_action(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "AFTER_CHANGE", PATIENCE)
    app = stage.app()
    app.processor(stage.topic(app), group=stage.group, dedup=Dedup(window=0))(stage.recorder())
    async with app.connected():
        dashboard = Dashboard(app, access="all")
        async with visit(dashboard) as visitor:
            await looked(visitor)
            assert "duplicates are handled again" in (await visitor.get("/")).text
            # It is put right, and somebody does something.
            app.processors[0].options = replace(app.processors[0].options, dedup=Dedup())
            await visitor.post(
                "/publish", {"topic": stage.topic_name, "value": "1", "format": "json"}
            )
            assert "duplicates are handled again" not in (await visitor.get("/")).text


async def test_what_is_in_messages_is_not_told_without_the_permission(stage: Stage) -> None:
    def fold(balance: object, event: object) -> object:
        if getattr(event, "cents", 0) == 13:
            raise ValueError("unlucky secret")
        return fold_balance(balance, event)  # type: ignore[arg-type]

    bank = Bank(stage.app(), unique(), fold)
    async with bank.app:
        await bank.accounts.decide("key-of-eve", deposit, 13)
        await bank.accounts.decide("b", deposit, 1)

        name = bank.balances.name

        def stands_still() -> bool:
            view = read_view(stage.anchor, name)
            return any(
                VersionInspector(stage.anchor, name, view, each).tracker.count_stopped()
                for each in view.versions
            )

        await stage.until(stands_still)
        async with visit(Dashboard(bank.app, access="all")) as visitor:
            seen = await looked(visitor)
            assert "unlucky secret" in seen.text
            assert "key-of-eve" in seen.text
        async with visit(Dashboard(bank.app, access="read")) as visitor:
            seen = await looked(visitor)
            assert "1 document is stopped, such as '(not shown)'" in seen.text
            for page in (seen, await visitor.get("/")):
                assert "unlucky secret" not in page.html
                assert "key-of-eve" not in page.html


async def test_without_an_app_there_is_nothing_to_look_at(stage: Stage) -> None:
    async with visit(Dashboard(Streams(stage.url), access="all")) as visitor:
        overview = await visitor.get("/")
        assert "Doctor" not in [text for text, _ in overview.links]
        await visitor.get("/doctor", status=404)
