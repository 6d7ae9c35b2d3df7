"""Figures that change while somebody looks, and a log that does not answer."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from streams import Streams, web
from streams.errors import Unavailable
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.web import Dashboard, live, log_source, sampler
from streams.web.ages import is_recent
from streams.web.figures import KEPT, SubjectFigures, TimeSeries
from streams.web.rendering import environment
from streams.web.sampler import MAX_WATCHED, Sampler
from streams.web.server import _Server
from streams.web.translations import LANGUAGES
from tests.conformance.stage import Stage
from tests.servers.find import Missing
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, any_program
from tests.web.serving import serving
from tests.web.visiting import HOME, eventually, visit


async def events(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """The events of a stream: names and data."""
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def test_what_a_page_shows_is_kept_up_to_date(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    async with app.connected():
        await stage.publish(topic, 1, 2, 3)
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0, 1: 0})
        with serving(Dashboard(app, access="read")) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                tokens: list[str] = []

                async def is_watched() -> bool:
                    page = await client.get(f"/topics/{stage.topic_name}")
                    tokens.append(page.text.split('data-watch="')[1].split('"')[0])
                    return set(Sampler.subjects(tokens[-1])) == {
                        f"topic:{stage.topic_name}", f"group:{stage.group}",
                    }  # fmt: skip

                await eventually(is_watched)  # a page does not wait until each group is looked at
                token = tokens[-1]
                async with client.stream("GET", f"/live?watch={token}") as answer:
                    assert answer.headers["content-type"].startswith("text/event-stream")
                    found = events(answer)
                    async for name, data in found:
                        assert name == "figures"
                        if data.get(f"group:{stage.group}", {}).get("lag") == 3:
                            break
                    await stage.publish(topic, 4, 5)
                    async for _, data in found:
                        figures = data[f"topic:{stage.topic_name}"]
                        if figures["messages"] == 5 and figures["rate"] is not None:
                            break
                past = await client.get(f"/series?subject=topic:{stage.topic_name}")
                times, rates = past.json()
                assert len(times) == len(rates) > 0


class Counted:
    """A log that counts what it is asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._log, name)


async def test_the_log_is_asked_once_for_all_and_not_at_all_without_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)
    stage.anchor.create_topic(stage.topic_name, 1)
    log: Any = Counted(stage.anchor)
    asking = Sampler(lambda: log, lambda: None)
    subject = f"topic:{stage.topic_name}"
    told: list[int] = [0] * 50
    everybody = threading.Event()

    def make(number: int) -> Any:
        def tell(found: Mapping[str, Any], is_reachable: bool) -> None:
            assert is_reachable
            assert list(found) == [subject]
            told[number] += 1
            if min(told) >= 3:
                everybody.set()

        return tell

    assert not asking.is_running
    from contextlib import ExitStack

    with ExitStack() as lookers:
        for number in range(50):
            lookers.enter_context(asking.watch([subject], make(number)))
        assert await asyncio.to_thread(everybody.wait, 60)
    rounds = asking.rounds
    await stage.until(lambda: not asking.is_running, "it ends when nobody looks")
    assert log.asked.count("watermarks") <= asking.rounds
    assert asking.rounds <= rounds + 1  # one may have been on its way
    before = len(log.asked)
    await asyncio.sleep(0.2)
    assert len(log.asked) == before


async def test_an_outage_is_told_and_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    stage.anchor.create_topic(stage.topic_name, 1)
    reachable = True
    failures: list[int] = []

    def open() -> Log:
        if not reachable:
            raise Unavailable("no answer")
        return stage.anchor

    told: list[bool] = []
    asking = Sampler(open, lambda: failures.append(1))
    with asking.watch(
        [f"topic:{stage.topic_name}"], lambda _, is_reachable: told.append(is_reachable)
    ):
        await stage.until(lambda: True in told, "figures")
        reachable = False
        await stage.until(lambda: told[-1] is False, "an outage")
        assert failures
        reachable = True
        await stage.until(lambda: told[-1] is True, "figures again")


