"""Topics, patterns, and the trie that finds the patterns that match a topic.

Pure: no I/O, no locks. A topic is levels of text joined by dots: ``order.eu.paid``. In a pattern
a level may be ``*``:

* as the last level it stands for one level or more: ``order.*`` fits every topic below ``order``,
  at any depth, and not ``order`` itself;
* before the last it stands for exactly one: ``order.*.paid`` fits ``order.eu.paid``;
* alone it fits everything.

A lookup follows the topic's levels from the root and at each level enters at most two branches,
the one of that name and the ``*``. So it visits no more than ``2 ** (levels + 1)`` nodes,
however many patterns there are, and none that begins differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Generic, TypeVar

from streams.errors import ConfigError

T = TypeVar("T")

WILDCARD = "*"
"""The level that stands for others."""

MAX_TOPIC_LENGTH = 255
"""The greatest length of a topic or pattern, in characters."""

_LEVEL = r"[^\s.*\x00-\x1f\x7f\ud800-\udfff]+"
_TOPIC = re.compile(rf"{_LEVEL}(\.{_LEVEL})*\Z")
_PATTERN = re.compile(rf"({_LEVEL}|\*)(\.({_LEVEL}|\*))*\Z")

_TOPIC_RULE = (
    f"levels of text joined by dots, such as 'order.paid', {MAX_TOPIC_LENGTH} characters at most, "
    "without white space"
)


def check_topic(topic: str) -> str:
    """The topic, if an event may have it.

    :raises ConfigError: otherwise.
    """
    if _is_valid(topic, _TOPIC):
        return topic
    if isinstance(topic, str) and WILDCARD in topic and _is_valid(topic, _PATTERN):
        raise ConfigError(f"event topic {topic!r}: an event has one topic; '*' is for subscribing")
    raise ConfigError(f"event topic {topic!r}: use {_TOPIC_RULE}")


def check_pattern(pattern: str) -> str:
    """The pattern, if it can be subscribed to. A plain topic is one.

    :raises ConfigError: otherwise.
    """
    if not _is_valid(pattern, _PATTERN):
        raise ConfigError(f"pattern {pattern!r}: use {_TOPIC_RULE}; a whole level may be '*'")
    return pattern


def _is_valid(text: str, form: re.Pattern[str]) -> bool:
    return isinstance(text, str) and len(text) <= MAX_TOPIC_LENGTH and form.match(text) is not None


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """A regular expression for a pattern, to be matched in full against one topic.

    :raises ConfigError: it is no pattern.
    """
    if check_pattern(pattern) == WILDCARD:
        return re.compile(".*", re.DOTALL)
    *levels, last = pattern.split(".")
    parts = [r"[^.]*" if level == WILDCARD else re.escape(level) for level in levels]
    parts.append(".*" if last == WILDCARD else re.escape(last))
    return re.compile(r"\.".join(parts), re.DOTALL)


class _Node(Generic[T]):
    __slots__ = ("children", "exact", "multi_level", "single_level")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.single_level: _Node[T] | None = None
        """The branch of a ``*`` that is followed by more levels."""
        self.exact: dict[int, T] = {}
        """Patterns that end with this node's level."""
        self.multi_level: dict[int, T] = {}
        """Patterns that end with a ``*`` after it."""

    @property
    def is_empty(self) -> bool:
        return not (self.children or self.exact or self.multi_level or self.single_level)


class Trie(Generic[T]):
    """Items by pattern. Adding, removing and matching cost time by the length of pattern or
    topic."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._last_id = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, pattern: str, item: T) -> int:
        """Put an item under a pattern; returns the ID that :meth:`remove` takes.

        :raises ConfigError: it is no pattern.
        """
        *levels, last = check_pattern(pattern).split(".")
        node = self._root
        for level in levels:
            node = self._child(node, level)
        bucket = node.multi_level if last == WILDCARD else self._child(node, last).exact
        self._last_id += 1
        self._size += 1
        bucket[self._last_id] = item
        return self._last_id

    def _child(self, node: _Node[T], level: str) -> _Node[T]:
        if level != WILDCARD:
            found = node.children.get(level)
            if found is None:
                found = node.children[level] = _Node()
            return found
        if node.single_level is None:
            node.single_level = _Node()
        return node.single_level

    def remove(self, pattern: str, item_id: int) -> bool:
        """Remove an item, and the nodes that only it needed. False: it is not there."""
        *levels, last = pattern.split(".")
        if last != WILDCARD:
            levels.append(last)
        path = [self._root]
        for level in levels:
            node = path[-1].single_level if level == WILDCARD else path[-1].children.get(level)
            if node is None:
                return False
            path.append(node)
        bucket = path[-1].multi_level if last == WILDCARD else path[-1].exact
        if bucket.pop(item_id, None) is None:
            return False
        self._size -= 1
        for level, parent in zip(reversed(levels), reversed(path[:-1]), strict=True):
            if not path.pop().is_empty:
                break
            if level == WILDCARD:
                parent.single_level = None
            else:
                del parent.children[level]
        return True

    def match(self, topic: str) -> list[T]:
        """The items of all patterns that the topic fits, in the order they were added."""
        nodes = [self._root]
        found = list(self._root.multi_level.items())
        *levels, last = topic.split(".")
        for level in levels:
            nodes = self._descend(nodes, level)
            if not nodes:
                break
            for node in nodes:
                if node.multi_level:
                    found.extend(node.multi_level.items())
        for node in self._descend(nodes, last):
            if node.exact:
                found.extend(node.exact.items())
        if len(found) > 1:
            found.sort()
        return [item for _, item in found]

    def _descend(self, nodes: list[_Node[T]], level: str) -> list[_Node[T]]:
        next_nodes: list[_Node[T]] = []
        for node in nodes:
            child = node.children.get(level)
            if child is not None:
                next_nodes.append(child)
            if node.single_level is not None:
                next_nodes.append(node.single_level)
        return next_nodes

    def items(self) -> Iterator[T]:
        """All items, in no particular order."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            yield from node.exact.values()
            yield from node.multi_level.values()
            nodes.extend(node.children.values())
            if node.single_level is not None:
                nodes.append(node.single_level)
