"""A dead letter as JSON, and its parts as table cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.inspection.letters import letter_facts, own_headers

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow


def letter_summary(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    """A letter for JSON, without its content."""
    batch, index = row.batch, row.index
    facts = letter_facts(row)
    position = output.position_text(log, batch, index)
    return {
        "place": position.removeprefix(f"{batch.topic}/"),
        "position": position,
        "failed_at": output.iso_time(facts.failed_at.timestamp()),
        "group": _printable(facts.group),
        "id": output.printable_text(batch.id(index)),
        "key": output.bytes_text(batch.keys[index]),
        "attempts": facts.attempts,
        "error": _printable(facts.error),
        "source": _printable(facts.source),
        "origin": _printable(facts.origin),
        "first_failed_at": output.iso_time(facts.first_failed_at.timestamp()),
        "first_error": _printable(facts.first_error),
        "redrives": facts.redrives,
        "edited": facts.edited,
        "waiting": waiting,
    }


def letter_details(log: Log, row: LogRow, *, waiting: bool) -> dict[str, Any]:
    """A letter for JSON, with its content."""
    return {
        **letter_summary(log, row, waiting=waiting),
        "headers": {
            output.printable_text(name): output.bytes_text(value)
            for name, value in own_headers(row.headers)
        },
        "traceback": _printable(letter_facts(row).traceback),
        **output.value_json(row.value),
    }


def _printable(text: str | None) -> str | None:
    return None if text is None else output.printable_text(text)
