"""Events and states that change: old histories load, versions stay, snapshots are rebuilt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from streams.eventsourcing import Aggregate, Cache, Loaded, Snapshot, Undecodable
from streams.log.events import EventLog
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio


class Paid(Struct, tag="paid", frozen=True):
    cents: int


class PaidEuros(Struct, tag="paid-euros", frozen=True):
    euros: int


class PaidPounds(Struct, tag="paid-pounds", frozen=True):
    pounds: int


class Split(Struct, tag="split", frozen=True):
    parts: tuple[int, ...]


class Noise(Struct, tag="noise", frozen=True):
    pass


class Noted(Struct, tag="noted", frozen=True):
    text: str
    by: str = "nobody"


class Total(Struct, frozen=True):
    cents: int = 0
    events: int = 0


def fold(total: Total, event: Any) -> Total:
    if isinstance(event, Paid):
        return Total(total.cents + event.cents, total.events + 1)
    return Total(total.cents, total.events + 1)


OLD: Any = PaidEuros | PaidPounds | Split | Noise | Paid | Noted


async def history_of_old_events(stage: Stage, *events: Any) -> None:
    """Events that today's code does not have any more."""
    app = stage.app()
    old: Aggregate[Any, Total] = Aggregate(app, stage.topic_name, OLD, Total, fold, partitions=2)
    async with app:
        await old.append("a", events, expected="any")


def today(stage: Stage, app: Any, event: Any = Paid, **options: Any) -> Aggregate[Any, Total]:
    options.setdefault("cache", Cache(count=0))
    return Aggregate(app, stage.topic_name, event, Total, fold, partitions=2, **options)


async def test_old_events_are_read_as_todays(stage: Stage) -> None:
    await history_of_old_events(
        stage, PaidEuros(1), PaidPounds(2), Split((1, 2, 3)), Noise(), Paid(5)
    )
    app = stage.app()
    pays = today(stage, app)

    @pays.upcast(PaidEuros)
    def euros(old: PaidEuros) -> Paid:
        return Paid(old.euros * 100)

    @pays.upcast(PaidPounds)
    def pounds(old: PaidPounds) -> PaidEuros:
        return PaidEuros(old.pounds * 2)

    @pays.upcast(Split)
    def split(old: Split) -> Sequence[Paid]:
        return [Paid(each) for each in old.parts]

    @pays.upcast(Noise)
    def noise(old: Noise) -> None:
        return None

    async with app:
        assert await pays.load("a") == Loaded(Total(100 + 400 + 6 + 5, 6), 5)
        found = [each async for each in pays.read("a")]
        assert [(each.version, each.event.cents) for each in found] == [
            (1, 100),
            (2, 400),
            (3, 1),
            (3, 2),
            (3, 3),
            (5, 5),
        ]
        split_ids = [each.id for each in found if each.version == 3]
        assert [id.rpartition("#")[2] for id in split_ids] == ["0", "1", "2"]
        done = await pays.append("a", Paid(1), expected=5)
        assert done.version == 6


async def test_a_field_that_is_new_has_its_default(stage: Stage) -> None:
    class OldNoted(Struct, tag="noted", frozen=True):
        text: str

    app = stage.app()
    old: Aggregate[Any, Total] = Aggregate(
        app, stage.topic_name, OldNoted, Total, fold, partitions=2
    )
    async with app:
        await old.append("a", OldNoted("x"), expected="new")
    app = stage.app()
    pays = today(stage, app, Paid | Noted)
    async with app:
        (found,) = [each async for each in pays.read("a")]
        assert found.event == Noted("x", "nobody")


async def test_an_event_that_is_not_known_stops_its_aggregate_alone(stage: Stage) -> None:
    await history_of_old_events(stage, Paid(1), Noise(), Paid(2))
    app = stage.app()
    pays = today(stage, app)
    async with app:
        for _ in range(2):
            with pytest.raises(Undecodable) as caught:
                await pays.load("a")
            assert (caught.value.id, caught.value.version) == ("a", 2)
        with pytest.raises(Undecodable):
            await pays.append("a", Paid(1), expected="any")
        assert (await pays.load("a", at=1)).state.cents == 1
        assert (await pays.append("b", Paid(1), expected="new")).version == 1
        assert pays.stats().undecodable == 1
    app = stage.app()
    newer = today(stage, app, Paid | Noise)
    async with app:
        assert (await newer.load("a")).version == 3


