"""Groups of views cannot be moved by a reset, which says what to do instead; and why: what would
become of the documents."""

from __future__ import annotations

from typing import Any

import pytest

from streams import InvalidValue, Streams
from streams.log.protocol import Committed
from streams.replay import reset
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import open_with
from tests.views.bank import Bank, Holder, fold_holder, owner_of, unique

pytestmark = pytest.mark.anyio


class Holders:
    """Accounts by their owners: a keyed view, as one process has it."""

    def __init__(self, app: Streams, name: str) -> None:
        self.bank = Bank(app, name)
        self.app, self.accounts = app, self.bank.accounts
        self.holders: Any = self.accounts.view("holders", Holder, key=owner_of)(fold_holder)

    async def open(self, *ids: str, wait: bool = True) -> None:
        for each in ids:
            done = await self.accounts.decide(each, open_with, "ada", 0)
            if wait:
                await self.holders.get("ada", wait_for=done)
                await self.bank.balances.get(each, wait_for=done)


async def test_a_reset_of_what_a_view_reads_is_refused(stage: Stage) -> None:
    here = Holders(stage.app(), unique())
    async with here.app:
        await here.open("a", "b")
    there = Holders(stage.app(), here.accounts.name)
    events, view = there.accounts.events.name, there.holders.name
    plain = f"{there.bank.balances.name}.v1"
    async with there.app.connected():
        log = there.app.log
        log.initialize_offsets(f"stranger-{here.accounts.name}", f"{view}.v1.keyed", {0: 0})
        groups = (plain, f"{view}.v1", f"{view}.v1.keyed", f"stranger-{here.accounts.name}")
        before = [log.describe_group(group).positions for group in groups]
        for group, topic, named in (
            (plain, events, there.bank.balances.name),
            (f"{view}.v1", f"{view}.v1.keyed", view),
            (f"{view}.v1.keyed", events, view),
            (f"stranger-{here.accounts.name}", f"{view}.v1.keyed", view),
        ):
            for options in ({"dry_run": True}, {"force": True}, {}):
                with pytest.raises(InvalidValue) as caught:
                    await reset(there.app, group, topic, "earliest", **options)
                said = str(caught.value)
                assert f"view {named!r} version 1" in said
                assert f"streams views rebuild {named} --version 1" in said
                assert "\n" not in said
        assert [log.describe_group(group).positions for group in groups] == before
    async with there.app:
        await there.open("c")
        assert await there.holders.get("ada") == Holder(3)


async def test_what_moving_such_a_group_would_do(stage: Stage) -> None:
    """Past the check, by the log alone: nothing, or documents that lack events for good."""
    here = Holders(stage.app(), unique())
    async with here.app:
        await here.open("a")
    events, view = here.accounts.events.name, here.holders.name
    async with Holders(stage.app(), here.accounts.name).app.connected() as app:
        first = {n: Committed(app.log.watermarks(events, n)[0]) for n in range(2)}
        app.log.reset_offsets(f"{here.bank.balances.name}.v1", events, first)
        app.log.reset_offsets(f"{view}.v1.keyed", events, first)
    back = Holders(stage.app(), here.accounts.name)
    async with back.app:
        await back.open("b")
        assert await back.holders.get("ada") == Holder(2)  # written again, and passed over
        balance = await back.bank.balances.get("a")
        assert balance is not None
        assert balance.moves == 1  # the group does not matter
    on = Holders(stage.app(), here.accounts.name)
    async with on.app.connected():
        await on.open("c", wait=False)
        log = on.app.log
        ends = {n: Committed(log.watermarks(events, n)[1]) for n in range(2)}
        log.reset_offsets(f"{view}.v1.keyed", events, ends)
    last = Holders(stage.app(), here.accounts.name)
    async with last.app:
        await last.open("d")
        assert await last.holders.get("ada") == Holder(3)  # of four: c is missing


async def test_groups_of_the_users_are_not_held_for_a_views(stage: Stage) -> None:
    """Only their names look so."""
    app = stage.app()
    topic = app.topic(f"{stage.topic_name}.v1.keyed", int, partitions=1)
    async with app.connected():
        await topic.publish(1)
        for group in (f"{stage.topic_name}.v1", f"{stage.topic_name}.v1.keyed"):
            app.log.initialize_offsets(group, topic.name, {0: 0})
            (move,) = await reset(app, group, topic, "latest")
            assert move.skipped == 1
