"""The overview: problems first, then what there is."""

from __future__ import annotations

import time

from starlette.responses import Response

from streams.errors import StreamsError, Unavailable
from streams.text import get_logger
from streams.web.page import LOOK, Page, Problem, Screen
from streams.web.translations import mark

logger = get_logger("streams")

MAX_PROBLEMS = 200
"""Problems that are shown."""

BUSIEST = 8
"""Groups that are shown by their lag."""


def overview(page: Page) -> Response:
    """What a person should look at first."""
    groups = page.dashboard.groups.look(2 * LOOK)
    found, unknown = find_problems(page)
    visible = [facts for facts in groups.known.values() if not groups.is_internal(facts.name)]
    busiest = sorted(visible, key=lambda facts: -(facts.lag or 0))[:BUSIEST]
    subjects = [f"group:{facts.name}" for facts in busiest]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    return page.render(
        "overview.html",
        title=page._("Overview"),
        problems=found[:MAX_PROBLEMS],
        problem_count=len(found),
        unknown=unknown,
        topics=sum(name not in groups.internal for name in groups.topics),
        groups=groups,
        group_count=sum(not groups.is_internal(name) for name in groups.names),
        lag=sum(facts.lag or 0 for facts in visible),
        busiest=[(facts.name, figures[f"group:{facts.name}"]) for facts in busiest],
    )


def find_problems(page: Page) -> tuple[list[Problem], list[str]]:
    """All problems, the worst first; and what could not be looked at, and why."""
    found: list[Problem] = []
    unknown: list[str] = []
    for finder in page.dashboard.problem_finders:
        began = time.monotonic()
        try:
            found.extend(finder(page))
        except Unavailable:
            raise
        except StreamsError as error:
            unknown.append(str(error))
        logger.debug("%s took %.3f s", finder.__module__, time.monotonic() - began)
    found.sort(key=lambda each: (each.rank, each.since or 0.0))
    return found, unknown


SCREENS = (Screen("/", overview, mark("Overview")),)
