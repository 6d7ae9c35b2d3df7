"""A worker to be killed: one processor that writes down everything it does.

python -m tests.faults.worker FOLDER URL TOPIC GROUP CONCURRENCY [SECONDS [MEMBER]]

At concurrency 1 the handler is a plain one, whose thread polls for itself while it is quick.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from zlib import crc32

from streams import Flow, Message, Retry, Streams
from streams.engine.progress import decode_progress
from streams.log.protocol import Assignment, Log, RebalanceListener, Submitted, Subscription
from streams.log.protocol import Commit as LogCommit
from tests.faults.history import Commit, Effect, Failed, Owned, Recorder, Stalled, Started


class Watched:
    """A log whose subscriptions write down assignments and acknowledged commits."""

    def __init__(self, log: Log, recorder: Recorder) -> None:
        self._log = log
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def subscribe(
        self, group: str, topics: Sequence[str], listener: RebalanceListener, **options: Any
    ) -> Subscription:
        recorder = self._recorder
        assigned = listener.assigned

        def write_down(assignments: Sequence[Assignment]) -> None:
            for each in assignments:
                owned = Owned(time.monotonic(), each.topic, each.partition, each.epoch)
                recorder.write(owned)
            assigned(assignments)

        listener.assigned = write_down  # type: ignore[method-assign]
        subscription = self._log.subscribe(group, topics, listener, **options)
        commit, submit = subscription.commit, subscription.commit_async

        def commit_and_write_down(commits: Sequence[LogCommit]) -> None:
            asked = time.monotonic()
            commit(commits)
            write_commits(commits, asked)

        def submit_and_write_down(commits: Sequence[LogCommit], on_submitted: Submitted) -> None:
            asked = time.monotonic()

            def answer(stored: bool) -> None:
                if stored:
                    write_commits(commits, asked)
                on_submitted(stored)

            submit(commits, answer)

        def write_commits(commits: Sequence[LogCommit], asked: float) -> None:
            for each in commits:
                if each.assignment.valid_until == float("-inf"):
                    continue  # no longer owned: dropped, not stored
                ranges = decode_progress(each.position, each.progress)[1] if each.progress else []
                recorder.write(
                    Commit(
                        time.monotonic(),
                        asked,
                        each.assignment.topic,
                        each.assignment.partition,
                        each.assignment.epoch,
                        each.position,
                        tuple(ranges),
                    )
                )

        subscription.commit = commit_and_write_down  # type: ignore[method-assign]
        subscription.commit_async = submit_and_write_down  # type: ignore[method-assign]
        return subscription


STALL = 1.0
"""Seconds that come near to the shortest lease of these runs, less the time between two beats."""


def note_stalls(recorder: Recorder) -> None:
    """Write down when the machine let this process stand still."""
    last = time.monotonic()
    while True:
        time.sleep(0.05)
        now = time.monotonic()
        if now - last > STALL:
            recorder.write(Stalled(now, now - last))
        last = now


def _what(message: Message[bytes]) -> tuple[str, int, int, str | None, str]:
    return message.topic, message.partition, message.offset, message.key, message.id


def build(
    folder: Path,
    url: str,
    topic: str,
    group: str,
    concurrency: int,
    pause: float,
    member: str | None = None,
) -> Streams:
    """The app: every handler takes ``pause`` seconds now and then, and one in 100 fails once."""
    recorder = Recorder(folder)
    threading.Thread(target=note_stalls, args=(recorder,), daemon=True).start()
    app = Streams(url, member=member)
    source = app.topic(topic, bytes)

    def begin(message: Message[bytes]) -> None:
        recorder.write(Started(time.monotonic(), *_what(message), message.attempt))

    def waits(value: bytes) -> bool:
        return pause > 0 and crc32(value) % 10 == 0

    def end(value: bytes, message: Message[bytes]) -> None:
        if crc32(value) % 100 == 1 and message.attempt == 1:
            recorder.write(Failed(time.monotonic(), *_what(message)))
            raise ConnectionError("now and then")
        recorder.write(Effect(time.monotonic(), *_what(message)))

    async def work(value: bytes, message: Message[bytes]) -> None:
        begin(message)
        if waits(value):
            await asyncio.sleep(pause)
        end(value, message)

    def plain(value: bytes, message: Message[bytes]) -> None:
        begin(message)
        if waits(value):
            time.sleep(pause)
        end(value, message)

    app.processor(
        source,
        group=group,
        concurrency=concurrency,
        retry=Retry(attempts=5, delay=0.005, cap=0.02),
        flow=Flow(commit=0.1, drain=5.0),
    )(plain if concurrency == 1 else work)

    def watch(app: Streams) -> Any:
        class Lifespan:
            async def __aenter__(self) -> None:
                app.runtime.log = cast(Log, Watched(app.log, recorder))

            async def __aexit__(self, *exc: object) -> None:
                return None

        return Lifespan()

    app.lifespan = watch
    return app


def end_with_parent() -> None:
    """Whoever started this was killed: nobody is left to stop it."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    faulthandler.register(signal.SIGUSR1)  # what every thread does, where a run stands still
    logging.basicConfig(level=logging.ERROR, format="%(process)d %(name)s %(message)s")
    folder, url, topic, group, concurrency = sys.argv[1:6]
    pause = float(sys.argv[6]) if len(sys.argv) > 6 else 0.0
    member = sys.argv[7] if len(sys.argv) > 7 else None
    build(Path(folder), url, topic, group, int(concurrency), pause, member).run()


if __name__ == "__main__":
    main()
