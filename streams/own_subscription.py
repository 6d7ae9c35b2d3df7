"""Processors that poll a subscription of their own instead of the log's.

They have the poller and the executors of any processor. What belongs to a group's topics they do
without: a start, retries that are counted, retry and dead letter topics, and transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from typing_extensions import override

from streams.config import Retry
from streams.connection import Connection
from streams.errors import NotRunning
from streams.log.protocol import Log
from streams.processing import Job
from streams.processor import Processor, ProcessorOptions


class OwnSubscription(Protocol):
    """A subscription that is polled instead of a log's."""

    def in_place_of(self, log: Log) -> Log:
        """What a poller is given instead of the log, so that it polls this subscription."""
        ...


class OwnSubscriptionProcessor(Processor[..., Any]):
    """See the module.

    :param subscribe: makes the subscription, each time before the processor starts, and what it
        needs in the log; blocks.
    """

    has_group_topics = False
    has_own_options = False

    def __init__(
        self,
        function: Callable[..., Any],
        options: ProcessorOptions,
        name: str,
        subscribe: Callable[[Connection], OwnSubscription],
    ) -> None:
        super().__init__(function, options, name)
        self._subscribe = subscribe
        self._subscription: OwnSubscription | None = None

    @override
    def ensure_topics(self, connection: Connection) -> None:
        self._subscription = self._subscribe(connection)

    @override
    def adapt_job(self, job: Job) -> Job:
        return replace(
            job,
            topics=self.topics,
            decodings={topic: job.decodings[topic] for topic in self.topics},
            retry=Retry(attempts=1),
            dead_letter=None,
            transactions=False,
        )

    @override
    def subscribed_log(self, connection: Connection) -> Log:
        if self._subscription is None:
            raise NotRunning(f"processor {self.name} was not prepared")
        return self._subscription.in_place_of(connection.log)
