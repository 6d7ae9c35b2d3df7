"""What is known of all groups of a log: who reads which topic, who runs, what waits.

A log tells of one group at a time, and there may be thousands: whoever asks looks at those that
were looked at longest ago, for a moment, and says how many are known. The rest is looked at by a
thread that ends when it is through: what a visitor is shown is seconds old where somebody has
looked lately, and nobody waits until all groups were asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import Fatal, NotFound, NotRunning, StreamsError, Unavailable
from streams.inspection.background import AFTER_CHANGE
from streams.inspection.groups import total_lag
from streams.patterns.internal_topics import internal_topics, is_internal_group
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

logger = get_logger("streams")

FRESH = 5.0
"""Real seconds for which a group's facts are taken as they are."""

AT_ONCE = 0.04
"""Real seconds that a visitor waits at most while what is known is hardly old."""

OLD = 20.0
"""Real seconds after which it is: then a visitor waits longer, rather than being shown it."""

LOOKED_AT = 4
"""Groups that are looked at at the same time, each with several questions to a server; so many are
looked at each time, however long that takes."""

ALL_TOPICS = 60.0
"""Real seconds after which a group is looked for in all topics again. Meanwhile, it is in those
where it was, which is much less work on a log with thousands of topics."""

MAX_GROUPS = 20_000
"""Groups whose facts are kept, at most."""


class GroupFacts(NamedTuple):
    """A group, as it was a moment ago.

    :param topics: where it has positions.
    :param members: how many run; None: the log does not tell.
    :param lag: messages that it has not settled; None: the log cannot count them.
    :param lag_before: the same when it was looked at before; None: it was not.
    :param at: when it was looked at (real seconds since the epoch).
    :param error: why it cannot be shown; empty: it can.
    """

    name: str
    topics: tuple[str, ...]
    members: int | None
    lag: int | None
    lag_before: int | None
    at: float
    error: str = ""


class GroupOverview(NamedTuple):
    """All groups, as far as they are known.

    :param known: by name.
    :param names: of all groups there are, sorted.
    :param internal: the names of topics that are the toolkit's own.
    :param topics: the names of all topics, sorted.
    """

    known: dict[str, GroupFacts]
    names: list[str]
    internal: frozenset[str]
    topics: list[str]

    @property
    def is_complete(self) -> bool:
        """All groups are known."""
        return len(self.known) >= len(self.names)

    def is_internal(self, group: str) -> bool:
        """Whether a group is the toolkit's own, as far as that is known."""
        found = self.known.get(group)
        topics = found.topics if found is not None else (group,)
        return is_internal_group(group, topics, self.internal)

    def readers(self, topic: str) -> list[GroupFacts]:
        """The groups that have positions in a topic."""
        return [each for each in self.known.values() if topic in each.topics]


