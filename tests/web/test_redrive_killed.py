"""A redrive of many letters goes on when the browser is closed, and after the server was killed
with ``kill -9`` in the middle it is begun again: each letter is handled once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from streams import Message, Streams
from streams.config import DeadLetters
from streams.derived_records import dead_letter_record
from streams.inspection.letter_topics import letter_counts
from streams.log.appending import append_and_wait
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.message import Record
from tests.conformance.stage import QUICK
from tests.servers.lifetime import until
from tests.web.visiting import Seen, Visitor, eventually

ROOT = Path(__file__).parents[2]
TOPIC, GROUP = "orders", "billing"
NAME = DeadLetters().name(TOPIC, GROUP)
PARTITIONS = 3


@contextmanager
def serving(
    url: str, folder: Path, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of the dashboard, and its address."""
    words = [sys.executable, "-m", "streams.cli", "web", "tests.web.held_app:app"]
    words += ["--url", url, "--write", "--port", "0"]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline().decode()
        assert line.startswith("http://"), (line, (folder / "server.log").read_text())
        yield line.split()[0].rstrip("/"), server
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def write_letters(log: Log, count: int) -> None:
    log.create_topic(TOPIC, PARTITIONS)
    log.create_topic(NAME, PARTITIONS)
    for begin in range(0, count, 5_000):
        append_and_wait(
            log,
            NAME,
            [
                dead_letter_record(
                    Record(b"%d" % number, b"key-%d" % (number % 1_000), f"m-{number}", []),
                    ValueError(f"order {number}"), 3, GROUP, (TOPIC, 0, str(number)), 1.7e9,
                )
                for number in range(begin, min(begin + 5_000, count))
            ],
        )  # fmt: skip


async def begin_redrive(address: str, left: int) -> str:
    """Ask for all letters to be retried, as a browser that is closed then; the job's address."""
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        visitor = Visitor(client)

        async def is_counted() -> bool:
            return "Still counting" not in (await visitor.get(f"/dead/show?name={NAME}")).text

        await eventually(is_counted)
        headers = {"sec-fetch-site": "same-origin", "origin": address}
        fields = {"name": NAME, "all": "1"}
        question = await visitor.post("/dead/retry", fields, headers=headers)
        assert f"Put {left:,} dead letters of {NAME} back?" in question.text
        fields["confirm"] = str(left)
        begun = await visitor.post("/dead/retry", fields, status=303, headers=headers)
        return begun.response.headers["location"]


def text_of(address: str, path: str) -> str:
    place = urlsplit(path)
    return Seen(httpx.get(address + place.path, params=place.query, timeout=60)).text


@pytest.mark.parametrize(
    "size",
    [1_500, pytest.param(100_000, marks=[pytest.mark.faults, pytest.mark.timeout(600)])],
)
async def test_a_redrive_survives_the_browser_and_kill_9(tmp_path: Path, size: int) -> None:
    url, held = f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "held"
    chunk = 500 if size > 10_000 else 50
    hold_at = size // chunk // 2
    log = open_log(url)
    write_letters(log, size)
    environment = {"CHUNK": str(chunk), "HOLD_AT": str(hold_at), "HOLD_FILE": str(held)}
    with serving(url, tmp_path, **environment) as (address, server):
        job = await begin_redrive(address, size)
        until(held.exists, 120, "half of the letters are put back")
        left = letter_counts(log, NAME).waiting
        assert size // 3 < left < size  # a partition's last chunk may be small
        told = f"{size - left:,} of {size:,} done"
        assert told in text_of(address, job)
        assert told in text_of(address, f"/dead/show?name={NAME}")
        server.kill()
        server.wait()
    assert letter_counts(log, NAME).waiting == left
    with serving(url, tmp_path, CHUNK=str(chunk)) as (address, _):
        assert "repeat the action" in text_of(address, job)
        job = await begin_redrive(address, left)
        until(lambda: "were put back" in text_of(address, job), 120, "the rest is put back")
        assert f"{left:,} dead letters were put back." in text_of(address, job)
    assert letter_counts(log, NAME).waiting == 0
    log.close()

    app = Streams(url)
    topic = app.topic(TOPIC, int, partitions=PARTITIONS)
    handled: Counter[int] = Counter()

    @app.processor(topic, group=GROUP, concurrency=16, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        handled[value] += 1

    async with app:
        retry = DeadLetters().retry(TOPIC, GROUP)
        written = sum(1 for _ in app.topic(retry, int).read())

        def is_settled() -> bool:
            found = app.log.committed(GROUP, retry)
            return all(
                each in found and found[each].position >= app.log.watermarks(retry, each)[1]
                for each in range(app.log.describe_topic(retry).partitions)
            )

        await asyncio.to_thread(until, is_settled, 300, "all of them are settled")
    assert len(handled) == size
    assert set(handled.values()) == {1}
    assert size < written <= size + chunk  # the chunk at hand was written, and not noted
