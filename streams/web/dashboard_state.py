"""What a dashboard knows: its log, what was read of it, and what runs, for all visitors alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from streams.inspection.closed_keys import ClosedKeyIndex
from streams.inspection.delayed import DelayIndex
from streams.inspection.letter_survey import LetterSurvey
from streams.inspection.reading_on import KeptReaders
from streams.web.dead_index import DeadTopicIndex
from streams.web.doctor_runs import DoctorRuns
from streams.web.group_index import GroupIndex
from streams.web.jobs import Jobs
from streams.web.kept_topics import MAX_CLOSED_KEYS, MAX_DELAYS, MAX_SURVEYS
from streams.web.log_source import LogSource
from streams.web.problem_board import ProblemBoard
from streams.web.processor_figures import processor_sample
from streams.web.progress import ReadingProgress, doctor_sample, job_sample
from streams.web.saga_indexes import SagaIndexes
from streams.web.sampler import Sampler, group_sample
from streams.web.shared_answers import SharedAnswers

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.web.redaction import Redact

T = TypeVar("T")


class _Kept(Protocol):
    """What was looked at, and is kept for the next visitor."""

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: nobody may be shown what was looked at before.

        :param names: topics, groups and sagas that were changed: they are looked at first.
        """
        ...

    def close(self) -> None:
        """End looking."""
        ...


class DashboardState:
    """What pages and streams of a dashboard are made of (any thread)."""

    def __init__(
        self, app: Streams, redact: Redact | None, environment: str, *, read_only: bool
    ) -> None:
        self.app = app
        self.redact = redact
        self.environment = environment
        self.read_only = read_only
        self.source = LogSource(app, "ro" if read_only else "rw")
        self.groups = GroupIndex(self.source.log)
        self.sagas = SagaIndexes(self.source.log)
        log = self.source.log
        self.dead_topics = DeadTopicIndex(log)
        self.surveys = KeptReaders(lambda topic: LetterSurvey(topic, log), MAX_SURVEYS)
        self.closed_keys = KeptReaders(lambda topic: ClosedKeyIndex(topic, log), MAX_CLOSED_KEYS)
        self.delays = KeptReaders(lambda topic: DelayIndex(topic, log), MAX_DELAYS)
        self.board = ProblemBoard()
        self.doctor = DoctorRuns(app, self.source.log, redact, on_result=self._on_findings)
        self.jobs = Jobs()
        reading = ReadingProgress(self.surveys, self.closed_keys, self.delays, self.sagas)
        self.sampler = Sampler(
            self.source.log,
            self.source.note_failure,
            {
                "group": group_sample(self.groups.read),
                "processor": processor_sample(app),
                **reading.samples(),
            },
            {"job": job_sample(self.jobs), "doctor": doctor_sample(self.doctor)},
        )
        self.problem_patience = 0.03
        """Real seconds for which the overview waits for its problems."""
        self._streams: set[Callable[[], None]] = set()
        """What ends each of the streams to browsers: of figures, and of messages that arrive."""
        self.is_closed = False
        self._answers = SharedAnswers()
        self._kept: tuple[_Kept, ...] = (
            self.groups,
            self.sagas,
            self.dead_topics,
            self.surveys,
            self.closed_keys,
            self.delays,
            self._answers,
            self.doctor,
            reading,
            self.sampler,  # behind those whose figures it asks for
            self.board,  # the last, as it is found among the others
        )

    def close(self) -> None:
        """Let go of the threads and the log that it opened; for who makes several in a process."""
        self.is_closed = True
        self.end_streams()
        for kept in self._kept:
            kept.close()
        self.jobs.close()
        self.source.close()

    def expire(self, names: Collection[str] = ()) -> None:
        """What was looked at before an action is not so any more.

        :param names: what it changed, as far as it says so.
        """
        for kept in self._kept:
            kept.expire(names)

    def _on_findings(self) -> None:
        self.board.expire()
        self.sampler.renew()

    @property
    def streams_open(self) -> int:
        """How many streams to browsers there are now."""
        return len(self._streams)

    @contextmanager
    def streaming(self, end: Callable[[], None]) -> Iterator[None]:
        """There is a stream to a browser meanwhile.

        :param end: ends it soon; called from any thread.
        """
        self._streams.add(end)
        try:
            yield
        finally:
            self._streams.discard(end)

    def end_streams(self) -> None:
        """End the streams to browsers, which open new ones if they can (any thread)."""
        for end in self._streams.copy():
            end()

    def shared(self, key: Hashable, seconds: float, make: Callable[[], T]) -> T:
        """What ``make`` returned within the last so many real seconds for this key, whoever asked:
        visitors who look at the same moment ask the log once (blocks). For answers of seconds; what
        is read on and on has a field of its own here."""
        return self._answers.get(key, seconds, make)
