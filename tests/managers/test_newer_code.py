"""A manager's old code beside newer code: what only the newer code can read or carry out waits for
it, and each command has its effect once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from streams import (
    Aggregate,
    CodeTooOld,
    Command,
    Flow,
    ProcessManager,
    Refused,
    Retry,
    Schedule,
    Streams,
)
from tests.patterns.keeping import until

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {
    "retry": Retry(attempts=2, delay=0.0),
    "flow": Flow(commit=0.01, drain=0.05),
}


class Asked(Struct, tag="asked", frozen=True):
    order: str
    number: int


class Done(Struct, tag="done", frozen=True):
    order: str


class DoneWell(Struct, tag="done-well", frozen=True):
    """An event of tomorrow."""

    order: str


class Reminder(Struct, tag="reminder", frozen=True):
    pass


class Later(Struct, tag="later", frozen=True):
    """A timeout of tomorrow."""


class NoMore(Exception):
    """A refusal of tomorrow."""


class Target(Struct, frozen=True):
    done: int = 0

    def do(self, order: str) -> Done:
        return Done(order)


class NewerTarget(Struct, frozen=True):
    done: int = 0

    def do(self, order: str, how: str = "") -> Done | DoneWell:
        return DoneWell(order) if how == "well" else Done(order)

    def do_again(self, order: str) -> Done:
        return Done(order)

    def refuse(self, order: str) -> Done:
        raise NoMore


def refuse(target: Target, order: str) -> Done:
    """As old code has it: under the same name, and never asked."""
    return Done(order)


class Count(Struct, frozen=True):
    asked: int = 0


class NewerCount(Struct, frozen=True):
    asked: int | str = 0


def order_of(event: Any) -> str:
    return str(event.order)


def react_as_old(count: Any, event: Any) -> tuple[Any, list[Any]]:
    return Count(event.number) if isinstance(event, Asked) else count, []


class Code:
    """An app with the manager, as the old code has it."""

    def __init__(self, url: str) -> None:
        self.app = Streams(url)
        self.orders = self.app.topic("orders", Asked, key="order", partitions=1)
        self.targets: Aggregate[Any, Any] = Aggregate(
            self.app, "targets", Done, Target, lambda state, event: Target(state.done + 1),
            partitions=1,
        )  # fmt: skip
        self.manager: ProcessManager[Any] = ProcessManager(
            self.app, "manager", Count, react_as_old, self.orders, self.targets.events,
            key=order_of, timeouts=Reminder, partitions=1, decisions=[refuse], **QUICK,
        )  # fmt: skip


class NewerCode(Code):
    """The same as tomorrow's code has it.

    :param answer: what its reaction to the first order is.
    :param waits_at: it stops there, as if it were killed.
    """

    def __init__(self, url: str, answer: str, waits_at: type | None = None) -> None:
        self.app = Streams(url)
        self.orders = self.app.topic("orders", Asked, key="order", partitions=1)

        def declare(name: str) -> Aggregate[Any, Any]:
            return Aggregate(
                self.app, name, Done | DoneWell, NewerTarget,
                lambda state, event: NewerTarget(state.done + 1), partitions=1,
            )  # fmt: skip

        self.targets, self.others = declare("targets"), declare("others")
        self._answer, self._waits_at = answer, waits_at
        self.seen: list[type] = []
        """What its reaction was given, except where it waits."""
        self.manager = ProcessManager(
            self.app, "manager", NewerCount, self.react, self.orders, self.targets.events,
            key=order_of, timeouts=Reminder | Later, partitions=1, refusals=NoMore, **QUICK,
        )  # fmt: skip

        if waits_at is Command:
            self.manager.definition.commands.carry_out = self._wait  # type: ignore[assignment,method-assign]

    async def _wait(self, *given: Any) -> str | None:
        raise CodeTooOld("it waits")

    def react(self, count: Any, event: Any) -> tuple[Any, list[Any]]:
        if self._waits_at is not None and isinstance(event, self._waits_at):
            raise CodeTooOld("it waits")
        self.seen.append(type(event))
        if not isinstance(event, Asked) or event.number > 1:
            return NewerCount(event.number) if isinstance(event, Asked) else count, []
        found: Any = event.number
        actions: list[Any] = []
        match self._answer:
            case "decision":
                actions = [Command(self.targets, "t", NewerTarget.do_again, "o")]
            case "arguments":
                actions = [Command(self.targets, "t", NewerTarget.do, "o", how="twice")]
            case "aggregate":
                actions = [Command(self.others, "t", NewerTarget.do, "o")]
            case "event":
                actions = [Command(self.targets, "t", NewerTarget.do, "o", "well")]
            case "refusal":
                actions = [Command(self.targets, "t", NewerTarget.refuse, "o")]
            case "timeout":
                actions = [Schedule(0.0, Later())]
            case _:
                found = "one"
        return NewerCount(found), actions

    async def effects(self) -> list[Any]:
        found = [each.event async for each in self.targets.read("t")]
        return found + [each.event async for each in self.others.read("t")]


async def until_loaded(code: Code, over: Callable[[Any], bool], what: str) -> None:
    """Wait for a condition on what the manager has for the order."""

    async def look() -> bool:
        return over(await code.manager.load("o"))

    await until(look, what)


def held_back(code: Code) -> int:
    stats = code.app.stats().processors.values()
    assert sum(each.dead_letters for each in stats) == 0
    assert code.app.stats().managers["manager"].failures == 0
    return sum(each.held_back for each in code.app.health().processors.values())


WAITS_AT: dict[str, type] = {
    "decision": Command, "arguments": Command, "aggregate": Command,
    "refusal": Refused, "timeout": Later, "event": DoneWell,
}  # fmt: skip
"""Where the newer code stops before the old one has a turn."""

EFFECTS: dict[str, list[Any]] = {
    "event": [DoneWell("o")],
    "refusal": [],
    "timeout": [],
    "state": [],
}


@pytest.mark.parametrize(
    "what", ["decision", "arguments", "aggregate", "event", "refusal", "timeout", "state"]
)
async def test_what_only_newer_code_knows_waits_for_it(tmp_path: Path, what: str) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    newer = NewerCode(url, what, WAITS_AT.get(what))
    async with newer.app:
        await newer.orders.publish(Asked("o", 1))
        await until_loaded(newer, lambda found: found.version > 0, "reacted to")
        if what in WAITS_AT:
            await until(lambda: held_back(newer), "held back")
        else:
            await until(lambda: newer.app.stats().processors["manager"].handled, "handled")
    old = Code(url)
    async with old.app:
        await old.orders.publish(Asked("o", 2))
        await until(lambda: held_back(old), "held back by the old code")
        assert old.app.health().ready
        assert not old.app.health().ok
    newer = NewerCode(url, what)
    async with newer.app:
        expected = EFFECTS.get(what, [Done("o")])
        await until_loaded(newer, lambda found: found.state == NewerCount(2), "counted")
        await until(lambda: not newer.app.health().processors["manager"].held_back, "let go on")
        wanted = WAITS_AT.get(what, Asked)
        if wanted is not Command:  # which is told by its effect
            await until(lambda: wanted in newer.seen, f"given {wanted.__name__}")
        assert await newer.effects() == expected
        assert held_back(newer) == 0
