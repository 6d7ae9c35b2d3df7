"""An index of all groups of a log: the topics that they read, their members and their lag.

A log answers for one group at a time, and there may be thousands: a thread reads all of them, those
first that were read longest ago, while a visitor has a page open. A request waits for it for a
moment, and returns the known groups and how many are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import Fatal, NotFound, NotRunning, StreamsError, Unavailable
from streams.inspection.background import AFTER_CHANGE
from streams.inspection.groups import total_lag
from streams.patterns.internal_topics import internal_topics, is_internal_group
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log

logger = get_logger("streams")

LOOK = 0.05
"""Seconds of real time for which a list waits for figures; the rest is filled in while it is
open."""

FRESH = 5.0
"""Seconds of real time for which a group's facts are considered fresh."""

LOOKED_AT = 4
"""How many groups are read at the same time, each with several requests to a server."""

ALL_TOPICS = 600.0
"""Seconds of real time after which a group is searched for in all topics again. Meanwhile, only the
topics are read where it was or where its members read, which is much less work with thousands of
topics.
"""

LIST_SHARE = 20
"""The part of the time, one in this many, that listing all topics and groups takes at most."""

AT_FULL_SPEED = 1.0
"""Seconds of real time for which the thread does not rest, so that a usual log is known soon."""

REST = 1
"""After that, it rests for this many times as long as it works."""

WANTED = 30.0
"""Seconds of real time after the last visitor for which it goes on."""

FIRST = 10.0
"""Seconds of real time for which the first visitor waits until the groups are listed."""

MAX_GROUPS = 20_000
"""The most groups whose facts are kept."""


GROWTH_WINDOW = 300.0
"""Seconds of real time for which observed lags are kept, to tell whether the lag grows."""

GROWTH_SPAN = 10.0
"""The least seconds of real time between the first and the last lag of one that grows."""

GROWING = 1.2
"""The factor between an old and a new lag from which a lag grows."""

GROWN = 100
"""The least lag, in messages, that can count as growing."""

MAX_POINTS = 8
"""How many lags of a group are kept; beyond that, every other one is dropped."""

Point = tuple[float, float]
"""A time (seconds of real time since the epoch), and a group's lag then, in messages."""


