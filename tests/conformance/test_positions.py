"""A position's text: what is shown of a message is what commands and calls take."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from streams import InvalidValue, Position
from streams.cli.root import run
from streams.replay import replay, reset
from tests.conformance.stage import Stage


async def test_what_is_shown_of_a_position_is_taken_everywhere(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    group = f"group-{uuid4().hex[:8]}"
    async with app.connected():
        positions = [await topic.publish(n, key="k") for n in range(5)]
        texts = [str(position) for position in positions]
        assert [Position.parse(text) for text in texts] == positions
        read = [message async for message in topic.read()]
        assert [str(message.position) for message in read] == texts
        start, end = texts[1], texts[4]
        assert [message.value async for message in topic.read(start=start, end=end)] == [1, 2, 3]
        values: list[int] = []
        await replay(app, topic, values.append, start=start, end=end)
        assert values == [1, 2, 3]
        stage.anchor.initialize_offsets(group, topic.name, dict.fromkeys(range(2), 0))
        (move,) = await reset(app, group, topic, texts[2])
        assert (move.partition, move.after) == (positions[2].partition, positions[2].offset)
        elsewhere = texts[2].replace(topic.name, "elsewhere")
        with pytest.raises(InvalidValue, match="another partition"):
            topic.read(start=elsewhere)
    if stage.url.startswith("memory"):
        return  # one process's own
    capfd.readouterr()
    for command in (["tail", topic.name, "--from"], ["replay", topic.name, "--start"]):
        more = ["--json"] if command[0] == "tail" else ["--end", end]
        assert run([*command, start, *more, "--url", stage.url]) == 0
        found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [each["position"] for each in found] == texts[1 : 5 if command[0] == "tail" else 4]
    for text in (texts[3], texts[3].partition("/")[2]):
        asked = ["reset", group, topic.name, "--to", text, "--json", "--url", stage.url]
        assert run(asked) == 0
        assert json.loads(capfd.readouterr().out)["moved"] is True
        place = stage.anchor.committed(group, topic.name)[positions[3].partition]
        assert place.position == positions[3].offset
