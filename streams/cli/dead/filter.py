"""The dead letters that a command selects with ``--error``, ``--key`` and so on."""

from __future__ import annotations

import time
from math import inf

from streams.cli.offset_arguments import parse_duration, parse_time
from streams.cli.options import argument_bytes
from streams.inspection.letters import DeadLetterFilter


def parse_filter(
    error: str | None, keys: list[str] | None, since: str | None, until: str | None
) -> DeadLetterFilter:
    """The filter that the options describe.

    :raises UsageError: an option is invalid.
    """
    return DeadLetterFilter(
        error or None,
        frozenset(map(argument_bytes, keys)) if keys else None,
        -inf if since is None else _parse_time(since, "--since"),
        inf if until is None else _parse_time(until, "--until"),
    )


def _parse_time(text: str, option: str) -> float:
    if text[:4].isdigit() and text[4:5] == "-":
        return parse_time(text, option).timestamp()
    return time.time() - parse_duration(text, option)
