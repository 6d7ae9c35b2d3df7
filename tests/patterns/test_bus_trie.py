"""Topics and patterns: the trie beside a naive matcher, and what a lookup costs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streams import ConfigError
from streams.patterns import Event, PatternEventBus
from streams.patterns.bus.trie import Trie, check_pattern, check_topic, pattern_regex

LEVELS = st.sampled_from(["a", "b", "c"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.lists(st.one_of(LEVELS, st.just("*")), min_size=1, max_size=5).map(".".join)


def naive(pattern: list[str], topic: list[str]) -> bool:
    """The rules of the page, level by level, with no data structure."""
    if pattern == ["*"]:
        return len(topic) >= 1
    if not pattern or not topic:
        return not pattern and not topic
    return pattern[0] in ("*", topic[0]) and naive(pattern[1:], topic[1:])


def fits(pattern: str, topic: str) -> bool:
    return naive(pattern.split("."), topic.split("."))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("order.*", ["order.paid", "order.eu.paid", "order.eu.de.paid"], ["order", "orders.x"]),
        ("order.*.paid", ["order.eu.paid"], ["order.paid", "order.eu.de.paid", "order.eu.x"]),
        ("*", ["order", "order.paid", "a.b.c.d"], []),
        ("*.*", ["a.b", "a.b.c"], ["a"]),
        ("*.paid", ["order.paid"], ["paid", "order.eu.paid"]),
        ("order.paid", ["order.paid"], ["order", "order.paid.eu", "order.Paid"]),
    ],
)
def test_what_the_patterns_of_the_page_mean(pattern: str, yes: list[str], no: list[str]) -> None:
    trie: Trie[str] = Trie()
    trie.add(pattern, "item")
    for topic in yes:
        assert trie.match(topic) == ["item"], topic
        assert fits(pattern, topic)
    for topic in no:
        assert trie.match(topic) == [], topic
        assert not fits(pattern, topic)


@given(PATTERNS, TOPICS)
def test_a_regular_expression_says_the_same(pattern: str, topic: str) -> None:
    assert (pattern_regex(pattern).fullmatch(topic) is not None) == fits(pattern, topic)


class AgainstNaive(RuleBasedStateMachine):
    """Patterns come and go, and topics are looked up in between."""

    def __init__(self) -> None:
        super().__init__()
        self.trie: Trie[int] = Trie()
        self.model: dict[int, str] = {}
        self.gone: list[tuple[str, int]] = []

    @rule(pattern=PATTERNS)
    def add(self, pattern: str) -> None:
        ticket = self.trie.add(pattern, len(self.model) + len(self.gone))
        assert ticket not in self.model
        self.model[ticket] = pattern

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            ticket = data.draw(st.sampled_from(sorted(self.model)))
            pattern = self.model.pop(ticket)
            assert self.trie.remove(pattern, ticket)
            self.gone.append((pattern, ticket))

    @rule(data=st.data(), pattern=PATTERNS)
    def remove_what_is_not_there(self, data: st.DataObject, pattern: str) -> None:
        if self.gone:
            assert not self.trie.remove(*data.draw(st.sampled_from(self.gone)))
        assert not self.trie.remove(pattern, 10**9)

    @rule(topic=TOPICS)
    def match(self, topic: str) -> None:
        expected = [
            ticket for ticket, pattern in sorted(self.model.items()) if fits(pattern, topic)
        ]
        assert self.trie.match(topic) == [ticket - 1 for ticket in expected]

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.trie) == len(self.model)
        assert sorted(self.trie.items()) == sorted(ticket - 1 for ticket in self.model)
        if not self.model:
            assert self.trie._root.is_empty  # nothing is left of patterns that are gone


TestAgainstNaive = AgainstNaive.TestCase


def others(count: int) -> list[str]:
    """So many patterns that our topics do not fit, of every shape."""
    shapes = ("s{}.*", "*.s{}", "order.s{}.*", "order.*.s{}", "order.eu.s{}", "s{}.*.paid")
    return [shapes[n % len(shapes)].format(n) for n in range(count)]


class CountingTrie(Trie[Any]):
    """Counts the nodes that its matches look at, the root included."""

    nodes_visited = 0

    def match(self, topic: str) -> list[Any]:
        self.nodes_visited += 1
        return super().match(topic)

    def _descend(self, nodes: list[Any], level: str) -> list[Any]:
        found = super()._descend(nodes, level)
        self.nodes_visited += len(found)
        return found


def visits(patterns: list[str], topic: str) -> int:
    trie = CountingTrie()
    for number, pattern in enumerate(patterns):
        trie.add(pattern, number)
    trie.match(topic)
    return trie.nodes_visited


@pytest.mark.parametrize("topic", ["order.eu.paid", "order.paid", "x", "a.b.c.d.e.f"])
def test_a_lookup_costs_the_same_among_ten_and_among_ten_thousand_patterns(topic: str) -> None:
    few, many = visits(others(12), topic), visits(others(10_000), topic)
    assert few == many
    assert visits([*others(10_000), "order.*"], topic) == many  # nor by one that fits


@given(st.lists(PATTERNS, max_size=40), TOPICS)
def test_a_lookup_looks_at_no_more_nodes_than_promised(patterns: list[str], topic: str) -> None:
    levels = topic.count(".") + 1
    assert visits(patterns, topic) < 2 ** (levels + 1)


WRONG = ["", ".", "a.", ".a", "a..b", "a b", "a\n", "a\tb", "\x00", "a.\x7f", "\ud800", "a" * 256]


@pytest.mark.parametrize("topic", [*WRONG, "*", "a.*", "a*", None, 3, b"a"])
def test_what_is_no_topic_is_said_in_one_line(topic: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_topic(topic)
    assert "\n" not in str(caught.value)
    assert "event topic" in str(caught.value)


@pytest.mark.parametrize("pattern", [*WRONG, "a*", "*a", "a.*b", "**", None, 3])
def test_what_is_no_pattern_is_said_in_one_line(pattern: str) -> None:
    for check in (check_pattern, pattern_regex, lambda each: Trie[int]().add(each, 1)):
        with pytest.raises(ConfigError) as caught:
            check(pattern)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("topic", ["a", "a.b", "Größe.ß", "a-b_c:d/e+f", "a" * 255, "order.1"])
def test_what_is_a_topic_is_a_pattern(topic: str) -> None:
    assert check_topic(topic) == check_pattern(topic) == topic


def test_a_long_path_needs_no_recursion() -> None:
    trie: Trie[int] = Trie()
    path = ".".join("a" for _ in range(128))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        ticket = trie.add(path, 1)
        assert trie.match(path) == [1]
        assert trie.remove(path, ticket)
    finally:
        sys.setrecursionlimit(limit)


async def publishes(patterns: int, times: int) -> int:
    """Nodes looked at by publishing one topic so often, on a bus with so many patterns that do not
    fit. What a topic finds is kept, so only the first publish looks."""
    bus, got = PatternEventBus(), list[int]()
    bus._registry.shared_trie = trie = CountingTrie()

    async def never(event: Event) -> None:
        raise AssertionError(event.topic)

    async def take(event: Event) -> None:
        got.append(event.data)

    for pattern in others(patterns):
        bus.subscribe(pattern, never)
    bus.subscribe("order.*.paid", take)
    before = trie.nodes_visited
    for number in range(times):
        await bus.publish("order.eu.paid", number)
    assert len(got) == times
    return trie.nodes_visited - before


async def test_a_publish_costs_the_same_among_ten_and_among_ten_thousand_patterns() -> None:
    assert await publishes(12, 10) == await publishes(10_000, 2_000) == 6


@pytest.mark.faults
async def test_a_million_publishes_among_ten_thousand_patterns() -> None:
    assert await publishes(10_000, 1_000_000) == await publishes(12, 10)
