"""Actions that take long: they go on when the browser is closed, and say how far they are.

A job lives in this process. What it has done stays done when the process is killed; the action
that started it says, when it is asked for again, what is left (a dead letter that was put back is
no dead letter any more). Jobs have names that cannot be guessed, and are shown to whoever may do
the action.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from streams.errors import InvalidValue, StreamsError
from streams.text import get_logger, one_line
from streams.web.action_results import Done, Report

logger = get_logger("streams.web")

MAX_JOBS = 100
"""Jobs that are kept, those that ended long ago first forgotten."""

MAX_RUNNING = 4
"""Jobs at the same time."""


class JobStopped(Exception):
    """Somebody asked a job to stop."""


@dataclass(eq=False, slots=True)
class Job:
    """One that runs, or ended.

    :param action: which of :data:`streams.web.access.ACTION_NAMES` it is.
    :param who: who started it.
    :param title: what it does, in the words of the visitor who started it.
    :param back: where to go on to, and what that is called.
    :param subject: what it is done to, so that the page of that can name the job.
    """

    id: str
    action: str
    who: str
    title: str
    back: tuple[str, str]
    subject: str = ""
    began: float = field(default_factory=time.time)
    done: int = 0
    total: int | None = None
    ended: float | None = None
    result: Done | None = None
    error: str = ""
    stop_requested: bool = False

    @property
    def is_running(self) -> bool:
        """It has not ended."""
        return self.ended is None

    @property
    def seconds(self) -> float:
        """How long it runs, or ran."""
        return (self.ended or time.time()) - self.began

    def report(self, done: int, total: int | None = None) -> None:
        """See :class:`~streams.web.action_results.Report`."""
        self.done = done
        if total is not None:
            self.total = total
        if self.stop_requested:
            raise JobStopped


class Jobs:
    """The jobs of a dashboard (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def start(
        self,
        work: Callable[[Report], Done],
        *,
        action: str,
        who: str,
        title: str,
        back: tuple[str, str],
        on_end: Callable[[Job], None],
        subject: str = "",
        is_alone: bool = False,
    ) -> Job:
        """Begin one, in a thread of its own.

        :param on_end: called when it has ended, however that was.
        :param is_alone: it is refused while the same action upon the same subject runs.
        :raises InvalidValue: it is refused, or too many run.
        """
        job = Job(secrets.token_urlsafe(12), action, who, title, back, subject)
        with self._lock:
            if sum(each.is_running for each in self._jobs.values()) >= MAX_RUNNING:
                raise InvalidValue(f"{MAX_RUNNING} such actions run already; wait for one to end")
            if is_alone and any(
                each.is_running and (each.action, each.subject) == (action, subject)
                for each in self._jobs.values()
            ):
                raise InvalidValue(f"this runs already: {title}")
            self._jobs[job.id] = job
            ended = [each.id for each in self._jobs.values() if not each.is_running]
            for id in ended[: max(0, len(self._jobs) - MAX_JOBS)]:
                del self._jobs[id]

        def run() -> None:
            try:
                job.result = work(job.report)
            except JobStopped:
                job.error = "stopped"
            except StreamsError as error:
                job.error = one_line(str(error))
            except Exception as error:
                logger.exception("web: %s failed", action)
                job.error = type(error).__name__
            finally:
                job.ended = time.time()
                on_end(job)

        threading.Thread(target=run, name=f"streams-web-{action}", daemon=True).start()
        return job

    def find(self, id: str) -> Job | None:
        """The job of an ID, if it is known here."""
        with self._lock:
            return self._jobs.get(id)

    def all(self) -> list[Job]:
        """All that are known, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def close(self) -> None:
        """Ask those that run to stop."""
        for job in self.all():
            job.stop_requested = True
