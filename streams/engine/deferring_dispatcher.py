"""A dispatcher whose messages may be done with before they are settled.

What becomes of a message is published in a transaction that comes later. Until then the message is
not settled: a crash has it handled again. But its key goes on, and its copies are duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from typing_extensions import override

from streams.config import Retry
from streams.engine.dispatcher import Delivery, Dispatcher, StateAndKey
from streams.engine.progress import FetchedBatch


class DeferringDispatcher(Dispatcher):
    """See :class:`~streams.engine.dispatcher.Dispatcher`.

    :param defers: whether somebody else settles a delivery that is reported as settled.
    """

    def __init__(self, retry: Retry, defers: Callable[[Delivery], bool]) -> None:
        super().__init__(retry)
        self._defers = defers
        self.is_full = False
        """So much waits to be published that no more is to be handled for now."""

    @override
    def take_next(
        self, now: float, batch_keys: Collection[StateAndKey] = (), identities: Collection[str] = ()
    ) -> Delivery | None:
        if self.is_full and not self.ready:
            return None  # what is ready was taken in, and others may wait for it to be stored
        return super().take_next(now, batch_keys, identities)

    @override
    def take_fast_batch(self, now: float) -> FetchedBatch | None:
        return None if self.is_full else super().take_fast_batch(now)

    @override
    def finish_fast_run(self, fetched: FetchedBatch, stop: int) -> None:
        if fetched.state.is_owned:
            super().finish_fast_run(fetched, stop)
        else:  # see _remember_if_owned
            self.counts.handled += stop

    def mark_handled(self, delivery: Delivery) -> None:
        """The message was handled, and somebody else settles it."""
        self.counts.handled += 1
        self._remember_if_owned(delivery)
        if delivery.ordering_key is not None:
            self._release_key(delivery.fetched.state, delivery.ordering_key)

    @override
    def mark_settled(self, delivery: Delivery) -> None:
        self._record_settled((delivery,))
        if delivery.reason is not None:
            self.counts.handled -= 1
            self.counts.dead_lettered += 1
        if delivery.ordering_key is not None:
            self._release_key(delivery.fetched.state, delivery.ordering_key)

    @override
    def _record_settled(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            if not self._defers(delivery):
                super()._record_settled((delivery,))
                continue
            self.counts.handled += 1
            self._remember_if_owned(delivery)

    def _remember_if_owned(self, delivery: Delivery) -> None:
        """Copies of a message are duplicates from now on. Of a partition that was given up nothing
        is published any more, so to the assignment that came after, this message is none."""
        state, identity = delivery.fetched.state, delivery.identity
        if identity is not None and state.window is not None and state.is_owned:
            state.window.add(identity)
