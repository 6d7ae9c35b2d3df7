"""Actions that take long: their progress, and stopping them."""

from __future__ import annotations

from starlette.responses import Response

from streams.errors import InvalidValue
from streams.web.jobs import BackgroundJob
from streams.web.page import Page, Screen


def show_job(page: Page) -> Response:
    """One job; its progress comes with the stream, and the page reloads once it has ended."""
    job = _job(page)
    return page.render("job.html", title=job.title, job=job)


def _job(page: Page) -> BackgroundJob:
    found = page.dashboard.jobs.find(str(page.request.path_params["job"]))
    if found is None or not page.access.may(found.action):
        raise InvalidValue(
            page._(
                "No action of that name is known here. If this process was restarted, repeat the "
                "action: what was done stays done."
            )
        )
    return found


SCREENS = (Screen("/jobs/{job}", show_job),)
