"""What people see of projections: figures, the doctor, rate and time left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from streams import Streams
from streams.cli.projections import lists
from streams.inspection.doctor.app_inspection import AppInspection
from streams.inspection.doctor.projection_checks import check_projections
from streams.inspection.doctor.prometheus import PrometheusClient
from streams.patterns import MonitoringServer
from streams.projections import operations
from streams.projections.operations import VersionProgress, VersionState
from tests.inbox.kinds import KINDS, Kind
from tests.monitoring.conftest import scrape
from tests.outbox.world import until
from tests.projections.world import NAME, Reader, World

pytestmark = pytest.mark.anyio

SQLITE, ASYNC_POSTGRES = (
    next(kind for kind in KINDS if kind.name == name) for name in ("sqlite", "async-psycopg")
)


@pytest.fixture(params=[SQLITE, ASYNC_POSTGRES], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def place(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    found = request.getfixturevalue("postgres") if kind.server else str(tmp_path / "sums.db")
    reader = Reader(found)
    reader.create()
    reader.close()
    return str(found)


def _state(handled: int | None, total: int | None, processes: int = 1) -> VersionState:
    progress = VersionProgress(handled, total)
    return VersionState("sums", 2, False, True, "building", processes, progress, ())


@pytest.mark.parametrize(
    ("before", "after", "rate", "left"),
    [
        ((100, 200), (150, 200), 25.0, 2.0),
        ((100, 200), (150, 400), 25.0, 10.0),  # more came meanwhile
        ((100, 200), (100, 200), 0.0, None),
        ((100, 200), (90, 200), 0.0, None),  # what was counted is gone
        ((100, 200), (200, 200), 50.0, 0.0),
    ],
)
def test_rate_and_time_left(
    before: tuple[int, int], after: tuple[int, int], rate: float, left: float | None
) -> None:
    found = lists._rate(_state(*before), _state(*after), 2.0)
    assert found == {"rate": rate, "left_seconds": left}


def test_no_rate_where_nobody_can_count() -> None:
    assert lists._rate(_state(None, None), _state(1, 2), 2.0) == {}
    assert lists._rate(_state(1, 2), _state(None, None), 2.0) == {}


async def test_the_rate_of_what_is_being_built(
    kind: Kind, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lists, "RATE_TIME", 0.01)
    url = f"memory://{uuid4().hex}"
    world = World(url, "numbers", kind, place, [1])
    world.app.processors[0].pause()
    async with world.app:
        await world.topic.publish_many(range(10))
        (row,) = await lists.version_rows(world.app)
        assert (row["handled"], row["total"], row["share"]) == (0, 10, 0.0)
        assert (row["rate"], row["left_seconds"]) == (0.0, None)  # it is measured, and stands
        world.app.processors[0].resume()
        await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")

        async def whole() -> bool:
            (row,) = await lists.version_rows(world.app)
            if row["share"] == 1.0:
                assert (row["rate"], row["left_seconds"]) == (None, None)  # nothing is left
            return bool(row["share"] == 1.0)

        while not await whole():  # noqa: ASYNC110 - until the last position is committed, too
            await asyncio.sleep(0.01)
    lists.print_versions([{**row, "rate": 1234.56, "left_seconds": 75.0, "share": 0.9999}])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "99.9%" in line
    assert "1,235" in line or "1235" in line


async def test_the_figures(kind: Kind, place: str) -> None:
    refuses = True

    def hook(connection: object) -> None:
        if refuses:
            raise ValueError("not yet")

    async def async_hook(connection: object) -> None:
        hook(connection)

    world = World(
        f"memory://{uuid4().hex}", "numbers", kind, place, [1],
        on_promote=async_hook if kind.asynchronous else hook,
    )  # fmt: skip
    async with world.app:
        with MonitoringServer(world.app, port=0) as server:
            of = {"projection": NAME, "version": "1"}

            await until(lambda: world.app.stats().projections["sums.v1"].failures, lambda: "none")
            now = await scrape(server)
            assert now.one("projection_promotion_failures_total", **of) >= 1
            assert now.one("projection_serving", **of) == 0
            refuses = False
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            now = await scrape(server)
            assert now.one("projection_serving", **of) == 1


async def test_the_doctor(kind: Kind, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.inspection.doctor.projection_checks.FAR_BEHIND", 5)
    url = f"memory://{uuid4().hex}"

    async def findings(*versions: int) -> list[tuple[str, str, str]]:
        world = World(url, "numbers", kind, place, versions)
        async with world.app.connected():
            inspection = AppInspection(
                World(url, "numbers", kind, place, versions).app, world.app.log, "",
                PrometheusClient(None), "shop:app",
            )  # fmt: skip
            found = await asyncio.to_thread(lambda: list(check_projections(inspection)))
        return [(each.subject, str(each.verdict), each.reason) for each in found]

    one, two = "projection sums version 1", "projection sums version 2"
    async with Streams(url).connected():  # keeps the log in memory
        world = World(url, "numbers", kind, place, [1])
        async with world.app.connected():
            pass
        assert await findings(1) == [
            (one, "unknown", "no version serves yet, and no process runs it")
        ]
        async with world.app:
            await until(lambda: world.projection(1).serving == 1, lambda: "it does not serve")
            assert await findings(1) == [(one, "yes", "serves")]
            own = AppInspection(world.app, world.app.log, "", PrometheusClient(None))
            (found,) = await asyncio.to_thread(lambda: list(check_projections(own)))
            assert (found.subject, found.reason) == (one, "serves")  # as the dashboard asks
            await world.topic.publish_many(range(3))
            inbox = world.app.processors[0].inbox
            assert inbox is not None
            await until(lambda: inbox.stats.committed, lambda: "it goes on")
        async with world.app.connected():
            await world.topic.publish_many(range(20))
        ((subject, verdict, why),) = await findings(1)
        assert (subject, verdict) == (one, "no")
        assert why.endswith("messages behind, and no process runs it")
        assert await findings(2) == [
            (
                one,
                "no",
                "it serves, but no process declares or runs it: its tables are not updated",
            ),
            (two, "no", "it is 23 messages behind, and no process runs it"),
        ]
        world = World(url, "numbers", kind, place, [1, 2])
        async with world.app:
            await until(lambda: world.projection(2).serving == 2, lambda: "it does not serve")
        assert await findings(2) == [
            (one, "no", "no process runs it, and it does not serve"), (two, "yes", "serves"),
        ]  # fmt: skip
        async with world.app.connected():
            await operations.drop_version(world.app.log, world.app.projections, NAME, 1)
        assert await findings(2) == [(two, "yes", "serves")]


async def test_the_doctor_where_the_database_is_away() -> None:
    away = "postgresql://nobody@127.0.0.1:1/x"
    world = World(f"memory://{uuid4().hex}", "numbers", ASYNC_POSTGRES, away, [1])
    async with world.app.connected():
        inspection = AppInspection(world.app, world.app.log, "", PrometheusClient(None))
        (found,) = await asyncio.to_thread(lambda: list(check_projections(inspection)))
    assert (str(found.verdict), found.item) == ("unknown", "projections")
