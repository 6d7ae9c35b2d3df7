"""The problems that the overview shows: found in a thread of their own, and cached for a moment.

Finding them takes many requests to the log. So a visitor is shown the problems that were found a
moment ago, for any visitor; if there are none yet, the page is sent at once and the problems
follow when they are found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from streams.errors import StreamsError
from streams.text import get_logger
from streams.web.ages import is_recent

logger = get_logger("streams")

FRESH = 3.0
"""Seconds of real time for which problems are considered fresh."""

OLD = 60.0
"""Seconds of real time after which they are not shown any more before a new search."""

MAX_KEPT = 50
"""Kinds of visitors whose problems are kept: by language, address and permissions. Beyond that,
those that were found longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that a person should look at, for the overview.

    :param rank: 0 if something is lost or stopped, 1 if something is held up, 2 if something
        may be.
    :param text: a sentence, translated.
    :param url: the page that shows it.
    :param since: seconds since the epoch, if it is known.
    """

    rank: int
    text: str
    url: str
    since: float | None = field(default=None)


@dataclass(frozen=True, slots=True)
class UnfinishedCheck:
    """A part of a search for problems that is not finished.

    :param text: a sentence, translated.
    """

    text: str


class Board(NamedTuple):
    """The result of a search.

    :param problems: the worst first.
    :param unknown: the subjects that could not be checked, and why.
    :param unfinished: the subjects that were not checked yet.
    :param at: the time (seconds of real time since the epoch).
    """

    problems: list[Problem]
    unknown: list[str]
    unfinished: list[str]
    at: float


class _ProblemSearch:
    """A search for problems that runs now."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: StreamsError | None = None
        self.board: Board | None = None


class ProblemBoard:
    """Finds problems and keeps them (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boards: dict[Hashable, Board] = {}
        self._searches: dict[Hashable, _ProblemSearch] = {}
        self._changes = 0

    def look(self, key: Hashable, find: Callable[[], Board], patience: float) -> Board | None:
        """The problems as they were found a moment ago; blocks, up to ``patience`` seconds of real
        time.

        :param key: everything that they depend on; not the visitor, as there may be many.
        :param find: finds them, in a thread; blocks.
        :returns: None: the search is still running.
        :raises StreamsError: they cannot be found: the log cannot be reached.
        """
        with self._lock:
            found = self._boards.get(key)
            if found is not None and is_recent(found.at, FRESH):
                return found
            search = self._searches.get(key)
            if search is None:
                search = self._searches[key] = _ProblemSearch()
                threading.Thread(
                    target=self._find,
                    args=(key, search, find),
                    name="streams-web-problems",
                    daemon=True,
                ).start()
        if not search.ended.wait(patience):
            return found if found is not None and is_recent(found.at, OLD) else None
        if search.error is not None:
            raise search.error
        return search.board

    def _find(self, key: Hashable, search: _ProblemSearch, find: Callable[[], Board]) -> None:
        try:
            while True:
                changes = self._changes
                board = find()
                with self._lock:
                    if changes != self._changes:
                        continue  # the result may be from before
                    self._boards.pop(key, None)
                    self._boards[key] = search.board = board
                    while len(self._boards) > MAX_KEPT:
                        del self._boards[next(iter(self._boards))]
                    self._searches.pop(key, None)
                    return
        except StreamsError as error:
            search.error = error
        except Exception:
            logger.exception("web: problems could not be looked for")
            search.error = StreamsError("problems could not be looked for: see the log")
        finally:
            with self._lock:
                self._searches.pop(key, None)
            search.ended.set()

    def expire(self, names: Collection[str] = ()) -> None:
        """Forget the problems: something was changed."""
        with self._lock:
            self._boards.clear()
            self._changes += 1

    def close(self) -> None:
        """Forget the problems. Searches end by themselves."""
        self.expire()
