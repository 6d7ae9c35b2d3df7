"""Figures that change while visitors watch: one thread per dashboard asks the log, and all visitors
are notified.

A *subject* is ``topic:NAME``, ``group:NAME``, ``view:VERSION:NAME`` or, in this process,
``processor:NAME``; or some long work (:mod:`streams.web.progress`). Pages name the
subjects that they show, and a browser whose page is in the foreground is connected
(:mod:`streams.web.live`) and names them again. The thread runs while at least one is, samples each
subject every :data:`INTERVAL` seconds (as many as it can; the next round begins with those
that waited longest), and keeps an hour of each.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from streams.errors import Fatal, NotFound, StreamsError, Unavailable
from streams.inspection.groups import total_lag
from streams.log.protocol import SizedLog
from streams.text import get_logger
from streams.web.figures import SubjectFigures, TimeSeries
from streams.web.view_samples import sample_view

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

logger = get_logger("streams")

INTERVAL = 2.0
"""The least seconds of real time between two samples of a subject."""

ASKED = 10
"""How many subjects a page asks the log about, however long that takes."""

MAX_SUBJECTS = 600
"""The most subjects with their past, beside those that are watched now; those that were not
watched for longest are forgotten."""

MOST_SUBJECTS = 6_000
"""The most subjects with their past, however many are watched."""

MAX_WATCHED = 120
"""The most subjects that one page names."""

MAX_TOKEN = 6_000
"""The longest token, in characters."""

SIZE_AGE = 30.0
"""Seconds of real time after which the log is asked again for the size of a topic in bytes."""

TOPIC_FACTS_AGE = 60.0
"""Seconds of real time after which the log is asked again for the number of partitions of a
topic."""


Told = Callable[[Mapping[str, Mapping[str, float | int | None]], bool], None]
"""Called (in the sampler's thread) after each round with the figures of the watched subjects,
and whether the log answers; if it does not, they are those that need no log."""


Sample = Callable[["Log", str, SubjectFigures, float], None]
"""Fills in the figures of a subject: the log, the subject's name, its figures, and the time."""

LocalSample = Callable[[str], dict[str, float | int | None]]
"""The figures of a subject that this process knows without the log, by the subject's name.

:raises NotFound: there is no such subject.
"""

KINDS = (
    "topic", "group", "view", "processor",
    "job", "doctor", "letters", "keys", "delays", "sagas", "history", "log",
)  # fmt: skip
"""The kinds of subjects."""


class _SubjectWatcher:
    def __init__(self, subjects: frozenset[str], told: Told) -> None:
        self.subjects = subjects
        self.told = told


class Sampler:
    """Samples subjects of a log while visitors watch.

    :param open_log: returns the log; it may raise.
    :param on_failure: called when the log did not answer, before it is asked again.
    :param samples: the functions for other kinds of subjects than topics and views.
    :param local: the functions for those that need no log.
    """

    def __init__(
        self,
        open_log: Callable[[], Log],
        on_failure: Callable[[], None],
        samples: Mapping[str, Sample] = {},
        local: Mapping[str, LocalSample] = {},
    ) -> None:
        self._local = local
        self._samples = {"topic": _sample_topic, "view": sample_view, **samples}
        self._open_log = open_log
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._known: OrderedDict[str, SubjectFigures] = OrderedDict()
        self._watchers: set[_SubjectWatcher] = set()
        self._watching = threading.Event()
        """Set when a visitor begins to watch, or ends."""
        self._changed: Collection[str] = ()
        """The names changed last."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self.rounds = 0
        """How many rounds through the watched subjects there were."""

    # -- requests of pages

    def figures(self, subject: str) -> SubjectFigures:
        """The known figures of a subject, without asking the log."""
        with self._lock:
            found = self._known.get(subject)
            if found is None:
                found = self._known[subject] = SubjectFigures()
                self._forget()
            else:
                self._known.move_to_end(subject)
            return found

    def _forget(self) -> None:
        """Keep the bound (the lock is held). Subjects that are watched now stay: they would have no
        past, and no rate, if they were forgotten each time that others are requested."""
        if len(self._known) <= MAX_SUBJECTS:
            return
        watched = set[str]().union(*(each.subjects for each in self._watchers))
        for subject in [each for each in self._known if each not in watched]:
            if len(self._known) <= MAX_SUBJECTS:
                return
            del self._known[subject]
        while len(self._known) > MOST_SUBJECTS:
            self._known.popitem(last=False)

    def expire(self, names: Collection[str] = ()) -> None:
        """Have everything sampled again: something was changed.

        :param names: the changed names: they are sampled first.
        """
        with self._lock:
            self._changed = frozenset(names)
            for figures in self._known.values():
                figures.stale = True

    def renew(self) -> None:
        """Start a round, and notify the watchers, at once: a subject that needs no log has
        changed."""
        self._watching.set()

    def past(self, subject: str) -> TimeSeries:
        """The past of a subject, as far as it was watched."""
        with self._lock:
            found = self._known.get(subject)
        return TimeSeries() if found is None else found.series

    def ask(self, subjects: Iterable[str], seconds: float) -> dict[str, SubjectFigures]:
        """The figures of subjects; the log is asked about those that were not sampled lately,
        for at most this many seconds (blocks). The others are filled in later.

        :raises Unavailable: the log cannot be reached.
        """
        deadline = time.monotonic() + seconds
        found = {subject: self.figures(subject) for subject in subjects}
        log = self._open_log()
        asked, changed = 0, self._changed
        order = sorted(found, key=lambda subject: subject.partition(":")[2] not in changed)
        for subject in order:
            figures = found[subject]
            if asked >= ASKED and time.monotonic() > deadline:
                break
            if not figures.is_fresh(INTERVAL):
                self._sample(log, subject, figures)
                asked += 1
        return found

    # -- live

    @contextmanager
    def watch(self, subjects: Iterable[str], told: Told) -> Iterator[None]:
        """Watch subjects during the block.

        :param told: see :data:`Told`; called soon for the first time.
        """
        watcher = _SubjectWatcher(frozenset(subjects), told)
        with self._lock:
            self._watchers.add(watcher)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(
                    target=self._run, name="streams-web-sampler", daemon=True
                )
                self._thread.start()
        self._watching.set()
        try:
            yield
        finally:
            with self._lock:
                self._watchers.discard(watcher)
            self._watching.set()

    @property
    def is_running(self) -> bool:
        """Whether a visitor watches, so that the log is asked."""
        return self._thread is not None

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._watching.set()

    def _run(self) -> None:
        try:
            self._go_round()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():  # else there is a new one already
                    self._thread = None

    def _go_round(self) -> None:
        while True:
            self._watching.clear()
            started = time.monotonic()
            with self._lock:
                watchers = list(self._watchers)
                if not watchers or self._closed:
                    self._thread = None
                    return
            self._sample_round(watchers)
            # A new watcher gets the known figures at once; the rest is sampled.
            while (left := started + INTERVAL - time.monotonic()) > 0:
                if self._closed or self._watching.wait(left):
                    break

    def _sample_round(self, watchers: Sequence[_SubjectWatcher]) -> None:
        subjects = set[str]().union(*(each.subjects for each in watchers))
        known = {subject: self.figures(subject) for subject in subjects}
        local = {each for each in subjects if each.partition(":")[0] in self._local}
        for subject in local:
            self._sample_local(subject, known[subject])
        reachable = True
        try:
            if subjects - local:
                self._ask_log({each: known[each] for each in subjects - local})
        except StreamsError as error:
            logger.debug("the dashboard's sampler: %s", error)
            reachable = False
            if isinstance(error, (Unavailable, Fatal)):
                self._on_failure()
        self.rounds += 1
        for watcher in watchers:
            shown = watcher.subjects if reachable else watcher.subjects & local
            watcher.told({each: known[each].now for each in shown if known[each].at}, reachable)

    def _ask_log(self, known: Mapping[str, SubjectFigures]) -> None:
        log = self._open_log()
        deadline = time.monotonic() + INTERVAL
        for subject, figures in sorted(known.items(), key=lambda each: each[1].at):
            if not figures.is_fresh(INTERVAL):
                self._sample(log, subject, figures)
            if time.monotonic() > deadline or self._closed:
                break

    def _sample_local(self, subject: str, figures: SubjectFigures) -> None:
        kind, _, name = subject.partition(":")
        try:
            figures.now, figures.missing = self._local[kind](name), False
        except NotFound:
            figures.now, figures.missing = {}, True
        figures.at = time.time()

    def _sample(self, log: Log, subject: str, figures: SubjectFigures) -> None:
        """Sample a subject; figures that the log does not give for this one stay unknown.

        :raises Unavailable: the log cannot be reached.
        """
        kind, _, name = subject.partition(":")
        now = time.time()
        figures.stale = False
        try:
            self._samples[kind](log, name, figures, now)
            figures.missing = False
        except Unavailable:
            raise
        except NotFound:
            figures.now, figures.missing, figures.partitions_at = {}, True, 0.0
        except StreamsError as error:
            logger.debug("the dashboard's sampler: %s: %s", subject, error)
            figures.now = {}
        except Exception as error:  # a browser may send any name
            logger.debug("the dashboard's sampler: %r: %r", subject, error)
            figures.now = {}
        figures.at = now

    # -- tokens

    @staticmethod
    def token(subjects: Iterable[str]) -> str:
        """Subjects as a word that a page keeps and a browser sends back, to any process."""
        chosen = list(dict.fromkeys(subjects))[:MAX_WATCHED]
        while chosen:
            data = zlib.compress("\n".join(chosen).encode("utf-8", "surrogateescape"), 9)
            found = base64.urlsafe_b64encode(data).decode().rstrip("=")
            if len(found) <= MAX_TOKEN:
                return found
            chosen = chosen[: len(chosen) // 2]
        return ""

    @staticmethod
    def subjects(token: str) -> list[str]:
        """The subjects of a token; none, where it is not one."""
        if not token or len(token) > MAX_TOKEN:
            return []
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            inflated = zlib.decompressobj().decompress(data, 64 << 10)
        except (binascii.Error, ValueError, zlib.error):
            return []
        names = inflated.decode("utf-8", "surrogateescape").split("\n")[:MAX_WATCHED]
        return [each for each in names if each.partition(":")[0] in KINDS]


def _sample_topic(log: Log, topic: str, figures: SubjectFigures, now: float) -> None:
    if now - figures.partitions_at > TOPIC_FACTS_AGE:
        figures.partitions = log.describe_topic(topic).partitions
        figures.partitions_at = now
    total: int | None = 0
    fresh: int | None = 0
    ends: dict[int, int] = {}
    for partition in range(figures.partitions):
        first, end = log.watermarks(topic, partition)
        waiting = log.lag(topic, partition, first)
        total = None if total is None or waiting is None else total + waiting
        before = figures.ends.get(partition, end)
        added = 0 if before >= end else log.lag(topic, partition, before)
        fresh = None if fresh is None or added is None else fresh + added
        ends[partition] = end
    seconds = now - figures.at
    known = figures.ends and fresh is not None and 0 < seconds < 10 * INTERVAL
    rate = fresh / seconds if known and fresh is not None else None
    figures.ends = ends
    if now - figures.sized_at > SIZE_AGE:
        figures.size, figures.sized_at = _size(log, topic), now
    figures.now = {
        "messages": total,
        "rate": rate,
        "partitions": figures.partitions,
        "bytes": figures.size,
    }
    if rate is not None:
        figures.series.add(now, rate)


def _size(log: Log, topic: str) -> int | None:
    """The approximate size of a topic in bytes; None: the log does not say."""
    return log.topic_bytes(topic) if isinstance(log, SizedLog) else None


def group_sample(read: Callable[[Log, str], GroupInfo]) -> Sample:
    """Samples ``group:NAME``.

    :param read: reads a group.
    """

    def sample(log: Log, group: str, figures: SubjectFigures, now: float) -> None:
        info = read(log, group)
        lag = total_lag(log, info)
        figures.now = {"lag": lag, "members": len(info.members)}
        if lag is not None:
            figures.series.add(now, lag)

    return sample
