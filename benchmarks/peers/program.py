"""The entry point and the exit of a peer's program."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.collector import raise_gc_threshold

Answer = dict[str, Any]


def main(tasks: dict[str, Callable[..., Answer]]) -> None:
    """Run the task that the command line names with its arguments, ``TASK {"name": value, ...}``.

    The process ends when its standard input does, so that a killed run leaves nothing behind.
    """
    raise_gc_threshold()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        answer = tasks[sys.argv[1]](**json.loads(sys.argv[2]))
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
    # Do not wait for threads of clients and event loops, which may not end.
    os._exit(0)


def _watch() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(1)
