"""A dead letter as JSON, and its parts as table cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams import wire
from streams.cli import output

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow
    from streams.message import Headers


def letter_summary(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    """A letter for JSON, without its content."""
    from streams import derived_records as records
    from streams.patterns.deadletters import failure_time

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    parts = (records.ERROR_TOPIC, records.ERROR_PARTITION, records.ERROR_OFFSET)
    source = "/".join(_header_text(headers, name) or "?" for name in parts)
    error = output.printable_text(records.error_of(headers, unknown="?"))
    failed_at = output.iso_time(failure_time(batch, index).timestamp())
    first = wire.parse_iso_time(_header_text(headers, records.FIRST_FAILED))
    position = output.position_text(log, batch, index)
    return {
        "place": position.removeprefix(f"{batch.topic}/"),
        "position": position,
        "failed_at": failed_at,
        "group": _header_text(headers, records.ERROR_GROUP),
        "id": output.printable_text(batch.id(index)),
        "key": output.bytes_text(batch.keys[index]),
        "attempts": records.attempts_of(headers) or None,
        "error": error,
        "source": source,
        "origin": _header_text(headers, records.ORIGIN) or source,
        "first_failed_at": failed_at if first is None else output.iso_time(first.timestamp()),
        "first_error": _header_text(headers, records.FIRST_ERROR) or error,
        "redrives": records.redrives_of(headers),
        "edited": _header_text(headers, records.EDITED) is not None,
        "waiting": waiting,
    }


def letter_details(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    """A letter for JSON, whole."""
    from streams import derived_records
    from streams.message import ID

    batch, index = row.batch, row.index
    headers = batch.headers(index)
    return {
        **letter_summary(log, row, waiting=waiting),
        "headers": {
            output.printable_text(name): output.bytes_text(value)
            for name, value in headers
            if name != ID and not name.startswith(derived_records.ERROR_PREFIX)
        },
        "traceback": _header_text(headers, derived_records.ERROR_STACKTRACE),
        **output.value_json(batch.values[index]),
    }


def _header_text(headers: Headers, name: str) -> str | None:
    from streams.derived_records import header_text

    found = header_text(headers, name)
    return None if found is None else output.printable_text(found)
