"""**discretion**, and the manners of an app: clear errors, an orderly life, nothing silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from streams import (
    ConfigError,
    Message,
    NotRunning,
    ProcessorDied,
    Reject,
    Streams,
)
from streams.errors import Fatal
from tests.conformance.stage import QUICK, Stage

SECRET = "hunter2"


async def test_no_payload_in_a_log_line_or_a_repr(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    app = stage.app()
    topic = stage.topic(app, dict)
    reprs: list[str] = []

    def fail(value: dict[str, str], message: Message[dict[str, str]]) -> None:
        reprs.append(repr(message))
        raise Reject("no")

    app.processor(topic, group=stage.group, flow=QUICK)(lambda value, message: fail(value, message))
    from streams.message import Record

    with caplog.at_level(logging.DEBUG):
        async with app:
            await topic.publish({"password": SECRET}, key="k")
            broken = Record(b'{"password":"' + SECRET.encode() + b'"', b"k", "broken")
            await app.publisher.publish(topic.name, broken)
            await stage.committed(app)
            letters = await stage.letters(app)
    assert len(letters) == 2
    assert reprs
    assert not any(SECRET in each for each in reprs)
    assert SECRET not in caplog.text
    for letter in letters:
        assert not any(SECRET in value for value in letter.headers.values())


async def test_a_destination_in_a_header_is_not_trusted(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    before = {info.name for info in stage.anchor.describe_topics()}

    def fail(value: int, message: Message[int]) -> None:
        raise Reject("no")

    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(fail))
    async with app:
        evil = {"reply_to": "evil", "__streams.errors.topic": "evil", "streams_redrive": "9"}
        await topic.publish(1, headers=evil)
        await stage.committed(app)
        (letter,) = await stage.letters(app)
    assert letter.headers["__streams.errors.topic"] == topic.name
    # Other tests make topics of theirs on the same server, none of them of these names.
    names = {info.name for info in stage.anchor.describe_topics()}
    assert not {name for name in names - before if "evil" in name}
    assert {name for name in names if name.startswith(topic.name)} == {
        topic.name,
        f"{topic.name}.{stage.group}.dead",
        f"{topic.name}.{stage.group}.retry",
    }


async def test_the_lifespan_is_entered_before_the_first_poll(stage: Stage) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        steps.append("opened")
        topic = stage.topic(app)

        @app.processor(topic, group=stage.group, flow=QUICK)
        async def handle(value: int) -> None:
            steps.append(f"handled {value}")

        yield
        steps.append("closed")

    app = Streams(stage.url, lifespan=lifespan)
    async with app:
        await app.topics[stage.topic_name].publish(1)
        await stage.until(lambda: len(steps) > 1)
    assert steps == ["opened", "handled 1", "closed"]


async def test_a_processor_that_dies_cancels_the_body(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    with pytest.raises(ProcessorDied, match="handle died: Fatal: the disk is gone"):
        async with app:
            poller = app.processors[0].poller
            assert poller is not None
            subscription = poller._subscription or await stage.until(lambda: poller._subscription)

            def poll(limit: int, timeout: float) -> None:
                raise Fatal("the disk is gone")

            subscription.poll = poll  # type: ignore[method-assign]
            await asyncio.sleep(60)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    assert not app.health().connected


async def test_an_error_of_the_body_is_not_hidden(stage: Stage) -> None:
    app = stage.app()
    stage.topic(app)
    with pytest.raises(ZeroDivisionError):
        async with app:
            raise ZeroDivisionError
    async with app:  # and the app can be entered again
        assert app.health().ok


async def test_entered_twice_is_refused(stage: Stage) -> None:
    app = stage.app()
    async with app:
        with pytest.raises(NotRunning, match="running already"):
            async with app:
                pass
        assert app.health().connected


async def test_stats_and_health_are_typed_snapshots(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, filter=lambda value: value != 3, flow=QUICK)(
        stage.recorder()
    )
    assert not app.health().ok
    async with app:
        await stage.publish(topic, *range(10), key=str)
        await stage.committed(app)
        stats = app.stats()
        assert stats.published == 10
        mine = stats.processors["handle"]
        assert (mine.handled, mine.filtered, mine.in_flight, mine.running) == (9, 1, 0, 0)
        assert app.health().ok
    assert not app.health().ok


async def test_several_processors_in_one_app(stage: Stage) -> None:
    app = stage.app()
    one, two = stage.topic(app), app.topic(f"{stage.topic_name}-2", int, partitions=1)
    got: dict[str, list[int]] = {"both": [], "one": []}

    @app.processor(one, two, group=f"{stage.group}-both", flow=QUICK)
    async def both(value: int) -> None:
        got["both"].append(value)

    @app.processor(one, group=f"{stage.group}-one", flow=QUICK)
    def only(value: int) -> None:
        got["one"].append(value)

    async with app:
        await one.publish_many(range(5))
        await two.publish_many(range(5, 10))
        await stage.until(lambda: len(got["both"]) == 10 and len(got["one"]) == 5)
    assert sorted(got["both"]) == list(range(10))
    with pytest.raises(ConfigError, match="already reads"):
        app.processor(one, group=f"{stage.group}-one")(print)


async def test_one_group_may_read_two_topics_in_two_processors(stage: Stage) -> None:
    app = stage.app()
    one, two = stage.topic(app), app.topic(f"{stage.topic_name}-2", int, partitions=1)
    got: dict[str, list[int]] = {"first": [], "second": []}

    @app.processor(one, group=stage.group, flow=QUICK)
    async def first(value: int) -> None:
        got["first"].append(value)

    @app.processor(two, group=stage.group, flow=QUICK)
    async def second(value: int) -> None:
        got["second"].append(value)

    async with app:
        await one.publish_many(range(5))
        await two.publish_many(range(5, 10))
        await stage.until(lambda: len(got["first"]) == 5 and len(got["second"]) == 5)
