"""Which topic of its name something was made of: one that is deleted and made anew is another.

Documents keep a word for each topic that they are made of, and so does each keyed record; a word of
another topic is another. Where a log cannot tell its topics apart the word is empty, and nothing is
held against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from streams.errors import LogError, NotFound, Unavailable
from streams.log.protocol import Log

WORD_BYTES = 5
"""Bytes of a word; it is written in hexadecimal digits."""

LASTS = 1.0
"""Seconds for which a word that was asked for is taken for the one of now, at most."""


def is_another(one: str, other: str) -> bool:
    """Whether two words are known to be those of two topics."""
    return bool(one and other) and one != other


class Origins:
    """The words of a log's topics as they are now (any thread; blocks)."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._known: dict[str, tuple[str, float]] = {}

    def of(self, topic: str) -> str:
        """The word of a topic.

        :raises NotFound: there is none of that name.
        :raises Unavailable: the log cannot be asked.
        """
        now = time.monotonic()
        word, asked_at = self._known.get(topic, ("", float("-inf")))
        if now - asked_at >= LASTS:
            word = self._ask(topic)
            self._known[topic] = word, now
        return word

    def among(self, topics: Iterable[str]) -> dict[str, str]:
        """The words of topics, where they are known.

        :raises NotFound: one does not exist.
        :raises Unavailable: the log cannot be asked.
        """
        return {topic: word for topic in topics if (word := self.of(topic))}

    def _ask(self, topic: str) -> str:
        try:
            incarnation = self.log.incarnation(topic)
        except (NotFound, Unavailable):
            raise
        except LogError:  # this user may not know it, or the servers do not
            return ""
        return blake2b(incarnation.encode(), digest_size=WORD_BYTES).hexdigest()

    def replaced(self, words: Mapping[str, str]) -> str:
        """The first of these topics, as they were then, that is gone or another now; empty: none
        is.

        :raises Unavailable: the log cannot be asked.
        """
        for topic, word in words.items():
            try:
                if is_another(word, self.of(topic)):
                    return topic
            except NotFound:
                return topic
        return ""

    def forget(self) -> None:
        """Ask anew from now on."""
        self._known.clear()
