"""The problems that the overview shows: found in a thread of their own, and kept for a moment.

Finding them takes many requests to the log. So a visitor is shown the problems that were last found
a moment ago, for any visitor; if there are none yet, the page is sent at once and the problems
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
"""Real seconds for which problems are shown as they were found."""

OLD = 60.0
"""Real seconds after which they are not shown any more, but looked for."""

MAX_KEPT = 50
"""Kinds of visitors whose problems are kept: by language, address and permissions. Of more, those
that were found longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person should look at, for the overview.

    :param rank: 0 for what loses or stops something, 1 for what holds something up, 2 for what
        may.
    :param text: a sentence, translated.
    :param url: where it can be seen.
    :param since: seconds since the epoch, where it is known.
    """

    rank: int
    text: str
    url: str
    since: float | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a search for problems has not come to yet.

    :param text: a sentence, translated.
    """

    text: str


class Board(NamedTuple):
    """What was found.

    :param problems: the worst first.
    :param unknown: what could not be looked at, and why.
    :param unfinished: what was not looked at yet.
    :param at: when (real seconds since the epoch).
    """

    problems: list[Problem]
    unknown: list[str]
    unfinished: list[str]
    at: float


class _Search:
    """Problems that are looked for now."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error: StreamsError | None = None
        self.board: Board | None = None


class ProblemBoard:
    """Finds problems and keeps them (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boards: dict[Hashable, Board] = {}
        self._searches: dict[Hashable, _Search] = {}
        self._changes = 0

    def look(self, key: Hashable, find: Callable[[], Board], patience: float) -> Board | None:
        """The problems as they were found a moment ago; blocks, for so many real seconds at most.

        :param key: all that they depend on; not who asks, as there may be many.
        :param find: finds them, in a thread; blocks.
        :returns: None: they are being looked for.
        :raises StreamsError: they cannot be found: the log cannot be reached.
        """
        with self._lock:
            found = self._boards.get(key)
            if found is not None and is_recent(found.at, FRESH):
                return found
            search = self._searches.get(key)
            if search is None:
                search = self._searches[key] = _Search()
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

    def _find(self, key: Hashable, search: _Search, find: Callable[[], Board]) -> None:
        try:
            while True:
                changes = self._changes
                board = find()
                with self._lock:
                    if changes != self._changes:
                        continue  # what was found may be from before
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
        """Forget what was found: something was done about it."""
        with self._lock:
            self._boards.clear()
            self._changes += 1

    def close(self) -> None:
        """Forget what was found. Searches end by themselves."""
        self.expire()
