"""The overview: problems first, then what there is."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from streams.web.page import LOOK, Page, Screen
from streams.web.problem_board import Board
from streams.web.translations import mark

MAX_PROBLEMS = 200
"""Problems that are shown."""

SLOW = 10.0
"""Real seconds for which the problems alone are waited for."""

BUSIEST = 8
"""Groups that are shown by their lag."""


def overview(page: Page) -> Response:
    """What a person should look at first."""
    board = page.dashboard.board.look(page, page.dashboard.problem_patience)
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
    """The problems alone: the part of the overview that may come later."""
    board = page.dashboard.board.look(page, SLOW)
    return page.render("problems.html", title=page._("Problems"), **_context(board))


def _context(board: Board | None) -> dict[str, Any]:
    return {
        "board": board,
        "problems": [] if board is None else board.problems[:MAX_PROBLEMS],
        "problem_count": 0 if board is None else len(board.problems),
    }


SCREENS = (Screen("/", overview, mark("Overview")), Screen("/problems", problems))
