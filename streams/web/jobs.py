"""Actions that take long: they go on when the browser is closed, and report their progress.

A job lives in this process. Its completed work stays done when the process is killed; the action
that started it reports, when it is requested again, what is left (a dead letter that was put back
is no dead letter any more). Jobs have IDs that cannot be guessed, and are shown to visitors who may
do the action.
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
from streams.web.action_results import ActionDone, ReportProgress

logger = get_logger("streams.web")

MAX_JOBS = 100
"""How many jobs are kept; those that ended longest ago are forgotten first."""

MAX_RUNNING = 4
"""The most jobs at the same time."""


class JobStopped(Exception):
    """A visitor asked a job to stop."""


@dataclass(eq=False, slots=True)
class BackgroundJob:
    """A job that runs, or has ended.

    :param action: one of :data:`streams.web.access.ACTION_NAMES`.
    :param who: the visitor who started it.
    :param title: a description of it, in the language of that visitor.
    :param back: the address to go on to, and its name.
    :param subject: its target, so that the target's page can name the job.
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
    result: ActionDone | None = None
    error: str = ""
    stop_requested: bool = False

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None

    @property
    def seconds(self) -> float:
        """How long it runs, or ran."""
        return (self.ended or time.time()) - self.began

    def report(self, done: int, total: int | None = None) -> None:
        """See :class:`~streams.web.action_results.ReportProgress`."""
        self.done = done
        if total is not None:
            self.total = total
        if self.stop_requested:
            raise JobStopped


class Jobs:
    """The jobs of a dashboard (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, BackgroundJob] = OrderedDict()

    def start(
        self,
        work: Callable[[ReportProgress], ActionDone],
        *,
        action: str,
        who: str,
        title: str,
        back: tuple[str, str],
        on_end: Callable[[BackgroundJob], None],
        subject: str = "",
        is_alone: bool = False,
    ) -> BackgroundJob:
        """Start a job, in a thread of its own.

        :param on_end: called when it has ended, in whatever way.
        :param is_alone: it is refused while the same action on the same subject runs.
        :raises InvalidValue: it is refused, or too many run.
        """
        job = BackgroundJob(secrets.token_urlsafe(12), action, who, title, back, subject)
        with self._lock:
            if sum(each.is_running for each in self._jobs.values()) >= MAX_RUNNING:
                raise InvalidValue(
                    f"{MAX_RUNNING} such actions are already running; wait for one to end"
                )
            if is_alone and any(
                each.is_running and (each.action, each.subject) == (action, subject)
                for each in self._jobs.values()
            ):
                raise InvalidValue(f"this is already running: {title}")
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

    def find(self, id: str) -> BackgroundJob | None:
        """The job with an ID, if it is known here."""
        with self._lock:
            return self._jobs.get(id)

    def all(self) -> list[BackgroundJob]:
        """All known jobs, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def close(self) -> None:
        """Ask the running jobs to stop."""
        for job in self.all():
            job.stop_requested = True
