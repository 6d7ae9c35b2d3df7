"""Processors that come and go while their app runs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from streams import ConfigError, Flow, NotRunning, Processor, Streams, Unavailable
from streams.processor import ProcessorOptions
from streams.testing import harness
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio


def declared(app: Streams, handler: Any, group: str = "late", **options: Any) -> Any:
    topic = app.topic("t", int)
    return app.declare(handler, ProcessorOptions((topic,), group, flow=QUICK, **options))


async def test_one_that_is_declared_late_handles_what_is_there_and_what_comes() -> None:
    app, seen = Streams("memory://"), list[int]()
    topic = app.topic("t", int)

    async def handle(value: int) -> None:
        seen.append(value)

    async with harness(app) as h:
        await topic.publish(1)
        processor = declared(app, handle)
        assert app.health().ok
        await app.start_processor(processor)
        await topic.publish(2)
        await h.settled()
        assert seen == [1, 2]
        assert app.stats().processors["handle"].handled == 2
        assert app.health().processors["handle"].running
    async with harness(app) as h:  # it is one of the app's from now on
        await topic.publish(3)
        await h.settled()
    assert seen[2:] == [3]


async def test_one_is_stopped_and_the_others_go_on(tmp_path: Path) -> None:
    app, seen, begun = Streams(f"sqlite:///{tmp_path}/log.db"), list[str](), asyncio.Event()
    let = asyncio.Event()
    topic = app.topic("t", int)

    @app.processor(topic, group="stays", flow=QUICK)
    async def stays(value: int) -> None:
        seen.append(f"stays {value}")

    @app.processor(topic, group="goes", flow=QUICK)
    async def goes(value: int) -> None:
        begun.set()
        await let.wait()
        seen.append(f"goes {value}")

    async with app:
        await topic.publish(1)
        await begun.wait()
        stopping = asyncio.create_task(app.stop_processor(goes))
        await until(lambda: goes not in app.processors)
        let.set()  # what runs is finished
        await stopping
        assert "goes 1" in seen
        await topic.publish(2)
        await until(lambda: "stays 2" in seen)
        assert "goes 2" not in seen
        (place,) = app.log.committed("goes", "t").values()
        assert app.log.lag("t", 0, place.position) == 1
        again = declared(app, goes.function, "goes")  # the name and the group are free again
        await app.runtime.start_processor(again)
        await until(lambda: "goes 2" in seen)
    assert seen.count("goes 1") == 1


async def test_a_stop_does_not_end_the_app_and_what_stops_ends_with_it() -> None:
    app, ended = Streams("memory://"), list[str]()
    topic = app.topic("t", int)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.processor(topic, group="g", flow=Flow(drain=60))
    async def handle(value: int) -> None:
        begun.set()
        try:
            await go_on.wait()
        finally:
            ended.append("handler")

    async with app:
        await topic.publish(1)
        await begun.wait()
        stopping = app.runtime.spawn(app.runtime.stop_processor(handle))
        await until(lambda: handle in app.runtime.stopping_processors)
        asyncio.get_running_loop().call_later(0.05, go_on.set)  # while the app is being left
    assert stopping.done()
    assert ended == ["handler"]
    assert not [each for each in threading.enumerate() if "handle" in each.name]
    assert handle.poller is None


async def test_an_outage_at_the_start_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    app, seen, tries = Streams("memory://"), list[int](), list[int]()
    topic = app.topic("t", int)
    prepare = Processor.ensure_topics

    def fails_once(self: Processor[..., Any], app: Streams) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise Unavailable("not now")
        prepare(self, app)

    monkeypatch.setattr(Processor, "ensure_topics", fails_once)

    async def handle(value: int) -> None:
        seen.append(value)

    async with app:
        await topic.publish(1)
        await app.runtime.start_processor(declared(app, handle))
        await until(lambda: seen == [1])
    assert len(tries) == 2


async def test_a_start_that_waits_ends_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Streams("memory://")

    def fails(self: Processor[..., Any], app: Streams) -> None:
        raise Unavailable("not now")

    async def handle(value: int) -> None: ...

    async with app:
        monkeypatch.setattr(Processor, "ensure_topics", fails)
        chore = app.runtime.spawn(app.runtime.start_processor(declared(app, handle)))
        await asyncio.sleep(0)
    assert chore.cancelled()


async def test_where_no_processors_run_none_is_started() -> None:
    app = Streams("memory://")

    async def handle(value: int) -> None: ...

    async with app.connected():
        processor = declared(app, handle)
        with pytest.raises(NotRunning, match="runs no processors"):
            await app.runtime.start_processor(processor)
    await app.runtime.stop_processor(processor)
    assert app.processors == []


async def test_one_that_is_about_to_stop_when_the_app_is_left_stops_with_it() -> None:
    app = Streams("memory://")
    topic = app.topic("t", int)

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int) -> None: ...

    async with app:
        app.processors.remove(handle)
        chore = app.runtime.spawn(
            app.runtime.stop_processor(handle)
        )  # and it is cancelled before its first step
        # Left behind it would be waited for, longer than a test may take.
    assert chore.cancelled()
    for each in threading.enumerate():
        if "handle" in each.name:
            each.join(30)  # it may have told its end and be about to come to it
            assert not each.is_alive()


async def test_a_start_that_waits_is_given_up_once_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, asked = Streams("memory://"), threading.Event()

    def fails(self: Processor[..., Any], app: Streams) -> None:
        app.runtime.starting.clear()
        asked.set()
        raise Unavailable("not now")

    async def handle(value: int) -> None: ...

    async with app:
        monkeypatch.setattr(Processor, "ensure_topics", fails)
        await app.runtime.start_processor(declared(app, handle))
    assert asked.is_set()


def test_topics_and_groups_whose_retries_would_meet_are_refused() -> None:
    app = Streams("memory://")
    app.processor(app.topic("a.b", int), group="c")(lambda value: None)
    app.processor(app.topic("a.b", int), group="b.c")(lambda value: None)
    message = (
        "topic 'a' in group 'b.c' would go to a.b.c.…, as those of topic 'a.b' in group 'c' do"
    )
    with pytest.raises(ConfigError, match=message):
        app.processor(app.topic("a", int), group="b.c")(lambda value: None)
