"""**exactly once**: a pipeline's outputs are in the log if and only if its input is settled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from streams import Message, Processor, ProcessorDied, Retry
from streams.engine.progress import EncodedProgress, Progress
from streams.errors import Fatal, Fenced, LogError, OutcomeUnknown, TooLarge, Unavailable
from streams.log.events import EventLog
from streams.log.memory.log import MemoryLog
from streams.log.protocol import Commit, OutputsRefused
from streams.message import Record
from tests.conformance.pipelines import (
    KINDS,
    PARTITIONS,
    CommitOutputs,
    Kind,
    Pipeline,
    Worker,
    intercept,
    is_rejected,
    results_of,
)
from tests.conformance.stage import Stage

pytestmark = [pytest.mark.anyio, pytest.mark.needs("commits_outputs")]


@pytest.fixture
def run() -> str:
    return uuid4().hex[:8]


@pytest.fixture
def pipeline(stage: Stage, run: str) -> Pipeline:
    return Pipeline(stage.url, run)


async def done(stage: Stage, pipeline: Pipeline) -> None:
    await stage.until(lambda: pipeline.is_done(stage.anchor), "done")


@pytest.mark.parametrize("kind", KINDS)
async def test_each_output_once_and_a_key_in_order(
    stage: Stage, pipeline: Pipeline, kind: Kind
) -> None:
    """With retries, dead letters, messages of which nothing comes, and 64 handlers at once."""
    numbers = range(600)
    app = pipeline.app()
    pipeline.declare(app, kind)
    async with app:
        for start in range(0, 600, 100):
            await pipeline.publish(app, numbers[start : start + 100])
        await done(stage, pipeline)
    pipeline.check(stage.anchor, numbers)


async def test_outputs_and_positions_are_stored_together(stage: Stage, pipeline: Pipeline) -> None:
    """Nothing can be read of what was handled until it is stored, and then all."""
    app = pipeline.app()
    may_store = threading.Event()

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            if not may_store.is_set():
                raise Unavailable("not yet")
            commit_outputs(outputs, commits)

        return call

    intercept(app, around)
    processor = pipeline.declare(app)
    async with app:
        await pipeline.publish(app, range(100))
        silent = await stage.until(
            lambda: (stats := processor.stats()) and stats.handled + stats.dead_letters >= 100,
            "handled",
        )
        assert silent
        assert pipeline.outputs(stage.anchor) == []
        assert pipeline.letters(stage.anchor) == []
        may_store.set()
        await done(stage, pipeline)
    pipeline.check(stage.anchor, range(100))


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
async def test_what_is_not_known_to_be_stored_is_begun_anew(
    stage: Stage, pipeline: Pipeline, stored: bool
) -> None:
    app = pipeline.app()
    calls = 0

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            nonlocal calls
            calls += bool(outputs)
            fails = bool(outputs) and calls in (1, 3)
            if stored or not fails:
                commit_outputs(outputs, commits)
            if fails:
                raise OutcomeUnknown("the answer was lost")

        return call

    intercept(app, around)
    pipeline.declare(app)
    async with app:
        for start in range(0, 200, 20):
            await pipeline.publish(app, range(start, start + 20))
            await stage.until(lambda: calls or pipeline.is_done(stage.anchor))
        await done(stage, pipeline)
    pipeline.check(stage.anchor, range(200))


@pytest.mark.short_lease
@pytest.mark.needs("processes")
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.faults), 3])
@pytest.mark.parametrize("step", ["before", "after"])
async def test_killed_between_any_two_steps(
    stage: Stage, pipeline: Pipeline, run: str, step: str, count: int
) -> None:
    await killed_at(stage, pipeline, run, step, count)


async def killed_at(stage: Stage, pipeline: Pipeline, run: str, step: str, count: int) -> None:
    numbers = range(300)
    async with pipeline.app().connected():
        pass
    app = pipeline.app()
    pipeline.topics(app)
    async with app.connected():
        with Worker(pipeline, run, "async", step, count) as worker:
            for number in range(0, 300, 50):
                await pipeline.publish(app, numbers[number : number + 50])
                await stage.until(lambda: pipeline.is_done(stage.anchor) or not worker.runs)
            await stage.until(lambda: worker.was_killed or not worker.runs, "killed")
            assert worker.was_killed
    app = pipeline.app()
    pipeline.declare(app)
    async with app:
        await done(stage, pipeline)
    pipeline.check(stage.anchor, numbers)


@pytest.mark.needs("crashes")
async def test_a_simulated_crash(stage: Stage, pipeline: Pipeline) -> None:
    """The same on the log that is in this process."""
    app = pipeline.app()
    pipeline.declare(app)
    left = 3

    def strike(point: str, name: str) -> None:
        nonlocal left
        if point == "outputs.after":
            left -= 1
            if left == 0:
                assert isinstance(app.log, MemoryLog)
                app.log.crash()
                raise LogError("crashed")

    with pytest.raises(ProcessorDied):
        async with app:
            assert isinstance(app.log, MemoryLog)
            app.log.fault(strike)
            with suppress(Fatal):  # a publish that the crash meets
                for start in range(0, 300, 50):
                    await pipeline.publish(app, range(start, start + 50))
                    await stage.until(lambda: left <= 0 or pipeline.is_done(stage.anchor))
            await asyncio.Event().wait()
    again = pipeline.app()
    pipeline.declare(again)
    async with again:
        published = {
            int(value) for _, _, value in pipeline.read(stage.anchor, pipeline.source_name)
        }
        await done(stage, pipeline)
    pipeline.check(stage.anchor, sorted(published))


def owns_something(processor: Processor[..., Any]) -> bool:
    return processor.poller is not None and bool(processor.poller.owned_partitions())


async def test_members_come_and_go(stage: Stage, pipeline: Pipeline) -> None:
    numbers = range(600)
    app = pipeline.app()
    pipeline.declare(app)
    async with app:
        for start in (0, 300):
            other = pipeline.app()
            shared = pipeline.declare(other)
            await pipeline.publish(app, numbers[start : start + 150])
            async with other:
                await stage.until(partial(owns_something, shared), "shared")
                await pipeline.publish(app, numbers[start + 150 : start + 300])
        await done(stage, pipeline)
    pipeline.check(stage.anchor, numbers)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(True, id="stored"),
        pytest.param(False, id="not stored", marks=pytest.mark.faults),
    ],
)
async def test_answers_are_lost_while_members_come_and_go(
    stage: Stage, pipeline: Pipeline, stored: bool
) -> None:
    """A partition is given up before it is known what became of its last commit."""
    calls = 0

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            nonlocal calls
            calls += bool(outputs)
            fails = bool(outputs) and calls % 3 == 1
            if stored or not fails:
                commit_outputs(outputs, commits)
            if fails:
                raise OutcomeUnknown("the answer was lost")

        return call

    app = pipeline.app()
    intercept(app, around)
    pipeline.declare(app)
    async with app:
        for start in range(0, 400, 200):
            other = pipeline.app()
            intercept(other, around)
            shared = pipeline.declare(other)
            await pipeline.publish(app, range(start, start + 100))
            async with other:
                await stage.until(partial(owns_something, shared), "shared")
                await pipeline.publish(app, range(start + 100, start + 200))
        await done(stage, pipeline)
    assert calls > 3
    pipeline.check(stage.anchor, range(400))


@pytest.mark.parametrize("kind", ["async", "async single", "plain single"])
async def test_what_waits_of_a_lost_partition_is_dropped(
    stage: Stage, pipeline: Pipeline, kind: Kind
) -> None:
    """Handled, not stored yet, and lost: whoever owns it handles it again, and publishes it. What
    belongs to the ownership that is lost a live member is told so of, and it is not stored."""
    app = pipeline.app()
    runs = 0
    lost: list[tuple[Sequence[tuple[str, Record]], Sequence[Commit]]] = []
    told: list[Fenced] = []

    def count(number: int, message: Message[int]) -> None:
        nonlocal runs
        runs += 1

    refuse = threading.Event()
    refuse.set()

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            if outputs and refuse.is_set():
                if not lost:
                    lost.append((list(outputs), list(commits)))
                raise Unavailable("not yet")
            if outputs and lost:
                try:
                    commit_outputs(*lost.pop())
                except Fenced as error:
                    told.append(error)
            commit_outputs(outputs, commits)

        return call

    intercept(app, around)
    pipeline.declare(app, kind, act=count)
    async with app:
        await pipeline.publish(app, range(60))
        await stage.until(lambda: runs >= 60 and lost, "handled, and not stored")
        # Moved by force to where it stands, the group's members lose what they own.
        before = stage.anchor.committed(pipeline.group, pipeline.source_name)
        await asyncio.to_thread(
            lambda: stage.anchor.reset_offsets(
                pipeline.group, pipeline.source_name, before, force=True
            )
        )
        refuse.clear()
        await done(stage, pipeline)
    assert runs >= 120
    assert len(told) == 1
    pipeline.check(stage.anchor, range(60))


@pytest.mark.parametrize("kind", ["async", "async single", "plain single"])
async def test_what_the_log_refuses_becomes_a_dead_letter(
    stage: Stage, pipeline: Pipeline, caplog: pytest.LogCaptureFixture, kind: Kind
) -> None:
    app = pipeline.app()

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            refused: dict[int, LogError] = {
                at: TooLarge("too large")
                for at, (topic, record) in enumerate(outputs)
                if topic == pipeline.target_name and record.value in (b"30", b"81")
            }
            if refused:
                raise OutputsRefused(refused)
            commit_outputs(outputs, commits)

        return call

    intercept(app, around)
    processor = pipeline.declare(app, kind)
    async with app:
        await pipeline.publish(app, range(40))
        await done(stage, pipeline)
        stats = processor.stats()
        assert stats is not None
        assert (stats.handled, stats.dead_letters) == (37, 3)
    assert sorted(pipeline.letters(stage.anchor)) == [3, 7, 8]
    found = pipeline.outputs(stage.anchor)
    assert not {30, 31, 80, 81} & set(found)
    assert len(found) == len(set(found)) == 2 * (40 - 3 - 4)  # 5, 16, 27 and 38 are silent
    assert "cannot be published" in caplog.text


async def test_nothing_is_written_into_an_event_topic(
    stage: Stage, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """As without exactly once: what a handler returned becomes its message's dead letter."""
    assert isinstance(stage.anchor, EventLog)
    stage.anchor.create_event_topic(pipeline.target_name, PARTITIONS)
    ends = [stage.anchor.watermarks(pipeline.target_name, each)[1] for each in range(PARTITIONS)]
    app = pipeline.app()
    processor = pipeline.declare(app)
    async with app:
        await pipeline.publish(app, range(4))
        await done(stage, pipeline)
        stats = processor.stats()
        assert stats is not None
        assert (stats.handled, stats.dead_letters) == (0, 4)
        assert app.health().ok
    assert sorted(pipeline.letters(stage.anchor)) == [0, 1, 2, 3]
    # Nor anything that a reader of events would leave out.
    assert ends == [
        stage.anchor.watermarks(pipeline.target_name, each)[1] for each in range(PARTITIONS)
    ]
    assert "cannot be published to" in caplog.text


