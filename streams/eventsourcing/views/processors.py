"""The processors of a view: they poll as any processor does, and fold in the poll."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from typing_extensions import override

from streams.config import Dedup
from streams.connection import Connection
from streams.errors import ConfigError
from streams.eventsourcing.views.definition import ViewDefinition
from streams.eventsourcing.views.inline_subscription import InlineSubscription, PartitionCounts
from streams.health import ProcessorStats
from streams.own_subscription import OwnSubscriptionProcessor
from streams.processor import Processor, ProcessorOptions

Subscribe = Callable[[Connection], InlineSubscription[Any]]
"""Creates what is needed in the log, and makes the subscription; blocks."""


def _never_called(value: Any) -> None:
    """A view's messages are handled where they are polled."""


class InlineProcessor(OwnSubscriptionProcessor):
    """A processor whose subscription handles what it polls.

    :param counts: which the subscription keeps.
    """

    def __init__(
        self,
        options: ProcessorOptions,
        name: str,
        subscribe: Subscribe,
        counts: dict[tuple[str, int], PartitionCounts],
    ) -> None:
        super().__init__(_never_called, options, name, subscribe)
        self._counts = counts

    @override
    def ensure_topics(self, connection: Connection) -> None:
        self._counts.clear()
        super().ensure_topics(connection)

    @override
    def stats(self) -> ProcessorStats | None:
        found = super().stats()
        if found is None:
            return None
        return replace(found, handled=sum(each.events for each in list(self._counts.values())))


def declare_inline(
    definition: ViewDefinition[Any],
    group: str,
    topics: tuple[Any, ...],
    subscribe: Subscribe,
    counts: dict[tuple[str, int], PartitionCounts],
) -> Processor[..., Any]:
    """Declare a processor of a view.

    :raises ConfigError: the app has one of that name.
    """
    app = definition.app
    if any(each.name == group for each in app.processors):
        raise ConfigError(
            f"{definition.where}: version {definition.version} is declared twice: give each its "
            "own name or version="
        )
    options = ProcessorOptions(topics=topics, group=group, dedup=Dedup(window=0))

    def make(_: Any, options: ProcessorOptions, __: str) -> Processor[..., Any]:
        return InlineProcessor(options, group, subscribe, counts)

    return app.declare(_never_called, options, make)
