"""Configuration: a few frozen dataclasses, passed whole; every default is meant for production.

All durations are seconds, all sizes bytes. An impossible value raises
:class:`~streams.errors.ConfigError` where it is written, not where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from streams.errors import ConfigError
from streams.numbers import is_int, is_seconds

OnUnknown = Literal["dead", "skip", "wait"]
"""What becomes of a union's unknown tag: a dead letter; passed over (and settled); or its message
waits, with what follows of its key, for newer code (:class:`~streams.errors.CodeTooOld`)."""

Start = Literal["earliest", "latest"]


def _check(config: object, name: str, valid: bool, needed: str) -> None:
    if not valid:
        given = f"{type(config).__name__}({name}={getattr(config, name)!r})"
        raise ConfigError(f"{given}: {needed}")


def _check_count(
    config: object, name: str, least: int = 1, needed: str = "must be a positive integer"
) -> None:
    _check(config, name, is_int(getattr(config, name), least), needed)


def _check_flag(config: object, name: str) -> None:
    _check(config, name, isinstance(getattr(config, name), bool), "must be True or False")


def _check_duration(config: object, name: str) -> None:
    is_duration = is_seconds(getattr(config, name), positive=False)
    _check(config, name, is_duration, "must be a non-negative number of seconds")


@dataclass(frozen=True, slots=True, repr=False)
class Retention:
    """How long a topic keeps its messages; ``Retention()`` is for ever.

    Messages that a group has not settled are kept regardless, except on Kafka, which deletes
    whatever its own rules say. A topic is created with its declared retention; one that exists
    keeps what it has until ``streams topics retain`` changes it.

    :param seconds: drop messages older than this (every log).
    :param messages: keep about this many messages a partition (every log but Kafka).
    :param bytes: keep about this many bytes a partition (Kafka).
    :param compacted: keep only the last message of each key (Kafka). With ``seconds`` or ``bytes``
        those bounds hold as well.
    """

    seconds: float | None = None
    messages: int | None = None
    bytes: int | None = None
    compacted: bool = False

    def __post_init__(self) -> None:
        seconds = self.seconds
        positive = seconds is None or (is_seconds(seconds) and seconds < float("inf"))
        _check(self, "seconds", positive, "must be more than 0, or None")
        for name in ("messages", "bytes"):
            if getattr(self, name) is not None:
                _check_count(self, name, needed="must be a positive integer, or None")
        _check_flag(self, "compacted")

    @property
    def bounds_set(self) -> tuple[str, ...]:
        """The names of the bounds that are set; none of them: messages are kept for ever."""
        given = (field for field in fields(self) if getattr(self, field.name) != field.default)
        return tuple(field.name for field in given)

    def __repr__(self) -> str:
        bounds = (f"{each}={getattr(self, each)!r}" for each in self.bounds_set)
        return f"Retention({', '.join(bounds)})"


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how fast a failing message is tried again.

    Exponential backoff with *full jitter*: before attempt n+1 the message waits a random time
    between 0 and ``min(cap, delay * 2**(n-1))`` (Marc Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015).

    :param attempts: how often the handler is called at most, the first call included.
    :param delay: the first backoff's upper bound in seconds.
    :param cap: no backoff is longer than this, in seconds.
    :param never: exception types that are not tried again but dead-lettered at once.
    :param in_order: True: the failing message's key waits for it (other keys go on). False: the
        message waits in the group's delay topic, ``{topic}.{group}.delay``, and comes back when it
        is due; later messages of its key overtake it, and its attempts survive a restart.
    :param durable: with ``in_order``: attempts survive a restart too. A keyless message, which has
        no order to lose, waits in the delay topic; a message with a key keeps its key queue, and
        each of its failures is noted in the log before the next attempt.
    """

    attempts: int = 5
    delay: float = 0.1
    cap: float = 30.0
    never: tuple[type[BaseException], ...] = ()
    in_order: bool = True
    durable: bool = False

    def __post_init__(self) -> None:
        needed = "must be a positive integer; 1 means the first call alone"
        _check_count(self, "attempts", needed=needed)
        _check_duration(self, "delay")
        _check_duration(self, "cap")
        is_collection = isinstance(self.never, (tuple, list, set, frozenset))
        never = tuple(self.never) if is_collection else (self.never,)
        for each in never:
            if not (isinstance(each, type) and issubclass(each, BaseException)):
                raise ConfigError(f"Retry(never=...): a tuple of exception types, not {each!r}")
        object.__setattr__(self, "never", never)
        _check_flag(self, "in_order")
        _check_flag(self, "durable")

    def backoff_bounds(self) -> Iterator[float]:
        """The upper bound of each backoff in turn, in seconds: ``attempts - 1`` of them."""
        for n in range(self.attempts - 1):
            yield self.backoff_bound(n + 1)

    def backoff_bound(self, attempt: int) -> float:
        """The upper bound in seconds of the backoff after an attempt (from 1)."""
        # 2.0**1000 is still a float: the cap decides long before.
        return min(self.cap, self.delay * 2.0 ** min(attempt - 1, 1000))

    @property
    def uses_attempt_log(self) -> bool:
        """Attempts are counted in the log."""
        return self.durable or not self.in_order

    @property
    def longest_backoff(self) -> float:
        """The longest time in seconds that backoff alone can hold a key."""
        return sum(self.backoff_bounds())


