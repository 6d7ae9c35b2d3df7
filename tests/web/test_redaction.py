"""What of messages is kept back, wherever a screen would show it: by the app's own ``redact=``, and
from those who may not see what is in messages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from streams import Delays
from streams.derived_records import redriven_headers
from streams.eventsourcing.views.keyed_records import KEY_HEADER
from streams.log.appending import append_and_wait
from streams.log.documents import FAILURE_HEADER
from streams.log.range_reader import read_first
from streams.message import Record
from streams.outbox import Outbox
from streams.patterns.choreography import ERROR_HEADER
from streams.patterns.saga import Journal
from streams.web import Dashboard, Payload, Redact
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import accounts, deposit
from tests.views.bank import unique
from tests.web.test_aggregates_screens import get
from tests.web.test_dead_screens import write_letters
from tests.web.test_sagas_screens import World, ended
from tests.web.visiting import visit


def without(*kinds: str) -> Redact:
    """``redact=`` that hides parts of these kinds, and the header ``authorization``."""

    def redact(part: Payload) -> bytes | None:
        if part.kind in kinds or part.name == "authorization":
            return None
        return part.data

    return redact


async def test_each_header_of_an_outbox_row_is_asked_about_by_its_name(
    stage: Stage, tmp_path: Path
) -> None:
    app = stage.app()
    path = tmp_path / "outbox.db"
    outbox = Outbox(app, f"sqlite:///{path}", relayed_by="command")
    topic = stage.topic(app, dict[str, int], partitions=1)
    await outbox.create_tables()
    with closing(sqlite3.connect(path)) as connection, connection:
        headers = {"authorization": "horse", "shop": "west"}
        await outbox.publish(topic, {"n": 1}, connection=connection, headers=headers)
    address = "/outbox/row?outbox=outbox&row=1"
    async with visit(Dashboard(app, access="all", redact=without())) as visitor:
        seen = await visitor.get(address)
        assert "horse" not in seen.html
        assert "shop west" in seen.text
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("""UPDATE outbox SET headers = '{"authorization": "horse"}'""")
        assert "horse" not in (await visitor.get(address)).html
    async with visit(Dashboard(app, access="all")) as visitor:
        assert "horse" in (await visitor.get(address)).text
    async with visit(Dashboard(app, access={"read", "outbox"})) as visitor:
        assert "horse" not in (await visitor.get(address)).html


async def test_what_an_event_was_appended_for_is_a_header(stage: Stage) -> None:
    app = stage.app()
    found = accounts(app, unique())
    async with app.connected():
        await found.with_options(cause="order horse").decide("a", deposit, 1)
        address = f"/aggregates/history?aggregate={found.name}&key=a"
        async with visit(Dashboard(app, access="all")) as visitor:
            assert "order horse" in (await get(visitor, address)).text
        async with visit(Dashboard(app, access="read")) as visitor:
            assert "horse" not in (await get(visitor, address)).html

        def redact(part: Payload) -> bytes | None:
            return None if (part.kind, part.name) == ("header", "streams_cause") else part.data

        async with visit(Dashboard(app, access="all", redact=redact)) as visitor:
            assert "horse" not in (await get(visitor, address)).html


async def test_an_error_in_a_header_is_an_error(stage: Stage) -> None:
    app = stage.app()
    async with app.connected():
        name = write_letters(stage, app, [ValueError("card horse")])
        looked = [
            read_first(app.log, name, partition, *app.log.watermarks(name, partition))
            for partition in range(2)
        ]
        (batch,) = [each for each in looked if each is not None]
        again = redriven_headers(batch.headers(0))
        others = [(ERROR_HEADER, b"card horse"), (FAILURE_HEADER, b"card horse")]
        append_and_wait(
            app.log, stage.topic_name, [Record(b"1", None, "again", [*again, *others], 0)]
        )
        places = [f"{name}/messages/{batch.partition}/0", f"{stage.topic_name}/messages/0/0"]
        for redact, is_shown in ((None, True), (without("error"), False)):
            dashboard = Dashboard(app, access="all", redact=redact)
            async with visit(dashboard) as visitor:
                for place in places:
                    seen = await visitor.get(f"/topics/{place}")
                    assert ("card horse" in seen.text) is is_shown, place
                    assert is_shown or "horse" not in seen.html
                found = await visitor.get(f"/topics/{name}/messages?header_value=horse")
                assert ("1 found" in found.text) is is_shown


async def test_a_key_in_a_header_is_a_key(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = Delays(app, f"delays-{stage.topic_name}", partitions=1)
    async with app.connected():
        await delays.publish(topic, 1, delay=3_600, key="horse", id="m")
        record = Record(b"1", b"k", "keyed", [(KEY_HEADER, b"horse")], 0)
        append_and_wait(app.log, stage.topic_name, [record])
        for redact, is_shown in ((None, True), (without("key"), False)):
            dashboard = Dashboard(app, access="all", redact=redact)
            async with visit(dashboard) as visitor:
                for place in (delays.name, stage.topic_name):
                    seen = await visitor.get(f"/topics/{place}/messages/0/0")
                    assert ("horse" in seen.html) is is_shown, place


async def test_a_hidden_saga_has_no_id_in_its_entries(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await ended(world, "quill")
        topic = f"{world.name}.saga"
        placed = Journal(stage.anchor, world.name).latest("quill")
        place = f"{placed.position.partition}/{stage.anchor.format_offset(placed.position.offset)}"
        address = f"/topics/{topic}/messages/{place}"
        batch = read_first(
            stage.anchor, topic, placed.position.partition, placed.position.offset,
            placed.position.offset + 1,
        )  # fmt: skip
        assert batch is not None
        id = batch.id(0)
        assert id.startswith("quill/")
        search = f"/topics/{topic}/messages?id={id}"
        async with visit(Dashboard(world.app, access="all")) as visitor:
            assert f"ID {id}" in (await visitor.get(address)).text
            assert "1 found" in (await visitor.get(search)).text
        hidden = without("key", "value")
        async with visit(Dashboard(world.app, access="all", redact=hidden)) as visitor:
            assert "quill" not in (await visitor.get(address)).html
            assert "0 found" in (await visitor.get(search)).text

        def mask(part: Payload) -> bytes:
            return b"***"

        async with visit(Dashboard(world.app, access="all", redact=mask)) as visitor:
            seen = await visitor.get(address)
            assert "quill" not in seen.html
            assert f"ID ***{id.removeprefix('quill')}" in seen.text


@pytest.mark.parametrize("access", ["all", "read"])
async def test_any_other_message_id_is_shown(stage: Stage, access: str) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    delays = Delays(app, f"delays-{stage.topic_name}", partitions=1)
    async with app.connected():
        await delays.publish(topic, 1, delay=3_600, key="horse", id="of-horse")
        async with visit(Dashboard(app, access=access, redact=without("key"))) as visitor:
            seen = await visitor.get(f"/delayed/show?topic={delays.name}")
            assert "of-horse" in seen.text