def test_a_token_names_what_a_page_shows() -> None:
    subjects = [f"topic:orders-{number}" for number in range(80)] + ["group:ü/\udcff"]
    assert Sampler.subjects(Sampler.token(subjects)) == subjects
    assert Sampler.token([]) == ""
    many = [f"group:{number:0240}" for number in range(5_000)]
    token = Sampler.token(many)
    assert len(token) <= 6_000
    assert 0 < len(Sampler.subjects(token)) <= MAX_WATCHED
    import base64
    import zlib

    bomb = base64.urlsafe_b64encode(zlib.compress(b"topic:x\n" * (1 << 20))).decode()
    for forged in ("", "x", "!" * 50, "A" * 7_000, bomb, bomb[:50], "eJw="):
        assert len(Sampler.subjects(forged)) <= MAX_WATCHED
    other = base64.urlsafe_b64encode(zlib.compress(b"file:/etc/passwd\ntopic:a")).decode()
    assert Sampler.subjects(other) == ["topic:a"]


def test_an_hour_is_kept_and_no_more() -> None:
    series = TimeSeries()
    for number in range(KEPT + 500):
        series.add(float(number), float(-number))
    points = series.points()
    assert len(series) == len(points) == KEPT
    assert points[0] == (500.0, -500.0)
    assert points[-1] == (KEPT + 499.0, -KEPT - 499.0)
    assert series.points(2) == points[-2:]


async def test_a_log_that_is_not_there_is_said_and_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"
    async with visit(Dashboard(Streams(url), access="all")) as visitor:
        for path in ("/", "/topics", "/topics/orders", "/groups", "/publish?topic=orders"):
            seen = await visitor.get(path, status=503)
            assert "The log does not answer" in seen.text
            assert "later.db" in seen.text
            assert '<meta http-equiv="refresh" content="5">' in seen.html
        await visitor.post("/groups/delete", {"group": "g", "confirm": "g"}, status=503)
        with_it = open_log(url)
        with_it.create_topic("orders", 1)
        assert "orders" in (await visitor.get("/topics")).text
        with_it.close()


async def test_a_server_that_dies_and_comes_back(
    lifetime: Lifetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        program = any_program()
    except Missing as missing:
        pytest.skip(str(missing))
    with Redis(lifetime, program, ("--appendonly", "yes")) as server:
        anchor = open_log(server.url)
        anchor.create_topic("orders", 1)
        anchor.close()
        async with visit(Dashboard(Streams(server.url), access="all")) as visitor:
            await visitor.get("/topics/orders")
            monkeypatch.setattr(log_source, "PATIENCE", 2.0)
            server.kill()
            assert "does not answer" in (await visitor.get("/topics/orders", status=503)).text
            server.restart()

            async def answers() -> bool:
                return (await visitor.client.get("/topics/orders")).status_code == 200

            await eventually(answers)
            server.pause()
            assert "does not answer" in (await visitor.get("/topics/orders", status=503)).text
            await visitor.get("/static/style.css")  # the service goes on
            server.resume()
            await eventually(answers)


async def test_ten_thousand_topics_fill_in(stage: Stage) -> None:
    """The first visit does not wait for all of them: it says which it knows, and shows a page."""
    if stage.case.name != "memory":
        return
    for number in range(10_000):
        stage.anchor.create_topic(f"topic-{number:05}", 1)
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        seen = await visitor.get("/topics")
        assert "1 to 50 of 10,000" in seen.text
        seen = await visitor.get("/topics?page=200")
        assert "topic-09999" in seen.text
        assert len(Sampler.subjects(seen.html.split('data-watch="')[1].split('"')[0])) == 50


async def test_too_many_streams_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS", 0)
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        answer = await visitor.client.get(HOME + "/live")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "30"


def test_no_page_asks_by_itself_again_and_again() -> None:
    """Neither by htmx's ``every`` nor by being loaded anew, unless it has no scripts. That scripts
    have no such timer the browser's tests see: a part with ``data-progress`` is told."""
    templates = Path(web.__file__).parent / "templates"
    texts = {each.name: each.read_text(encoding="utf-8") for each in templates.glob("*.html")}
    assert not [name for name in texts if re.search(r'hx-trigger="[^"]*every ', texts[name])]
    scripted = {name: re.sub("<noscript>.*?</noscript>", "", text) for name, text in texts.items()}
    assert not [name for name in scripted if 'http-equiv="refresh"' in scripted[name]]


@asynccontextmanager
async def looking(address: str) -> AsyncIterator[None]:
    """A browser that looks at the figures of a topic, opening a stream whenever one ends."""

    async def look() -> None:
        token = Sampler.token(["topic:anything"])
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            while True:
                async with client.stream("GET", f"/live?watch={token}") as answer:
                    async for line in answer.aiter_lines():
                        began.set()
                        if line == "event: again":
                            break

    began = asyncio.Event()
    task = asyncio.create_task(look())
    try:
        async with asyncio.timeout(60):
            await began.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("who", ["a server", "the dashboard's own server", "the dashboard"])
async def test_a_browser_that_looks_holds_up_no_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """A server that is told to end waits for the answers that it is giving, without limit."""
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.3 if who == "a server" else 3_600.0)
    dashboard = Dashboard(stage.app(), access="read")
    config = uvicorn.Config(dashboard, host="127.0.0.1", port=0, log_config=None)
    assert config.timeout_graceful_shutdown is None
    server = uvicorn.Server(config)
    if who == "the dashboard's own server":
        server = _Server(config, dashboard, lambda address: None)
    thread = threading.Thread(target=server.run)
    thread.start()
    await stage.until(lambda: server.started, "the server runs")
    port = server.servers[0].sockets[0].getsockname()[1]
    async with looking(f"http://127.0.0.1:{port}"):
        await stage.until(lambda: dashboard.streams_open == 1, "somebody looks")
        server.should_exit = True
        if who == "the dashboard":
            dashboard.close()
        await stage.until(lambda: not thread.is_alive(), "the server has ended")


