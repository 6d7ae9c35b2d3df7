"""An index of all topics of dead letters: the sources of their letters, how many letters wait.

There may be thousands of topics, and any may hold dead letters
(:mod:`streams.inspection.letter_topics`): each request makes a thread check, for a moment, the
topics that were checked longest ago; those that are named as dead letter topics come first. With
each visit more are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import Fatal, NotFound, StreamsError, Unavailable
from streams.inspection.background import BackgroundRuns
from streams.inspection.letter_topics import (
    LetterCounts,
    LetterSource,
    letter_counts,
    sample_sources,
)
from streams.text import get_logger
from streams.web.ages import is_recent

if TYPE_CHECKING:
    from streams.log.protocol import Log

logger = get_logger("streams.web")

FRESH = 3.0
"""Seconds of real time for which a topic's counts are considered fresh."""

SAMPLED = 300.0
"""Seconds of real time after which a topic's sources are sampled again."""

AT_A_TIME = 2.0
"""Seconds of real time for which a thread continues after a request."""

WAITED = 0.03
"""Seconds of real time for which a page waits for it, once something is known."""

MAX_PARTITIONS = 200
"""The most partitions of a topic that are sampled for the sources of its letters."""


class DeadTopic(NamedTuple):
    """A topic of dead letters, as it was a moment ago.

    :param sources: the sources of the letters that were seen in it.
    :param counts: None: not known yet, or ``error`` says why not.
    :param at: when it was counted (seconds of real time since the epoch).
    :param sampled_at: when its sources were sampled.
    :param changes: how many changes were known of then.
    """

    name: str
    sources: tuple[LetterSource, ...] = ()
    counts: LetterCounts | None = None
    at: float = 0.0
    error: str = ""
    sampled_at: float = 0.0
    changes: int = 0

    @property
    def waiting(self) -> int:
        """The number of letters that wait, as far as known."""
        return 0 if self.counts is None else self.counts.waiting


class DeadTopics(NamedTuple):
    """The topics of dead letters.

    :param topics: the topics, those with the most waiting letters first.
    :param is_complete: whether every topic that could hold dead letters was checked.
    """

    topics: list[DeadTopic]
    is_complete: bool


class DeadTopicIndex:
    """Keeps what is known of topics of dead letters (any thread).

    :param open_log: returns the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._runs = BackgroundRuns(self._run, "streams-web-dead-letters")
        self._lock = threading.Lock()
        self._named: list[str] = []
        self._unnamed: list[str] = []
        """The topics there are: those that are named as dead letter topics, and the others."""
        self._known: dict[str, DeadTopic] = {}
        self._empty: dict[str, float] = {}
        """Topics that held no dead letters, and when they were checked."""
        self._changes = 0
        self._changed: Collection[str] = ()
        """The names changed last, which are checked before all others."""

    def look(self, topics: Iterable[str], internal: Collection[str], seconds: float) -> DeadTopics:
        """The known topics. A thread goes on checking for :data:`AT_A_TIME`, and is waited for this
        many seconds of real time at most, a little longer after :meth:`expire`.

        :param topics: all topics of the log.
        :param internal: the toolkit's own topics.
        :raises Unavailable: the log cannot be reached.
        """
        names = list(topics)
        named = [name for name in names if name.endswith(".dead")]
        unnamed = [name for name in names if not name.endswith(".dead") and name not in internal]
        with self._lock:
            self._named, self._unnamed = named, unnamed
        self._runs.wait(seconds)
        with self._lock:
            known, empty = dict(self._known), set(self._empty)
        found = [known.get(name) or DeadTopic(name) for name in named]
        found += [known[name] for name in unnamed if name in known]
        found.sort(key=lambda each: (-each.waiting, each.name))
        return DeadTopics(
            found,
            all(name in known for name in named)
            and all(name in known or name in empty for name in unnamed),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was checked yet."""
        return not self._known and not self._empty

    def expire(self, names: Collection[str] = ()) -> None:
        """Have letters counted again: something was changed.

        :param names: the changed topics: they are checked first.
        """
        with self._lock:
            self._changes += 1
            self._changed = frozenset(names)
        self._runs.expire()

    def close(self) -> None:
        """Stop checking."""
        self._runs.close()

    def _run(self) -> bool:
        log, deadline = self._open_log(), time.monotonic() + AT_A_TIME
        with self._lock:
            named, unnamed, changes = self._named, self._unnamed, self._changes
            there = {*named, *unnamed}
            for kept in (self._known, self._empty):
                for gone in [name for name in kept if name not in there]:
                    del kept[gone]
            known = [name for name in unnamed if name in self._known]
        self._count_letters(log, [*named, *known], changes, deadline)
        self._look_at_others(log, unnamed, changes, deadline)
        return not self._runs.is_to_stop

    def _is_over(self, deadline: float) -> bool:
        return time.monotonic() > deadline or self._runs.is_to_stop

    def _count_letters(self, log: Log, names: list[str], changes: int, deadline: float) -> None:
        """Count the letters of topics that hold some, or are named like dead letter topics."""
        changed = self._changed

        def is_fresh(name: str) -> bool:
            found = self._known.get(name)
            return found is not None and found.changes == changes and is_recent(found.at, FRESH)

        def rank(name: str) -> tuple[bool, float]:
            found = self._known.get(name)
            return name not in changed, 0.0 if found is None else found.at

        for name in sorted((name for name in names if not is_fresh(name)), key=rank):
            if self._is_over(deadline):
                return
            self._store_topic(name, self._look_at(log, name, changes))

    def _look_at_others(self, log: Log, names: list[str], changes: int, deadline: float) -> None:
        """Check topics that held no letters."""
        unknown = [name for name in names if name not in self._known]
        for name in sorted(unknown, key=lambda each: self._empty.get(each, 0.0)):
            if is_recent(self._empty.get(name, 0.0), SAMPLED) or self._is_over(deadline):
                return
            self._store_topic(name, self._look_at(log, name, changes))

    def _store_topic(self, name: str, found: DeadTopic | None) -> None:
        with self._lock:
            if found is not None:
                self._known[name] = found
                self._empty.pop(name, None)
                return
            self._known.pop(name, None)
            if not name.endswith(".dead"):
                self._empty[name] = time.time()

    def _look_at(self, log: Log, name: str, changes: int) -> DeadTopic | None:
        """The facts of a topic; None: it is gone, or holds no letters and is not named as if it
        did."""
        now, before = time.time(), self._known.get(name)
        try:
            if before is not None and before.sources and is_recent(before.sampled_at, SAMPLED):
                sources, sampled_at = before.sources, before.sampled_at
            else:
                sources, _ = sample_sources(log, log.describe_topic(name), MAX_PARTITIONS)
                sampled_at = now
            if not sources and not name.endswith(".dead"):
                return None
            counts = letter_counts(log, name)
            return DeadTopic(name, sources, counts, now, "", sampled_at, changes)
        except (Unavailable, Fatal):
            raise
        except NotFound:
            return None
        except StreamsError as error:
            logger.debug("the dashboard: dead letters of %r: %s", name, error)
            if before is None and not name.endswith(".dead"):
                return None
            sources = () if before is None else before.sources
            return DeadTopic(name, sources, None, now, str(error), 0.0, changes)
