"""Snapshots: states that are kept in the log, so that loading need not read every event.

They are only a cache. Each says which events it was made of and by which version of the code; one
that does not match is not used, and deleting all of them changes only how long loading takes. They
are written in the background, never as part of a decision.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from streams.errors import ConfigError
from streams.eventsourcing.histories import HistoryClient
from streams.eventsourcing.state_cache import KnownState
from streams.eventsourcing.state_type import StateType
from streams.log.events import StoredSnapshot
from streams.numbers import is_int
from streams.text import error_text, get_logger

logger = get_logger("streams")

MAX_PENDING = 10_000
"""Snapshots that wait to be written, at most: beyond them the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """When snapshots are written to the log, and which can be used.

    :param every: events between two snapshots of an aggregate.
    :param version: the version of ``evolve``: another number invalidates earlier snapshots. So does
        a state type of another shape, by itself.
    """

    every: int = 100
    version: int = 1

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("version", 0)):
            value = getattr(self, name)
            if not is_int(value, least):
                raise ConfigError(
                    f"Snapshot({name}={value!r}): must be an integer of at least {least}"
                )


class SnapshotWriter:
    """Writes snapshots of one aggregate type. On the app's loop only."""

    def __init__(
        self,
        histories: HistoryClient,
        state_type: StateType[Any],
        fingerprint: str,
        every: int,
    ) -> None:
        self._histories = histories
        self._state_type = state_type
        self._fingerprint = fingerprint
        self._every = every
        self._pending: dict[bytes, KnownState] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False
        self.written = 0
        """Snapshots that were handed to the log."""
        self.failed = 0
        """Snapshots that could not be written."""
        self._written_at: float | None = None

    @property
    def age(self) -> float | None:
        """Seconds since snapshots were last written; None: none were."""
        written_at = self._written_at
        return None if written_at is None else time.monotonic() - written_at

    def offer_appended(self, key: bytes, version_before: int, known: KnownState) -> None:
        """Write a snapshot of the state after an append, if the append passed a multiple of
        ``every``."""
        if known.head.base.version // self._every != version_before // self._every:
            self._enqueue_snapshot(key, known)

    def offer_loaded(
        self, key: bytes, folded: int, known: KnownState, *, was_unreadable: bool
    ) -> None:
        """Write a snapshot of a loaded state, if loading took enough events or its snapshot could
        not be read: the next append that would write one may be a long time off.

        :param folded: how many events were folded.
        """
        if folded >= self._every or was_unreadable:
            self._enqueue_snapshot(key, known)

    def _enqueue_snapshot(self, key: bytes, known: KnownState) -> None:
        self._pending.pop(key, None)
        self._pending[key] = known
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_pending(), name="streams-snapshots")

    async def close(self) -> None:
        """Write the snapshots that were offered."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _write_pending(self) -> None:
        while self._pending:
            pending, self._pending = self._pending, {}
            snapshots = []
            for key, known in pending.items():
                try:
                    data = self._state_type.encode(known.state)
                except Exception as error:  # a codec of the user's own may raise anything
                    self.failed += 1
                    self._report(f"a state cannot be written: {error}")
                    continue
                snapshots.append(
                    StoredSnapshot(key, self._fingerprint, known.head.base, known.offset, data)
                )
            if not snapshots:
                continue
            try:
                await self._histories.write_snapshots(snapshots)
            except Exception as error:  # whatever the error, later snapshots are still written
                self.failed += len(snapshots)
                self._report(error_text(error))
            else:
                self.written += len(snapshots)
                self._written_at = time.monotonic()
                self._is_failing = False

    def _report(self, reason: str) -> None:
        if not self._is_failing:
            logger.warning("snapshots are not written: %s", reason)
        self._is_failing = True