async def test_a_name_that_no_log_can_look_up_holds_up_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser names what it likes."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    stage.anchor.create_topic(stage.topic_name, 1)
    subject, told = f"topic:{stage.topic_name}", list[bool]()
    asking = Sampler(lambda: stage.anchor, lambda: None)
    strange = Sampler.subjects(Sampler.token(["topic:\udcff", "group:\udcff", "topic:a\0b"]))
    assert len(strange) == 3
    for _ in range(2):  # the second time as the first
        told.clear()
        with asking.watch([*strange, subject], lambda found, _: told.append(subject in found)):
            await stage.until(lambda: told.count(True) >= 3, "it is told of the topic")
        await stage.until(lambda: not asking.is_running, "nobody looks")


async def test_whatever_is_looked_at_keeps_its_past(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.02)
    monkeypatch.setattr(sampler, "MAX_SUBJECTS", 3)
    names = [f"{stage.topic_name}-{number}" for number in range(7)]
    for name in names:
        stage.anchor.create_topic(name, 1)
    asking = Sampler(lambda: stage.anchor, lambda: None)
    rated = set[str]()

    def tell(found: Mapping[str, Any], is_reachable: bool) -> None:
        rated.update(each for each, now in found.items() if now.get("rate") is not None)

    with asking.watch([f"topic:{name}" for name in names], tell):
        await stage.until(lambda: len(rated) == len(names), "each has a rate")
    for name in names[:5]:
        asking.figures(f"topic:another-{name}")
    assert len(asking._known) == 3
    monkeypatch.setattr(sampler, "MOST_SUBJECTS", 5)
    with asking.watch([f"topic:{name}" for name in names], tell):
        for name in names:
            asking.figures(f"topic:{name}")
        assert len(asking._known) <= 5


def test_what_lies_ahead_is_not_recent() -> None:
    """The clock was set back since it was looked at."""
    now = time.time()
    assert is_recent(now, 3_600)
    assert not is_recent(now - 7_200, 3_600)
    assert not is_recent(now + 3_600, 7_200)
    assert not SubjectFigures(at=now + 3_600).is_fresh(7_200)


def test_no_template_is_compiled_while_somebody_visits(stage: Stage) -> None:
    """That would hold up the loop of whatever the dashboard is mounted in."""
    Dashboard(stage.app(), access="read").close()
    for language in LANGUAGES:
        found = environment(language)
        assert found.cache is not None
        assert len(found.cache) == len(found.list_templates())
