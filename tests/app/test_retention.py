"""``Retention``: what it may be, and where it is declared."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from streams import ConfigError, EventBus, MessageQueue, Retention, Streams


@pytest.mark.parametrize(
    "given",
    [
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": float("inf")},
        {"seconds": float("nan")},
        {"seconds": True},
        {"seconds": "7d"},
        {"messages": 0},
        {"messages": 1.5},
        {"messages": True},
        {"bytes": -1},
        {"bytes": b"x"},
        {"compacted": 1},
    ],
    ids=repr,
)
def test_what_is_no_retention_is_refused_where_it_is_written(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ConfigError, match=rf"Retention\({name}="):
        Retention(**given)


def test_its_repr_can_be_written_into_the_program() -> None:
    for each in (Retention(), Retention(seconds=60), Retention(None, 5, 7, True)):
        assert eval(repr(each)) == each
    assert repr(Retention()) == "Retention()"
    assert Retention(seconds=1, compacted=True).bounds_set == ("seconds", "compacted")


def test_it_is_frozen_and_can_be_compared() -> None:
    week = Retention(seconds=604_800)
    with pytest.raises(FrozenInstanceError):
        week.seconds = 1.0  # type: ignore[misc]  # that is the point
    assert week == Retention(604_800) != Retention()


@pytest.mark.parametrize("given", [7, "7d", {"seconds": 7}, Retention])
def test_a_topic_takes_nothing_else(given: Any) -> None:
    app = Streams("memory://")
    for declare in (
        lambda: app.topic("orders", retention=given),
        lambda: MessageQueue(app, retention=given).declare("mails"),
        lambda: EventBus(app, retention=given),
    ):
        with pytest.raises(ConfigError, match=r"(give a|use) Retention\("):
            declare()


def test_declarations_that_contradict_each_other() -> None:
    app = Streams("memory://")
    app.topic("orders", dict, retention=Retention(seconds=60))
    app.topic("orders", dict)
    with pytest.raises(ConfigError, match=r"orders.*Retention\(seconds=60\).*again.*Retention\(\)"):
        app.topic("orders", dict, retention=Retention())
    app.topic("mails", dict, partitions=2)
    with pytest.raises(ConfigError, match=r"mails.*partitions=2.*again.*partitions=3"):
        MessageQueue(app, partitions=3).declare("mails")


async def test_of_several_declarations_one_says_it() -> None:
    app = Streams("memory://")
    app.topic("orders", dict)
    app.topic("orders", dict, retention=Retention(messages=60))
    app.topic("orders", dict)
    async with app.connected():
        assert app.log.describe_topic("orders").retention == Retention(messages=60)
