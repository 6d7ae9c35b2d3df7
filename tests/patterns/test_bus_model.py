"""Subscribe, unsubscribe and publish in any interleaving, beside a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from streams.patterns import Event, PatternEventBus, Subscription
from tests.patterns.test_bus_trie import PATTERNS, TOPICS, fits

HANDLERS = st.integers(0, 3)


class Live(NamedTuple):
    """A subscription of the model."""

    id: int
    handler: int
    pattern: str


class Deed(NamedTuple):
    """Subscribe a handler, or (no pattern) unsubscribe the one at a place in the list."""

    at: int
    pattern: str | None = None

    def do(self, live: list[Live], id: int) -> None:
        """To the model."""
        if self.pattern is not None:
            live.append(Live(id, self.at, self.pattern))
        elif live:
            live.pop(self.at % len(live))


DEEDS = st.one_of(
    st.tuples(HANDLERS, PATTERNS).map(lambda both: Deed(*both)),
    st.integers(0, 20).map(Deed),
)


class AgainstModel(RuleBasedStateMachine):
    """Handlers may subscribe and unsubscribe, themselves and others, while an event is delivered.

    In the model a bus is a list of subscriptions. An event goes to those that fit when it is
    published, in their order, each handler once; one that was unsubscribed before its turn is
    passed over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[int] = []
        self.bus = PatternEventBus(on_error=lambda error, *_: self.errors.append(error.args[0]))
        self.live: list[Live] = []
        self.held: dict[int, Subscription] = {}
        self.ids = count()
        self.deeds: dict[int, list[Deed]] = {}
        """What handlers do when they are called next."""
        self.failing: set[int] = set()
        self.got: list[tuple[int, int]] = []
        self.published = 0
        self.handlers = [self.handler(number) for number in range(4)]

    def handler(self, number: int) -> Callable[[Event], Any]:
        async def handle(event: Event) -> None:
            self.got.append((number, event.data))
            for deed in self.deeds.pop(number, []):
                self.now(deed)
            if number in self.failing:
                raise ValueError(number)

        return handle

    @rule(deed=DEEDS)
    def now(self, deed: Deed) -> None:
        id = next(self.ids)
        before = {each.id for each in self.live}
        deed.do(self.live, id)
        for gone in before - {each.id for each in self.live}:
            self.held.pop(gone)()
        if deed.pattern is not None:
            self.held[id] = self.bus.subscribe(deed.pattern, self.handlers[deed.at])

    @rule(handler=HANDLERS, deed=DEEDS)
    def later(self, handler: int, deed: Deed) -> None:
        self.deeds.setdefault(handler, []).append(deed)

    @rule(handler=HANDLERS)
    def fail_or_not(self, handler: int) -> None:
        self.failing ^= {handler}

    @rule(topic=TOPICS)
    def publish(self, topic: str) -> None:
        expected = self.predict(topic)
        self.got.clear()
        self.errors.clear()
        asyncio.run(self.bus.publish(topic, self.published))
        assert self.got == [(number, self.published) for number in expected]
        assert sorted(self.errors) == sorted(self.failing.intersection(expected))
        self.published += 1

    def predict(self, topic: str) -> list[int]:
        live, deeds = list(self.live), dict(self.deeds)
        chosen = [each for each in live if fits(each.pattern, topic)]
        called: list[int] = []
        for handler in dict.fromkeys(each.handler for each in chosen):
            if any(each in live for each in chosen if each.handler == handler):
                called.append(handler)
                for deed in deeds.pop(handler, []):
                    deed.do(live, -1)
        return called


TestAgainstModel = AgainstModel.TestCase
