"""Values as documents, whatever their encoding: JSON as it is stored, others (MessagePack, a
compressed value, a codec of the app's own) as the app's topics decode them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from streams.eventsourcing.inspection import event_reader, json_document

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.message import Batch
    from streams.web.redaction import Payloads

NO_DOCUMENT: Any = object()
"""The result of :func:`document_of` for a value that is not a document."""

MAX_DECODED = 1 << 20
"""The largest value that is decoded, in bytes; a larger one would block everything else."""


def document_of(app: Streams, payloads: Payloads, batch: Batch, index: int, shown: bytes) -> Any:
    """A value as a document of mappings, lists, texts and numbers; :data:`NO_DOCUMENT`: it is none,
    or too large.

    :param payloads: a value that the app decodes passes through ``redact=`` once more, as JSON.
    :param shown: its bytes as the visitor may see them: the app decodes it only if these are the
        whole value.
    """
    if len(shown) > MAX_DECODED:
        return NO_DOCUMENT
    try:
        return orjson.loads(shown)
    except (orjson.JSONDecodeError, RecursionError):
        pass
    declared = app.topics.get(batch.topic)
    if declared is None or declared.type is bytes or declared.type is str:
        return NO_DOCUMENT
    if shown != batch.values[index]:
        return NO_DOCUMENT
    try:
        value = declared.decoding.decode_one(batch, index)
        again = payloads.value(batch.topic, msgspec.json.encode(value)).data
        return NO_DOCUMENT if again is None else orjson.loads(again)
    except Exception:  # a codec of the user's own may raise anything, and so may its objects
        return NO_DOCUMENT


def events_today(
    app: Streams, payloads: Payloads, batch: Batch, index: int, shown: bytes | None
) -> Sequence[tuple[str, bytes]] | None:
    """The events that the app's code upcasts a stored event to: the names of their types, and the
    events as JSON; None: it is the stored event itself, or that is unknown.

    :param shown: see :func:`document_of`.
    """
    if shown is None or len(shown) > MAX_DECODED or shown != batch.values[index]:
        return None
    try:
        read = event_reader(app, batch.topic)
        found = None if read is None else read(shown)
    except Exception:  # a codec or an upcast of the user's own may raise anything
        return None
    if found is None or found.reason:
        return None
    events: list[tuple[str, bytes]] = []
    documents: list[Any] = []
    for each in found.events:
        data = payloads.value(batch.topic, json_document(each)).data
        if data is None:
            return None
        try:
            documents.append(orjson.loads(data))
        except orjson.JSONDecodeError:  # the result of redact=
            return None
        events.append((type(each).__name__, data))
    stored = document_of(app, payloads, batch, index, shown)
    return None if documents == [stored] else events
