"""Transactions of exactly-once processors on Kafka: killed at each step, fenced, timed out, and
refused."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from streams import Streams
from tests.conformance.logs import LOGS
from tests.conformance.pipelines import KAFKA_STEPS, Pipeline, Worker
from tests.conformance.stage import Stage
from tests.servers.find import KafkaAddress

pytestmark = pytest.mark.anyio

SESSION = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 100}


def url_of(kafka: KafkaAddress, **settings: object) -> str:
    return f"{kafka.url}?{urlencode({**SESSION, **settings})}"


@pytest.fixture
def run() -> str:
    return uuid4().hex[:8]


@pytest.fixture
def stage(kafka: KafkaAddress) -> Iterator[Stage]:
    opened = Stage(next(each for each in LOGS if each.name == "kafka"), url_of(kafka))
    yield opened
    opened.close()


@pytest.fixture
def pipeline(stage: Stage, run: str) -> Pipeline:
    return Pipeline(stage.url, run)


async def prepare(pipeline: Pipeline) -> Streams:
    app = pipeline.app()
    pipeline.topics(app)
    return app


@pytest.mark.parametrize("step", KAFKA_STEPS)
async def test_killed_behind_each_step_of_a_transaction(
    stage: Stage, pipeline: Pipeline, run: str, step: str
) -> None:
    app = await prepare(pipeline)
    async with app.connected():
        with Worker(pipeline, run, "async", step, 3) as worker:
            for start in range(0, 200, 50):
                await pipeline.publish(app, range(start, start + 50))
                await stage.until(lambda: pipeline.is_done(stage.anchor) or not worker.runs)
            await stage.until(lambda: not worker.runs, "killed")
            assert worker.was_killed
    again = pipeline.app()
    pipeline.declare(again)
    async with again:
        await stage.until(lambda: pipeline.is_done(stage.anchor), "done")
    pipeline.check(stage.anchor, range(200))
