"""The state of a dashboard: its log, cached facts, and running work, shared by all visitors."""

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


class _CachedFacts(Protocol):
    """Cached facts that are kept for the next visitor."""

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: facts from before must not be shown any more.

        :param names: topics, groups and sagas that were changed: they are read again first.
        """
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class DashboardState:
    """The shared state that pages and streams of a dashboard are made from (any thread)."""

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
        """Seconds of real time for which the overview waits for its problems."""
        self._streams: set[Callable[[], None]] = set()
        """Functions that end the streams to browsers: of figures, and of messages that arrive."""
        self.is_closed = False
        self._answers = SharedAnswers()
        self._kept: tuple[_CachedFacts, ...] = (
            self.groups,
            self.sagas,
            self.dead_topics,
            self.surveys,
            self.closed_keys,
            self.delays,
            self._answers,
            self.doctor,
            reading,
            self.sampler,  # after those whose figures it reads
            self.board,  # the last, as its problems are found in the others
        )

    def close(self) -> None:
        """Release the threads and the log that it opened; for processes that make several
        dashboards."""
        self.is_closed = True
        self.end_streams()
        for kept in self._kept:
            kept.close()
        self.jobs.close()
        self.source.close()

    def expire(self, names: Collection[str] = ()) -> None:
        """Facts from before an action are outdated.

        :param names: the names that the action changed, as far as it reports them.
        """
        for kept in self._kept:
            kept.expire(names)

    def _on_findings(self) -> None:
        self.board.expire()
        self.sampler.renew()

    @property
    def streams_open(self) -> int:
        """The number of streams to browsers that are open now."""
        return len(self._streams)

    @contextmanager
    def streaming(self, end: Callable[[], None]) -> Iterator[None]:
        """Register a stream to a browser during the block.

        :param end: ends it soon; called from any thread.
        """
        self._streams.add(end)
        try:
            yield
        finally:
            self._streams.discard(end)

    def end_streams(self) -> None:
        """End the streams to browsers, which reconnect if they can (any thread)."""
        for end in self._streams.copy():
            end()

    def shared(self, key: Hashable, seconds: float, make: Callable[[], T]) -> T:
        """The result of ``make`` for this key within the last ``seconds`` of real time, whoever
        called: visitors that come at the same moment ask the log once (blocks). For answers of
        seconds; facts that are read continuously have a field of their own here."""
        return self._answers.get(key, seconds, make)
