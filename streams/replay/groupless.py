"""Subscriptions that belong to no group: over plain readers, without a position in the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NoReturn, Protocol, Self, TypeVar

from typing_extensions import override

from streams.errors import ConfigError
from streams.log.protocol import (
    Assignment,
    Commit,
    Log,
    RebalanceListener,
    Submitted,
    Subscription,
)
from streams.log.wrapped_subscription import log_with_subscribe


class OpenPartition(Protocol):
    """A partition that is read."""

    @property
    def assignment(self) -> Assignment:
        """As the listener knows it."""
        ...

    def close(self) -> None:
        """Close its reader."""
        ...


P = TypeVar("P", bound=OpenPartition)


class GrouplessSubscription(Subscription, Generic[P]):
    """Owns its partitions from its first poll on, until it is closed.

    :param name: what it is, for errors.
    :param advice: what to do who needs a position or a transaction.
    """

    def __init__(self, name: str, advice: str, partitions: Sequence[P]) -> None:
        self._name = name
        self._advice = advice
        self._partitions = partitions
        self._paused: set[int] = set()
        self._listener: RebalanceListener | None = None
        self._is_assigned = False

    def in_place_of(self, log: Log) -> Log:
        """What a poller is given instead of the log, so that it polls this subscription."""
        return log_with_subscribe(log, lambda group, topics, listener, **_: self.listen(listener))

    def listen(self, listener: RebalanceListener) -> Self:
        """Begin to be polled by this listener's owner."""
        self._listener = listener
        return self

    def _assign(self) -> None:
        """Begin with the partitions, unless that is done."""
        if not self._is_assigned and self._listener is not None:
            self._listener.assigned([each.assignment for each in self._partitions])
            self._is_assigned = True  # not before: in an outage it is assigned again

    @override
    def commit(self, commits: Sequence[Commit]) -> None:
        """Nothing is kept."""

    @override
    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        self.commit(commits)
        on_submitted(True)

    @override
    def pause(self, assignments: Iterable[Assignment]) -> None:
        self._paused.update(each.partition for each in assignments)

    @override
    def resume(self, assignments: Iterable[Assignment]) -> None:
        self._paused.difference_update(each.partition for each in assignments)

    @override
    def reassign(self, assignments: Iterable[Assignment]) -> NoReturn:
        raise ConfigError(
            f"{self._name} has no group, so it cannot begin again at a position: {self._advice}"
        )

    @override
    def keep_alive(self) -> None:
        """Nothing expires here."""

    @override
    def wakeup(self) -> None:
        """A poll is short enough without it."""

    @override
    def begin_transaction(self) -> NoReturn:
        raise ConfigError(
            f"{self._name} commits no position, so it has no transaction: {self._advice}"
        )

    @override
    def close(self) -> None:
        if self._is_assigned and self._listener is not None:
            self._is_assigned = False
            self._listener.revoked([each.assignment for each in self._partitions])
        for each in self._partitions:
            each.close()
