"""Pipelines under test: what their handlers return, what stands in the log afterwards, and a worker
process that is killed at a step of its choice.

``python -m tests.conformance.pipelines URL RUN KIND STEP COUNT`` runs the pipeline of a run until
it has been at a step so many times, and is killed there; with step ``none`` until it is terminated.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from streams import Flow, Message, Processor, Reject, Retry, Streams, Topic
from streams.engine.progress import decode_progress
from streams.log.kafka.output_writer import OutputWriter
from streams.log.protocol import Commit, Committed, Log, Subscription
from streams.message import Record

ROOT = Path(__file__).parents[2]
Kind = Literal["async", "async single", "plain", "plain single", "async batch", "plain batch"]
"""How the handler is called; the ``single`` ones are one at a time, and never suspend."""
KINDS: tuple[Kind, ...] = (
    "async", "async single", "plain", "plain single", "async batch", "plain batch",
)  # fmt: skip
KAFKA_STEPS = ("_begin", "_produce", "_flush", "_send_offsets", "_commit")
"""Behind which of the steps of a transaction a worker can be killed."""
KEYS = 10
PARTITIONS = 2
RETRY = Retry(attempts=3, delay=0.002, cap=0.01)
FLOW = Flow(commit=0.02, drain=5.0)


def key_of(number: int) -> str:
    return f"k{number % KEYS}"


def key_of_result(result: int) -> str:
    return key_of(result // 10)


def is_rejected(number: int) -> bool:
    return number % 50 == 7


def is_silent(number: int) -> bool:
    """Nothing comes of it."""
    return number % 11 == 5


def results_of(number: int) -> list[int]:
    return [] if is_silent(number) else [10 * number, 10 * number + 1]


def fails_once(number: int) -> bool:
    """Whether the handler raises when it has this number for the first time."""
    return number % 13 == 3


class Pipeline:
    """Numbers that come in, and ten times as large and one more that go out."""

    def __init__(self, url: str, run: str) -> None:
        self.url = url
        self.source_name, self.target_name = f"in-{run}", f"out-{run}"
        self.group = f"pipe-{run}"

    def app(self) -> Streams:
        return Streams(self.url)

    def topics(self, app: Streams) -> tuple[Topic[int], Topic[int]]:
        source = app.topic(self.source_name, int, key=key_of, partitions=PARTITIONS)
        target = app.topic(self.target_name, int, key=key_of_result, partitions=PARTITIONS)
        return source, target

    def declare(
        self,
        app: Streams,
        kind: Kind = "async",
        act: Callable[[int, Message[Any]], Any] | None = None,
        **options: Any,
    ) -> Processor[..., Any]:
        """The processor; ``act`` may raise or, of an async handler, be awaited."""
        source, target = self.topics(app)
        tried: set[int] = set()

        def work(number: int, message: Message[Any]) -> list[int]:
            if fails_once(number) and number not in tried:
                tried.add(number)
                raise ConnectionError("now and then")
            if is_rejected(number):
                raise Reject("not this one")
            return results_of(number)

        async def handle(number: int, message: Message[Any]) -> list[int]:
            if act is not None:
                waits = act(number, message)
                if waits is not None:
                    await waits
            elif number % 3 == 0:
                await asyncio.sleep(0)
            return work(number, message)

        def handle_plain(number: int, message: Message[Any]) -> list[int]:
            if act is not None:
                act(number, message)
            return work(number, message)

        async def handle_batch(
            numbers: list[int], messages: list[Message[Any]]
        ) -> list[list[int] | None]:
            return handle_plain_batch(numbers, messages)

        def handle_plain_batch(
            numbers: list[int], messages: list[Message[Any]]
        ) -> list[list[int] | None]:
            return [
                handle_plain(number, message) or None
                for number, message in zip(numbers, messages, strict=True)
            ]

        async def handle_at_once(number: int, message: Message[Any]) -> list[int]:
            return handle_plain(number, message)

        handlers: dict[str, Any] = {
            "async": handle, "plain": handle_plain,
            "async single": handle_at_once, "plain single": handle_plain,
            "async batch": handle_batch, "plain batch": handle_plain_batch,
        }  # fmt: skip
        given: dict[str, Any] = {
            "concurrency": 1 if "single" in kind else 4 if kind == "plain" else 64,
            "retry": RETRY, "flow": FLOW,
            "batch": 20 if "batch" in kind else None, **options,
        }  # fmt: skip
        declared: Processor[..., Any] = app.processor(
            source, group=self.group, to=target, exactly_once=True, **given
        )(handlers[kind])
        return declared

    async def publish(self, app: Streams, numbers: Sequence[int]) -> None:
        source, _ = self.topics(app)
        records: list[Record] = [
            source.record(each, key=key_of(each), id=f"n{each}") for each in numbers
        ]
        await app.publisher.publish_many(source.name, records)

    # -- what is in the log

    def read(self, log: Log, topic: str) -> list[tuple[str, str, bytes]]:
        """Key, ID and value of each message of a topic, in order of the partitions."""
        found: list[tuple[str, str, bytes]] = []
        for partition in range(log.describe_topic(topic).partitions):
            reader = log.reader(topic, partition, *log.watermarks(topic, partition))
            while (batch := reader.read(1_000, 20.0)) is not None:
                for index in range(len(batch)):
                    key, value = batch.keys[index] or b"", batch.values[index] or b""
                    found.append((key.decode(), batch.id(index), value))
            reader.close()
        return found

    def outputs(self, log: Log) -> list[int]:
        return [int(value) for _, _, value in self.read(log, self.target_name)]

    def letters(self, log: Log) -> list[int]:
        name = f"{self.source_name}.{self.group}.dead"
        return [int(value) for _, _, value in self.read(log, name)]

    def check(self, log: Log, numbers: Sequence[int], *, in_order: bool = True) -> None:
        """Each result and each dead letter is there once, the results of a key in its order."""
        outputs = self.outputs(log)
        expected = [
            result for number in numbers if not is_rejected(number) for result in results_of(number)
        ]
        assert sorted(outputs) == sorted(expected)
        assert sorted(self.letters(log)) == [each for each in numbers if is_rejected(each)]
        if in_order:
            by_key: dict[str, list[int]] = defaultdict(list)
            for output in outputs:
                by_key[key_of_result(output)].append(output)
            for key, of_key in by_key.items():
                assert of_key == sorted(of_key), f"{key} out of order"

    def settled(self, log: Log) -> set[int]:
        """The numbers that the group will not handle again."""
        committed = log.committed(self.group, self.source_name)
        found: set[int] = set()
        for partition in range(PARTITIONS):
            place = committed.get(partition, Committed(0))
            ranges = decode_progress(place.position, place.progress)[1] if place.progress else []
            first, end = log.watermarks(self.source_name, partition)
            reader = log.reader(self.source_name, partition, first, end)
            while (batch := reader.read(1_000, 20.0)) is not None:
                found.update(
                    int(batch.values[index] or b"")
                    for index, offset in enumerate(batch.offsets)
                    if offset < place.position or any(a <= offset < b for a, b in ranges)
                )
            reader.close()
        return found

    def is_done(self, log: Log) -> bool:
        """The group has settled all there is."""
        committed = log.committed(self.group, self.source_name)
        for partition in range(PARTITIONS):
            first, end = log.watermarks(self.source_name, partition)
            place = committed.get(partition)
            if end > first and (place is None or place.position < end):
                return False
        return True


# -- subscriptions that a test gets in the way of -------------------------------------------------


class CommitOutputs(Protocol):
    """See :meth:`streams.log.protocol.Subscription.commit_outputs`."""

    def __call__(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None: ...


def intercept(app: Streams, around: Callable[[CommitOutputs], CommitOutputs]) -> None:
    """Put something around each subscription's ``commit_outputs``."""

    class Intercepted:
        def __init__(self, log: Log) -> None:
            self._log = log

        def __getattr__(self, name: str) -> Any:
            return getattr(self._log, name)

        def subscribe(self, *args: Any, **options: Any) -> Subscription:
            subscription = self._log.subscribe(*args, **options)
            wrapped = around(subscription.commit_outputs)
            subscription.commit_outputs = wrapped  # type: ignore[method-assign]
            return subscription

    def watch(app: Streams) -> Any:
        class Lifespan:
            async def __aenter__(self) -> None:
                app.runtime.log = Intercepted(app.log)

            async def __aexit__(self, *exc: object) -> None:
                return None

        return Lifespan()

    app.lifespan = watch


