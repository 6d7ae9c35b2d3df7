"""Groups that say what a topic of the toolkit's own still needs: while they are away, what waits in
it is trimmed."""

from __future__ import annotations

import pytest

from streams import DeadLetters, Delays, Retry
from streams.errors import InvalidValue
from streams.replay import reset
from streams.replay.fixed_groups import check_may_delete_group, check_may_move
from streams.web import Dashboard
from tests.conformance.stage import QUICK, Stage
from tests.web.visiting import visit


@pytest.mark.everywhere
async def test_floors_of_delay_topics_and_closed_keys_stay_where_they_are(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    sequenced, loose = f"{stage.group}-a", f"{stage.group}-b"
    delays = Delays(app, f"delays-{stage.group}", partitions=1)
    app.processor(topic, group=sequenced, flow=QUICK, dead_letters=DeadLetters(sequenced=True))(
        stage.recorder()
    )
    app.processor(topic, group=loose, flow=QUICK, retry=Retry(attempts=2, in_order=False))(
        stage.recorder()
    )
    async with app:
        await delays.publish(topic, 1, delay=3_600)
        await stage.publish(topic, 2)
        await stage.handled(2)
        parked = f"{stage.topic_name}.{sequenced}.parked"
        retried = f"{stage.topic_name}.{loose}.delay"
        floors = {
            parked: parked, f"{delays.name}.floor": delays.name, f"{retried}.floor": retried
        }  # fmt: skip
        assert set(floors) <= set(app.log.list_groups())
        async with visit(Dashboard(app, access="all")) as visitor:
            for group, kept in floors.items():
                with pytest.raises(InvalidValue, match="cannot be deleted") as caught:
                    check_may_delete_group(app.log, group)
                assert f"streams topics delete {kept}" in str(caught.value)
                assert "\n" not in str(caught.value)
                fields = {"group": group, "confirm": group}
                await visitor.post("/groups/delete", fields, status=400)
                with pytest.raises(InvalidValue, match="cannot be moved"):
                    await reset(app, group, kept, "latest", force=True)
        assert set(floors) <= set(app.log.list_groups())


def test_a_group_of_the_users_may_have_such_a_name(stage: Stage) -> None:
    log = stage.anchor
    for topic, group in (("mine.parked", "mine.parked"), ("mine", "mine.floor")):
        log.create_topic(topic, 1)
        log.initialize_offsets(group, topic, {0: 0})
        check_may_delete_group(log, group)
        if topic != "mine":
            log.delete_topic(topic)
    check_may_move(log, "mine.floor", "other")
