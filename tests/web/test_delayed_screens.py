"""The screens of delayed messages: due times, cancelling."""

from __future__ import annotations

from typing import Any

import pytest

from streams import Delays, Message, Retry
from streams.inspection import background, delayed
from streams.inspection.delayed import DelayIndex
from streams.retries import read_pending
from streams.web import Dashboard
from streams.web.screens import delayed as delayed_screen
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.web.visiting import eventually, seen_with, visit

CANCELLED_WITHIN = 9.0
"""Seconds for which an answer is waited for; a page may take fifteen (log_source.PATIENCE)."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how quick the machine is."""
    monkeypatch.setattr(background, "AFTER_CHANGE", PATIENCE)
    monkeypatch.setattr(delayed_screen, "ANSWER_SECONDS", CANCELLED_WITHIN)


def delays_of(stage: Stage, app: Any, **options: Any) -> Delays:
    return Delays(app, f"delays-{stage.topic_name}", **options)


async def test_each_topic_has_its_turn_to_be_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little time there is, and though topics are listed by name."""
    app = stage.app()
    topic = stage.topic(app)
    delays = [Delays(app, f"delays-{number}") for number in range(5)]
    monkeypatch.setattr("streams.web.kept_topics.LOOK", 0.0)
    async with app, visit(Dashboard(app, access="all")) as visitor:
        for each in delays:
            await each.publish(topic, 1, delay=3_600)

        async def all_are_counted() -> bool:
            seen = await visitor.get("/delayed")
            return all(f"{each.name} 1" in seen.text for each in delays)

        await eventually(all_are_counted)


@pytest.mark.everywhere
async def test_what_waits_is_listed_and_cancelled(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    delays = delays_of(stage, app, partitions=2)
    async with app, visit(Dashboard(app, access="all")) as visitor:
        for number in range(4):
            await delays.publish(
                topic, number, delay=3_600 + number, key=f"k{number}", id=f"m{number}"
            )

        async def is_told() -> bool:
            topics = await visitor.get("/delayed")
            seen = await visitor.get(f"/delayed/show?topic={delays.name}")
            # On a server with many others only those are counted for which there is time.
            is_shared = stage.case.name in ("kafka", "redis")
            is_listed = (delays.name if is_shared else f"{delays.name} 4 ") in topics.text
            return is_listed and all(f"m{number}" in seen.text for number in range(4))

        await eventually(is_told)
        seen = await visitor.get(f"/delayed/show?topic={delays.name}")
        order = [seen.text.index(f"{stage.topic_name} m{number} k{number}") for number in range(4)]
        assert order == sorted(order)
        places = [text for text, href in seen.links if f"/{delays.name}/messages/" in href]
        fields: dict[str, Any] = {"topic": delays.name, "message": places[1:3]}
        question = await visitor.post("/delayed/cancel", fields)
        assert f"Cancel 2 messages of {delays.name}?" in question.text
        done = await visitor.post("/delayed/cancel", {**fields, "confirm": "2"})
        assert "2 messages were cancelled." in done.text
        assert "cancelled: 2" in done.text
        await visitor.post("/delayed/cancel", {**fields, "confirm": "2"}, status=404)
        for at in ("0/99999999999999", "99/0", "x"):
            await visitor.post("/delayed/cancel", {"topic": delays.name, "message": at}, status=404)
        left = await visitor.get(f"/delayed/show?topic={delays.name}")
        assert "m0" in left.text
        assert "m1" not in left.text
        assert delays.stats().cancelled == 2


async def test_without_a_process_a_request_stands(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.web.screens import delayed as screen

    monkeypatch.setattr(screen, "ANSWER_SECONDS", 0.0)
    app = stage.app()
    topic, delays = stage.topic(app), delays_of(stage, app)
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        await delays.publish(topic, 1, delay=0.0, id="m1")
        address = f"/delayed/show?topic={delays.name}"
        seen = await seen_with(visitor, address, "nothing is delivered")
        place = next(text for text, href in seen.links if "/messages/" in href)
        fields = {"topic": delays.name, "message": place}
        question = await visitor.post("/delayed/cancel", fields)
        assert "it is cancelled once one runs" in question.text
        done = await visitor.post("/delayed/cancel", {**fields, "confirm": "1"})
        assert "no answer yet; the request remains in effect: 1" in done.text
        await visitor.post("/delayed/cancel", {"topic": stage.topic_name}, status=404)
        await visitor.post("/delayed/cancel", {"topic": delays.name}, status=400)
        await visitor.get(f"/delayed/show?topic={stage.topic_name}", status=404)


async def test_what_is_due_and_not_delivered_is_a_problem(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.web.screens import delayed as screen

    monkeypatch.setattr(screen, "OVERDUE", -10.0)
    app = stage.app()
    topic, delays = stage.topic(app), delays_of(stage, app)
    async with app.connected(), visit(Dashboard(app, access="read")) as visitor:
        await delays.publish(topic, 1, delay=0.0, id="m1")

        async def is_told() -> bool:
            overview = await visitor.get("/")
            return f"Messages in {delays.name} are due and are not delivered." in overview.text

        await eventually(is_told)
        seen = await visitor.get(f"/delayed/show?topic={delays.name}")
        assert "not shown" in seen.text


async def test_messages_that_failed_wait_here_too(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)

    def act(value: int, message: Message[int]) -> None:
        raise ValueError(f"{value} fails")

    app.processor(
        topic,
        group=stage.group,
        flow=QUICK,
        retry=Retry(attempts=3, delay=3_600, in_order=False),
    )(stage.recorder(act))
    async with app, visit(Dashboard(app, access="all")) as visitor:
        await stage.publish(topic, 7, key="k")
        name = f"{stage.topic_name}.{stage.group}.delay"

        async def is_listed() -> bool:
            seen = await visitor.get(f"/delayed/show?topic={name}")
            return f"{stage.topic_name}.{stage.group}.retry" in seen.text and (
                "A message that is cancelled is not handled any more." in seen.text
            )

        await eventually(is_listed)
        seen = await visitor.get(f"/delayed/show?topic={name}")
        place = next(text for text, href in seen.links if "/messages/" in href)
        done = await visitor.post(
            "/delayed/cancel", {"topic": name, "message": place, "confirm": "1"}
        )
        assert "1 message was cancelled." in done.text


async def test_the_index_holds_what_is_due_first_and_follows_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delayed, "MAX_PENDING", 10)
    app = stage.app()
    topic, delays = stage.topic(app), delays_of(stage, app)
    async with app.connected():
        for number in range(40):
            due = 3_600 + (number * 7) % 40
            await delays.publish(topic, number, delay=due, id=f"m{number}")
        index = DelayIndex(delays.name, lambda: app.log)
        counts = index.counts(10.0)
        assert counts.is_complete
        assert counts.has_more
        everything = read_pending(app.log, delays.name, lambda to, record: record.id, None)
        expected = [(each.due / 1000, each.partition) for each in everything.entries]
        found = [(each.due, each.partition) for each in index.positions(0, 10)]
        assert found == expected[:10]
        assert [(each.due, each.partition) for each in index.positions(3, 4)] == expected[3:7]