async def test_bytes_that_cannot_be_decoded_are_cured_by_an_upcast_of_bytes(stage: Stage) -> None:
    await history_of_old_events(stage, Paid(1), Noise(), Split((1,)), Paid(2))
    app = stage.app()
    pays = today(stage, app)

    @pays.upcast(bytes)
    def cure(data: bytes) -> Paid | None:
        found = msgspec.json.decode(data)
        if found["type"] == "noise":
            return None
        return NotImplemented  # type: ignore[no-any-return]

    @pays.upcast(bytes)
    def cure_more(data: bytes) -> Paid:
        return Paid(msgspec.json.decode(data)["parts"][0])

    async with app:
        assert await pays.load("a") == Loaded(Total(4, 3), 4)


async def test_an_upcast_that_fails_stops_its_aggregate(stage: Stage) -> None:
    await history_of_old_events(stage, PaidEuros(1), Split((1,)))
    app = stage.app()
    pays = today(stage, app)

    @pays.upcast(PaidEuros)
    def euros(old: PaidEuros) -> Paid:
        raise KeyError("rate")

    @pays.upcast(Split)
    def split(old: Split) -> Any:
        return 5

    async with app:
        with pytest.raises(Undecodable, match="KeyError"):
            await pays.load("a")


async def test_an_aggregate_that_can_be_loaded_again_is_not_told_any_more(stage: Stage) -> None:
    await history_of_old_events(stage, Noise())
    app = stage.app()
    pays = today(stage, app)
    is_known = False

    @pays.upcast(bytes)
    def cure(data: bytes) -> None:
        return None if is_known else NotImplemented  # type: ignore[return-value]

    async with app:
        with pytest.raises(Undecodable):
            await pays.load("a")
        assert [each.id for each in pays.health().undecodable] == ["a"]
        is_known = True
        await pays.load("a")
        assert pays.health().undecodable == ()
        assert pays.stats().undecodable == 0


@pytest.mark.parametrize("event", [PaidEuros(1), Noise()])
async def test_a_cure_that_fails_says_so(stage: Stage, event: Any) -> None:
    """Also of an event whose tag is not known: no newer code is waited for."""
    await history_of_old_events(stage, event)
    app = stage.app()
    pays = today(stage, app)

    @pays.upcast(bytes)
    def cure(data: bytes) -> Paid:
        raise KeyError("my bug")

    async with app:
        with pytest.raises(Undecodable, match=r"upcast\(bytes\): KeyError\('my bug'\)") as found:
            await pays.load("a")
        assert type(found.value) is Undecodable


async def test_upcasts_that_turn_out_to_go_in_a_circle_are_named(stage: Stage) -> None:
    await history_of_old_events(stage, PaidEuros(1))
    app = stage.app()
    pays = today(stage, app)
    pays.upcast(PaidEuros)(lambda old: PaidPounds(old.euros))
    pays.upcast(PaidPounds)(lambda old: PaidEuros(old.pounds))
    async with app:
        with pytest.raises(Undecodable, match="the upcasts go in a circle, back to Paid"):
            await pays.load("a")


