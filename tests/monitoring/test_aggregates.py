"""What is said of aggregates is what happened: figures, health, and the pages that show them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Struct

from streams import Health, Streams
from streams.errors import Unavailable
from streams.eventsourcing import (
    Aggregate,
    Cache,
    HistoryTruncated,
    Snapshot,
    Undecodable,
    WrongExpectedVersion,
)
from streams.health import AggregateHealth, StoppedAggregate
from streams.log.events import Base, Head, HistoryRequest, Refused, StoredSnapshot
from streams.patterns import MonitoringServer
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, Deposited, accounts, deposit, nothing, open_with
from tests.monitoring.conftest import get, scrape, until

pytestmark = pytest.mark.anyio


async def test_what_happened_to_aggregates_is_counted(stage: Stage) -> None:
    app, other = stage.app(), stage.app()
    ledger = accounts(app, stage.topic_name)
    theirs = accounts(other, stage.topic_name)
    mine = {"aggregate": stage.topic_name}
    with MonitoringServer(app, port=0) as server:
        async with app, other:
            await ledger.decide("a", open_with, "ada", 5)
            await theirs.decide("a", deposit, 1)
            await ledger.decide("a", deposit, 2)  # upon a state that is old by now
            await ledger.decide("a", nothing)
            caused = ledger.with_options(cause="c")
            await caused.decide("a", deposit, 3)
            await caused.decide("a", deposit, 3)
            with pytest.raises(WrongExpectedVersion):
                await ledger.append("a", Deposited(1), expected="new")
            found = await scrape(server)
            stats = app.stats().aggregates[stage.topic_name]
    assert stats.decisions == found.one("aggregate_decisions_total", **mine) == 6
    assert stats.appends == found.one("aggregate_appends_total", **mine) == 3
    assert stats.events == found.one("aggregate_events_total", **mine) == 4
    assert stats.conflicts == found.one("aggregate_conflicts_total", **mine) == 1
    assert stats.retries == found.one("aggregate_retries_total", **mine) == 1
    assert stats.refused == found.one("aggregate_appends_refused_total", **mine) == 1
    assert stats.caused == found.one("aggregate_causes_found_total", **mine) == 1
    assert stats.cache_misses == found.one("aggregate_cache_misses_total", **mine) == 1
    assert stats.cache_hits == found.one("aggregate_cache_hits_total", **mine) == 5
    assert stats.cached == found.one("aggregate_cached", **mine) == 1
    assert stats.cached_bytes == found.one("aggregate_cached_bytes", **mine) > 0
    assert stats.loads == found.one("aggregate_load_seconds_count", **mine) >= 4
    assert found.one("aggregate_load_seconds_bucket", le="+Inf", **mine) == stats.loads
    assert stats.load_seconds == pytest.approx(found.one("aggregate_load_seconds_sum", **mine))
    assert stats.undecodable == found.one("aggregate_undecodable", **mine) == 0
    assert stats.truncated == found.one("aggregate_truncated_total", **mine) == 0
    assert stats.failures == found.one("aggregate_failures_total", **mine) == 0
    # Kafka takes in what comes too late, unless its writer knows already that it does.
    lost = (0, 1) if stage.case.name == "kafka" else (0,)
    assert stats.uncounted == found.one("aggregate_uncounted_records", **mine)
    assert stats.uncounted in lost
    assert stats.snapshots == found.one("aggregate_snapshots_total", **mine) == 0
    assert found.of("aggregate_snapshot_age_seconds", **mine) == []


async def test_snapshots_are_counted_and_have_an_age() -> None:
    url = "memory://snapshots-are-counted"
    app, again = Streams(url), Streams(url)
    ledger = accounts(app, snapshot=Snapshot(every=2))
    with MonitoringServer(app, port=0) as server:
        async with app:
            assert (await scrape(server)).of("aggregate_snapshot_age_seconds") == []
            await ledger.decide("a", open_with, "ada", 5)
            await until(server, lambda now: now.one("aggregate_snapshots_total") == 1)
            assert (await scrape(server)).one("aggregate_snapshot_age_seconds") >= 0
            loads = accounts(again, snapshot=Snapshot(every=2))
            async with again:
                assert (await loads.load("a")).version == 2
                assert loads.stats().snapshots_used == 1
                assert loads.stats().snapshot_age is None
            mine = ledger.stats()
            assert (mine.snapshots_used, mine.snapshots_useless, mine.snapshots_failed) == (0, 0, 0)


async def test_a_snapshot_that_is_of_no_use_and_one_that_is_not_written_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams("memory://")
    ledger = accounts(app, snapshot=Snapshot(every=1), cache=Cache(count=0))
    async with app:
        log: Any = app.log
        await ledger.decide("a", deposit, 1)
        (found,) = log.read_histories("accounts.events", [HistoryRequest(b"a")])
        kept = StoredSnapshot(b"a", ledger.definition.fingerprint, found.head.base, 0, b"\xff")
        log.write_snapshots("accounts.events", [kept])
        assert (await ledger.load("a")).version == 1
        assert ledger.stats().snapshots_useless == 1

        def refuse(*given: Any) -> None:
            raise Unavailable("no snapshots today")

        monkeypatch.setattr(log, "write_snapshots", refuse)
        await ledger.decide("a", deposit, 1)
    assert ledger.stats().snapshots_failed == 1
    assert "no snapshots today" in caplog.text


class Unknown(Struct, tag="unknown", frozen=True):
    secret: str


def take(account: Account, event: Any) -> Account:
    return account


async def test_an_aggregate_that_is_stopped_is_listed_and_the_app_stays_ready(stage: Stage) -> None:
    before = stage.app()
    newer: Aggregate[Any, Account] = Aggregate(
        before, stage.topic_name, Unknown | Deposited, Account, take, partitions=2
    )
    async with before:
        await newer.append("a", [Deposited(1), Unknown("hush")], expected="any")
        await newer.append("b", Deposited(1), expected="any")
    app = stage.app()
    ledger = accounts(app, stage.topic_name)
    with MonitoringServer(app, port=0) as server:
        async with app:
            for _ in range(2):
                with pytest.raises(Undecodable):
                    await ledger.load("a")
            assert (await ledger.load("b")).version == 1
            health = app.health()
            (stopped,) = health.aggregates[stage.topic_name].undecodable
            assert (stopped.id, stopped.version) == ("a", 2)
            assert "a tag that Opened" in stopped.reason
            assert health.ready
            assert health.live
            assert not health.ok
            assert ledger.stats().undecodable == 1
            found = await scrape(server)
            assert found.of("aggregate_undecodable", aggregate=stage.topic_name) == [1]
            status, page = get(server, "/readyz")
            assert status == 200
            said = json.loads(page)["aggregates"]
            assert said == {stage.topic_name: {"open": True, "undecodable": 1, "truncated": 0}}
        assert get(server, "/readyz")[0] == 503


async def test_stopped_aggregates_are_listed_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from streams.eventsourcing import states  # the bound, which nobody wants to reach here

    monkeypatch.setattr(states, "MAX_STOPPED", 3)
    url = "memory://stopped-up-to-a-bound"
    before, app = Streams(url), Streams(url)
    newer: Aggregate[Any, Account] = Aggregate(
        before, "accounts", Unknown | Deposited, Account, take, partitions=2
    )
    ledger = accounts(app)
    async with before:
        for number in range(5):
            await newer.append(str(number), Unknown("x"), expected="any")
        async with app:
            for number in range(5):
                with pytest.raises(Undecodable):
                    await ledger.load(str(number))
            listed = ledger.health().undecodable
    assert [each.id for each in listed] == ["0", "1", "2"]
    assert caplog.text.count("cannot be decoded") == 3
    assert "only the first 3 such errors are logged" in caplog.text


async def test_an_acknowledged_event_that_is_gone_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Streams("memory://")
    ledger = accounts(app)
    async with app:
        await ledger.decide("a", deposit, 1)

        def refuse(topic: str, appends: Any, on_appended: Any) -> None:
            on_appended([Refused("truncated", Head(Base(0, "")))])

        monkeypatch.setattr(app.log, "append_events", refuse)
        with pytest.raises(HistoryTruncated):
            await ledger.decide("a", deposit, 1)
        stats = ledger.stats()
        assert (stats.truncated, stats.refused, stats.failures) == (1, 1, 1)
        assert ledger.health().truncated == 1
        assert app.health().ok


def test_an_app_is_not_ready_before_its_aggregates_are() -> None:
    closed = {"accounts": AggregateHealth(False)}
    assert not Health(True, {}, aggregates=closed).ready
    assert Health(True, {}, aggregates={"accounts": AggregateHealth(True)}).ready
    stopped = AggregateHealth(True, (StoppedAggregate("a", 1, "why"),))
    assert not Health(True, {}, aggregates={"accounts": stopped}).ok
    assert "aggregates" not in Health(True, {}).summary(ok=True)