class GroupIndex:
    """Keeps what is known (any thread).

    :param open_log: gives the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._lock = threading.Lock()
        self._known: dict[str, GroupFacts] = {}
        self._names: list[str] = []
        self._all_topics_at: dict[str, float] = {}
        """When each group was looked for in all topics (monotonic)."""
        self._topics: list[str] = []
        self._internal: frozenset[str] = frozenset()
        self._listed_at = float("-inf")
        self._complete_at = float("-inf")
        self._changed: Collection[str] = ()
        """What was changed last."""
        self._changed_at = 0.0
        """When, in real seconds since the epoch; the other one on the monotonic clock."""
        self._expired_at = float("-inf")
        self._behind: threading.Thread | None = None
        self._threads = ThreadPoolExecutor(LOOKED_AT, thread_name_prefix="streams-web-groups")
        self._closed = threading.Event()

    def expire(self, names: Collection[str] = ()) -> None:
        """Have everything looked at anew: somebody changed something.

        :param names: what was changed: these groups are looked at first.
        """
        # In this order: who looks in between looks again.
        self._changed = frozenset(names)
        self._changed_at, self._expired_at = time.time(), time.monotonic()

    def look(self, seconds: float) -> GroupOverview:
        """What is known, after looking at groups for so many real seconds at most (blocks). One
        visitor looks at a time; the others take what is known, unless that is from before
        :meth:`expire`.

        :raises Unavailable: the log cannot be reached.
        :raises NotRunning: this was closed.
        """
        if self._closed.is_set():
            raise NotRunning("the dashboard is closed")
        began = time.monotonic()
        log = self._open_log()
        is_old = began - self._complete_at >= OLD or self._complete_at <= self._expired_at
        patience = seconds if is_old else min(seconds, AT_ONCE)
        # A log that holds up who looks now is waited for longer after a change.
        is_changed = self._listed_at <= self._expired_at
        longest = max(patience, AFTER_CHANGE) if is_changed else patience
        if self._lock.acquire(timeout=longest if self._names else -1):
            try:
                self._list(log)
                is_through = self._fill(log, began + patience)
            finally:
                self._lock.release()
            if not is_through:
                self._go_on_behind()
        return GroupOverview(dict(self._known), self._names, self._internal, self._topics)

    def _go_on_behind(self) -> None:
        """Look at the others in a thread, unless one does."""
        if self._behind is None or not self._behind.is_alive():
            self._behind = threading.Thread(
                target=self._look_at_all, name="streams-web-groups", daemon=True
            )
            self._behind.start()

    def _look_at_all(self) -> None:
        try:
            is_through = False
            while not is_through and not self._closed.is_set():
                log, began = self._open_log(), time.monotonic()
                with self._lock:  # for a moment, so that a visitor can look meanwhile
                    is_through = self._fill(log, began + AT_ONCE)
                self._closed.wait(time.monotonic() - began)  # half of the time is others'
        except StreamsError as error:  # the next visitor is told
            logger.debug("the dashboard: looking at all groups: %s", error)
        except RuntimeError:
            if not self._closed.is_set():  # which refuses more threads
                raise

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _list(self, log: Log) -> None:
        began = time.monotonic()
        if began - self._listed_at < FRESH / 2 and self._listed_at > self._expired_at:
            return
        self._topics = log.topic_names()
        names = self._names = log.groups()
        self._internal = frozenset(internal_topics(self._topics, names))
        there = set(names)
        for gone in [name for name in self._known if name not in there]:
            del self._known[gone]
            self._all_topics_at.pop(gone, None)
        self._listed_at = began

    def _fill(self, log: Log, deadline: float) -> bool:
        """Look at those that were changed, then at those that were looked at longest ago; whether
        none is left."""
        now, began, changed = time.time(), time.monotonic(), self._changed

        def asked_at(name: str) -> float:
            found = self._known.get(name)
            return 0.0 if found is None else found.at

        def is_fresh(name: str) -> bool:
            return now - asked_at(name) < FRESH and asked_at(name) > self._changed_at

        names = [name for name in self._names[:MAX_GROUPS] if not is_fresh(name)]
        names.sort(key=lambda name: (name not in changed, asked_at(name)))
        for begin in range(0, len(names), LOOKED_AT):
            if begin and time.monotonic() > deadline:
                return False
            some = names[begin : begin + LOOKED_AT]
            found = self._threads.map(lambda name: self._look_at(log, name), some)
            self._known.update(zip(some, found, strict=True))
        self._complete_at = began
        return True

    def _look_at(self, log: Log, name: str) -> GroupFacts:
        before, now = self._known.get(name), time.time()
        lag_before = None if before is None else before.lag
        try:
            info = self._read(log, name, before)
            lag = total_lag(log, info)
            topics = tuple(sorted({topic for topic, _ in info.positions}))
            members = len(info.members)
        except (Unavailable, Fatal):
            raise
        except NotFound:
            return GroupFacts(name, (), None, None, lag_before, now)
        except StreamsError as error:  # others name their groups as they like
            logger.debug("the dashboard: group %r: %s", name, error)
            return GroupFacts(name, (), None, None, lag_before, now, str(error))
        return GroupFacts(name, topics, members, lag, lag_before, now)

    def _read(self, log: Log, name: str, before: GroupFacts | None) -> GroupInfo:
        now, looked_at = time.monotonic(), self._all_topics_at.get(name, float("-inf"))
        is_known = now < looked_at + ALL_TOPICS and looked_at > self._expired_at
        if before is not None and is_known:
            info = log.group(name, before.topics)
            if all(at[0] in before.topics for each in info.members for at in each.partitions):
                return info
        info = log.group(name)
        self._all_topics_at[name] = now
        return info
