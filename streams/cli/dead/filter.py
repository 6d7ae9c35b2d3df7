"""Which dead letters a command is about: those that fit ``--error``, ``--key`` and so on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from streams.cli.offset_arguments import parse_duration, parse_time
from streams.cli.options import argument_bytes

if TYPE_CHECKING:
    from streams.log.range_reader import LogRow


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """What is asked of a dead letter; by default nothing, so that every one matches."""

    error: str | None = None
    """In the error's type or text, whatever the case of letters."""
    keys: frozenset[bytes] | None = None
    since: float = -inf
    until: float = inf
    """When it failed, in seconds since the epoch; from, and before."""

    @property
    def matches_all(self) -> bool:
        """Nothing is asked."""
        return self == DeadLetterFilter()

    def __call__(self, row: LogRow) -> bool:
        """Whether a dead letter matches."""
        from streams.derived_records import ERROR_EXCEPTION, error_of, header_text
        from streams.patterns.deadletters import failure_time

        batch, index = row.batch, row.index
        if self.keys is not None and batch.keys[index] not in self.keys:
            return False
        asks_when = self.since > -inf or self.until < inf
        if asks_when and not self.since <= failure_time(batch, index).timestamp() < self.until:
            return False
        if self.error is None:
            return True
        headers = batch.headers(index)
        said = header_text(headers, ERROR_EXCEPTION) or "", error_of(headers)
        return any(self.error.casefold() in each.casefold() for each in said)


def parse_filter(
    error: str | None, keys: list[str] | None, since: str | None, until: str | None
) -> DeadLetterFilter:
    """What the options ask.

    :raises UsageError: one of them cannot be.
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
