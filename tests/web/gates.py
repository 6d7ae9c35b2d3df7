"""Something that is held up in the middle until a test lets it go on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from streams.web import Dashboard
from streams.web.action_results import ActionDone, ReportProgress
from streams.web.jobs import BackgroundJob
from tests.conformance.stage import PATIENCE


class Gate:
    """Holds up the first call of a function.

    :param function: what is called.
    :param after: it is held up with its result, instead of before it does anything.
    """

    def __init__(self, function: Callable[..., Any], *, after: bool = False) -> None:
        self._function = function
        self._after = after
        self._entered = threading.Event()
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.thread: threading.Thread | None = None
        """Whose call is held up."""
        self.calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            self.calls += 1
            is_first = self.thread is None
            if is_first:
                self.thread = threading.current_thread()
        if not is_first:
            return self._function(*args, **options)
        found = self._function(*args, **options) if self._after else None
        self._entered.set()
        assert self._open.wait(PATIENCE), "nobody let it go on"
        return found if self._after else self._function(*args, **options)

    def entered(self) -> None:
        """Wait until a call is held up."""
        assert self._entered.wait(PATIENCE), "nobody came"

    def open(self) -> None:
        """Let it go on."""
        self._open.set()

    def bound(self) -> Any:
        """The same as a method: a class's attribute."""

        def method(self_: Any, *args: Any, **options: Any) -> Any:
            return self(self_, *args, **options)

        return method


@contextmanager
def lasting_job(
    dashboard: Dashboard,
) -> Iterator[tuple[BackgroundJob, Callable[[int | None], None]]]:
    """A job that runs meanwhile, and what has it say how many of ten are done; None ends it."""
    said: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def work(report: ReportProgress) -> ActionDone:
        report(1, 10)
        while (done := said.get()) is not None:
            report(done)
        return ActionDone("It is over.")

    job = dashboard.jobs.start(
        work,
        action="retry",
        who="",
        title="A long one",
        back=("/", "Back"),
        on_end=lambda job: dashboard.sampler.renew(),
    )
    try:
        yield job, said.put
    finally:
        said.put(None)
