"""The screens of views: versions, how far they are, what stands still; promoting, rebuilding and
dropping them."""

from __future__ import annotations

from typing import Any

import pytest

from streams import View
from streams.eventsourcing.views.inspection import read_view
from streams.web import Dashboard
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import deposit, open_with
from tests.views.bank import Balance, Bank, fold_balance, unique
from tests.web.visiting import Seen, Visitor, eventually, visit


async def job_ended(visitor: Visitor, begun: Seen) -> Seen:
    """The page of a job that a form began, once it has ended."""
    address = begun.response.headers["location"]
    found: list[Seen] = []

    async def ended() -> bool:
        found[:] = [await visitor.get(address)]
        return "It continues when this page is closed." not in found[0].text

    await eventually(ended)
    return found[0]


async def built(bank: Bank, view: View[Any], key: str = "a") -> None:
    """Wait until a version has what was decided so far."""
    done = await bank.accounts.decide(key, deposit, 1)
    await view.get(key, wait_for=done, timeout=60)


@pytest.mark.everywhere
async def test_a_view_says_how_far_its_version_is(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    name = bank.balances.name
    async with bank.app:
        for number in range(5):
            await bank.accounts.decide(f"a-{number}", open_with, f"owner {number}", 5)
        await built(bank, bank.balances)
        async with visit(Dashboard(bank.app, access="read")) as visitor:
            listed = await visitor.get("/views")
            assert "serves" in listed.text

            async def says() -> bool:
                shown = await visitor.get(listed.link(name))
                return "100% folded" in shown.text and "6 documents" in shown.text

            await eventually(says)
            shown = await visitor.get(listed.link(name))
            assert "Version 1 serves." in shown.text
            known = read_view(stage.anchor, name).find_version(1)
            assert known is not None
            assert known.shape in shown.text
            assert not [form for form in shown.forms if form.method == "post"]


async def test_a_version_is_promoted_rebuilt_and_dropped(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    name = bank.balances.name
    second = bank.accounts.view("balances", Balance, version=2, promote=False)(fold_balance)
    async with bank.app:
        await built(bank, bank.balances)
        await built(bank, second)
        async with visit(Dashboard(bank.app, access="all")) as visitor:
            shown = await visitor.get(f"/views/show?view={name}")
            running = await visitor.submit(shown, "Drop", version="2", status=400)
            assert "stop the processes" in running.text
            asked = await visitor.submit(shown, "Promote", version="2")
            assert "Version 1 serves now." in asked.text
            assert read_view(stage.anchor, name).promoted == 1
            done = await visitor.submit(asked, "Promote it")
            assert f"Version 2 of {name} serves from now on." in done.text
            assert read_view(stage.anchor, name).promoted == 2
            refused = await visitor.submit(asked, "Promote it", version="1")
            assert "Promote version 1" in refused.text  # what was confirmed is not so any more

            shown = await visitor.get(f"/views/show?view={name}")
            asked = await visitor.submit(shown, "Rebuild", version="2")
            assert "1 document is deleted" in asked.text
            assert "nothing does meanwhile" in asked.text
            begun = await visitor.submit(asked, "Rebuild it", status=303)
            ended = await job_ended(visitor, begun)
            assert "is cleared, and is being rebuilt" in ended.text
            await built(bank, second)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        shown = await visitor.get(f"/views/show?view={name}")
        asked = await visitor.submit(shown, "Drop", version="1")
        begun = await visitor.submit(asked, "Drop it", status=303)
        assert "is dropped" in (await job_ended(visitor, begun)).text
    assert [each.version for each in read_view(stage.anchor, name).versions] == [2]


async def test_a_document_that_stands_still_is_a_problem_and_is_folded_on(stage: Stage) -> None:
    mended = False

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        if getattr(event, "cents", 0) == 13 and not mended:
            raise ValueError("unlucky")
        return fold_balance(balance, event)

    bank = Bank(stage.app(), unique(), fold)
    name = bank.balances.name
    async with bank.app:
        await bank.accounts.decide("a", deposit, 13)
        await built(bank, bank.balances, "b")
        async with visit(Dashboard(bank.app, access="all")) as visitor:

            async def is_said() -> bool:
                seen = await visitor.get("/")
                return f"1 document of the view {name} is stopped." in seen.text

            await eventually(is_said)
            overview = await visitor.get("/")
            shown = await visitor.get(overview.link(f"1 document of the view {name} is stopped."))
            assert "ValueError: unlucky" in shown.text
            begun = await visitor.submit(shown, "Resume", status=303)
            ended = await job_ended(visitor, begun)
            assert "has stopped again" in ended.text
            mended = True
            begun = await visitor.submit(shown, "Resume", status=303)
            ended = await job_ended(visitor, begun)
            assert "The document has been resumed." in ended.text
            again = await visitor.get(f"/views/show?view={name}")
            assert "unlucky" not in again.text
        async with visit(Dashboard(bank.app, access={"read", "rebuild"})) as visitor:
            await bank.accounts.decide("c", deposit, 1)
            mended = False
            await bank.accounts.decide("secret-key", deposit, 13)

            async def stands() -> bool:
                seen = await visitor.get(f"/views/show?view={name}")
                return "Stopped documents" in seen.text

            await eventually(stands)
            seen = await visitor.get(f"/views/show?view={name}")
            assert "unlucky" not in seen.html
            assert "secret-key" not in seen.html


async def test_a_view_that_is_not_there_is_said_so(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    name = bank.balances.name
    async with bank.app, visit(Dashboard(bank.app, access="all")) as visitor:
        await built(bank, bank.balances)
        await visitor.get("/views/show?view=nobody", status=404)
        await visitor.get("/views/show", status=404)
        await visitor.get(f"/views/show?view={name}&stopped_from=x", status=400)
        fields = {"view": name, "version": "7"}
        await visitor.post("/views/promote", fields, status=404)
        await visitor.post("/views/rebuild", fields, status=404)
        await visitor.post("/views/drop", fields, status=404)
        no_key = {"view": name, "version": "1"}
        await visitor.post("/views/retry", no_key, status=400)
        await visitor.post("/views/retry", {**no_key, "hex": "zz"}, status=400)
        await visitor.post("/views/retry", {**no_key, "key": "nobody"}, status=404)
