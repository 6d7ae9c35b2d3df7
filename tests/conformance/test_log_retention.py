"""Retention: what is kept for whoever may still need it, and what goes."""

from __future__ import annotations

import time

import pytest

from streams.log.protocol import Committed, Retention
from streams.message import Position
from tests.conformance.stage import PATIENCE
from tests.conformance.world import World

pytestmark = pytest.mark.needs("trims")

WINDOW = 20
"""Messages that a group of these tests needs below its position."""


def append_until_trimmed(world: World, topic: str, position: int) -> int:
    """Write until something is gone before ``position``; how many are written at once is the
    log's business, and how often it looks: the longer a look took, the later comes the next one.
    Returns the first position there is."""
    deadline, written = time.monotonic() + PATIENCE, 0
    while True:
        world.append(topic, [b"more"] * 50)
        if (first := world.log.watermarks(topic, 0)[0]) > position:
            return first
        written += 50
        assert time.monotonic() < deadline, f"{written} messages later nothing was trimmed"
        if written > 10_000:
            time.sleep(0.05)


def begun(world: World, topic: str) -> str:
    """A group that is at the first position there is."""
    group = world.group()
    assert world.log.initialize_offsets(group, topic, {0: world.log.watermarks(topic, 0)[0]})
    return group


def settled(world: World, topic: str, count: int) -> tuple[str, list[Position]]:
    """A group that has settled so many messages and stopped."""
    group = begun(world, topic)
    positions = world.append(topic, [b"%d" % i for i in range(count)])
    member = world.member(group, topic, window=WINDOW)
    member.until_delivered(count)
    world.leave(member)
    return group, positions


def test_about_so_many_messages_are_kept(world: World) -> None:
    topic = world.topic(retention=Retention(messages=100))
    first = append_until_trimmed(world, topic, world.log.watermarks(topic, 0)[0])
    left = world.read(topic)
    assert left[0].offsets[0] >= first
    assert sum(map(len, left)) >= 100


def test_what_a_group_has_not_settled_is_kept(world: World) -> None:
    topic = world.topic(retention=Retention(messages=1))
    group = begun(world, topic)
    positions = world.append(topic, [b"%d" % i for i in range(10)])
    world.log.reset_offsets(group, topic, {0: Committed(positions[5].offset)})
    for _ in range(10):
        world.append(topic, [b"more"] * 100)
    member = world.member(group, topic, window=0)
    member.until_delivered(1005)
    assert member.delivered()[:5] == [b"5", b"6", b"7", b"8", b"9"]


def test_what_a_dedup_window_is_rebuilt_from_is_kept(world: World) -> None:
    topic = world.topic(retention=Retention(messages=1))
    group, positions = settled(world, topic, 50)
    behind = world.position(group, topic)
    assert behind is not None
    for _ in range(5):
        world.append(topic, [b"more"] * 50)
    assert world.log.offset_before(topic, 0, behind, WINDOW) <= positions[-WINDOW].offset
    values = world.values(topic, start=positions[-WINDOW].offset)
    assert values[:WINDOW] == [b"%d" % i for i in range(50 - WINDOW, 50)]


def test_the_slowest_group_decides(world: World) -> None:
    topic = world.topic(retention=Retention(messages=1))
    first = world.log.watermarks(topic, 0)[0]
    slow = begun(world, topic)
    settled(world, topic, 50)
    for _ in range(5):
        world.append(topic, [b"more"] * 50)
    assert world.values(topic)[0] == b"0"
    world.log.delete_group(slow)
    append_until_trimmed(world, topic, first)


def test_a_place_that_was_trimmed_away_is_seen_and_reading_goes_on_at_the_first(
    world: World,
) -> None:
    topic = world.topic(retention=Retention(messages=10))
    start = world.log.watermarks(topic, 0)[0]
    first = append_until_trimmed(world, topic, start)
    group = world.group()
    world.log.initialize_offsets(group, topic, {0: start})
    member = world.member(group, topic)
    member.until_delivered(1)
    committed = member.past[0].committed
    assert committed is not None
    assert committed.position == start < first
    events = [event for event in world.history.events if event.what == "message"]
    assert events[0].offset >= first


@pytest.mark.needs("uses_app_clock")
def test_messages_go_when_they_are_too_old(world: World) -> None:
    topic = world.topic(retention=Retention(seconds=60))
    world.append(topic, [b"old"] * 5)
    assert world.manual
    world.manual.advance(40)
    world.append(topic, [b"new"] * 5)
    assert len(world.values(topic)) == 10
    world.manual.advance(40)
    assert world.values(topic) == [b"new"] * 5
