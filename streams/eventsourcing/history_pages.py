"""Reads a history from the log in pages, without an app: for the inspection of aggregates, views
and process managers."""

from __future__ import annotations

from collections.abc import Iterator

from streams.errors import LogError
from streams.log.events import NO_HISTORY, Base, EventLog, History, HistoryRequest

PAGE = 1_000
"""Events of a history that are read at once."""


def history_pages(
    log: EventLog, topic: str, key: bytes, fingerprint: str = "", after: Base = NO_HISTORY
) -> Iterator[History]:
    """A history from ``after`` to its end, in pages; at least one, which says where it ends.

    :param fingerprint: begin after the snapshot with this fingerprint.
    :raises LogError: the history cannot be read, or not to its end.
    """
    while True:
        request = HistoryRequest(key, after, PAGE, fingerprint=fingerprint)
        (found,) = log.read_histories(topic, [request])
        if found.is_truncated:
            raise LogError(f"{topic}: this history changed while it was read: ask again")
        yield found
        fingerprint = ""
        behind = base_behind(found)
        if behind is None:
            return
        after = behind


def base_behind(page: History) -> Base | None:
    """The base after which the next page of a history begins; None: this was the last page."""
    if not page.events:
        return None
    last = page.events[-1]
    is_last = last.version >= page.head.base.version
    return None if is_last else Base(last.version, last.record.id)
