"""Outboxes and their rows, for people and for programs. The contents of a row are untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streams.cli import output

if TYPE_CHECKING:
    from streams.outbox import Outbox
    from streams.outbox.inspection import HeldRow, InspectedOutbox, InspectedRow

_OUTBOX_COLUMNS = (
    "outbox", "ready", "oldest_seconds", "failed", "waiting", "undeclared", "relays",
    "seen_seconds",
)  # fmt: skip
_TOPIC_COLUMNS = ("undeclared_topic", "rows", "oldest_seconds")
_ROW_COLUMNS = ("row", "state", "topic", "key", "id", "age_seconds", "bytes", "waiting", "error")


def outbox_json(outbox: Outbox, found: InspectedOutbox) -> dict[str, Any]:
    """An outbox with the requested rows."""
    backlog, relays = found.backlog, found.relays
    return {
        "outbox": outbox.name,
        "ready": backlog.depth,
        "oldest_seconds": backlog.oldest,
        "failed": backlog.failed,
        "waiting": backlog.waiting,
        "undeclared": backlog.undeclared,
        "undeclared_topics": [
            {
                "undeclared_topic": output.printable_text(str(topic)),
                "rows": rows,
                "oldest_seconds": age,
            }
            for topic, rows, age in found.undeclared
        ],
        "relays": relays.number,
        "seen_seconds": relays.seconds,
        "rows": [_held_json(row) for row in found.rows],
    }


def _held_json(row: HeldRow) -> dict[str, Any]:
    from streams.outbox.inspection import state_name

    return {
        "row": str(row.sequence),
        "state": state_name(row.state),
        "topic": output.printable_text(str(row.topic)),
        "key": None if row.keytype == "none" else output.printable_text(str(row.key)),
        "id": output.printable_text(str(row.id)),
        "type": output.printable_text(str(row.type)),
        "age_seconds": row.age,
        "bytes": row.size,
        "waiting": row.waiting,
        "error": None if row.error is None else output.printable_text(row.error),
    }


def print_outboxes(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the outboxes for people."""
    output.print_rows(found, _OUTBOX_COLUMNS, json=False)
    for each in found:
        for shown, columns in (
            (each["rows"], _ROW_COLUMNS),
            (each["undeclared_topics"], _TOPIC_COLUMNS),
        ):
            if shown:
                output.print_line("")
                output.print_line(f"{each['outbox']}:")
                output.print_rows(shown, columns, json=False)


def row_json(found: InspectedRow) -> dict[str, Any]:
    """A row with its value and headers."""
    payload = found.payload
    value = output.value_json(None if payload is None else bytes(payload))
    headers = found.headers
    return {
        **_held_json(found.row),
        "key_is": output.printable_text(str(found.row.keytype)),
        "no_message_because": found.problem or None,
        "headers": None if headers is None else output.document_json(_as_bytes(headers)),
        **value,
    }


def _as_bytes(headers: object) -> bytes:
    return str(headers).encode("utf-8", "backslashreplace")


def print_row(document: Mapping[str, Any]) -> None:
    """Print the row for people."""
    shown: dict[str, output.Cell] = {}
    for name, found in document.items():
        if name in ("value", "text", "base64", "headers"):
            if found is not None:
                shown[name] = output.json_bytes(found).decode().rstrip()
        elif found is not None:
            shown[name.removesuffix("_seconds").replace("_", " ")] = output.field_cell(name, found)
    output.print_mapping(shown)
