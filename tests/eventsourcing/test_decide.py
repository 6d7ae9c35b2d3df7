"""Decisions: what they append, when they are refused, and what they never do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams import Streams
from streams.config import Retry
from streams.errors import ConfigError, InvalidValue, NotRunning
from streams.eventsourcing import (
    AggregateClosed,
    Cache,
    Decided,
    Loaded,
    WrongExpectedVersion,
)
from streams.eventsourcing.state_type import StateType
from streams.message import Position
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    Closed,
    Deposited,
    Opened,
    Overdrawn,
    Withdrawn,
    accounts,
    deposit,
    nothing,
    open_with,
)

pytestmark = pytest.mark.anyio


async def test_a_decision_appends_what_it_returns(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        opened = await bank.decide("a-1", open_with, "ada", cents=500)
        assert (opened.state, opened.version) == (Account("ada", 500), 2)
        assert opened.events == (Opened("ada"), Deposited(500))
        assert [each.topic for each in opened.positions] == [bank.events.name] * 2
        drawn = await bank.decide("a-1", Account.withdraw, 200)
        assert (drawn.state, drawn.version, drawn.events) == (
            Account("ada", 300),
            3,
            (Withdrawn(200),),
        )
        assert Position.parse(str(drawn)) == drawn.positions[-1]
        assert await bank.load("a-1") == Loaded(Account("ada", 300), 3)
        assert await bank.load("never") == Loaded(Account(), 0)


async def test_what_was_decided_is_there_for_others(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    async with first, second:
        for number in range(10):
            await (one, two)[number % 2].decide("a", deposit, 1)
        assert (await one.load("a")).state == (await two.load("a")).state == Account("", 10)
        assert [each.version async for each in two.read("a")] == list(range(1, 11))


async def test_a_decision_that_raises_appends_nothing(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        await bank.decide("a", deposit, 5)
        with pytest.raises(Overdrawn):
            await bank.decide("a", Account.withdraw, 6)
        assert [each.event async for each in bank.read("a")] == [Deposited(5)]


async def test_a_decision_that_returns_nothing_appends_nothing(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        never = await bank.decide("a", nothing)
        assert never == Decided(Account(), 0, (), ())
        done = await bank.decide("a", deposit, 5)
        same = await bank.decide("a", nothing)
        assert (same.state, same.version, same.events, str(same)) == (
            done.state,
            1,
            (),
            str(done),
        )
        empty = await bank.decide("a", lambda state: [])
        assert (empty.version, empty.events) == (1, ())


async def test_a_refusal_never_comes_from_a_state_that_is_old(stage: Stage) -> None:
    """One process has a state in its cache; another one pays in; the first may not refuse what is
    covered by now, nor say that there is nothing to do."""
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)

    def once(account: Account) -> Deposited | None:
        return Deposited(1) if account.cents >= 100 else None

    async with first, second:
        await one.decide("a", deposit, 1)
        await one.decide("b", deposit, 1)
        await two.decide("a", deposit, 99)
        await two.decide("b", deposit, 99)
        drawn = await one.decide("a", Account.withdraw, 100)
        assert drawn.state == Account("", 0)
        assert (await one.decide("b", once)).events == (Deposited(1),)


async def test_a_decision_is_taken_again_when_others_were_faster(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    seen: list[int] = []

    def twice(account: Account) -> Deposited:
        seen.append(account.cents)
        return Deposited(account.cents)

    async with first, second:
        await one.decide("a", deposit, 1)
        await two.decide("a", deposit, 9)
        done = await one.decide("a", twice)
        assert seen == [1, 10]
        assert (done.state.cents, done.version) == (20, 3)
        stats = one.stats()
        assert (stats.conflicts, stats.retries, stats.appends) == (1, 1, 2)


async def test_who_does_not_want_to_try_again_is_told_of_the_conflict(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    async with first, second:
        await one.decide("a", deposit, 1)
        await two.decide("a", deposit, 1)
        with pytest.raises(WrongExpectedVersion) as caught:
            await one.with_options(retry=Retry(attempts=1)).decide("a", deposit, 1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert (await two.load("a")).version == 2


async def test_decisions_of_one_process_upon_one_aggregate_take_turns(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        done = await asyncio.gather(*(bank.decide("a", deposit, 1) for _ in range(100)))
        assert [each.version for each in done] == list(range(1, 101))
        assert [each.state.cents for each in done] == list(range(1, 101))
        assert bank.stats().conflicts == 0


async def test_decisions_upon_many_aggregates_run_beside_each_other(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        done = await asyncio.gather(*(bank.decide(f"a-{n}", deposit, n) for n in range(300)))
        assert [each.state.cents for each in done] == list(range(300))
        assert [each.version for each in done] == [1] * 300


async def test_a_decision_that_is_cancelled_lets_the_next_one_have_its_turn(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        waiting = [asyncio.create_task(bank.decide("a", deposit, 1)) for _ in range(20)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        for each in done[1::2]:
            assert isinstance(each, Decided)
        after = await bank.decide("a", deposit, 1)
        assert after.state.cents == after.version
        assert 11 <= after.version <= 21
        assert [each.version async for each in bank.read("a")] == list(range(1, after.version + 1))


async def test_append_checks_what_is_expected(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        with pytest.raises(WrongExpectedVersion):
            await bank.append("a", Deposited(1), expected="exists")
        assert (await bank.append("a", Opened("ada"), expected="new")).version == 1
        with pytest.raises(WrongExpectedVersion, match="'new'"):
            await bank.append("a", Opened("ada"), expected="new")
        assert (await bank.append("a", [Deposited(1), Deposited(2)], expected=1)).version == 3
        for wrong in (0, 1, 2, 4):
            with pytest.raises(WrongExpectedVersion) as caught:
                await bank.append("a", Deposited(1), expected=wrong)
            assert (caught.value.expected, caught.value.actual) == (wrong, 3)
        assert (await bank.append("a", Deposited(1), expected="any")).version == 4
        assert (await bank.append("a", Deposited(1), expected="exists")).version == 5
        assert (await bank.append("b", Deposited(1), expected=0)).version == 1
        for nonsense in ("some", -1, True, 1.5, None):
            with pytest.raises(InvalidValue, match="expected"):
                await bank.append("a", Deposited(1), expected=nonsense)  # type: ignore[arg-type]


async def test_an_old_cache_does_not_refuse_what_is_expected(stage: Stage) -> None:
    """An If-Match: the caller has seen version 2, which this process does not know of yet."""
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    async with first, second:
        await one.decide("a", deposit, 1)
        seen = await two.decide("a", deposit, 1)
        done = await one.with_options(expected=seen.version).decide("a", deposit, 1)
        assert done.version == 3
        with pytest.raises(WrongExpectedVersion):
            await two.with_options(expected=seen.version).decide("a", deposit, 1)


async def test_another_version_than_the_expected_one_is_no_refusal(stage: Stage) -> None:
    """Nothing is recorded of it, so its cause can be decided for."""
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        for version in (0, 1):
            step = bank.with_options(cause=f"c-{version}", expected=3, refusals=Exception)
            with pytest.raises(WrongExpectedVersion) as caught:
                await step.decide("a", deposit, 1)
            assert (caught.value.expected, caught.value.actual) == (3, version)
            done = await bank.with_options(cause=f"c-{version}").decide("a", deposit, 1)
            assert done.version == version + 1


async def test_nothing_follows_a_final_event(stage: Stage) -> None:
    app, other = stage.app(), stage.app()
    bank = accounts(app, stage.topic_name, final=Closed)
    elsewhere = accounts(other, stage.topic_name, final=Closed)
    async with app, other:
        await elsewhere.decide("a", deposit, 1)
        await bank.decide("a", Account.close)
        assert (await bank.load("a")).is_closed
        for each in (bank, elsewhere):
            with pytest.raises(AggregateClosed):
                await each.decide("a", deposit, 1)
            with pytest.raises(AggregateClosed):
                await each.append("a", Deposited(1), expected="any")
        with pytest.raises(InvalidValue, match="final"):
            await bank.append("b", [Closed(), Deposited(1)], expected="any")
        assert (await bank.load("a")).version == 2


async def test_an_aggregate_is_loaded_as_it_was(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        for cents in (1, 10, 100):
            await bank.decide("a", deposit, cents)
        events = [each async for each in bank.read("a")]
        assert [each.event for each in events] == [Deposited(1), Deposited(10), Deposited(100)]
        for version, cents in ((0, 0), (1, 1), (2, 11), (3, 111)):
            found = await bank.load("a", at=version)
            assert (found.state.cents, found.version) == (cents, version)
        with pytest.raises(InvalidValue, match="3 versions"):
            await bank.load("a", at=4)
        found = await bank.load("a", at=events[-1].time)
        assert found == Loaded(Account("", 111), 3)
        assert (await bank.load("a", at=events[0].time.replace(year=2000))).version == 0
        with pytest.raises(InvalidValue, match="time zone"):
            await bank.load("a", at=events[0].time.replace(tzinfo=None))


async def test_events_are_read_from_a_version_on(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        done = [await bank.decide("a", deposit, n) for n in range(5)]
        found = [each async for each in bank.read("a", start=3)]
        assert [(each.version, each.event) for each in found] == [
            (4, Deposited(3)),
            (5, Deposited(4)),
        ]
        assert [each.position for each in found] == [each.positions[0] for each in done[3:]]
        assert [each async for each in bank.read("a", start=9)] == []
        assert len({each.id async for each in bank.read("a")}) == 5


async def test_an_aggregate_longer_than_a_page_is_loaded_whole(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name, cache=Cache(count=0))
    async with app:
        for _ in range(3):
            await bank.append("a", [Deposited(1)] * 900, expected="any")
        assert await bank.load("a") == Loaded(Account("", 2700), 2700)
        assert (await bank.load("a", at=1234)).state.cents == 1234
        assert len([each async for each in bank.read("a")]) == 2700


async def test_the_cache_is_bounded_and_counts(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name, cache=Cache(count=3))
    async with app:
        for number in range(10):
            await bank.decide(f"a-{number}", deposit, 1)
        stats = bank.stats()
        assert (stats.cached, stats.cache_misses, stats.cache_hits) == (3, 10, 0)
        await bank.decide("a-9", deposit, 1)
        await bank.decide("a-0", deposit, 1)
        stats = bank.stats()
        assert (stats.cached, stats.cache_misses, stats.cache_hits) == (3, 11, 1)
        assert stats.decisions == stats.appends == stats.events == 12


@pytest.mark.parametrize("cache", [Cache(count=0), Cache(bytes=0)])
async def test_a_state_that_is_not_kept_is_not_written_to_see_how_large_it_is(
    monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    sizes: list[Any] = []
    measure = StateType.size

    def measured(self: StateType[Any], state: Any) -> int:
        sizes.append(state)
        return measure(self, state)

    monkeypatch.setattr(StateType, "size", measured)
    app = Streams("memory://")
    bank = accounts(app, cache=cache)
    async with app:
        for version in (1, 2):
            assert (await bank.decide("a", deposit, 1)).version == version
        assert (await bank.load("a")).state.cents == 2
        assert (sizes, bank.stats().cached) == ([], 0)


async def test_the_cache_is_bounded_by_bytes() -> None:
    app = Streams("memory://")
    bank = accounts(app, "bank", cache=Cache(bytes=10_000))
    async with app:
        for number in range(30):
            await bank.decide(f"a-{number}", open_with, "x" * 1_000, number)
            assert bank.stats().cached_bytes <= 10_000
        full = bank.stats()
        assert 5 <= full.cached < 10
        assert full.cached_bytes > full.cached * 1_000
        # One that grows makes room for itself, and one that is too large is not kept at all.
        await bank.decide("a-29", open_with, "x" * 5_000, 0)
        assert bank.stats().cached < full.cached
        assert bank.stats().cached_bytes <= 10_000
        await bank.decide("huge", open_with, "x" * 20_000, 1)
        assert bank.stats().cached_bytes <= 10_000
        hits = bank.stats().cache_hits
        for id, cents in (("huge", 1), ("a-0", 0), ("a-28", 28)):
            assert (await bank.load(id)).state.cents == cents
        assert bank.stats().cache_hits == hits + 1


def returning(result: Any) -> Any:
    return lambda state: result


async def test_what_is_no_event_is_never_appended(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    wrong: list[Any] = [5, Account(), "text", [Deposited(1), 5], {"a": 1}, iter([Deposited(1)])]
    async with app:
        for each in wrong:
            with pytest.raises(TypeError, match="a decision returns"):
                await bank.decide("a", returning(each))
        assert (await bank.load("a")).version == 0


async def test_what_evolve_refuses_is_never_appended(stage: Stage) -> None:
    app = stage.app()

    def fragile(account: Account, event: Any) -> Account:
        if isinstance(event, Withdrawn):
            raise ValueError("no withdrawals here")
        return account

    from streams.eventsourcing import Aggregate

    bank: Aggregate[Any, Account] = Aggregate(
        app, stage.topic_name, Deposited | Withdrawn, Account, fragile, partitions=2
    )
    async with app:
        await bank.decide("a", deposit, 1)
        with pytest.raises(ValueError, match="no withdrawals"):
            await bank.decide("a", lambda state: Withdrawn(1))
        assert (await bank.load("a")).version == 1


async def test_ids_are_text(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    ids = ["a/b", "ü \N{SNOWMAN}", "x" * 500, "a\x00b", " "]
    async with app:
        for number, id in enumerate(ids):
            await bank.decide(id, deposit, number)
        assert [(await bank.load(id)).state.cents for id in ids] == list(range(len(ids)))
        for wrong in ("", 5, None, b"a"):
            with pytest.raises(InvalidValue, match="IDs"):
                await bank.load(wrong)  # type: ignore[arg-type]


async def test_an_aggregate_is_used_while_its_app_runs(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    with pytest.raises(NotRunning):
        await bank.decide("a", deposit, 1)
    async with app:
        await bank.decide("a", deposit, 1)
        late = accounts(app, f"{stage.topic_name}-late")
        with pytest.raises(NotRunning, match="declare it before"):
            await late.decide("a", deposit, 1)
    with pytest.raises(NotRunning):
        await bank.load("a")
    async with app:
        assert (await bank.load("a")).version == 1


async def test_synchronous_code_decides_through_the_app(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)

    def work() -> Any:
        with app.background():
            return app.wait(bank.decide("a", deposit, 1)).version

    assert await asyncio.to_thread(work) == 1
    async with app:

        async def elsewhere() -> None:
            await bank.load("a")

        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_cause_finds_what_was_decided_for_it(stage: Stage) -> None:
    app, other = stage.app(), stage.app()
    bank, elsewhere = accounts(app, stage.topic_name), accounts(other, stage.topic_name)
    async with app, other:
        await bank.decide("a", deposit, 1)
        done = await bank.with_options(cause="m-1").decide("a", open_with, "ada", 5)
        for _ in range(3):
            await bank.decide("a", deposit, 1)
        for each in (bank, elsewhere):
            again = await each.with_options(cause="m-1").decide("a", open_with, "bob", 7)
            assert again == done
        assert (await bank.load("a")).version == 6
        other_cause = await elsewhere.with_options(cause="m-2").decide("a", deposit, 1)
        assert other_cause.version == 7
        other_aggregate = await elsewhere.with_options(cause="m-1").decide("b", deposit, 1)
        assert other_aggregate.version == 1
        assert (bank.stats().caused, elsewhere.stats().caused) == (1, 1)


async def test_a_cause_is_checked() -> None:
    app = Streams("memory://")
    bank = accounts(app)
    for wrong in ("", 5, "x" * 1_001):
        with pytest.raises(InvalidValue, match="cause"):
            bank.with_options(cause=wrong)  # type: ignore[arg-type]


async def test_a_cause_that_came_to_nothing_leaves_no_trace(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        caused = bank.with_options(cause="m")
        with pytest.raises(Overdrawn):
            await caused.decide("a", Account.withdraw, 1)
        assert (await caused.decide("a", nothing)).version == 0
        assert (await caused.decide("a", deposit, 1)).version == 1


async def test_headers_go_with_the_events(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        await bank.with_options(headers={"user": "ada"}).decide("a", open_with, "ada", 1)
        async with bank.events.read() as found:
            assert [message.headers["user"] async for message in found] == ["ada", "ada"]
