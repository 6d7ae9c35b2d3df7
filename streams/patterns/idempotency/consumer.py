"""Handling each message ID once, in one process, wherever the messages come from.

A processor of this package does that by itself (``Dedup``), and remembers through restarts. This
class is for messages from elsewhere: a webhook, another client's consumer, a callback.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from streams.errors import InvalidValue
from streams.message import FIRST_POSITION, REDRIVE, SOURCE, make_identity
from streams.patterns.arguments import check_int
from streams.patterns.idempotency.single_flight import SharedCall, SingleFlight
from streams.patterns.operation import await_call, call_operation, check_operation

M = TypeVar("M")


class DeduplicatedConsumer:
    """Calls a handler once per message ID. Belongs to one event loop.

    A message is identified as in a processor: by its ID, its ``ce_source`` if it has one, how
    often it was put back, and, if it failed, the position where it failed first.

    :param max_size: how many IDs are remembered; the one handled longest ago is evicted first.
    """

    def __init__(self, max_size: int = 10_000) -> None:
        check_int("DeduplicatedConsumer", "max_size", max_size)
        self.max_size = max_size
        self.handled = 0
        """Calls of a handler that succeeded."""
        self.duplicates = 0
        """Messages that were not handled because one with their ID had been."""
        self._seen_ids: OrderedDict[str, None] = OrderedDict()
        self._single_flight: SingleFlight[None] = SingleFlight()

    def __len__(self) -> int:
        """How many IDs are remembered."""
        return len(self._seen_ids)

    def __contains__(self, message: Any) -> bool:
        """Whether this message would be a duplicate."""
        return _message_identity(message) in self._seen_ids

    async def process(self, message: M, handler: Callable[[M], object]) -> bool:
        """Call ``handler(message)`` unless the message's ID was handled; returns whether it was
        called.

        A duplicate that arrives while the first is being handled waits for it: if that succeeds
        there is nothing to do, if it fails this one is handled. An error of the handler is raised
        here, and the ID stays unseen.

        :param message: a :class:`~streams.Message`, or anything with an ``id``.
        :param handler: ``async def`` or plain (it then runs in a worker thread).
        :raises InvalidValue: the message has no ID.
        """
        check_operation(handler, "process(message, handler)", "message")
        id = _message_identity(message)

        async def handle_once(flight: SharedCall[None]) -> None:
            await await_call(handler, self._handle_message(id, message, handler))

        was_called = False
        if id not in self._seen_ids:
            _, was_called = await self._single_flight.run(id, handle_once)
        if not was_called:
            self.duplicates += 1
        return was_called

    async def _handle_message(self, id: str, message: Any, handler: Callable[[Any], Any]) -> None:
        await call_operation(handler, message)
        self.handled += 1
        self._seen_ids[id] = None
        if len(self._seen_ids) > self.max_size:
            self._seen_ids.popitem(last=False)


def _message_identity(message: Any) -> str:
    id = getattr(message, "id", None)
    if not isinstance(id, str) or not id:
        raise InvalidValue(
            f"DeduplicatedConsumer: a {type(message).__name__} with id={id!r}; a message has an id "
            "that is a str and not empty"
        )
    headers = getattr(message, "headers", None)
    if not headers:
        return id
    return make_identity(id, headers.get(SOURCE), headers.get(REDRIVE), headers.get(FIRST_POSITION))
