"""Quix Streams: a streaming dataframe whose function counts.

Its default JSON deserializer gives untyped dicts, and it looks for no duplicates. The client
settings are ours; positions are committed once a second, as ours are.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from typing import Any
from uuid import uuid4

from benchmarks.counting import MessageCounter
from benchmarks.peers.program import Answer, main

CONFIG = {
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 8_192,
    "queued.min.messages": 26_214,
    "fetch.max.bytes": 4_194_304,
    "max.partition.fetch.bytes": 1_048_576,
}


def consume(url: str, topic: str, messages: int) -> Answer:
    """A plain function over ``messages`` of a topic."""
    quix: Any = importlib.import_module("quixstreams")
    counter = MessageCounter(messages)
    app = quix.Application(
        broker_address=url.partition("://")[2],
        consumer_group=f"quix-{uuid4().hex}",
        auto_offset_reset="earliest",
        commit_interval=1.0,
        consumer_extra_config=CONFIG,
        loglevel=logging.ERROR,
        state_dir=tempfile.mkdtemp(prefix="quix-"),
    )
    frame = app.dataframe(app.topic(topic, value_deserializer="json", key_deserializer="bytes"))
    frame.update(counter.count_one)
    app.run(count=messages, collect=False)
    settings = {
        "toolkit": f"Quix Streams {quix.__version__}",
        "app": "at-least-once, commit_interval=1, value_deserializer=json (to dicts), no dedup",
        "client": ", ".join(f"{name}={value}" for name, value in CONFIG.items()),
    }
    return {**counter.result, "settings": settings}


def pipeline(url: str, topic: str, messages: int, commit_interval: float) -> Answer:
    """Write each message to another topic, exactly once: until the last transaction is committed.

    :param commit_interval: seconds per transaction: a longer one is faster, but others see its
        messages later.
    """
    quix: Any = importlib.import_module("quixstreams")
    started_at = cpu = 0.0

    def begin(value: Any) -> None:
        nonlocal started_at, cpu
        if not started_at:
            started_at, cpu = time.perf_counter(), time.process_time()

    app = quix.Application(
        broker_address=url.partition("://")[2],
        consumer_group=f"quix-{uuid4().hex}",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=commit_interval,
        consumer_extra_config=CONFIG,
        loglevel=logging.ERROR,
        state_dir=tempfile.mkdtemp(prefix="quix-"),
    )
    source = app.topic(topic, value_deserializer="json", key_deserializer="bytes")
    target = app.topic(f"quix-{uuid4().hex}", value_serializer="json", key_serializer="bytes")
    app.dataframe(source).update(begin).to_topic(target)
    app.run(count=messages, collect=False)
    seconds, used = time.perf_counter() - started_at, time.process_time() - cpu
    settings = {
        "toolkit": f"Quix Streams {quix.__version__}",
        "app": f"exactly-once, commit_interval={commit_interval:g}, JSON (to dicts), no dedup",
        "client": ", ".join(f"{name}={value}" for name, value in CONFIG.items()),
    }
    figures = {"seconds": seconds, "messages": messages, "cpu_us": used / messages * 1e6}
    return {"rate": messages / seconds, **figures, "settings": settings}


if __name__ == "__main__":
    main({"consume": consume, "pipeline": pipeline})
