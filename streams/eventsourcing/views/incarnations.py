"""Which topic of its name something was made of: one that is deleted and made anew is another.

Documents keep the incarnation of each topic that they are made of, and so does each keyed record:
here a digest of what the log calls it (:meth:`streams.log.protocol.Log.incarnation`). Where a log
cannot tell its topics apart it is empty, and nothing is held against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from streams.errors import LogError, NotFound, Unavailable
from streams.log.protocol import Log

DIGEST_BYTES = 5
"""Bytes of an incarnation; it is written in hexadecimal digits."""

LASTS = 1.0
"""Seconds for which what was asked for is taken for that of now, at most."""


def is_another(one: str, other: str) -> bool:
    """Whether two incarnations are known to be those of two topics."""
    return bool(one and other) and one != other


class Incarnations:
    """Those of a log's topics as they are now (any thread; blocks)."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._known: dict[str, tuple[str, float]] = {}

    def incarnation_of(self, topic: str) -> str:
        """That of a topic.

        :raises NotFound: there is none of that name.
        :raises Unavailable: the log cannot be asked.
        """
        now = time.monotonic()
        found, asked_at = self._known.get(topic, ("", float("-inf")))
        if now - asked_at >= LASTS:
            found = self._ask_log(topic)
            self._known[topic] = found, now
        return found

    def known_incarnations(self, topics: Iterable[str]) -> dict[str, str]:
        """Those of topics, where they are known.

        :raises NotFound: one does not exist.
        :raises Unavailable: the log cannot be asked.
        """
        return {topic: found for topic in topics if (found := self.incarnation_of(topic))}

    def _ask_log(self, topic: str) -> str:
        try:
            incarnation = self.log.incarnation(topic)
        except (NotFound, Unavailable):
            raise
        except LogError:  # this user may not know it, or the servers do not
            return ""
        return blake2b(incarnation.encode(), digest_size=DIGEST_BYTES).hexdigest()

    def find_replaced(self, before: Mapping[str, str]) -> str:
        """The first of these topics, as they were then, that is gone or another now; empty: none
        is.

        :raises Unavailable: the log cannot be asked.
        """
        for topic, incarnation in before.items():
            try:
                if is_another(incarnation, self.incarnation_of(topic)):
                    return topic
            except NotFound:
                return topic
        return ""

    def clear(self) -> None:
        """Ask anew from now on."""
        self._known.clear()
