"""A dispatcher whose messages may be done with before they are settled.

What becomes of a message is published in a transaction that comes later. Until then the message is
not settled: a crash has it handled again. But its key goes on, and its copies are duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from typing_extensions import override

from streams.config import Retry
from streams.engine.dispatcher import Delivery, Dispatcher, StateAndKey


class DeferringDispatcher(Dispatcher):
    """See :class:`~streams.engine.dispatcher.Dispatcher`.

    :param defers: whether somebody else settles a delivery that is reported as settled.
    :param is_full: so much waits to be published that no more is to be handled for now.
    """

    def __init__(
        self, retry: Retry, defers: Callable[[Delivery], bool], is_full: Callable[[], bool]
    ) -> None:
        super().__init__(retry)
        self._defers = defers
        self._is_full = is_full

    @override
    def take(
        self, now: float, batch_keys: Collection[StateAndKey] = (), identities: Collection[str] = ()
    ) -> Delivery | None:
        return None if self._is_full() else super().take(now, batch_keys, identities)

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
            state, identity = delivery.fetched.state, delivery.identity
            if identity is not None and state.window is not None and state.is_owned:
                # Of a partition that has gone nothing is published any more: to the assignment that
                # came after, this message is no duplicate.
                state.window.add(identity)
