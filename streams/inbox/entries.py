"""The entries of one job's messages: learns their partitions, and reads the IDs that are in their
values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streams.engine.dispatcher import Delivery
from streams.inbox.calls import Access, Calls
from streams.inbox.identity import Entry, Identities, OwnedPartition
from streams.inbox.partitions import Partitions
from streams.message import Message, make_message, numbered_message
from streams.processing.job import Decoding, SeveralValues


class Entries:
    """Finds the entries of one job's messages.

    :param decodings: the decodings of the topics that the job reads.
    :param accepts: the job's filter of values.
    """

    def __init__(
        self,
        access: Access,
        identities: Identities,
        partitions: Partitions,
        decodings: Mapping[str, Decoding],
        accepts: Callable[[Any], bool] | None,
    ) -> None:
        self._access = access
        self._identities = identities
        self._partitions = partitions
        self._decodings = decodings
        self._accepts = accepts
        self._has_id_in_value = any(each.id_reader is not None for each in decodings.values())

    def find(self, value: Any, message: Message[Any]) -> Calls[Entry]:
        """The entry of a message; may ask the log.

        :param value: the message's value, once it is decoded.
        :raises TransactionPostponed: the log does not answer now.
        """
        value_id = self._value_id(value, message) if self._has_id_in_value else None
        known = self._identities.known_entry(message, value_id)
        if known is not None:
            return known
        owned: OwnedPartition = yield self._access.run_blocking(self._partitions.learn, message)
        return self._identities.entry(message, owned, value_id)

    def find_all(
        self, values: Sequence[Any], messages: Sequence[Message[Any]]
    ) -> Calls[list[Entry]]:
        """As :meth:`find`, for each message of a batch."""
        known = None if self._has_id_in_value else self._identities.known_entries(messages)
        if known is not None:
            return known
        found: list[Entry] = []
        for value, message in zip(values, messages, strict=True):
            found.append((yield from self.find(value, message)))
        return found

    def _value_id(self, value: Any, message: Message[Any]) -> str | None:
        """The ID in a message's value, if its topic has one there."""
        decoding = self._decodings.get(message.topic)
        if decoding is None or decoding.id_reader is None:
            return None
        try:
            return decoding.id_reader(value)
        except Exception:  # counts as no ID: the headers' ID or the position is used
            return None

    # -- a message that is given up

    def given_up(self, delivery: Delivery) -> list[Message[Any]]:
        """The messages that have the entries of a message that is given up: the message itself, or,
        if it has several values, one for each value that its handler takes."""
        batch, index = delivery.fetched.batch, delivery.index
        value = self._value_of(delivery)
        message = make_message(value, batch, index, delivery.attempt)
        if not isinstance(value, SeveralValues):
            return [message]
        return [
            numbered_message(message, each, number)
            for number, each in enumerate(value.values)
            if self._may_take(each)
        ] or [message]

    def _value_of(self, delivery: Delivery) -> Any:
        """The value of a message that is given up, if its identity may depend on it; None if it
        cannot be decoded."""
        decoding = self._decodings.get(delivery.fetched.batch.topic)
        if decoding is None or (decoding.id_reader is None and not decoding.gives_several):
            return None
        try:
            return decoding.decode_one(delivery.fetched.batch, delivery.index)
        except Exception:
            return None

    def _may_take(self, value: Any) -> bool:
        try:
            return self._accepts is None or self._accepts(value)
        except Exception:  # that may be what failed
            return True
