"""The screens of processors: how quick they are, in this process; pausing and resuming."""

from __future__ import annotations

import asyncio

import pytest

from streams import Message
from streams.processing import Durations, Histogram
from streams.web import Dashboard
from streams.web.processor_figures import bars, quantile, seconds_text
from tests.conformance.stage import QUICK, Stage
from tests.web.visiting import eventually, visit


@pytest.mark.everywhere
async def test_a_processor_is_seen_paused_and_resumed(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app, visit(Dashboard(app, access="all")) as visitor:
        listed = await visitor.get("/processors")
        assert "These figures are of this process only." in listed.text
        name = app.processors[0].name
        await stage.publish(topic, *range(5))
        await stage.handled(5)

        async def is_told() -> bool:
            seen = await visitor.get(f"/processors/show?name={name}")
            return "calls since measuring began" in seen.text and "5 handled" in seen.text

        await eventually(is_told)
        seen = await visitor.get(listed.link(name))
        assert "runs in this process" in seen.text
        assert f"{stage.topic_name} 0" in seen.text
        question = await visitor.submit(seen, "Pause")
        assert not app.processors[0].paused
        await visitor.submit(question, "Pause it")
        assert app.processors[0].paused
        await stage.publish(topic, 5, 6)
        overview = await visitor.get("/")
        assert f"The processor {name} in this process: paused." in overview.text
        paused = await visitor.get(f"/processors/show?name={name}")
        assert len(stage.seen.handled) == 5
        await visitor.submit(paused, "Resume")
        await stage.handled(7)


async def test_a_handler_that_runs_is_in_flight(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    release = asyncio.Event()

    async def handle(value: int, message: Message[int]) -> None:
        await release.wait()

    app.processor(topic, group=stage.group, flow=QUICK, concurrency=4)(handle)
    async with app, visit(Dashboard(app, access="read")) as visitor:
        await stage.publish(topic, 1, 2, 3, key=str)

        async def are_in_flight() -> bool:
            seen = await visitor.get("/processors/show?name=handle")
            return "3 in flight 3 handlers running" in seen.text

        await eventually(are_in_flight)
        seen = await visitor.get("/processors/show?name=handle")
        assert not [form for form in seen.forms if form.method == "post"]
        release.set()


async def test_an_app_that_runs_elsewhere_is_said_so(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group)(stage.recorder())
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        listed = await visitor.get("/processors")
        assert "The app does not run in this process" in listed.text
        assert "does not run here" in listed.text
        name = app.processors[0].name
        seen = await visitor.get(listed.link(name))
        assert not [form for form in seen.forms if "Pause" in form.text and form.method == "post"]
        await visitor.post("/processors/pause", {"name": name, "confirm": "1"}, status=400)
        assert not app.processors[0].paused
        await visitor.post("/processors/pause", {"name": "other"}, status=404)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        seen = await visitor.get("/")
        assert "Processors" not in [text for text, _ in seen.links]


async def test_what_a_processor_died_of_is_behind_the_permission(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    processor = app.processor(topic, group=stage.group)(stage.recorder())
    async with app:
        processor.end_reason = "ValueError: secret"
        for access, shown in (("all", True), ("read", False)):
            async with visit(Dashboard(app, access=access)) as visitor:
                seen = await visitor.get(f"/processors/show?name={processor.name}")
                assert ("secret" in seen.html) == shown
                assert "died" in seen.text
        processor.end_reason = None


def test_histograms_and_quantiles() -> None:
    histogram = Histogram()
    for seconds, times in ((0.000_05, 50), (0.003, 45), (0.2, 4), (100.0, 1)):
        histogram.add(seconds, times)
    found = histogram.read()
    assert [quantile(found, share) for share in (0.5, 0.95, 0.99)] == [0.000_1, 0.005, 0.25]
    assert quantile(found, 1.0) is None
    assert quantile(Durations(), 0.5) is None
    shown = bars(found)
    assert [bar.number for bar in shown if bar.number] == [50, 45, 4, 1]
    assert (shown[0].height, shown[-1].high) == (1.0, None)
    assert abs(sum(bar.share for bar in shown) - 1) < 1e-9
    assert bars(Durations()) == []
    texts = [seconds_text(each) for each in (0.000_01, 0.0025, 1.0, 60.0, None)]
    assert texts == ["10 µs", "2.5 ms", "1 s", "60 s", "\N{EN DASH}"]
