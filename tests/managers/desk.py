"""A manager that does what its messages say: schedule, cancel, command, end.

``schedule NAME SECONDS``, ``cancel NAME``, ``open CENTS``, ``take CENTS``, ``notice``, ``break`` (a
decision that fails) and ``end``, with commas in between. Its commands are for the purse of its own
key.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from streams import (
    Aggregate,
    Cancel,
    Command,
    End,
    ProcessManager,
    Retry,
    Schedule,
    Streams,
)
from tests.managers.purses import QUICK, Opened, Poor, Purse, PurseEvent, evolve, notice


class Tick(Struct, tag="tick", frozen=True):
    key: str
    do: str


class Rang(Struct, tag="rang", frozen=True):
    name: str


class Done(Struct, frozen=True):
    last: str = ""


def break_down(purse: Purse, why: str) -> Opened:
    raise ZeroDivisionError(why)


class Desk:
    """The manager, its topic and its purses, as one process has them."""

    def __init__(self, app: Streams, name: str, **options: Any) -> None:
        self.app = app
        self.ticks = app.topic(f"{name}-ticks", Tick, key="key", partitions=1)
        self.purses: Aggregate[PurseEvent, Purse] = Aggregate(
            app, f"{name}-purses", PurseEvent, Purse, evolve, partitions=1
        )
        options = {
            "partitions": 1,
            "timeouts": Rang,
            "refusals": Poor,
            "decisions": [notice, break_down],
            "retry": Retry(attempts=2, delay=0.001),
            "flow": QUICK,
            **options,
        }
        self.manager: ProcessManager[Done] = ProcessManager(
            app,
            f"{name}-desk",
            Done,
            self.react,
            self.ticks,
            key=lambda event: event.key,
            **options,
        )

    def react(self, done: Done, event: Any) -> tuple[Done, list[Any]]:
        if not isinstance(event, Tick):
            return Done(type(event).__name__), []
        actions: list[Any] = []
        for each in event.do.split(", "):
            match each.split():
                case ["schedule", name, seconds]:
                    actions.append(Schedule(float(seconds), Rang(name), name=name))
                case ["cancel", name]:
                    actions.append(Cancel(name))
                case ["open", cents]:
                    actions.append(Command(self.purses, event.key, Purse.open, int(cents)))
                case ["take", cents]:
                    actions.append(Command(self.purses, event.key, Purse.take, "t", int(cents)))
                case ["notice"]:
                    actions.append(Command(self.purses, event.key, notice, "t"))
                case ["break"]:
                    actions.append(Command(self.purses, event.key, break_down, "it broke"))
                case ["end"]:
                    actions.append(End())
        return Done(event.do), actions
