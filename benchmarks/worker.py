"""A process that runs measurements: ``python -m benchmarks.worker``, reading its standard input.

Each request is one line, ``{"task": name, "arguments": {...}}``, and so is each answer: the task's
result, or ``{"error": why}``. The process ends when its standard input does, even
during a task, so that a run that was killed leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks import hand, ours
from benchmarks.collector import raise_gc_threshold

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task
    for task in (
        ours.fill, ours.create, ours.consume, ours.pipeline, ours.keeps_order, ours.publish_many,
        ours.publish_each, ours.latency, ours.pace, ours.idle, ours.share, ours.join, ours.look,
        ours.go, ours.leave,
        hand.kafka, hand.kafka_pipeline, hand.kafka_tasks, hand.kafka_fill, hand.kafka_publish,
        hand.kafka_publish_each, hand.kafka_latency, hand.kafka_pace, hand.kafka_idle,
        hand.redis_in_turn, hand.redis_ahead, hand.redis_publish, hand.redis_latency,
        hand.redis_pace, hand.listed, hand.sqlite_fill, hand.sqlite,
        hand.sqlite_publish, hand.codec,
    )
}  # fmt: skip


def task_of(name: str) -> Callable[..., dict[str, Any]]:
    """A task; the modules of patterns, aggregates, views, inbox and outboxes are imported on
    demand.

    :raises KeyError: there is no task of that name.
    """
    if name in TASKS:
        return TASKS[name]
    from benchmarks import (
        aggregates,
        event_index,
        histories_by_hand,
        inbox,
        outboxes,
        patterns,
        views,
    )

    modules = (patterns, aggregates, histories_by_hand, event_index, views, inbox, outboxes)
    found: dict[str, Callable[..., dict[str, Any]]] = {}
    for module in modules:
        found |= module.TASKS
    return found[name]


def main() -> None:
    """Answer requests until there are no more."""
    raise_gc_threshold()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # Answers go to the original standard output; a task's own prints do not.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions,), daemon=True).start()
    while True:
        question = json.loads(questions.get())
        print(json.dumps(_answer(question)), file=answers, flush=True)


def _read(questions: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        questions.put(line)
    os._exit(0)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    task = task_of(question["task"])
    try:
        answer = task(**question["arguments"])
    except Exception as error:
        logging.getLogger("benchmarks").exception("%s failed", question["task"])
        return {"error": f"{type(error).__name__}: {error}"}
    return answer


if __name__ == "__main__":
    main()
