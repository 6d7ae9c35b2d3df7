"""The one log of a dashboard, which all its visitors and jobs use: when it is replaced, and when
closed."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from starlette.responses import Response

from streams.errors import Unavailable
from streams.web import Dashboard, log_source
from streams.web.action_results import ActionDone, BackgroundAction, ReportProgress
from streams.web.log_source import LogSource
from streams.web.page import Action, Page, Screen
from streams.web.screens import groups
from tests.conformance.stage import PATIENCE, Stage
from tests.web.visiting import Visitor, eventually, visit

if TYPE_CHECKING:
    from streams.log.protocol import Log


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Log]:
    """The logs that dashboards closed."""
    found: list[Log] = []
    close = log_source._close

    def note(log: Log) -> None:
        found.append(log)
        close(log)

    monkeypatch.setattr(log_source, "_close", note)
    return found


@pytest.fixture(autouse=True)
def not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_source, "KEPT_OPEN", 0.0)


class Hanging:
    """A screen that asks the log and hangs, beside one that says which log there is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.logs: list[Log] = []
        screens = (Screen("/hang", self.hang), Screen("/which", self.which))
        monkeypatch.setattr(groups, "SCREENS", screens)

    def hang(self, page: Page) -> Response:
        page.log.list_topics()
        assert self.go_on.wait(PATIENCE)
        return Response("late")

    def which(self, page: Page) -> Response:
        self.logs.append(page.log)
        return Response("there")

    async def log_of(self, visitor: Visitor) -> Log:
        """The log that visitors are given."""
        await visitor.get("/which")
        return self.logs[-1]


async def unanswered(visitor: Visitor, path: str) -> str:
    """What a visitor is told whose page hangs until the test ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_source, "PATIENCE", 0.5)
        return (await visitor.get(path, status=503)).text


async def test_a_job_keeps_its_log_while_others_are_given_a_new_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, closed: list[Log]
) -> None:
    screens, go_on = Hanging(monkeypatch), threading.Event()
    used: list[Log] = []

    def begin(page: Page) -> BackgroundAction:
        log = page.log
        used.append(log)

        def work(report: ReportProgress) -> ActionDone:
            assert go_on.wait(PATIENCE)
            return ActionDone(f"{len(log.list_topics())} topics.", count=1)

        return BackgroundAction("Counting", work, (page.url("/groups"), "Groups"))

    monkeypatch.setattr(groups, "ACTIONS", (Action("/count", begin, "retry"),))
    stage.anchor.create_topic(stage.topic_name, 1)
    dashboard = Dashboard(stage.app(), access="all")
    async with visit(dashboard) as visitor:
        begun = await visitor.post("/count", status=303)

        async def is_replaced() -> bool:
            assert "The log does not answer" in await unanswered(visitor, "/hang")
            return await screens.log_of(visitor) is not used[0]

        await eventually(is_replaced)  # a machine may be so slow that the log was not asked yet
        screens.go_on.set()
        await visitor.get("/which")  # the job alone uses the first one
        assert used[0] not in closed
        go_on.set()
        address = begun.response.headers["location"]

        async def is_done() -> bool:
            return "1 topics." in (await visitor.get(address)).text

        await eventually(is_done)

        async def is_closed() -> bool:
            await visitor.get("/which")
            return used[0] in closed

        await eventually(is_closed)


async def test_a_page_that_waits_for_a_database_is_no_fault_of_the_logs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, closed: list[Log]
) -> None:
    screens = Hanging(monkeypatch)

    def ask_database(page: Page) -> Response:
        page.log.list_topics()
        with page.dashboard.source.waiting_for("The database"):
            assert screens.go_on.wait(PATIENCE)
        return Response("late")

    found = (*groups.SCREENS, Screen("/outbox-of-another", ask_database))
    monkeypatch.setattr(groups, "SCREENS", found)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        log = await screens.log_of(visitor)

        async def is_said() -> bool:
            said = await unanswered(visitor, "/outbox-of-another")
            return "The database: no answer within" in said

        await eventually(is_said)
        assert await screens.log_of(visitor) is log
        screens.go_on.set()
        assert not closed


async def test_who_found_no_thread_free_knows_nothing_of_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(log_source, "THREADS", 1)
    source = LogSource(stage.app(), "rw")
    with source.using():
        first = source.log()

    def wait() -> None:
        with source.waiting_for("something else"):
            began.set()
            assert go_on.wait(PATIENCE)

    busy = asyncio.ensure_future(source.run(wait))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    monkeypatch.setattr(log_source, "PATIENCE", 0.1)
    with pytest.raises(Unavailable):
        await source.run(source.log)
    with source.using():
        assert source.log() is first
    go_on.set()
    await asyncio.gather(busy, return_exceptions=True)
    source.close()


def test_a_log_that_was_opened_a_moment_ago_is_kept(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, closed: list[Log]
) -> None:
    monkeypatch.setattr(log_source, "KEPT_OPEN", float("inf"))
    source = LogSource(stage.app(), "rw")
    first = source.log()
    source.note_failure()
    assert source.log() is first
    monkeypatch.setattr(log_source, "KEPT_OPEN", 0.0)
    with source.using() as lease:
        assert source.log() is first
    source.note_failure()
    second = source.log()
    assert second is not first
    source.note_failure(lease)  # which has not used the second one
    assert source.log() is second
    source.close()


def test_a_thread_has_the_log_that_it_asked_for_last(stage: Stage, closed: list[Log]) -> None:
    source = LogSource(stage.app(), "rw")
    first = source.log()
    source.reopen()
    assert source._replaced == [first]
    assert first.list_topics() == stage.anchor.list_topics()
    second = source.log()
    assert second is not first
    assert source._replaced == []
    source.close()