def lag_grows(points: Sequence[Point], now: float) -> bool:
    """Whether a lag grew within :data:`GROWTH_WINDOW`: at its end, it was always more than it ever
    was at the beginning. Positions move in steps, so that any two lags may differ by much.

    :param points: the oldest first.
    """
    recent = [each for each in points if now - each[0] < GROWTH_WINDOW]
    if len(recent) < 4 or recent[-1][0] - recent[0][0] < GROWTH_SPAN:
        return False
    part = max(2, len(recent) // 4)
    before = max(lag for _, lag in recent[:part])
    after = min(lag for _, lag in recent[-part:])
    return after > GROWN and after > GROWING * before


class GroupFacts(NamedTuple):
    """A group, as it was a moment ago.

    :param topics: the topics in which it has positions.
    :param members: how many run; None: the log does not tell.
    :param lag: messages that it has not settled; None: the log cannot count them.
    :param lags: its lags of the last minutes, the oldest first and ``lag`` last.
    :param at: when it was read (seconds of real time since the epoch).
    :param error: why it cannot be shown; empty: it can.
    """

    name: str
    topics: tuple[str, ...]
    members: int | None
    lag: int | None
    lags: tuple[Point, ...]
    at: float
    error: str = ""


class GroupOverview(NamedTuple):
    """All groups, as far as they are known.

    :param known: the groups that were read, by name.
    :param names: the names of all groups, sorted.
    :param internal: the names of the toolkit's own topics.
    :param topics: the names of all topics, sorted.
    """

    known: dict[str, GroupFacts]
    names: list[str]
    internal: frozenset[str]
    topics: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether all groups are known."""
        return len(self.known) >= len(self.names)

    def is_internal(self, group: str) -> bool:
        """Whether a group is the toolkit's own, as far as that is known."""
        found = self.known.get(group)
        if found is None:  # it may mark the dead letters of the topic of its name
            return group in self.internal
        return is_internal_group(group, found.topics, self.internal)

    def readers(self, topic: str) -> list[GroupFacts]:
        """The groups that have positions in a topic."""
        return [each for each in self.known.values() if topic in each.topics]


class GroupIndex:
    """Keeps the facts of groups (any thread).

    :param open_log: returns the log; it may raise.
    """

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open_log = open_log
        self._state = threading.Condition()
        """Held when something that requests wait for changes."""
        self._known: dict[str, GroupFacts] = {}
        self._names: list[str] = []
        self._topics: list[str] = []
        self._topic_set: frozenset[str] = frozenset()
        self._internal: frozenset[str] = frozenset()
        self._all_topics_at: dict[str, float] = {}
        """When each group was searched for in all topics."""
        self._listed_at = float("-inf")
        """When the listing began (monotonic, as all that follow except one)."""
        self._listing_took = 0.0
        self._complete_at = float("-inf")
        """When the last complete round through all groups began."""
        self._asked_at = float("-inf")
        self._changed: Collection[str] = ()
        """The names changed last."""
        self._changed_at = 0.0
        """The time of that change, in seconds of real time since the epoch; ``_expired_at`` is on
        the monotonic clock."""
        self._expired_at = float("-inf")
        self._failure: StreamsError | None = None
        """The last error of the thread."""
        self._failures = 0
        """The number of its errors."""
        self._thread: threading.Thread | None = None
        self._threads = ThreadPoolExecutor(LOOKED_AT, thread_name_prefix="streams-web-groups")
        self._closed = threading.Event()

    def expire(self, names: Collection[str] = ()) -> None:
        """Have everything read again: something was changed.

        :param names: the changed groups: they are read first.
        """
        # In this order: a request in between reads again.
        self._changed = frozenset(names)
        self._changed_at, self._expired_at = time.time(), time.monotonic()

    def look(self, seconds: float) -> GroupOverview:
        """The known groups, after waiting for this many seconds of real time at most until all are
        known (blocks); the first time and after :meth:`expire` longer, until the groups were
        listed.

        :raises Unavailable: the log cannot be reached.
        :raises NotRunning: this was closed.
        """
        self._asked_at = began = time.monotonic()

        def is_complete() -> bool:
            if self._complete_at <= self._expired_at:
                return False
            return self._complete_at >= began or began - self._complete_at < FRESH

        with self._state:
            listing = AFTER_CHANGE if self._names else FIRST
            is_listed = self._wait(lambda: self._listed_at > self._expired_at, began + listing)
            if not is_listed and self._listed_at == float("-inf"):
                raise Unavailable(f"no answer within {FIRST:.0f} s")
            self._wait(is_complete, began + seconds)
            return GroupOverview(dict(self._known), self._names, self._internal, self._topics)

    def read(self, log: Log, name: str) -> GroupInfo:
        """A group, in the topics where it is known to have positions (blocks).

        :raises NotFound: there is none of that name.
        """
        now, looked_at = time.monotonic(), self._all_topics_at.get(name, float("-inf"))
        before = self._known.get(name)
        is_known = now < looked_at + ALL_TOPICS and looked_at > self._expired_at
        if before is not None and is_known:
            info = log.describe_group(name, before.topics)
            if all(at[0] in before.topics for each in info.members for at in each.partitions):
                return info
        info = log.describe_group(name, self._topic_set)
        self._all_topics_at[name] = now
        return info

    def close(self) -> None:
        """End the threads, and wake those that wait."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._state:
            self._state.notify_all()

    # -- waiting

    def _wait(self, is_so: Callable[[], bool], deadline: float) -> bool:
        """Wait until a condition holds, and make sure that the thread runs (the state is held)."""
        failures = self._failures
        while not is_so():
            if self._closed.is_set():
                raise NotRunning("the dashboard is closed")
            if self._failure is not None and self._failures > failures:
                raise self._failure
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="streams-web-groups", daemon=True
                )
                self._thread.start()
            self._state.wait(left)
        return True

    # -- the thread

    def _run(self) -> None:
        failure: StreamsError | None = None
        try:
            self._look_at_all()
        except StreamsError as error:
            failure = error
        except (RuntimeError, CancelledError):
            if not self._closed.is_set():  # close() refuses more threads, and cancels calls
                raise
        finally:
            with self._state:
                self._thread = None
                if failure is not None:
                    self._failure, self._failures = failure, self._failures + 1
                self._state.notify_all()

    def _look_at_all(self) -> None:
        began, began_at = time.monotonic(), time.time()
        due: list[str] = []
        due_since = began
        while not self._closed.is_set():
            log, round_began = self._open_log(), time.monotonic()
            self._list_groups(log)
            if not due or due_since < max(self._listed_at, self._expired_at):
                due, due_since = self._due_groups(began_at), round_began
            some = due[-LOOKED_AT:]
            del due[-LOOKED_AT:]
            self._known.update(self._threads.map(partial(self._look_at, log), some))
            with self._state:
                if not some and began > self._expired_at:
                    self._complete_at = began
                self._state.notify_all()
            now = time.monotonic()
            if not some or now - self._asked_at > WANTED:
                return
            if now - began > AT_FULL_SPEED:
                self._closed.wait(REST * (now - round_began))

    def _list_groups(self, log: Log) -> None:
        began = time.monotonic()
        age = max(FRESH / 2, LIST_SHARE * self._listing_took)
        if began - self._listed_at < age and self._listed_at > self._expired_at:
            return
        topics, names = log.list_topics(), log.list_groups()
        there = set(names)
        for gone in [name for name in self._known if name not in there]:
            del self._known[gone]
            self._all_topics_at.pop(gone, None)
        self._topics, self._topic_set, self._names = topics, frozenset(topics), names
        self._internal = frozenset(internal_topics(topics, names))
        with self._state:
            self._listed_at, self._listing_took = began, time.monotonic() - began
            self._state.notify_all()

    def _due_groups(self, began_at: float) -> list[str]:
        """The groups that are not fresh; last those that were changed or read longest ago.

        :param began_at: real seconds since the epoch.
        """
        oldest, changed = max(began_at - FRESH, self._changed_at), self._changed

        def asked_at(name: str) -> float:
            found = self._known.get(name)
            # A time in the future is from before the clock was set back.
            return 0.0 if found is None or found.at > time.time() else found.at

        names = [name for name in self._names[:MAX_GROUPS] if asked_at(name) <= oldest]
        return sorted(names, key=lambda name: (name in changed, -asked_at(name)))

    def _look_at(self, log: Log, name: str) -> tuple[str, GroupFacts]:
        before, now = self._known.get(name), time.time()
        facts = GroupFacts(name, (), None, None, (), now)
        try:
            info = self.read(log, name)
            lag = total_lag(log, info)
        except (Unavailable, Fatal):
            raise
        except NotFound:
            return name, facts
        except StreamsError as error:  # other clients choose any group names
            logger.debug("the dashboard: group %r: %s", name, error)
            return name, facts._replace(error=str(error))
        topics = tuple(sorted({topic for topic, _ in info.positions}))
        lags = () if before is None else before.lags
        if lag is not None:
            lags = _with(lags, (now, float(lag)))
        return name, GroupFacts(name, topics, len(info.members), lag, lags, now)


def _with(lags: tuple[Point, ...], one: Point) -> tuple[Point, ...]:
    """The same lags with one more, and without those that are too old."""
    kept = [each for each in lags if one[0] - each[0] < GROWTH_WINDOW]
    return (*(kept if len(kept) < MAX_POINTS else kept[::2]), one)
