"""What is known of all topics of dead letters: whose they are, how many letters wait.

There may be thousands of topics, and any may hold dead letters (:mod:`streams.inspection
.letter_topics`): whoever asks looks at those that were looked at longest ago, for a moment, in a
thread; those that are named as dead letter topics come first. With each visit more are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import Fatal, NotFound, StreamsError, Unavailable
from streams.inspection.letter_survey import LetterSurvey
from streams.inspection.letter_topics import (
    LetterCounts,
    LetterSource,
    letter_counts,
    sample_sources,
)
from streams.text import get_logger
from streams.web.kept_topics import kept_reader
from streams.web.page import LOOK

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.web.page import Page

logger = get_logger("streams.web")

FRESH = 3.0
"""Real seconds for which a topic's counts are taken as they are."""

SAMPLED = 300.0
"""Real seconds after which a topic that held no dead letters is looked at again."""

AT_A_TIME = 2.0
"""Real seconds for which a thread goes on looking when somebody asked."""

WAITED = 0.03
"""Real seconds for which a page waits for it, once something is known."""

MAX_PARTITIONS = 200
"""Partitions of a topic that are looked at for whose letters they hold."""


MAX_SURVEYS = 6
"""Topics whose surveys by error are kept."""


class DeadTopic(NamedTuple):
    """A topic of dead letters, as it was a moment ago.

    :param sources: where the letters come from that were seen in it.
    :param counts: None: not known yet, or why not is in ``error``.
    :param at: when it was looked at (real seconds since the epoch).
    """

    name: str
    sources: tuple[LetterSource, ...] = ()
    counts: LetterCounts | None = None
    at: float = 0.0
    error: str = ""

    @property
    def waiting(self) -> int:
        """Letters that wait, as far as that is known."""
        return 0 if self.counts is None else self.counts.waiting


class DeadTopics(NamedTuple):
    """The topics of dead letters.

    :param topics: those with the most letters that wait first.
    :param is_complete: every topic that could hold dead letters was looked at.
    """

    topics: list[DeadTopic]
    is_complete: bool


class DeadTopicIndex:
    """Keeps what is known (any thread).

    :param open_log: gives the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._failure: StreamsError | None = None
        self._known: dict[str, DeadTopic] = {}
        self._others: dict[str, float] = {}
        """Topics that held no dead letters, and when they were looked at."""

    def look(self, topics: Iterable[str], internal: Collection[str], seconds: float) -> DeadTopics:
        """What is known. A thread goes on looking for :data:`AT_A_TIME`, and is waited for so many
        real seconds at most.

        :param topics: all there are.
        :param internal: those that are the toolkit's own.
        :raises Unavailable: the log cannot be reached.
        """
        names = list(topics)
        named = [name for name in names if name.endswith(".dead")]
        others = [name for name in names if not name.endswith(".dead") and name not in internal]
        with self._lock:
            if self._idle.is_set():
                self._idle.clear()
                self._failure = None
                threading.Thread(
                    target=self._run,
                    args=(named, others),
                    name="streams-web-dead-letters",
                    daemon=True,
                ).start()
        if self._idle.wait(seconds) and self._failure is not None:
            raise self._failure
        known, empty = self._known, self._others
        found = [known.get(name) or DeadTopic(name) for name in named]
        found += [known[name] for name in others if name in known]
        found.sort(key=lambda each: (-each.waiting, each.name))
        return DeadTopics(
            found,
            all(name in known for name in named)
            and all(name in known or name in empty for name in others),
        )

    @property
    def is_empty(self) -> bool:
        """Nobody has looked yet."""
        return not self._known and not self._others

    def _run(self, named: list[str], others: list[str]) -> None:
        try:
            log, deadline = self._open_log(), time.monotonic() + AT_A_TIME
            there = {*named, *others}
            self._known = {name: each for name, each in self._known.items() if name in there}
            known = [name for name in others if name in self._known]
            self._look(log, [*named, *known], deadline)
            self._look_at_others(log, others, deadline)
        except StreamsError as error:
            self._failure = error
        except Exception:
            logger.exception("the topics of dead letters could not be looked at")
        finally:
            self._idle.set()

    def _look(self, log: Log, names: list[str], deadline: float) -> None:
        now = time.time()

        def looked_at(name: str) -> float:
            found = self._known.get(name)
            return 0.0 if found is None else found.at

        for name in sorted(names, key=looked_at):
            if now - looked_at(name) < FRESH or time.monotonic() > deadline:
                break
            found = self._look_at(log, name)
            if found is not None:
                self._known[name] = found

    def _look_at_others(self, log: Log, names: list[str], deadline: float) -> None:
        now = time.time()
        unknown = [name for name in names if name not in self._known]
        for name in sorted(unknown, key=lambda each: self._others.get(each, 0.0)):
            if now - self._others.get(name, 0.0) < SAMPLED or time.monotonic() > deadline:
                break
            found = self._look_at(log, name)
            if found is not None and found.sources:
                self._known[name] = found
            self._others[name] = now

    def _look_at(self, log: Log, name: str) -> DeadTopic | None:
        """What there is in a topic; of one that is not named so, nothing where it holds none."""
        try:
            before = self._known.get(name)
            sources = before.sources if before is not None else ()
            if not sources:
                sources, _ = sample_sources(log, log.topic(name), MAX_PARTITIONS)
            if not sources and not name.endswith(".dead"):
                return None
            return DeadTopic(name, sources, letter_counts(log, name), time.time())
        except (Unavailable, Fatal):
            raise
        except NotFound:
            return None
        except StreamsError as error:
            logger.debug("the dashboard: dead letters of %r: %s", name, error)
            return DeadTopic(name, at=time.time(), error=str(error))


def dead_topics(page: Page) -> DeadTopics:
    """The topics of dead letters, as far as they are known (blocks for a moment)."""
    dashboard = page.dashboard
    index = dashboard.shared(
        DeadTopicIndex, float("inf"), lambda: DeadTopicIndex(dashboard.source.log)
    )
    groups = dashboard.groups.look(WAITED)
    seconds = LOOK if index.is_empty else WAITED
    return index.look(groups.topics, groups.internal, seconds)


def survey_of(page: Page, name: str) -> LetterSurvey:
    """The survey of the dead letters of a topic by error."""
    return kept_reader(page.dashboard, LetterSurvey, name, most=MAX_SURVEYS)