async def test_a_fold_that_fails_names_the_event(stage: Stage) -> None:
    app = stage.app()
    options: dict[str, Any] = {"partitions": 2, "cache": Cache(count=0)}

    def fold_honest(total: Total, event: Paid) -> Total:
        return Total(100 // event.cents, total.events + 1)

    honest: Aggregate[Paid, Total] = Aggregate(
        app, stage.topic_name, Paid, Total, lambda total, event: total, **options
    )
    async with app:
        await honest.append("a", [Paid(1), Paid(0), Paid(2)], expected="any")
    app = stage.app()
    failing: Aggregate[Paid, Total] = Aggregate(
        app, stage.topic_name, Paid, Total, fold_honest, **options
    )
    async with app:
        with pytest.raises(ZeroDivisionError) as found:
            await failing.load("a")
        (note,) = found.value.__notes__
        assert note.endswith("failed at version 2 of 'a'")


# -- snapshots


async def test_an_event_that_is_forgotten_is_so_in_states_of_a_new_version(stage: Stage) -> None:
    """Of the same shape: only the version tells what today's code makes of the same events."""

    def pays_of(app: Any, version: int, *, forgets: bool) -> Aggregate[Any, Total]:
        event: Any = Paid if forgets else Paid | Noise
        snapshot = Snapshot(every=2, version=version)
        pays = today(stage, app, event, snapshot=snapshot)
        if forgets:
            pays.upcast(Noise)(lambda old: None)
        return pays

    app = stage.app()
    pays = pays_of(app, 1, forgets=False)
    async with app:
        await pays.append("a", [Paid(1), Noise()], expected="any")
        await stage.until(lambda: pays.stats().snapshots, "it is written")
    for version, events in ((1, 2), (2, 1)):
        app = stage.app()
        pays = pays_of(app, version, forgets=True)
        async with app:
            assert (await pays.load("a")).state == Total(1, events)


async def test_a_decision_does_not_wait_for_its_snapshot(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    pays = today(stage, app, snapshot=Snapshot(every=1))
    answered = threading.Event()
    async with app:
        log: Any = app.log
        write = log.write_snapshots

        def wait(*given: Any) -> None:
            assert answered.wait(60)
            write(*given)

        monkeypatch.setattr(log, "write_snapshots", wait)
        async with asyncio.timeout(50):
            assert (await pays.append("a", Paid(1), expected="any")).version == 1
        answered.set()
        await stage.until(lambda: pays.stats().snapshots, "it is written")


async def grown(stage: Stage, events: int = 25, **options: Any) -> None:
    app = stage.app()
    pays = today(stage, app, snapshot=Snapshot(every=10), cache=Cache(), **options)
    async with app:
        for _ in range(events):
            await pays.append("a", Paid(1), expected="any")


class Counting:
    """A fold that counts how many events it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, total: Total, event: Any) -> Total:
        self.calls += 1
        return fold(total, event)


def counted(stage: Stage, app: Any, state: Any = Total, **options: Any) -> tuple[Any, Counting]:
    count = Counting()
    options = {"snapshot": Snapshot(every=10), "cache": Cache(count=0), **options}
    event = options.pop("event", Paid)
    return (
        Aggregate(app, stage.topic_name, event, state, count, partitions=2, **options),
        count,
    )


async def test_loading_begins_at_a_snapshot(stage: Stage) -> None:
    await grown(stage)
    app = stage.app()
    pays, count = counted(stage, app)
    async with app:
        assert await pays.load("a") == Loaded(Total(25, 25), 25)
        assert count.calls == 5
        assert (await pays.append("a", Paid(1), expected=25)).version == 26


async def test_the_past_is_loaded_from_a_snapshot_that_is_not_behind_it(stage: Stage) -> None:
    await grown(stage)
    app = stage.app()
    pays, count = counted(stage, app)
    async with app:
        for at, folded in ((22, 2), (20, 0), (19, 19), (25, 5), (0, 0)):
            count.calls = 0
            assert await pays.load("a", at=at) == Loaded(Total(at, at), at)
            assert count.calls == folded


async def test_a_snapshot_of_other_code_is_not_used(stage: Stage) -> None:
    await grown(stage)

    class Total2(Struct, frozen=True):
        cents: int = 0
        events: int = 0
        more: str = ""

    for options in (
        {"snapshot": Snapshot(every=10, version=2)},
        {"snapshot": None},
        {"state": Total2},
    ):
        app = stage.app()
        pays, count = counted(stage, app, **options)
        async with app:
            assert (await pays.load("a")).version == 25
            assert count.calls == 25


async def test_a_text_about_the_state_does_not_change_its_snapshots(stage: Stage) -> None:
    await grown(stage)

    class Total(Struct, frozen=True):
        """Another text, and another place."""

        cents: int = 0
        events: int = 0

    app = stage.app()
    pays, count = counted(stage, app, state=Total)
    async with app:
        assert (await pays.load("a")).version == 25
        assert count.calls == 5


def damage_snapshot(stage: Stage, **changes: Any) -> None:
    """Change the one snapshot of "a" as nobody should."""
    log, topic = stage.anchor, f"{stage.topic_name}.events"
    assert isinstance(log, EventLog)
    (kept,) = log.list_snapshots(topic, b"a")
    log.write_snapshots(topic, [kept._replace(**changes)])


async def test_a_snapshot_that_cannot_be_read_is_not_used(stage: Stage) -> None:
    await grown(stage)
    damage_snapshot(stage, data=b"\xff{")
    assert await folded_by_one_load(stage, 25) == 25


async def test_deleting_all_snapshots_changes_nothing(stage: Stage) -> None:
    await grown(stage)
    app = stage.app()
    pays, count = counted(stage, app)
    async with app:
        log = app.log
        assert isinstance(log, EventLog)
        assert log.delete_snapshots(pays.events.name) == 1
        assert await pays.load("a") == Loaded(Total(25, 25), 25)
        assert count.calls == 25


async def folded_by_one_load(stage: Stage, version: int, **options: Any) -> int:
    """How many events the load of a process that knows nothing yet folds."""
    app = stage.app()
    pays, count = counted(stage, app, **options)
    async with app:
        assert (await pays.load("a")).version == version
    return count.calls


@pytest.mark.parametrize("is_closed", [False, True])
async def test_a_long_load_by_new_code_leaves_a_snapshot(stage: Stage, *, is_closed: bool) -> None:
    await grown(stage)
    options: dict[str, Any] = {"snapshot": Snapshot(every=10, version=2)}
    version = 25
    if is_closed:
        options |= {"event": Paid | Noise, "final": Noise}
        app = stage.app()
        closing = today(stage, app, Paid | Noise, final=Noise)
        async with app:
            await closing.append("a", Noise(), expected=25)
        version = 26
    assert await folded_by_one_load(stage, version, **options) == version
    assert await folded_by_one_load(stage, version, **options) == 0


async def test_a_load_that_was_short_leaves_no_snapshot(stage: Stage) -> None:
    await grown(stage, events=9)
    for _ in range(2):
        assert await folded_by_one_load(stage, 9) == 9


async def test_a_snapshot_that_cannot_be_read_is_written_anew(stage: Stage) -> None:
    await grown(stage)
    damage_snapshot(stage, data=b"\xff{")
    few = {"snapshot": Snapshot(every=100)}  # a short load, too
    assert await folded_by_one_load(stage, 25, **few) == 25
    assert await folded_by_one_load(stage, 25, **few) == 0


async def test_snapshots_go_on_after_a_failure_that_nobody_expected(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = stage.app()
    pays = today(stage, app, snapshot=Snapshot(every=1))
    async with app:
        with monkeypatch.context() as patched:
            patched.setattr(app.log, "write_snapshots", lambda *given: 1 / 0)
            await pays.append("a", Paid(1), expected="any")
            await stage.until(lambda: pays.stats().snapshots_failed, "it is counted")
        assert "snapshots are not written: division by zero" in caplog.text
        await pays.append("a", Paid(1), expected="any")
    assert pays.stats().snapshots


async def test_what_was_appended_for_a_cause_is_found_behind_a_snapshot(stage: Stage) -> None:
    await grown(stage)
    app = stage.app()
    pays, count = counted(stage, app)
    async with app:
        caused = pays.with_options(cause="invoice-7")
        first = await caused.decide("a", lambda total: [Paid(2), Paid(3)])
        await pays.append("a", Paid(1), expected=27)
        count.calls = 0
        again = await caused.decide("a", lambda total: [Paid(9)])
        assert again == first
        assert (again.version, again.state) == (27, Total(30, 27))
        # Of its own state those behind the snapshot at 20, and as many for what came since.
        assert count.calls == 7 + 8
