"""The progress of long work, for the pages that show it: subjects of the sampler
(:mod:`streams.web.sampler`), which reach a browser's tabs through their shared stream.

===================  ===========================================================================
``job:ID``           an action in the background (:mod:`streams.web.jobs`)
``doctor:…``         the doctor runs (:data:`DOCTOR_SUBJECTS`)
``letters:TOPIC``    dead letters are counted by error
``keys:TOPIC``       closed keys are read
``delays:TOPIC``     delayed messages are read
``sagas:NAME``       a journal is read; without a name, all that are cached
``history:TOPIC``    the log finds out which events of an event topic count
``log:``             the log answers
===================  ===========================================================================

The figures of each are numbers that the page shows, and two for the page itself: ``over``, 1 if
it has ended, and ``version``. The page reloads its part when ``over`` is sent while it shows an
unfinished state, or when it shows another version. A reading gets another version whenever twice as
much was read, and after a change, so that a page that is open for the whole of it reloads some
twenty times, however much it is.

Only topics that a page has begun to read are read on: naming one here begins nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

from streams.errors import NotFound
from streams.inspection.reading_on import BackgroundReader
from streams.log.events import EventLog
from streams.web.group_index import LOOK

if TYPE_CHECKING:
    from streams.inspection.closed_keys import ClosedKeyIndex
    from streams.inspection.delayed import DelayIndex
    from streams.inspection.letter_survey import LetterSurvey
    from streams.inspection.reading_on import KeptReaders
    from streams.log.protocol import Log
    from streams.web.doctor_runs import DoctorRuns
    from streams.web.figures import SubjectFigures
    from streams.web.jobs import Jobs
    from streams.web.saga_indexes import SagaIndexes
    from streams.web.sampler import LocalSample, Sample

R = TypeVar("R", bound=BackgroundReader)

DOCTOR_SUBJECTS: Mapping[bool, str] = {True: "doctor:payloads", False: "doctor:"}
"""The doctor's subjects: for visitors who may see what is in messages, and for the others."""


def job_sample(jobs: Jobs) -> LocalSample:
    """Samples ``job:ID``."""

    def sample(id: str) -> dict[str, float | int | None]:
        job = jobs.find(id)
        if job is None:
            raise NotFound(f"no action {id!r} runs here")
        return {
            "over": int(not job.is_running),
            "version": int(job.total is not None),
            "done": job.done,
            "total": job.total,
            "seconds": job.seconds,
        }

    return sample


def doctor_sample(doctor: DoctorRuns) -> LocalSample:
    """Samples :data:`DOCTOR_SUBJECTS`."""

    def sample(name: str) -> dict[str, float | int | None]:
        at, is_running = doctor.progress(payloads=DOCTOR_SUBJECTS[True] == f"doctor:{name}")
        return {"over": int(not is_running), "version": int(1000 * at)}

    return sample


class ReadingProgress:
    """The progress of reading topics of the log (any thread).

    :param surveys: of dead letters by error.
    """

    def __init__(
        self,
        surveys: KeptReaders[LetterSurvey],
        closed_keys: KeptReaders[ClosedKeyIndex],
        delays: KeptReaders[DelayIndex],
        sagas: SagaIndexes,
    ) -> None:
        self._surveys = surveys
        self._closed_keys = closed_keys
        self._delays = delays
        self._sagas = sagas
        self._changes = 0

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: the pages' parts get another version."""
        self._changes += 1

    def close(self) -> None:
        """Do nothing: no resource is open."""

    def samples(self) -> dict[str, Sample]:
        """The functions that sample them, by kind of subject."""

        def keys_found(index: ClosedKeyIndex) -> int:
            counts = index.known()
            return counts.keys + counts.parked

        return {
            "letters": self._reading(self._surveys, lambda survey: survey.looked_at),
            "keys": self._reading(self._closed_keys, keys_found),
            "delays": self._reading(self._delays, lambda index: index.known().number),
            "sagas": self._sample_sagas,
            "history": _sample_history,
            "log": _sample_log,
        }

    def _reading(self, readers: KeptReaders[R], count: Callable[[R], int]) -> Sample:
        def sample(log: Log, name: str, figures: SubjectFigures, now: float) -> None:
            if name not in readers.values_by_name():
                raise NotFound(f"nobody has looked at {name!r} lately")
            reader = readers.get(name)
            is_complete = reader.read_on(LOOK, longer_after_change=False)
            figures.now = self._told(count(reader), is_complete=is_complete)

        return sample

    def _sample_sagas(self, log: Log, name: str, figures: SubjectFigures, now: float) -> None:
        looked_at, is_complete = self._sagas.progress(name)
        figures.now = self._told(looked_at, is_complete=is_complete)

    def _told(self, looked_at: int, *, is_complete: bool) -> dict[str, float | int | None]:
        version = (self._changes << 8) + looked_at.bit_length()
        return {"over": int(is_complete), "version": version, "looked_at": looked_at}


def _sample_history(log: Log, topic: str, figures: SubjectFigures, now: float) -> None:
    if not isinstance(log, EventLog) or not log.describe_topic(topic).is_event_topic:
        raise NotFound(f"{topic!r} holds no histories")
    passed, total = log.index_progress(topic)
    figures.now = {"over": int(passed >= total), "version": 0, "passed": passed, "total": total}


def _sample_log(log: Log, name: str, figures: SubjectFigures, now: float) -> None:
    log.list_topics()  # raises while the log is out of reach
    figures.now = {"version": 1}
