"""What aggregates, views, process managers, outboxes, delays, closed keys and sagas hold is text on
every page, whatever it is: keys, documents, headers and errors."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest

from streams import DeadLetters, Delays, Message, Retry, Streams
from streams.log.appending import append_and_wait
from streams.message import Record
from streams.outbox import Outbox
from streams.patterns import SagaOrchestrator
from streams.patterns.saga import SagaFailedError
from streams.web import Dashboard
from tests.conformance.stage import QUICK, Stage
from tests.eventsourcing.bank import AccountEvent, open_with
from tests.managers import purses
from tests.views.bank import Balance, Bank, unique
from tests.web.test_sagas_screens import Trip
from tests.web.test_security import assert_inert
from tests.web.visiting import Visitor, eventually, visit

EVERYTHING = (
    "<script>alert(1)</script>'\"> onmouseover='alert(1)' &lt;b&gt;&#x3c; \x1b]0;t\x07\x1b[2J\x9b"
    "\u202egnp.exe\u2066\u200b\ufeff {{ 7*7 }} %(key)s </pre></textarea>"
)
LARGE = "alert(1) " + "x" * 300_000
NOT_UTF_8 = b"alert(1) \xff\xfe\x00\x80"

SHOWN_ON = {
    "/aggregates/show",
    "/aggregates/history",
    "/views/show",
    "/managers/show",
    "/managers/instance",
    "/outbox",
    "/outbox/row",
    "/delayed/show",
    "/keys",
    "/keys/show",
    "/sagas",
    "/sagas/show",
}
"""The screens that this is about."""

LISTS = {"/", "/aggregates", "/views", "/managers", "/delayed"}
"""Those that lead there."""


class Shop:
    """An app in which all of it holds this text.

    :param text: as much of it as a key or an ID takes is in those, too.
    """

    def __init__(self, stage: Stage, folder: Path, text: str) -> None:
        self.stage, self.text, self.folder = stage, text, folder
        self.key = text[:150]
        self.app: Streams = stage.app()
        self.world = purses.World(self.app, f"w-{stage.group}")
        self.bank = Bank(self.app, unique(), self.fold)
        self.trips = SagaOrchestrator(self.app, f"s-{stage.group}", context=Trip, partitions=1)
        self.trips.add_step("charge", self.charge, retry=Retry(attempts=1))
        self.delays = Delays(self.app, f"d-{stage.group}")
        self.outbox = Outbox(self.app, f"sqlite:///{folder}/outbox.db")
        self.topic = stage.topic(self.app, dict[str, str], partitions=1)
        self.app.processor(
            self.topic,
            group=stage.group,
            dead_letters=DeadLetters(sequenced=True),
            retry=Retry(attempts=1),
            flow=QUICK,
        )(self.fail)

    def fold(self, balance: Balance | None, event: AccountEvent) -> Balance:
        raise ValueError(self.text)

    async def charge(self, trip: Trip) -> None:
        raise ValueError(self.text)

    async def fail(self, value: dict[str, str], message: Message[dict[str, str]]) -> None:
        raise ValueError(self.text)

    async def fill(self) -> None:
        """Have it happen; the app runs."""
        text, key = self.text, self.key
        await self.bank.accounts.decide(key, open_with, text, 1)
        await self.world.orders.publish(purses.Order(key, key, text, 1))
        printable = "".join(each for each in key if each.isprintable())
        with pytest.raises(SagaFailedError):
            await self.trips.execute(Trip(text), id=printable)
        value, headers = {"text": text}, {"x-hostile": key}
        await self.delays.publish(self.topic, value, delay=86_400, key=key, headers=headers)
        await self.topic.publish(value, key=key, headers=headers)
        raw = Record(NOT_UTF_8, NOT_UTF_8, "raw", [("x-raw", NOT_UTF_8)])
        [position] = append_and_wait(self.app.log, self.topic.name, [raw])
        assert not isinstance(position, Exception), position
        with closing(sqlite3.connect(self.folder / "outbox.db", timeout=30)) as connection:
            rows = [
                ("1", "nowhere", key, text.encode()),
                ("2", key, text, NOT_UTF_8),
            ]
            connection.executemany(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, messageid) "
                "VALUES (?, ?, ?, 'order', ?, ?)",
                [(*row, f"m-{row[0]}") for row in rows],
            )
            connection.commit()


async def crawl(visitor: Visitor) -> dict[str, list[str]]:
    """What the pages of these screens consist of that links lead to, by their paths."""
    found: dict[str, list[str]] = {}
    waiting, met = ["/"], {"/"}
    for path in waiting:
        seen = await visitor.get(path)
        found.setdefault(urlsplit(path).path, []).append(seen.html)
        for _, href in seen.links:
            to = urlsplit(urljoin(path, href))
            inner = f"{to.path}?{to.query}"
            if to.path in LISTS | SHOWN_ON and inner not in met and "lang=" not in to.query:
                met.add(inner)
                waiting.append(inner)
    return found


@pytest.mark.parametrize("text", [EVERYTHING, LARGE], ids=["everything", "large"])
async def test_what_patterns_hold_is_text_on_every_page(
    stage: Stage, tmp_path: Path, text: str
) -> None:
    if stage.case.name != "memory":
        return
    shop = Shop(stage, tmp_path, text)
    await shop.outbox.create_tables()
    async with shop.app:
        await shop.fill()
        async with visit(Dashboard(shop.app, access="all")) as visitor:
            pages: dict[str, list[str]] = {}

            async def is_shown_everywhere() -> bool:
                pages.clear()
                pages.update(await crawl(visitor))
                shown = {path for path, htmls in pages.items() if "alert(1)" in "".join(htmls)}
                missing[:] = SHOWN_ON - shown
                return not missing

            missing: list[str] = []
            await eventually(is_shown_everywhere)
            for htmls in pages.values():
                for html in htmls:
                    assert_inert(html)
                    assert len(html) < 2_000_000
