"""The screens of topics."""

from __future__ import annotations

import pytest

from streams.web import Dashboard
from tests.conformance.stage import Stage
from tests.web.visiting import seen_with, visit


@pytest.mark.everywhere
async def test_a_topic_says_what_it_holds_and_who_reads_it(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    app.processor(topic, group=stage.group)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(7), key=str)
        await stage.handled(7)
        await stage.committed(app)
        async with visit(Dashboard(app, access="read")) as visitor:
            seen = await visitor.get(f"/topics?q={stage.topic_name}")
            shown = await seen_with(visitor, seen.link(stage.topic_name), stage.group)
            assert "7 messages" in shown.text
            assert "2 partitions" in shown.text
            assert "Type int" in shown.text
            # Kafka's client library has no request for it, and a log in memory does not count.
            is_known = stage.case.name in ("sqlite", "redis")
            sized = await visitor.get(f"/topics?q={stage.topic_name}")
            for each in (shown, sized):
                assert ("not known" in each.text) is not is_known
            assert ("B size, about" in shown.text) is is_known


async def test_a_topic_without_an_app_is_shown(stage: Stage) -> None:
    stage.anchor.create_topic(stage.topic_name, 3)
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        seen = await visitor.get(f"/topics/{stage.topic_name}")
        assert "3 partitions" in seen.text
        assert "No group has a position here." in seen.text
        await visitor.get("/topics/missing", status=404)


async def test_a_long_list_comes_in_pages(stage: Stage) -> None:
    for number in range(120):
        stage.anchor.create_topic(f"topic-{number:03}", 1)
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        seen = await visitor.get("/topics")
        assert "1 to 50 of 120" in seen.text
        seen = await visitor.get("/topics" + seen.link("next"))
        assert "51 to 100 of 120" in seen.text
        assert "topic-099" in seen.text
        seen = await visitor.get("/topics?q=TOPIC-11")
        assert "topic-117" in seen.text
        assert "topic-099" not in seen.text
