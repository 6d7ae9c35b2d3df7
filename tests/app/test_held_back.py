"""What this code is too old for waits, in order and without using up attempts, for newer code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, CodeTooOld, ConfigError, Dedup, Message, Retry, Streams
from streams.log.url import open_log
from streams.replay import ReplayFailed, replay
from streams.testing import Clock, harness

pytestmark = pytest.mark.anyio


class Known(Struct, tag="known", frozen=True):
    id: str
    key: str


class Newer(Struct, tag="newer", frozen=True):
    id: str
    key: str


class State(Struct, frozen=True):
    pass


EVENTS: list[Known | Newer] = [
    Known("1", "a"),
    Newer("2", "a"),
    Known("3", "a"),
    Known("4", "b"),
    Newer("5", "a"),
]


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The clock of a log in memory, which lasts until the test is over."""
    clock = Clock()
    with closing(open_log("memory://held-back", None, clock)):
        yield clock


def old_topic(app: Streams, **options: Any) -> Any:
    return app.topic("events", Known, key="key", partitions=1, unknown="wait", **options)


async def publish_all(clock: Clock) -> None:
    app = Streams("memory://")
    topic = app.topic("events", Known | Newer, key="key", id="id", partitions=1)
    async with harness(app, url="memory://held-back", clock=clock):
        await topic.publish_many(EVENTS)


OPTIONS: dict[str, dict[str, Any]] = {
    "in order": {"retry": Retry(attempts=1)},
    "out of order": {"retry": Retry(attempts=1, in_order=False)},
    "durable": {"retry": Retry(attempts=1, durable=True)},
    "batch": {"retry": Retry(attempts=1), "batch": 10},
    "durable batch": {"retry": Retry(attempts=1, durable=True), "batch": 10},
    "without dedup": {"retry": Retry(attempts=1), "batch": 3, "dedup": Dedup(window=0)},
}


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("id_in_value", [False, True])
async def test_a_topic_whose_unknown_tags_wait(clock: Clock, what: str, id_in_value: bool) -> None:
    await publish_all(clock)
    seen: defaultdict[str, list[str]] = defaultdict(list)

    def declare(app: Streams, topic: Any) -> Any:
        async def handle(given: Any) -> None:
            for each in given if isinstance(given, list) else [given]:
                seen[each.key].append(each.id)

        return app.processor(topic, group="g", **OPTIONS[what])(handle)

    old = Streams("memory://held-back")
    processor = declare(old, old_topic(old, id="id" if id_in_value else None))
    async with harness(old, url="memory://held-back", clock=clock) as h:
        await h.settled()
        assert processor.stats().held_back == 1
        assert seen == {"a": ["1"], "b": ["4"]}
        clock.advance(120)
        await h.settled()
        stats = processor.stats()
        assert (stats.held_back, stats.dead_letters, stats.retries) == (1, 0, 0)
        assert old.health().ready
        assert not old.health().ok
    newer = Streams("memory://held-back")
    declare(newer, newer.topic("events", Known | Newer, key="key", id="id", partitions=1))
    async with harness(newer, url="memory://held-back", clock=clock) as h:
        await h.settled()
        assert seen == {"a": ["1", "2", "3", "5"], "b": ["4"]}


async def test_a_pipeline_holds_back_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    clock = Clock()
    codes: list[tuple[Any, list[str]]] = [
        (Known, ["1", "4"]), (Known | Newer, ["1", "4", "2", "3", "5"]),
    ]  # fmt: skip
    for type_, expected in codes:
        app = Streams(url)
        topic = app.topic("events", type_, key="key", id="id", partitions=1, unknown="wait")
        out = app.topic("out", str, partitions=1)

        @app.processor(topic, group="g", to=out, exactly_once=True)
        async def pass_on(event: Any) -> str:
            return str(event.id)

        async with harness(app, url=url, clock=clock) as h:
            if type_ is Known:
                writer = app.topic("events", Known | Newer, key="key", id="id", partitions=1)
                await writer.publish_many(EVENTS)
            await h.settled()
            assert [each.value for each in await h.messages(out)] == expected
            assert app.health().processors["pass_on"].held_back == (type_ is Known)


async def test_a_handler_that_is_too_old_says_so() -> None:
    """Also in the midst of a batch that is not run again, and whatever its retry policy."""
    app = Streams("memory://")
    numbers = app.topic("numbers", int, partitions=1)
    seen: list[int] = []

    @app.processor(numbers, group="g", retry=Retry(attempts=1, never=(CodeTooOld,)))
    async def handle(number: int, message: Message[int]) -> None:
        if number == 0 and len(seen) < 2:
            raise ExceptionGroup("from a TaskGroup", [CodeTooOld("not yet")])
        seen.append(number)

    async with harness(app, clock=Clock()) as h:
        for number, key in [(0, "a"), (1, "a"), (2, "b"), (3, "c")]:
            await numbers.publish(number, key=key)
        await h.settled()
        assert seen == [2, 3]
        h.clock.advance(30)
        await h.settled()
        assert seen == [2, 3, 0, 1]
        assert app.health().ok


async def test_a_replay_says_at_once_that_its_code_is_too_old(clock: Clock) -> None:
    await publish_all(clock)
    app = Streams("memory://")
    topic = old_topic(app)
    async with harness(app, url="memory://held-back", clock=clock):
        with pytest.raises(ReplayFailed, match="a tag that Known does not have"):
            await replay(app, topic, lambda event: None)


@pytest.mark.parametrize(("unknown", "dead"), [("skip", 0), ("dead", 1)])
async def test_who_reads_an_event_topic_as_any_topic_chooses_otherwise(
    unknown: Any, dead: int
) -> None:
    """A reader that is to know a part of the events for ever."""
    writer = Streams("memory://part")
    things: Aggregate[Any, State] = Aggregate(
        writer, "things", Known | Newer, State, lambda state, event: state, partitions=1
    )
    async with writer.connected():
        await things.append("a", [Known("1", "a"), Newer("2", "a"), Known("3", "a")], expected=0)
        reader = Streams("memory://part")
        events = reader.topic("things.events", Known, unknown=unknown)
        seen: list[str] = []

        @reader.processor(events, group="g")
        async def handle(event: Known) -> None:
            seen.append(event.id)

        async with harness(reader, url="memory://part") as h:
            await h.settled()
            assert seen == ["1", "3"]
            assert len(await h.dead(events, "g")) == dead


def test_waiting_needs_tags() -> None:
    with pytest.raises(ConfigError, match="unknown='wait' is for tagged types; int has no tags"):
        Streams("memory://").topic("numbers", int, unknown="wait")
    given: Any = "later"
    with pytest.raises(ConfigError, match="'dead', 'skip' or 'wait'"):
        Streams("memory://").topic("events", Known, unknown=given)
