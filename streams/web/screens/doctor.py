"""The doctor: checks the app and its log against the checklist of an event-driven service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.inspection.background import AFTER_CHANGE
from streams.inspection.doctor.app_inspection import CheckVerdict
from streams.web.doctor_runs import declares_anything
from streams.web.page import Page, Screen
from streams.web.problem_board import Problem
from streams.web.progress import DOCTOR_SUBJECTS
from streams.web.rendering import cut
from streams.web.translations import mark

FRESH = 60.0
"""Seconds of real time for which findings are considered fresh."""

AT_ONCE = 3.0
"""The same for visitors who ask for a new run."""

OVERVIEW = 600.0
"""The same for the overview."""

MAX_PROBLEMS = 20
"""The most findings on the overview."""

VERDICTS = {"no": mark("wrong"), "unknown": mark("not known"), "yes": mark("in order")}


def show_doctor(page: Page) -> Response:
    """The findings, problems first."""
    if not declares_anything(page.app):
        raise NotFound(page._("The doctor looks at an app, and none was given here."))
    wanted = page.fields.text("verdict")
    if wanted and wanted not in (*VERDICTS, "all"):
        raise InvalidValue(f"verdict={wanted[:40]!r}: all, or one of {', '.join(VERDICTS)}")
    result, is_running = page.dashboard.doctor.result(
        payloads=page.access.payloads,
        older_than=AT_ONCE if page.fields.flag("again") else FRESH,
    )
    findings = [] if result is None else list(result.findings)
    counts = Counter(str(each.verdict) for each in findings)
    rank = list(VERDICTS)
    if wanted == "all":
        shown = findings
    else:
        shown = [each for each in findings if str(each.verdict) == (wanted or each.verdict)]
        if not wanted:
            shown = [each for each in shown if each.verdict != CheckVerdict.yes]
    shown.sort(key=lambda each: rank.index(str(each.verdict)))
    return page.render(
        "doctor.html",
        title=page._("Doctor"),
        result=result,
        is_running=is_running,
        subject=DOCTOR_SUBJECTS[page.access.payloads],
        rows=shown,
        counts=counts,
        verdicts=VERDICTS,
        wanted=wanted,
    )


def problems(page: Page) -> Iterator[Problem]:
    """The problems that the doctor found lately."""
    if not declares_anything(page.app):
        return
    result, _ = page.dashboard.doctor.result(
        payloads=page.access.payloads, older_than=OVERVIEW, patience=AFTER_CHANGE
    )
    if result is None:
        return
    wrong = [each for each in result.findings if each.verdict == CheckVerdict.no]
    for each in wrong[:MAX_PROBLEMS]:
        text = page._("Doctor: %(item)s, %(subject)s: %(reason)s", item=each.item,
                      subject=each.subject, reason=cut(each.reason))  # fmt: skip
        yield Problem(2, text, page.url("/doctor"))


SCREENS = (Screen("/doctor", show_doctor, mark("Doctor"), needs_app=declares_anything),)

PROBLEMS = (problems,)
