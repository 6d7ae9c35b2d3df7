"""Figures that change while somebody looks: one thread a dashboard asks the log, and all visitors
are told.

A *subject* is ``topic:NAME``, ``group:NAME``, ``view:VERSION:NAME`` or, of this process,
``processor:NAME``; or something that takes a while (:mod:`streams.web.progress`). Pages name the
subjects that they show, and a browser whose page is in the foreground is connected
(:mod:`streams.web.live`) and names them again. The thread runs while at least one is, asks for each
subject every :data:`INTERVAL` seconds (for as many as it gets through; then it begins with those
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
from streams.web.figures import Figures, Series
from streams.web.view_samples import sample_view

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

logger = get_logger("streams")

INTERVAL = 2.0
"""Real seconds between two samples of a subject, at least."""

ASKED = 10
"""Subjects that a page asks the log about, however long that takes."""

MAX_SUBJECTS = 600
"""Subjects with their past, at most, beside those that somebody looks at now; those that nobody
looked at for longest are forgotten."""

MOST_SUBJECTS = 6_000
"""Subjects with their past, at most, however many somebody looks at."""

MAX_WATCHED = 120
"""Subjects that one page names, at most."""

MAX_TOKEN = 6_000
"""Characters of a token, at most."""

SIZE_AGE = 30.0
"""Real seconds after which the log is asked again how many bytes a topic takes."""

TOPIC_FACTS_AGE = 60.0
"""Real seconds after which the log is asked again how many partitions a topic has."""


Told = Callable[[Mapping[str, Mapping[str, float | int | None]], bool], None]
"""Called (in the sampler's thread) after each round with the figures of the subjects that were
named, and whether the log answers; where it does not, they are those that need no log."""


Sample = Callable[["Log", str, Figures, float], None]
"""Fills in the figures of a subject: the log, the subject's name, its figures, and the time."""

LocalSample = Callable[[str], dict[str, float | int | None]]
"""The figures of a subject that this process knows without the log, by the subject's name.

:raises NotFound: there is no such subject.
"""

KINDS = (
    "topic", "group", "view", "processor",
    "job", "doctor", "letters", "keys", "delays", "sagas", "history", "log",
)  # fmt: skip
"""What subjects there are."""


class _Watcher:
    def __init__(self, subjects: frozenset[str], told: Told) -> None:
        self.subjects = subjects
        self.told = told


class Sampler:
    """Asks a log about subjects while somebody looks.

    :param open_log: gives the log; it may raise.
    :param on_failure: called when the log did not answer, before it is asked again.
    :param samples: gives the figures of other kinds of subjects than topics and views.
    :param local: gives those that need no log.
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
        self._known: OrderedDict[str, Figures] = OrderedDict()
        self._watchers: set[_Watcher] = set()
        self._watching = threading.Event()
        """Somebody began to look, or ended."""
        self._changed: Collection[str] = ()
        """What was changed last."""
        self._thread: threading.Thread | None = None
        self._closed = False
        self.rounds = 0
        """How often it has gone through what is watched."""

    # -- what pages ask

    def figures(self, subject: str) -> Figures:
        """What is known of a subject now, without asking the log."""
        with self._lock:
            found = self._known.get(subject)
            if found is None:
                found = self._known[subject] = Figures()
                self._forget()
            else:
                self._known.move_to_end(subject)
            return found

    def _forget(self) -> None:
        """Keep the bound (the lock is held). What somebody looks at now stays: it would have no
        past, and no rate, if it were forgotten each time that others are asked for."""
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
        """Have everything asked for anew: somebody changed something.

        :param names: what was changed: it is asked about first.
        """
        with self._lock:
            self._changed = frozenset(names)
            for figures in self._known.values():
                figures.stale = True

    def renew(self) -> None:
        """Have what is watched gone through, and told, at once: something that needs no log has
        changed."""
        self._watching.set()

    def past(self, subject: str) -> Series:
        """The past of a subject, as far as somebody has looked at it."""
        with self._lock:
            found = self._known.get(subject)
        return Series() if found is None else found.series

    def ask(self, subjects: Iterable[str], seconds: float) -> dict[str, Figures]:
        """What is known of subjects; the log is asked about those that nobody asked about lately,
        for so many seconds at most (blocks). The others are filled in later.

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
        """Look at subjects meanwhile.

        :param told: see :data:`Told`; soon for the first time.
        """
        watcher = _Watcher(frozenset(subjects), told)
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
        """Somebody looks, so the log is asked."""
        return self._thread is not None

    def close(self) -> None:
        """End."""
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
            self._round(watchers)
            # A new watcher is told at once what is known, and asked for the rest.
            while (left := started + INTERVAL - time.monotonic()) > 0:
                if self._closed or self._watching.wait(left):
                    break

    def _round(self, watchers: Sequence[_Watcher]) -> None:
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

    def _ask_log(self, known: Mapping[str, Figures]) -> None:
        log = self._open_log()
        deadline = time.monotonic() + INTERVAL
        for subject, figures in sorted(known.items(), key=lambda each: each[1].at):
            if not figures.is_fresh(INTERVAL):
                self._sample(log, subject, figures)
            if time.monotonic() > deadline or self._closed:
                break

    def _sample_local(self, subject: str, figures: Figures) -> None:
        kind, _, name = subject.partition(":")
        try:
            figures.now, figures.missing = self._local[kind](name), False
        except NotFound:
            figures.now, figures.missing = {}, True
        figures.at = time.time()

    def _sample(self, log: Log, subject: str, figures: Figures) -> None:
        """Ask the log about a subject; what it does not answer for this one stays unknown.

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
        except Exception as error:  # a browser names what it likes, also what no log can look up
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


def _sample_topic(log: Log, topic: str, figures: Figures, now: float) -> None:
    if now - figures.partitions_at > TOPIC_FACTS_AGE:
        figures.partitions = log.topic(topic).partitions
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
    """About how many bytes a topic takes; None: the log does not say."""
    return log.topic_bytes(topic) if isinstance(log, SizedLog) else None


def group_sample(read: Callable[[Log, str], GroupInfo]) -> Sample:
    """Samples ``group:NAME``.

    :param read: reads a group.
    """

    def sample(log: Log, group: str, figures: Figures, now: float) -> None:
        info = read(log, group)
        lag = total_lag(log, info)
        figures.now = {"lag": lag, "members": len(info.members)}
        if lag is not None:
            figures.series.add(now, lag)

    return sample
