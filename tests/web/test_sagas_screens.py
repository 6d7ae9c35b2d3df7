"""The screens of sagas: which stand where, what happened to one; resuming and abandoning them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from streams import Retry
from streams.log.appending import append_and_wait
from streams.message import Record
from streams.patterns import SagaOrchestrator, SagaStep
from streams.patterns.saga import Journal, SagaFailedError
from streams.web import Dashboard, saga_indexes
from streams.web.saga_indexes import SagaIndexes
from tests.conformance.stage import QUICK, Stage
from tests.web.visiting import Visitor, seen_with, visit

ONCE = Retry(attempts=1)


class Trip(msgspec.Struct):
    """What a saga works on."""

    customer: str
    did: list[str] = []


class World:
    """Trips: a hotel and a flight side by side, then the money."""

    def __init__(self, stage: Stage) -> None:
        self.name = f"trips-{stage.group}"
        self.desk_answers = False
        self.app = stage.app()
        sagas = self.sagas = SagaOrchestrator(
            self.app, self.name, context=Trip, partitions=2, flow=QUICK
        )
        sagas.add_parallel(
            SagaStep("hotel", self.book, self.cancel, compensation_retry=ONCE),
            SagaStep("flight", self.fly, self.land, compensation_retry=ONCE),
        )
        sagas.add_step("charge", self.charge, retry=ONCE)

    async def book(self, trip: Trip) -> None:
        trip.did.append("hotel")

    async def cancel(self, trip: Trip) -> None:
        if trip.customer == "stuck" and not self.desk_answers:
            raise ConnectionError("the hotel's \x1b[31m<desk>")

    async def fly(self, trip: Trip) -> None:
        pass

    async def land(self, trip: Trip) -> None:
        pass

    async def charge(self, trip: Trip) -> None:
        if trip.customer != "quill":
            raise ValueError("no money")


async def ended(world: World, *customers: str) -> None:
    """Run a saga for each customer, whose ID is the name."""
    for customer in customers:
        try:
            await world.sagas.execute(Trip(customer), id=customer)
        except SagaFailedError:
            assert customer != "quill"


@asynccontextmanager
async def three_sagas(stage: Stage) -> AsyncIterator[tuple[World, Visitor]]:
    """One that is completed, one that was undone, one that could not be; and a visitor."""
    world = World(stage)
    async with world.app:
        await ended(world, "quill", "bob", "stuck")
        async with visit(Dashboard(world.app, access="all")) as visitor:
            yield world, visitor


@pytest.mark.everywhere
async def test_a_saga_is_found_and_tells_what_happened(stage: Stage) -> None:
    async with three_sagas(stage) as (world, visitor):
        listed = await seen_with(visitor, f"/sagas?saga={world.name}", "3 sagas, in")
        assert "stuck" in listed.text
        assert "quill" not in listed.text.split()  # it is over
        every = await visitor.get(f"/sagas?saga={world.name}&state=all")
        assert {"quill", "bob", "stuck"} <= set(every.text.split())

        quill = await visitor.get(every.link("quill"))
        for said in ("completed", "started", "done: hotel, flight", "done: charge"):
            assert said in quill.text, said
        assert '"customer": "quill"' in quill.text
        stuck = await visitor.get(every.link("stuck"))
        assert "failed for good: charge; what was done is undone" in stuck.text
        assert "ValueError: no money" in stuck.text
        assert "undone: flight" in stuck.text
        assert "could not be undone; attempts: 1; hotel" in stuck.text
        assert "\\x1b[31m<desk>" in stuck.text
        assert "\x1b" not in stuck.html


@pytest.mark.everywhere
async def test_a_saga_that_could_not_be_undone_is_resumed(stage: Stage) -> None:
    async with three_sagas(stage) as (world, visitor):
        said = f"1 saga of {world.name} could not be fully undone."
        overview = await seen_with(visitor, "/", said)
        listed = await visitor.get(overview.link(said))
        seen = await visitor.get(listed.link("stuck"))
        world.desk_answers = True
        asked = await visitor.submit(seen, "Resume")
        assert "called again: hotel" in asked.text
        done = await visitor.submit(asked, "Resume it")
        assert "The saga is being undone again." in done.text
        await stage.until(
            lambda: Journal(stage.anchor, world.name).latest("stuck").entry.status == "compensated"
        )
        seen = await visitor.get(done.link("Back to the saga"))
        assert "undone whole" in seen.text
        refused = await visitor.post(
            "/sagas/resume", {"saga": world.name, "id": "stuck"}, status=400
        )
        assert "there is nothing to resume" in refused.text


async def test_a_saga_is_abandoned_and_its_reason_kept(stage: Stage) -> None:
    async with three_sagas(stage) as (world, visitor):
        seen = await visitor.get(f"/sagas/show?saga={world.name}&id=stuck")
        asked = await visitor.submit(seen, "Abandon", reason="refunded by hand")
        assert "Steps that are done, and stay so: hotel" in asked.text
        await visitor.submit(asked, "Abandon it")
        entry = Journal(stage.anchor, world.name).latest("stuck").entry
        assert (entry.status, entry.error) == ("abandoned", "refunded by hand")
        seen = await visitor.get(f"/sagas/show?saga={world.name}&id=stuck")
        assert "refunded by hand" in seen.text
        assert not [form for form in seen.forms if form.method == "post"]
        # What was confirmed is not what stands there any more, so it is refused.
        await visitor.submit(asked, "Abandon it", status=400)


async def test_what_is_in_a_saga_is_not_shown_without_the_permission(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await ended(world, "quill", "stuck")
        async with visit(Dashboard(world.app, access={"read", "abandon"})) as visitor:
            address = f"/sagas?saga={world.name}&state=all&q=quill"
            listed = await seen_with(visitor, address, "one whose ID is not shown", times=2)
            assert "stuck" not in listed.html.replace("saga stuck", "")
            assert "no money" not in listed.html
            assert "id=" not in listed.link("one whose ID is not shown")
            pages = [
                await visitor.get(href)
                for text, href in listed.links
                if text == "one whose ID is not shown"
            ]
            assert len(pages) == 2
            for page in pages:
                assert "started" in page.text
                for secret in ("quill", "stuck", "no money", "desk", "customer"):
                    assert secret not in page.text, secret
            (failed,) = [page for page in pages if "could not be undone" in page.text]
            question = await visitor.submit(failed, "Abandon")
            assert "stuck" not in question.html
            await visitor.submit(question, "Abandon it")
        assert Journal(stage.anchor, world.name).latest("stuck").entry.status == "abandoned"

        def mask(payload: object) -> bytes:
            return b"***"

        async with visit(Dashboard(world.app, access="all", redact=mask)) as visitor:
            listed = await seen_with(visitor, f"/sagas?saga={world.name}&state=all", "***")
            assert "id=quill" not in listed.html
            seen = await visitor.get(listed.link("***"))
            assert "quill" not in seen.text


async def test_a_saga_that_is_not_there_is_said_so(stage: Stage) -> None:
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        missing = await visitor.get(f"/sagas/show?saga={world.name}&id=zoe", status=404)
        assert "The log knows no saga zoe" in missing.text
        await visitor.get("/sagas/show?saga=nobody&id=zoe", status=404)
        await visitor.get(f"/sagas/show?saga={world.name}", status=404)
        await visitor.get(f"/sagas/show?saga={world.name}&partition=9&entry=1", status=404)
        await visitor.get(f"/sagas/show?saga={world.name}&partition=0&entry=x", status=400)
        await visitor.get("/sagas?state=gone", status=400)
        await visitor.get("/sagas?saga=nobody", status=404)
        await visitor.post("/sagas/resume", {"saga": world.name, "id": "zoe"}, status=404)


async def test_a_log_without_sagas_says_what_writes_them(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        assert "This log has no durable sagas" in (await visitor.get("/sagas")).text


def write(stage: Stage, name: str, entries: Sequence[dict[str, object]]) -> None:
    """Entries of a journal, as whoever runs the sagas writes them."""
    stage.anchor.create_topic(f"{name}.saga", 2)
    records = [
        Record(msgspec.json.encode(each), str(each["saga"]).encode(), f"{each['saga']}/{each['n']}")
        for each in entries
    ]
    append_and_wait(stage.anchor, f"{name}.saga", records)


def entries_of(count: int, at: float) -> list[dict[str, object]]:
    """Sagas of three entries each; of every hundredth the last one is missing."""
    found: list[dict[str, object]] = []
    plan = [["book"], ["charge"]]
    for n, status, done in (
        (0, "running", []), (1, "running", ["book"]), (2, "completed", ["book", "charge"])
    ):  # fmt: skip
        found += [
            {
                "saga": f"s-{number}", "n": n, "status": status, "plan": plan, "stage": n,
                "done": done, "context": {}, "at": at + n,
            }
            for number in range(count)
            if n < 2 or number % 100
        ]  # fmt: skip
    return found


async def test_many_sagas_are_read_once_and_open_quickly(stage: Stage) -> None:
    name = f"many-{stage.group}"
    count = 3_000
    write(stage, name, entries_of(count, time.time() - 3_600))
    dashboard = Dashboard(stage.app(), access="all")
    async with visit(dashboard) as visitor:
        seen = await seen_with(visitor, f"/sagas?saga={name}", f"{count:,} sagas, in")
        assert seen.text.count("stuck") == 30
        overview = await visitor.get("/")
        assert f"30 sagas of {name} should continue and do not." in overview.text
        found = await visitor.get(f"/sagas?saga={name}&q=s-2900")
        assert "s-2900" in found.text
        # What is new comes without reading all once more.
        index = dashboard.sagas.look(name, 0.0)
        looked = index.looked_at
        write(stage, name, entries_of(1, time.time()))
        await visitor.get(f"/sagas?saga={name}")
        assert index.looked_at == looked + 2
        old = await visitor.get(f"/sagas/show?saga={name}&id=s-1")
        assert "done: charge" in old.text


async def test_an_index_that_nobody_looks_at_is_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga_indexes, "FORGET_AFTER", 0.3)
    world = World(stage)
    async with world.app:
        await ended(world, "quill")
    indexes = SagaIndexes(lambda: stage.anchor)
    try:
        assert len(indexes.look(world.name, 10.0)) == 1
        await stage.until(lambda: len(indexes) == 0, "it is forgotten")
        assert len(indexes.look(world.name, 10.0)) == 1
    finally:
        indexes.close()
    assert len(indexes) == 0


def test_an_index_of_bounded_size_forgets_what_is_over(stage: Stage) -> None:
    from streams.inspection.sagas import SagaIndex

    name = f"bounded-{stage.group}"
    write(stage, name, entries_of(400, 1.0))
    index = SagaIndex(Journal(stage.anchor, name), max_sagas=100)
    while not index.read(1.0):
        pass
    assert len(index) <= 125
    assert not index.is_complete
    newest = SagaIndex(Journal(stage.anchor, name), most=10)
    while not newest.read(1.0):
        pass
    assert not newest.is_complete
