"""Messages as lists show them: small, whatever their size, without parts that a visitor may not
see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streams.text import printable_text
from streams.web.redaction import Shown

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch
    from streams.web.redaction import Payloads

KEPT_BYTES = 1_500
"""The bytes of a key or a value that a row keeps."""


class ListedMessage(NamedTuple):
    """A message in a list.

    :param offset: in its log's notation.
    :param size: the bytes of the value; None: a tombstone.
    :param headers: the number of its headers, except its ID.
    :param problem: why its headers cannot be read; empty: they can.
    """

    topic: str
    partition: int
    offset: str
    number: int
    time: float
    id: Shown
    key: Shown
    value: Shown
    size: int | None
    headers: int
    problem: str

    @property
    def place(self) -> str:
        """Partition and offset."""
        return f"{self.partition}/{self.offset}"


def row_of(log: Log, payloads: Payloads, batch: Batch, index: int) -> ListedMessage:
    """A message of a batch as a row."""
    value = batch.values[index]
    headers = batch.headers(index)
    return ListedMessage(
        batch.topic,
        batch.partition,
        log.format_offset(batch.offsets[index]),
        batch.offsets[index],
        batch.time(index),
        payloads.id(batch.topic, batch.id(index), batch.keys[index]),
        beginning(payloads.key(batch.topic, batch.keys[index])),
        beginning(payloads.value(batch.topic, value)),
        None if value is None else len(value),
        sum(name != "ce_id" for name, _ in headers),
        printable_text(batch.unreadable.get(index, "")),
    )


def beginning(shown: Shown) -> Shown:
    """The first bytes of a visible part, so that a list holds no large message in memory."""
    if shown.data is None or len(shown.data) <= KEPT_BYTES:
        return shown
    return Shown(bytes(shown.data[:KEPT_BYTES]))
