"""Actions that take long go on by themselves, and say how far they are."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

import pytest

from streams.errors import InvalidValue, Unavailable
from streams.web import Dashboard
from streams.web.access import Access
from streams.web.action_results import ActionDone, BackgroundAction, ReportProgress
from streams.web.jobs import MAX_RUNNING, BackgroundJob, Jobs
from streams.web.page import Action, Page
from streams.web.screens import groups
from tests.conformance.stage import Stage
from tests.web.visiting import eventually, visit


async def test_a_job_goes_on_without_its_visitor(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def work(report: ReportProgress) -> ActionDone:
        report(3, 10)
        go_on.wait()
        report(10)
        return ActionDone("All ten.", count=10, subject="ten")

    def begin(page: Page) -> BackgroundAction:
        return BackgroundAction("Counting to ten", work, (page.url("/groups"), "Groups"))

    monkeypatch.setattr(groups, "ACTIONS", (Action("/count", begin, "retry"),))
    dashboard = Dashboard(stage.app(), access={"retry"})
    async with visit(dashboard) as visitor:
        begun = await visitor.post("/count", status=303)
        address = begun.response.headers["location"]
        assert urlsplit(address).path == address

        async def three_are_done() -> bool:
            return "3 of 10 done" in (await visitor.get(address)).text

        await eventually(three_are_done)
        go_on.set()

        async def all_are_done() -> bool:
            return "All ten." in (await visitor.get(address)).text

        await eventually(all_are_done)
        await visitor.get("/jobs/unknown", status=400)
        dashboard._rule._constant = Access(read=True)
        await visitor.get(address, status=400)


def test_a_job_ends_with_what_went_wrong_or_when_it_is_asked_to() -> None:
    jobs, ended = Jobs(), threading.Semaphore(0)

    def start(work: object) -> BackgroundJob:
        return jobs.start(
            work,  # type: ignore[arg-type]
            action="retry", who="", title="", back=("", ""),
            on_end=lambda job: ended.release(),
        )  # fmt: skip

    def fail(report: ReportProgress) -> ActionDone:
        report(2)
        raise Unavailable("no answer")

    failed = start(fail)
    ended.acquire()
    assert (failed.error, failed.done, failed.is_running) == ("no answer", 2, False)

    def for_ever(report: ReportProgress) -> ActionDone:
        while True:
            report(1)

    running = [start(for_ever) for _ in range(MAX_RUNNING)]
    with pytest.raises(InvalidValue, match="are already running"):
        start(for_ever)
    jobs.close()
    for _ in running:
        ended.acquire()
    assert {job.error for job in running} == {"stopped"}


def test_what_runs_already_is_not_begun_twice() -> None:
    jobs, over, ended = Jobs(), threading.Event(), threading.Semaphore(0)

    def work(report: ReportProgress) -> ActionDone:
        over.wait()
        return ActionDone("done", back=("", ""))

    def start(subject: str, *, is_alone: bool = True) -> BackgroundJob:
        return jobs.start(
            work, action="rebuild", who="", title="Rebuild", back=("", ""),
            on_end=lambda job: ended.release(), subject=subject, is_alone=is_alone,
        )  # fmt: skip

    start("view a")
    try:
        with pytest.raises(InvalidValue, match="is already running"):
            start("view a")
        start("view b")
        start("view a", is_alone=False)
    finally:
        over.set()
    for _ in range(3):
        ended.acquire()
    start("view a")
    ended.acquire()
