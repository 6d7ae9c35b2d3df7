"""Subscriptions that wrap others, and logs whose members get them.

A :class:`WrappedSubscription` delegates every call to the subscription that it wraps; a subclass
overrides only the methods that it changes, and so keeps the protocol's promises in all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from typing_extensions import override

from streams.log.protocol import Assignment, Commit, Log, Submitted, Subscription, Transaction
from streams.message import Batch, Record


class WrappedSubscription(Subscription):
    """A subscription that delegates every call; see the module.

    :param subscription: the subscription that it wraps.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        return self._subscription.poll(limit, timeout)

    @override
    def commit(self, commits: Sequence[Commit]) -> None:
        self._subscription.commit(commits)

    @override
    def commit_async(self, commits: Sequence[Commit], on_submitted: Submitted) -> None:
        self._subscription.commit_async(commits, on_submitted)

    @override
    def prepare_outputs(self) -> None:
        self._subscription.prepare_outputs()

    @property
    @override
    def resume_delay(self) -> float:
        return self._subscription.resume_delay

    @property
    @override
    def outputs_limit(self) -> int | None:
        return self._subscription.outputs_limit

    @override
    def commit_outputs(
        self, outputs: Sequence[tuple[str, Record]], commits: Sequence[Commit]
    ) -> None:
        self._subscription.commit_outputs(outputs, commits)

    @override
    def pause(self, assignments: Iterable[Assignment]) -> None:
        self._subscription.pause(assignments)

    @override
    def resume(self, assignments: Iterable[Assignment]) -> None:
        self._subscription.resume(assignments)

    @override
    def reassign(self, assignments: Iterable[Assignment]) -> None:
        self._subscription.reassign(assignments)

    @override
    def keep_alive(self) -> None:
        self._subscription.keep_alive()

    @override
    def wakeup(self) -> None:
        self._subscription.wakeup()

    @override
    def begin_transaction(self) -> Transaction:
        return self._subscription.begin_transaction()

    @override
    def close(self) -> None:
        self._subscription.close()


def log_with_subscribe(log: Log, subscribe: Callable[..., Subscription]) -> Log:
    """The log with another :meth:`~streams.log.protocol.Log.subscribe`, so that a poller which is
    given it polls another subscription than the log's."""
    return cast(Log, _LogWithSubscribe(log, subscribe))


class _LogWithSubscribe:
    def __init__(self, log: Log, subscribe: Callable[..., Subscription]) -> None:
        self._log = log
        self.subscribe = subscribe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)
