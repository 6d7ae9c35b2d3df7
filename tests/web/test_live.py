"""Figures that change while somebody looks, and a log that does not answer."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from streams import Streams, web
from streams.errors import Unavailable
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.web import Dashboard, log_source, sampler
from streams.web.figures import KEPT, Series
from streams.web.sampler import MAX_WATCHED, Sampler
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
    series = Series()
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


async def test_too_many_streams_are_refused(stage: Stage) -> None:
    dashboard = Dashboard(stage.app(), access="read")
    dashboard.streams_open = 500
    async with visit(dashboard) as visitor:
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
