"""The screens of outboxes: what waits, what could not be published, and trying it again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from streams.outbox import Outbox
from streams.web import Dashboard
from tests.conformance.stage import Stage
from tests.web.visiting import eventually, visit


class Post:
    """An app whose outbox is in a file of SQLite's."""

    def __init__(self, stage: Stage, folder: Path, **options: object) -> None:
        self.path = folder / f"outbox-{stage.group}.db"
        self.app = stage.app()
        self.topic = stage.topic(self.app, dict[str, int], partitions=1)
        self.outbox = Outbox(self.app, f"sqlite:///{self.path}", **options)  # type: ignore[arg-type]

    def write(self, topic: str, key: str, headers: str | None = None) -> None:
        """A row, as anybody's transaction may have written it."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, messageid, "
                "headers) VALUES (?, ?, ?, 'order', ?, ?, ?)",
                (str(uuid4()), topic, key, b'{"secret":1}', f"m-{key}", headers),
            )

    def states(self) -> list[int]:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return [row[0] for row in connection.execute("SELECT state FROM outbox")]


@pytest.mark.everywhere
async def test_rows_that_failed_are_a_problem_and_are_tried_again(
    stage: Stage, tmp_path: Path
) -> None:
    post = Post(stage, tmp_path)
    await post.outbox.create_tables()
    for number in range(3):
        post.write(stage.topic_name, f"key-{number}", "no JSON")
    post.write(stage.topic_name, "key-0")
    async with post.app:
        await stage.until(lambda: sorted(post.states()) == [1, 1, 1, 2])
        async with visit(Dashboard(post.app, access="all")) as visitor:
            overview = await visitor.get("/")
            listed = await visitor.get(
                overview.link("3 rows of the outbox outbox could not be published.")
            )
            assert "its headers are not JSON" in listed.text
            assert "key-1" in listed.text
            row = await visitor.get(listed.link("1"))
            assert '"secret": 1' in row.text
            asked = await visitor.submit(row, "Try again")
            done = await visitor.submit(asked, "Try again")
            assert "1 row of outbox will be tried again." in done.text
            await stage.until(lambda: sorted(post.states()) == [1, 1, 1, 2])

            asked = await visitor.submit(listed, "Try all that failed again")
            await visitor.submit(asked, "Try again", confirm="2", status=400)
            done = await visitor.submit(asked, "Try again", confirm="3")
            assert "3 rows of outbox will be tried again." in done.text
            await stage.until(lambda: sorted(post.states()) == [1, 1, 1, 2])


async def test_what_waits_is_shown_without_what_is_in_it(stage: Stage, tmp_path: Path) -> None:
    post = Post(stage, tmp_path, relayed_by="command")
    await post.outbox.create_tables()
    post.write(stage.topic_name, "key-of-eve")
    with closing(sqlite3.connect(post.path)) as connection, connection:
        connection.execute("UPDATE outbox SET created = created - 7200")
    async with visit(Dashboard(post.app, access={"read", "outbox"})) as visitor:
        listed = await visitor.get("/outbox?all=1")
        assert "No relay is running for this outbox." in listed.text
        assert "to be relayed" in listed.text
        assert stage.topic_name in listed.text
        assert "key-of-eve" not in listed.html.replace("m-key-of-eve", "")
        row = await visitor.get(listed.link("1"))
        assert "secret" not in row.html
        assert (
            "No relay is running for the outbox outbox: 1 rows are waiting."
            in (await visitor.get("/")).text
        )
        none = await visitor.post("/outbox/retry", {"outbox": "outbox"}, status=400)
        assert "No row has failed." in none.text
        fields = {"outbox": "outbox", "row": "1", "confirm": "1"}
        await visitor.post("/outbox/retry", fields, status=404)


async def test_a_topic_that_no_relay_declares_is_a_problem(stage: Stage, tmp_path: Path) -> None:
    post = Post(stage, tmp_path)
    await post.outbox.create_tables()
    post.write("nowhere", "key")
    async with post.app:
        await stage.until(lambda: post.states() == [3])
        async with visit(Dashboard(post.app, access="all")) as visitor:
            overview = await visitor.get("/")
            name = "Rows of the outbox outbox wait for a relay that declares nowhere."
            listed = await visitor.get(overview.link(name))
            assert "nowhere (1)" in listed.text
            every = await visitor.get("/outbox?all=1")
            assert "topic not declared" in every.text


async def test_a_database_that_is_not_there_is_said_so(stage: Stage, tmp_path: Path) -> None:
    post = Post(stage, tmp_path)
    async with visit(Dashboard(post.app, access="all")) as visitor:

        async def is_said() -> bool:
            return "It cannot be read:" in (await visitor.get("/outbox")).text

        await eventually(is_said)
        await visitor.get("/outbox/row?outbox=outbox&row=1", status=404)
        await visitor.get("/outbox/row?outbox=nobody&row=1", status=404)
        await visitor.get("/outbox/row?outbox=outbox&row=x", status=400)
        await visitor.get("/")
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        assert "declares no outbox" in (await visitor.get("/outbox")).text