async def test_a_dead_letter_that_is_refused_is_written_later(
    stage: Stage, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.processing.pipeline_committer.WRITE_PAUSE", 0.05)
    app = pipeline.app()
    refusals = 0

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            nonlocal refusals
            letters: dict[int, LogError] = {
                at: TooLarge("too large")
                for at, (topic, _) in enumerate(outputs)
                if topic.endswith(".dead")
            }
            if letters and refusals < 3:
                refusals += 1
                raise OutputsRefused(letters)
            commit_outputs(outputs, commits)

        return call

    intercept(app, around)
    pipeline.declare(app)
    async with app:
        await pipeline.publish(app, range(100))
        await done(stage, pipeline)
    assert refusals == 3
    pipeline.check(stage.anchor, range(100))


@pytest.mark.parametrize("at_once", [20_000, 4])
async def test_outputs_behind_a_settled_set_that_is_cut_wait(
    stage: Stage, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """What does not fit into the commit would be handled again after a crash, so it is not
    published with it. It holds up nothing that stands behind it."""
    whole = Progress.snapshot
    limit = 4_000

    def cut(progress: Progress, _: int = 0) -> EncodedProgress:
        return whole(progress, limit)

    monkeypatch.setattr(Progress, "snapshot", cut)
    go_on = asyncio.Event()
    handled: list[int] = []

    async def wait_for_first(number: int) -> None:
        if number == 0:
            await go_on.wait()
        handled.append(number)

    stored = 0
    may_store = threading.Event()

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            nonlocal stored
            if outputs and not may_store.is_set():
                raise Unavailable("not yet")
            commit_outputs(outputs, commits)
            stored += 1

        return call

    app = pipeline.app()
    intercept(app, around)
    processor: Any = pipeline.declare(app, act=lambda number, message: wait_for_first(number))
    async with app:
        processor.poller._committer._at_once = at_once
        await pipeline.publish(app, range(120))
        await stage.until(lambda: len(handled) >= 100, "handled beside the first")
        limit = 30 if stage.case.name in ("redis", "valkey") else 5
        before = stored
        may_store.set()
        await stage.until(lambda: stored > before, "stored")
        published = {output // 10 for output in pipeline.outputs(stage.anchor)}
        settled = pipeline.settled(stage.anchor)
        assert published
        assert published <= settled
        assert published < {each for each in handled if results_of(each) and not is_rejected(each)}
        go_on.set()
        await done(stage, pipeline)
    pipeline.check(stage.anchor, range(120))


@pytest.mark.parametrize("retry", [
    Retry(attempts=4, delay=0.01, cap=0.02, durable=True),
    Retry(attempts=4, delay=0.01, cap=0.02, in_order=False),
], ids=["durable", "unordered"])  # fmt: skip
async def test_attempts_that_are_counted_in_the_log(
    stage: Stage, pipeline: Pipeline, retry: Retry
) -> None:
    app = pipeline.app()
    pipeline.declare(app, retry=retry)
    name = f"{pipeline.source_name}.{pipeline.group}.dead"
    async with app:
        await pipeline.publish(app, range(120))
        await done(stage, pipeline)
        expected = sum(2 for each in range(120) if not is_rejected(each) and each % 11 != 5)
        await stage.until(lambda: len(pipeline.outputs(stage.anchor)) >= expected, "all are out")
        await stage.until(lambda: len(pipeline.read(stage.anchor, name)) >= 3, "letters")
    pipeline.check(stage.anchor, range(120), in_order=retry.in_order)
