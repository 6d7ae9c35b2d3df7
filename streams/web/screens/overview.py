"""The overview: problems first, then topics, groups and processors."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from streams.errors import StreamsError, Unavailable
from streams.text import get_logger
from streams.web.group_index import LOOK
from streams.web.page import Page, Screen
from streams.web.problem_board import Board, Problem, UnfinishedCheck
from streams.web.translations import mark

logger = get_logger("streams")

MAX_PROBLEMS = 200
"""The most problems that are shown."""

SLOW = 10.0
"""Seconds of real time for which the separate request for problems waits."""

BUSIEST = 8
"""How many groups are shown, by their lag."""


def overview(page: Page) -> Response:
    """The page with everything that needs attention first."""
    board = _board(page, page.dashboard.problem_patience)
    groups = page.dashboard.groups.look(LOOK)
    visible = [facts for facts in groups.known.values() if not groups.is_internal(facts.name)]
    busiest = sorted(visible, key=lambda facts: -(facts.lag or 0))[:BUSIEST]
    subjects = [f"group:{facts.name}" for facts in busiest]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    return page.render(
        "overview.html",
        title=page._("Overview"),
        **_context(board),
        topics=sum(name not in groups.internal for name in groups.topics),
        groups=groups,
        group_count=sum(not groups.is_internal(name) for name in groups.names),
        lag=sum(facts.lag or 0 for facts in visible),
        busiest=[(facts.name, figures[f"group:{facts.name}"]) for facts in busiest],
    )


def problems(page: Page) -> Response:
    """The problems only: the part of the overview that may come later."""
    board = _board(page, SLOW)
    return page.render("problems.html", title=page._("Problems"), **_context(board))


def _board(page: Page, patience: float) -> Board | None:
    key = (*page.kind, replace(page.access, who=""))
    return page.dashboard.board.look(key, lambda: _find_problems(page), patience)


def _find_problems(page: Page) -> Board:
    """All problems now; blocks.

    :raises Unavailable: the log cannot be reached.
    """
    found: list[Problem] = []
    unknown: list[str] = []
    unfinished: list[str] = []
    for finder in page.site.problem_finders:
        began = time.monotonic()
        try:
            for each in finder(page):
                if isinstance(each, UnfinishedCheck):
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


def _context(board: Board | None) -> dict[str, Any]:
    return {
        "board": board,
        "problems": [] if board is None else board.problems[:MAX_PROBLEMS],
        "problem_count": 0 if board is None else len(board.problems),
    }


SCREENS = (Screen("/", overview, mark("Overview")), Screen("/problems", problems))