@dataclass(frozen=True, slots=True)
class Dedup:
    """How many message IDs are remembered, so that a message published twice is handled once.

    :param window: IDs a partition, at least; 0 turns deduplication off.
    :param cap: IDs in the whole process, at most; the partitions share it evenly when
        ``window`` times their number would be more.
    """

    window: int = 10_000
    cap: int = 2_000_000

    def __post_init__(self) -> None:
        _check_count(self, "window", 0, "must be a non-negative integer; 0 turns it off")
        _check_count(self, "cap")


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Where messages go that cannot be handled.

    :param topic: the dead letter topic; ``{topic}`` and ``{group}`` are filled in.
    :param sequenced: a dead message closes its key: it and later messages of that key are kept in
        ``{topic}.{group}.parked``, in order, until it is retried, edited or dropped (``streams dead
        keys``). Messages without a key go to the dead letter topic as ever.
    """

    topic: str = "{topic}.{group}.dead"
    sequenced: bool = False

    RETRY: ClassVar[str] = "{topic}.{group}.retry"
    """Where dead letters go when they are put back: owned by the group, so that no other group
    sees them again. Every processor reads it beside its topic."""

    def __post_init__(self) -> None:
        _check_flag(self, "sequenced")
        given = isinstance(self.topic, str) and bool(self.topic)
        _check(self, "topic", given, "a topic's name is needed, as a str")
        try:
            self.name("t", "g")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"DeadLetters(topic={self.topic!r}): only {{topic}} and {{group}} are filled in"
            ) from error

    def name(self, topic: str, group: str) -> str:
        """The dead letter topic of ``topic`` and ``group``."""
        return self.topic.format(topic=topic, group=group)

    def retry(self, topic: str, group: str) -> str:
        """The topic for what is put back from :meth:`name`."""
        return self.RETRY.format(topic=topic, group=group)

    def topic_names(self, topics: Iterable[str], group: str) -> list[str]:
        """The dead letter topics of a group's topics, and the topics for what is put back, where
        these are others than the topics themselves."""
        names: dict[str, None] = {}
        for topic in topics:
            own = (self.name(topic, group), self.retry(topic, group))
            names |= dict.fromkeys(each for each in own if each != topic)
        return list(names)


RETRY_PARTITIONS = 1
"""Partitions of a topic for what is put back. Order is a matter of keys, not of partitions; and
Kafka's assignors share out the *sum* of a member's partitions: as many of these as of the source,
and the second member to join would get all the source's and the first be left with these (seen)."""


class _DefaultSeconds(float):
    """Seconds that nobody has given, so that they can be told from those that somebody has."""

    __slots__ = ()


PIPELINE_COMMIT = 0.1
"""Seconds between two transactions of an exactly-once processor, unless given."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How much is held in memory, how often positions are committed, how long a stop may take.

    :param messages: unsettled messages held by one processor, at most.
    :param bytes: their bytes (keys and values), the driver's prefetch included, at most; a single
        larger message is still taken, alone.
    :param commit: seconds between two commits of the positions that are waited for, at most.
        In between, settled positions are stored as often as it costs next to nothing (see
        docs/tuning.md). With ``exactly_once=True``: seconds between two transactions, 0.1 unless
        given.
    :param drain: seconds given to handlers in flight on a stop or a rebalance; then async
        handlers are cancelled.
    """

    messages: int = 10_000
    bytes: int = 64 << 20
    commit: float = _DefaultSeconds(1.0)
    drain: float = 30.0

    @property
    def pipeline_commit(self) -> float:
        """Seconds between two transactions of an exactly-once processor."""
        return PIPELINE_COMMIT if isinstance(self.commit, _DefaultSeconds) else self.commit

    def __post_init__(self) -> None:
        _check_count(self, "messages")
        _check_count(self, "bytes")
        positive = is_seconds(self.commit)
        _check(self, "commit", positive, "must be a positive number of seconds")
        _check_duration(self, "drain")


@dataclass(frozen=True, slots=True)
class CloudEvents:
    """What is published is a CloudEvent (1.0, https://cloudevents.io), in the binary mode of the
    Kafka protocol binding: its attributes are headers, the value stays what it is.

    :param source: where events happen, a URI or a part of one: ``"/shop/orders"``,
        ``"https://shop.example.com/orders"``. Source and ID together name an event, also for
        deduplication.
    :param type: what an event is called, such as ``"com.example.order.placed"``; or a function of
        its value. If not given: the tag of a tagged type, else the name of the value's class, else
        (a dict, a str and the like) the topic's name.
    """

    source: str
    type: str | Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        is_uri = (
            isinstance(self.source, str)
            and self.source.isascii()
            and self.source.isprintable()
            and self.source != ""
            and not set(self.source) & set(' "<>\\^`{|}')
        )
        _check(self, "source", is_uri, "a URI or a part of one, such as '/shop/orders'")
        type_ = self.type
        named = isinstance(type_, str) and type_ != "" and type_.isprintable()
        needed = "a name, such as 'com.example.order.placed', or a function of the value"
        _check(self, "type", type_ is None or callable(type_) or named, needed)