# -- the worker process ----------------------------------------------------------------------------


class Worker:
    """A process that runs the pipeline."""

    def __init__(
        self, pipeline: Pipeline, run: str, kind: Kind = "async", step: str = "none", count: int = 1
    ) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, pipeline.url, run, kind, step, str(count)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdin=subprocess.PIPE,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    @property
    def was_killed(self) -> bool:
        """It came to its step."""
        return self._process.poll() == -signal.SIGKILL

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


def _steps(app: Streams, step: str, count: int) -> None:
    """Die at a step: before or after outputs are stored, or at a call of Kafka's producer."""
    left = count

    def pass_by(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(commit_outputs: CommitOutputs) -> CommitOutputs:
        def call(outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]) -> None:
            pass_by("before")
            commit_outputs(outputs, commits)
            pass_by("after")

        return call

    intercept(app, around)
    if step in KAFKA_STEPS:
        method: Any = getattr(OutputWriter, step)

        def call_and_pass(*args: Any) -> None:
            method(*args)
            pass_by(step)

        setattr(OutputWriter, step, call_and_pass)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    url, run, kind, step, count = sys.argv[1:]
    pipeline = Pipeline(url, run)
    app = pipeline.app()
    pipeline.declare(app, kind)  # type: ignore[arg-type]
    _steps(app, step, int(count))
    app.run()
