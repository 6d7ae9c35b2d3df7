"""Subscriptions that belong to no group: they use plain readers and store no position."""

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
    """A partition that is open for reading."""

    @property
    def assignment(self) -> Assignment:
        """The assignment that the listener is given for it."""
        ...

    def close(self) -> None:
        """Close its reader."""
        ...


P = TypeVar("P", bound=OpenPartition)


class GrouplessSubscription(Subscription, Generic[P]):
    """A subscription that owns its partitions from its first poll on, until it is closed.

    :param name: what the subscription is for, in errors.
    :param advice: what to use instead if a position or a transaction is needed, in errors.
    """

    def __init__(self, name: str, advice: str, partitions: Sequence[P]) -> None:
        self._name = name
        self._advice = advice
        self._partitions = partitions
        self._paused: set[int] = set()
        self._listener: RebalanceListener | None = None
        self._is_assigned = False

    def in_place_of(self, log: Log) -> Log:
        """The log to give to a poller, so that it polls this subscription."""
        return log_with_subscribe(log, lambda group, topics, listener, **_: self.listen(listener))

    def listen(self, listener: RebalanceListener) -> Self:
        """Set the listener that receives the assignments."""
        self._listener = listener
        return self

    def _assign(self) -> None:
        """Assign the partitions to the listener, once."""
        if not self._is_assigned and self._listener is not None:
            self._listener.assigned([each.assignment for each in self._partitions])
            self._is_assigned = True  # set afterwards: in an outage it is assigned again

    @override
    def commit(self, commits: Sequence[Commit]) -> None:
        """Do nothing: no position is stored."""

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
        """Do nothing: this subscription does not expire."""

    @override
    def wakeup(self) -> None:
        """Do nothing: a poll is short enough without it."""

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
