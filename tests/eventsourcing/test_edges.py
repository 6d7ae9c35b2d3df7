"""What is asked at the edges: versions and times that are not there, options, odd decisions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from streams import Streams
from streams.errors import InvalidValue
from streams.eventsourcing import (
    Aggregate,
    AggregateClosed,
    Loaded,
    Snapshot,
    WrongExpectedVersion,
)
from streams.log.events import History, HistoryRequest
from streams.testing import given, harness
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    Closed,
    Deposited,
    Opened,
    Withdrawn,
    accounts,
    deposit,
    nothing,
    open_with,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("at", [-1, 4, True, "1", 1.0])
async def test_a_version_that_never_was_is_not_loaded(stage: Stage, at: Any) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        for cents in (1, 2, 3):
            await bank.decide("a", deposit, cents)
        with pytest.raises(InvalidValue, match=r"at=|has 3 versions"):
            await bank.load("a", at=at)
        assert await bank.load("a", at=0) == Loaded(Account(), 0)
        assert await bank.load("a", at=3) == await bank.load("a")
        assert await bank.load("none", at=0) == Loaded(Account(), 0)
        with pytest.raises(InvalidValue, match="has 0 versions"):
            await bank.load("none", at=1)


@pytest.mark.parametrize("start", [-1, True, "1", None])
async def test_a_start_that_is_no_version_is_refused(start: Any) -> None:
    app = Streams("memory://")
    bank = accounts(app)
    async with app:
        with pytest.raises(InvalidValue, match="start="):
            async for _ in bank.read("a", start=start):
                pass


async def test_reading_from_the_end_on_gives_nothing(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        await bank.decide("a", open_with, "ada", 5)
        for start, expected in ((0, [1, 2]), (1, [2]), (2, []), (1_000, [])):
            assert [each.version async for each in bank.read("a", start=start)] == expected
        assert [each async for each in bank.read("none")] == []


async def test_a_clock_that_was_set_back_leaves_out_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Streams("memory://unused")
    bank = accounts(app)
    start = datetime(2030, 1, 1, tzinfo=timezone.utc)
    hours = {1: 0, 2: 2, 3: -1}  # the server's clock, at each event

    async with harness(app):
        for cents in (1, 10, 100):
            await bank.decide("a", deposit, cents)
        histories = bank._runtime._histories
        assert histories is not None
        read = histories.read

        async def read_dated(request: HistoryRequest) -> History:
            found = await read(request)
            events = [
                replace(each, time=(start + timedelta(hours=hours[each.version])).timestamp())
                for each in found.events
            ]
            return found._replace(events=events)

        monkeypatch.setattr(histories, "read", read_dated)
        # The third event has the earliest time, and cannot have happened without the second.
        assert await bank.load("a", at=start) == Loaded(Account("", 1), 1)
        assert await bank.load("a", at=start - timedelta(hours=1)) == Loaded(Account(), 0)
        assert await bank.load("a", at=start + timedelta(hours=2)) == Loaded(Account("", 111), 3)


async def test_a_match_from_outside_is_checked_at_every_try(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    async with first, second:
        await one.decide("a", deposit, 10)
        seen = (await two.load("a")).version
        if_match = two.with_options(expected=seen)
        assert (await if_match.decide("a", deposit, 1)).version == 2
        with pytest.raises(WrongExpectedVersion) as caught:
            await if_match.decide("a", deposit, 1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        with pytest.raises(WrongExpectedVersion):
            await if_match.decide("a", nothing)
        # Its state is old: it has version 2 in its cache, and the log has 3.
        await one.decide("a", deposit, 1)
        with pytest.raises(WrongExpectedVersion) as caught:
            await two.with_options(expected=2).decide("a", deposit, 1)
        assert (caught.value.expected, caught.value.actual) == (2, 3)
        assert (await two.with_options(expected=3).decide("a", deposit, 1)).version == 4
        new = two.with_options(expected="new")
        assert (await new.decide("b", deposit, 1)).version == 1
        with pytest.raises(WrongExpectedVersion):
            await new.decide("b", deposit, 1)
        with pytest.raises(WrongExpectedVersion):
            await two.with_options(expected="exists").decide("c", deposit, 1)
        assert (await two.with_options(expected="any").decide("c", deposit, 1)).version == 1


async def test_what_was_decided_for_a_cause_is_found_before_a_version_is_expected(
    stage: Stage,
) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        request = bank.with_options(cause="request-1", expected=0)
        first = await request.decide("a", deposit, 1)
        await bank.decide("a", deposit, 5)
        again = await request.decide("a", deposit, 1)
        assert (again.version, again.state, again.events, again.positions) == (
            first.version,
            first.state,
            first.events,
            first.positions,
        )


async def test_odd_decisions_are_refused_and_append_nothing(stage: Stage) -> None:
    app = stage.app()
    bank: Any = accounts(app, stage.topic_name)

    async def later(account: Account) -> Deposited:
        raise AssertionError("nobody awaits it")

    def generated(account: Account) -> Any:
        yield Deposited(1)

    def text(account: Account) -> str:
        return "deposited"

    def foreign(account: Account) -> Any:
        return [Deposited(1), 5]

    async with app:
        for decision, says in (
            (later, "async"),
            (generated, "not generator"),
            (text, "not str"),
            (foreign, "not int"),
        ):
            with pytest.raises(TypeError, match=says):
                await bank.decide("a", decision)
        assert (await bank.load("a")).version == 0


class Events(Sequence[Any]):
    """A sequence that is neither a list nor a tuple."""

    def __getitem__(self, index: Any) -> Any:
        return [Deposited(1), Deposited(2)][index]

    def __len__(self) -> int:
        return 2


async def test_any_sequence_of_events_will_do(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        done = await bank.decide("a", lambda account: Events())
        assert done.events == (Deposited(1), Deposited(2))
        assert (await bank.append("a", Events(), expected=2)).version == 4
        assert given(bank).when(lambda account: Events()).state == Account("", 3)


async def test_an_evolve_without_a_result_is_a_mistake_and_appends_nothing(stage: Stage) -> None:
    def forgets(account: Account, event: Any) -> Any:
        if isinstance(event, Deposited):
            return Account(account.owner, account.cents + event.cents)
        return None

    app = stage.app()
    bank: Any = Aggregate(app, stage.topic_name, Opened | Deposited, Account, forgets, partitions=2)
    async with app:
        await bank.decide("a", deposit, 1)
        with pytest.raises(TypeError, match=r"evolve.*returned None.*Opened"):
            await bank.decide("a", open_with, "ada", 5)
        assert await bank.load("a") == Loaded(Account("", 1), 1)
    with pytest.raises(TypeError, match=r"evolve.*returned None"):
        given(bank, Opened("ada"))


async def test_a_state_that_may_be_none(stage: Stage) -> None:
    """None is a state as any where its type says so."""

    def toggle(state: Any, event: Any) -> Any:
        return None if isinstance(event, Withdrawn) else event.cents

    app = stage.app()
    optional: Any = int | None
    bank: Any = Aggregate(
        app,
        stage.topic_name,
        Deposited | Withdrawn,
        optional,
        toggle,
        initial=0,
        partitions=2,
        snapshot=Snapshot(every=1),
    )
    async with app:
        assert (await bank.append("a", Deposited(5), expected="new")).state == 5
        assert (await bank.append("a", Withdrawn(5), expected=1)).state is None
        assert (await bank.load("a")).state is None


class Ended(Struct, tag="ended", frozen=True):
    reason: str


async def test_given_knows_of_final_events() -> None:
    bank = accounts(Streams("memory://"), final=Closed)
    closed = given(bank, Opened("ada"), Closed())
    closed.when(deposit, 1).raises(AggregateClosed)
    closed.when(nothing).unchanged()
    given(bank, Opened("ada")).when(Account.close).then(Closed())
    given(bank).when(lambda account: [Closed(), Deposited(1)]).raises(InvalidValue)
    with pytest.raises(AggregateClosed):
        given(bank, Closed(), Deposited(1))


async def test_a_closed_aggregate_says_so_in_every_process(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    one = accounts(first, stage.topic_name, final=Closed)
    two = accounts(second, stage.topic_name)  # does not know that it is final, and is told
    async with first, second:
        await two.decide("a", deposit, 1)
        await one.decide("a", Account.close)
        for bank in (one, two):
            with pytest.raises(AggregateClosed):
                await bank.decide("a", deposit, 1)
            assert (await bank.decide("a", nothing)).version == 2
            assert (await bank.load("a")).is_closed
            assert not (await bank.load("a", at=1)).is_closed
            assert (await bank.load("a", at=2)).is_closed
