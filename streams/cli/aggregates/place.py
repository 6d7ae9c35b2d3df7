"""The log and the app that a command about aggregates is given, and the event topics there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli import output
from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed
from streams.cli.options import open_url
from streams.text import did_you_mean, suggestion

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.eventsourcing import Aggregate
    from streams.eventsourcing.inspection import AggregateInspector
    from streams.log.protocol import Log, OpenMode, TopicInfo

SUFFIX = ".events"
"""What follows an aggregate's name in the name of its event topic."""

SAMPLE_SIZE = 20
"""Records of a partition among which an event is looked for, where the log cannot tell."""

MAX_PARTITIONS = 32
"""Partitions that are looked at for that."""


class Place(NamedTuple):
    """A log that keeps histories, and an app that declares aggregates, if one was given."""

    log: Any
    """A :class:`~streams.log.protocol.Log` that is an :class:`~streams.log.events.EventLog`."""
    app: Streams | None
    target: str

    def aggregate(self, name: str) -> Aggregate[Any, Any]:
        """What the app declares.

        :raises CommandFailed: it declares no such aggregate.
        """
        assert self.app is not None  # noqa: S101 - who asks has one
        found = self.app.aggregates.get(name)
        if found is None:
            raise CommandFailed(
                f"{self.target} declares no aggregate {name!r}; "
                f"{suggestion(name, list(self.app.aggregates))}"
            )
        return found  # type: ignore[return-value]  # nothing else is declared as one

    def inspector(self, name: str) -> AggregateInspector:
        """What looks at it with the app's code."""
        from streams.eventsourcing.inspection import AggregateInspector

        return AggregateInspector(self.aggregate(name), self.log)

    def event_topic(self, name: str) -> TopicInfo:
        """An aggregate's event topic.

        :raises CommandFailed: the app declares no such aggregate, or the log has no such topic.
        """
        from streams.errors import NotFound

        if self.app is not None:
            self.aggregate(name)
        topic = f"{name}{SUFFIX}"
        try:
            info: TopicInfo = self.log.topic(topic)
        except NotFound as error:
            known = [each.name.removesuffix(SUFFIX) for each in event_topics(self.log)]
            hint = did_you_mean(name, known)
            more = f"; {hint}" if hint else f": it has no topic {topic!r}"
            raise CommandFailed(f"the log has no aggregates {name!r}{more}") from error
        if not is_event_topic(self.log, info, when_empty=True):
            raise CommandFailed(
                f"topic {topic!r} holds no histories; streams tail {topic} shows what stands in it"
            )
        return info


@contextmanager
def open_place(target: str | None, url: str | None, mode: OpenMode = "ro") -> Iterator[Place]:
    """The log of ``--url``, of the app, or of the environment.

    :raises CommandFailed: the app cannot be loaded, or the log keeps no histories.
    """
    from streams.log.events import EventLog

    found = None if target is None else load_app(target, url)
    source = url if found is None else found.url_source
    config = None if found is None else found.driver_config
    with open_url(source, mode, config) as log:
        if not isinstance(log, EventLog):
            raise CommandFailed(f"{log.capabilities.name} keeps no histories")
        yield Place(log, found, target or "")


def event_topics(log: Log) -> list[TopicInfo]:
    """The event topics of a log, by name."""
    named = [info for info in log.topics() if info.name.endswith(SUFFIX)]
    return [
        info
        for info in named
        if output.call_or_report(info.name, partial(is_event_topic, log, info))
    ]


def is_event_topic(log: Log, info: TopicInfo, *, when_empty: bool = False) -> bool:
    """Whether a topic holds histories.

    :param when_empty: what to believe of an empty one, where only records can tell.
    """
    from streams.log.event_headers import is_event
    from streams.log.events import ArbitratingLog
    from streams.log.range_reader import read_batches

    if info.is_event_topic or not isinstance(log, ArbitratingLog):
        return info.is_event_topic
    is_empty = True
    for partition in range(min(info.partitions, MAX_PARTITIONS)):
        first, end = log.watermarks(info.name, partition)
        batches = read_batches(log, info.name, partition, first, end, SAMPLE_SIZE)
        for batch in islice(batches, 1):
            is_empty = False
            if any(is_event(batch.headers(at)) for at in range(len(batch.offsets))):
                return True
    return is_empty and when_empty
