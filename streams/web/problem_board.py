"""The problems that the overview shows: found in a thread of their own, and kept for a moment.

To find them takes as long as a log takes to answer many questions. A visitor is shown what was
found a moment ago, for whomever; and where nothing was, the page comes at once, and the problems
when they are found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import StreamsError, Unavailable
from streams.text import get_logger
from streams.web.page import Problem, Unfinished

if TYPE_CHECKING:
    from streams.web.page import Page

logger = get_logger("streams")

FRESH = 3.0
"""Real seconds for which problems are shown as they were found."""

OLD = 60.0
"""Real seconds after which they are not shown any more, but looked for."""

MAX_KEPT = 50
"""Kinds of visitors whose problems are kept: by language, address and permissions. Of more, those
that were found longest ago are forgotten."""


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

    def look(self, page: Page, patience: float) -> Board | None:
        """The problems as they were found a moment ago; blocks, for so many real seconds at most.

        :returns: None: they are being looked for.
        :raises StreamsError: they cannot be found: the log cannot be reached.
        """
        # All that problems depend on; not who it is, as there may be many.
        key = (*page.kind, replace(page.access, who=""))
        with self._lock:
            found = self._boards.get(key)
            age = float("inf") if found is None else time.time() - found.at
            if found is not None and age < FRESH:
                return found
            search = self._searches.get(key)
            if search is None:
                search = self._searches[key] = _Search()
                threading.Thread(
                    target=self._find,
                    args=(key, search, page),
                    name="streams-web-problems",
                    daemon=True,
                ).start()
        if not search.ended.wait(patience):
            return found if age < OLD else None
        if search.error is not None:
            raise search.error
        return search.board

    def _find(self, key: Hashable, search: _Search, page: Page) -> None:
        try:
            while True:
                changes = self._changes
                board = find_problems(page)
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


def find_problems(page: Page) -> Board:
    """All problems now; blocks.

    :raises Unavailable: the log cannot be reached.
    """
    found: list[Problem] = []
    unknown: list[str] = []
    unfinished: list[str] = []
    for finder in page.dashboard.problem_finders:
        began = time.monotonic()
        try:
            for each in finder(page):
                if isinstance(each, Unfinished):
                    unfinished.append(each.text)
                else:
                    found.append(each)
        except Unavailable:
            raise
        except StreamsError as error:
            unknown.append(str(error))
        logger.debug("%s took %.3f s", finder.__module__, time.monotonic() - began)
    found.sort(key=lambda each: (each.rank, each.since or 0.0))
    return Board(found, unknown, unfinished, time.time())
