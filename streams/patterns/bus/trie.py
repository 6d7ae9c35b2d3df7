"""Topics, patterns, and the trie that finds the patterns a topic fits.

Pure: no I/O, no locks. A topic is levels of text joined by dots: ``order.eu.paid``. In a pattern
a level may be ``*``:

* as the last level it stands for one level or more: ``order.*`` fits every topic below ``order``,
  at any depth, and not ``order`` itself;
* before the last it stands for exactly one: ``order.*.paid`` fits ``order.eu.paid``;
* alone it fits everything.

A lookup follows the topic's levels from the root and at each level enters at most two branches,
the one of that name and the ``*``. So it looks at no more than ``2 ** (levels + 1)`` nodes,
however many patterns there are, and at none that begins differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from streams.errors import ConfigError

__all__ = ["WILD", "Trie", "check_pattern", "check_topic", "regex"]

T = TypeVar("T")

WILD = "*"
"""The level that stands for others."""

LONGEST = 255
"""Characters of a topic or pattern, at most."""

_LEVEL = re.compile(r"[^\s.*\x00-\x1f\x7f\ud800-\udfff]+\Z")

_RULE = (
    f"levels of text joined by dots, such as 'order.paid', {LONGEST} characters at most, "
    "without white space"
)


def check_topic(topic: str) -> str:
    """The topic, if an event may have it.

    :raises ConfigError: otherwise.
    """
    if _levels_fit(topic, wild=False):
        return topic
    if isinstance(topic, str) and WILD in topic and _levels_fit(topic, wild=True):
        raise ConfigError(f"event topic {topic!r}: an event has one topic; '*' is for subscribing")
    raise ConfigError(f"event topic {topic!r}: use {_RULE}")


def check_pattern(pattern: str) -> str:
    """The pattern, if it can be subscribed to. A plain topic is one.

    :raises ConfigError: otherwise.
    """
    if not _levels_fit(pattern, wild=True):
        raise ConfigError(f"pattern {pattern!r}: use {_RULE}; a whole level may be '*'")
    return pattern


def _levels_fit(text: str, *, wild: bool) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= LONGEST
        and all(
            _LEVEL.match(level) is not None or (wild and level == WILD) for level in text.split(".")
        )
    )


def regex(pattern: str) -> re.Pattern[str]:
    """What fits a pattern, as a regular expression to be matched in full; for one topic at a time.

    :raises ConfigError: it is no pattern.
    """
    if check_pattern(pattern) == WILD:
        return re.compile(".*", re.DOTALL)
    *levels, last = pattern.split(".")
    parts = [r"[^.]*" if level == WILD else re.escape(level) for level in levels]
    parts.append(".*" if last == WILD else re.escape(last))
    return re.compile(r"\.".join(parts), re.DOTALL)


class _Node(Generic[T]):
    __slots__ = ("below", "here", "named", "one")

    def __init__(self) -> None:
        self.named: dict[str, _Node[T]] = {}
        self.one: _Node[T] | None = None
        """The branch of a ``*`` that more levels follow."""
        self.here: dict[int, T] = {}
        """Patterns that end with this node's level."""
        self.below: dict[int, T] = {}
        """Patterns that end with a ``*`` after it."""

    @property
    def empty(self) -> bool:
        return not (self.named or self.here or self.below or self.one)


class Trie(Generic[T]):
    """Items by pattern. Adding, removing and matching cost what the pattern or topic is long."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._ticket = 0
        self._size = 0
        self.visited = 0
        """Nodes looked at by all matches so far, the root included."""

    def __len__(self) -> int:
        return self._size

    def add(self, pattern: str, item: T) -> int:
        """Put an item under a pattern; what :meth:`remove` asks for.

        :raises ConfigError: it is no pattern.
        """
        *levels, last = check_pattern(pattern).split(".")
        node = self._root
        for level in levels:
            node = self._enter(node, level)
        place = node.below if last == WILD else self._enter(node, last).here
        self._ticket += 1
        self._size += 1
        place[self._ticket] = item
        return self._ticket

    def _enter(self, node: _Node[T], level: str) -> _Node[T]:
        if level != WILD:
            found = node.named.get(level)
            if found is None:
                found = node.named[level] = _Node()
            return found
        if node.one is None:
            node.one = _Node()
        return node.one

    def remove(self, pattern: str, ticket: int) -> bool:
        """Take an item away, and the nodes that only it needed. False: it is not there."""
        *levels, last = pattern.split(".")
        if last != WILD:
            levels.append(last)
        path = [self._root]
        for level in levels:
            node = path[-1].one if level == WILD else path[-1].named.get(level)
            if node is None:
                return False
            path.append(node)
        place = path[-1].below if last == WILD else path[-1].here
        if place.pop(ticket, None) is None:
            return False
        self._size -= 1
        for level, parent in zip(reversed(levels), reversed(path[:-1]), strict=True):
            if not path.pop().empty:
                break
            if level == WILD:
                parent.one = None
            else:
                del parent.named[level]
        return True

    def match(self, topic: str) -> list[T]:
        """The items of all patterns that the topic fits, in the order they were added."""
        nodes = [self._root]
        found = list(self._root.below.items())
        self.visited += 1
        *levels, last = topic.split(".")
        for level in levels:
            nodes = self._step(nodes, level)
            if not nodes:
                break
            for node in nodes:
                if node.below:
                    found.extend(node.below.items())
        for node in self._step(nodes, last):
            if node.here:
                found.extend(node.here.items())
        if len(found) > 1:
            found.sort()
        return [item for _, item in found]

    def _step(self, nodes: list[_Node[T]], level: str) -> list[_Node[T]]:
        following: list[_Node[T]] = []
        for node in nodes:
            child = node.named.get(level)
            if child is not None:
                following.append(child)
            if node.one is not None:
                following.append(node.one)
        self.visited += len(following)
        return following

    def items(self) -> Iterator[T]:
        """All items, in no particular order."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            yield from node.here.values()
            yield from node.below.values()
            nodes.extend(node.named.values())
            if node.one is not None:
                nodes.append(node.one)
