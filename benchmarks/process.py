"""Measurements run in processes of their own, so that none affects the next.

A :class:`WorkerProcess` is a Python process that runs tasks of :mod:`benchmarks.worker` when asked,
one at a time, and ends when its parent does. A peer's program is run once
(:func:`run_once`) and answers with its last line.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

TIME_LIMIT = 1_800.0
"""The most seconds for one measurement."""


class MeasureError(Exception):
    """A measurement failed; the message says why, as the process reported it."""


def _environment(root: Path = ROOT) -> dict[str, str]:
    paths = [str(root), str(root / "codecs"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class WorkerProcess:
    """A process that runs measurements. A context manager.

    :param root: the checkout whose code it runs.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=root,
            env=_environment(root),
        )
        self._unread = b""

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_task(self, task: str, /, **arguments: Any) -> dict[str, Any]:
        """The answer of a task.

        :raises MeasureError: it failed, the process ended, or it took too long.
        """
        assert self._popen.stdin is not None
        line = json.dumps({"task": task, "arguments": arguments}).encode() + b"\n"
        try:
            self._popen.stdin.write(line)
            self._popen.stdin.flush()
        except OSError as error:
            raise self._ended(task) from error
        answer: dict[str, Any] = json.loads(self._line(task))
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer

    def _line(self, task: str) -> bytes:
        assert self._popen.stdout is not None
        out = self._popen.stdout.fileno()
        ends = time.monotonic() + TIME_LIMIT
        while b"\n" not in self._unread:
            left = ends - time.monotonic()
            if left <= 0:
                self._popen.kill()
                raise MeasureError(f"{task}: not over within {TIME_LIMIT:g} s")
            if select.select([out], [], [], min(left, 1.0))[0]:
                more = os.read(out, 1 << 16)
                if not more:
                    raise self._ended(task)
                self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self, task: str) -> MeasureError:
        status = self._popen.wait()
        return MeasureError(
            f"{task}: the process ended (status {status}): {_last_lines(self._stderr)}"
        )

    def close(self) -> None:
        """End it."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        try:
            self._popen.stdin.close()
        except OSError:
            pass  # it has ended
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()
        self._stderr.close()


def run_once(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a program to its end; returns its last line, a JSON object.

    Its standard input stays open as long as this process lives: a program that reads it learns
    when its parent is gone.

    :raises MeasureError: it failed, or its last line is not a JSON object.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as out:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=said,
            cwd=ROOT,
            env={**_environment(), **(environment or {})},
        )
        assert popen.stdin is not None
        name = Path(command[0]).name
        try:
            status = popen.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            raise MeasureError(f"{name}: not over within {TIME_LIMIT:g} s") from None
        finally:
            if popen.poll() is None:
                popen.kill()
                popen.wait()
            popen.stdin.close()
        out.seek(0)
        lines = out.read().decode(errors="replace").splitlines()
        if status:
            raise MeasureError(f"{name} ended with status {status}: {_last_lines(said)}")
        try:
            answer = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise MeasureError(f"{name} gave no figures: {_last_lines(said)}") from None
        if not isinstance(answer, dict):
            raise MeasureError(f"{name} gave no figures but {lines[-1][:200]}")
        if "error" in answer:
            raise MeasureError(answer["error"])
        return answer


def _last_lines(said: Any) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"
