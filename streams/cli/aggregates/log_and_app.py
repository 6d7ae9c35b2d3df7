"""The log and the app of a command about aggregates, and the event topics there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed
from streams.cli.options import open_url
from streams.text import did_you_mean, suggestion

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.eventsourcing import Aggregate
    from streams.eventsourcing.inspection import AggregateInspector
    from streams.log.protocol import OpenMode, TopicInfo


class LogAndApp(NamedTuple):
    """A log that keeps histories, and an app that declares aggregates, if one was given."""

    log: Any
    """A :class:`~streams.log.protocol.Log` that is an :class:`~streams.log.events.EventLog`."""
    app: Streams | None
    target: str

    def aggregate(self, name: str) -> Aggregate[Any, Any]:
        """The aggregate that the app declares.

        :raises CommandFailed: it declares no such aggregate.
        """
        assert self.app is not None  # noqa: S101 - callers check it
        found = self.app.aggregates.get(name)
        if found is None:
            raise CommandFailed(
                f"{self.target} declares no aggregate {name!r}; "
                f"{suggestion(name, list(self.app.aggregates))}"
            )
        return found  # type: ignore[return-value]  # nothing else is declared as one

    def inspector(self, name: str) -> AggregateInspector:
        """An inspector of the aggregate with the app's code."""
        from streams.eventsourcing.inspection import AggregateInspector

        return AggregateInspector(self.aggregate(name), self.log)

    def event_topic(self, name: str) -> TopicInfo:
        """An aggregate's event topic.

        :raises CommandFailed: the app declares no such aggregate, or the log has no such topic.
        """
        from streams.errors import NotFound
        from streams.inspection.aggregates import SUFFIX, event_topics

        if self.app is not None:
            self.aggregate(name)
        topic = f"{name}{SUFFIX}"
        try:
            info: TopicInfo = self.log.describe_topic(topic)
        except NotFound as error:
            known = [each.name.removesuffix(SUFFIX) for each in event_topics(self.log)]
            hint = did_you_mean(name, known)
            more = f"; {hint}" if hint else f": it has no topic {topic!r}"
            raise CommandFailed(f"the log has no aggregates {name!r}{more}") from error
        if not info.is_event_topic:
            raise CommandFailed(
                f"topic {topic!r} holds no histories; streams tail {topic} shows what is in it"
            )
        return info


@contextmanager
def open_log_and_app(
    target: str | None, url: str | None, mode: OpenMode = "ro"
) -> Iterator[LogAndApp]:
    """The log of ``--url``, of the app, or of the environment.

    :raises CommandFailed: the app cannot be loaded, or the log keeps no histories.
    """
    from streams.log.events import EventLog

    found = None if target is None else load_app(target, url)
    with open_url(url, mode, found) as log:
        if not isinstance(log, EventLog):
            raise CommandFailed(f"{log.capabilities.name} keeps no histories")
        yield LogAndApp(log, found, target or "")
