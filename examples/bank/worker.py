"""A process that carries transfers out, and records how many of its decisions had conflicts.

    python -m examples.bank.worker URL NAME MEMBER FIGURES

The file FIGURES holds its conflicts so far, rewritten continually: a killed worker leaves its last
figures.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from examples.bank.transfers import Bank, create
from streams import Streams

INTERVAL = 0.05
"""Seconds between two writes of the figures."""


class Figures(NamedTuple):
    """The counts of one process."""

    decisions: int = 0
    conflicts: int = 0
    found_by_cause: int = 0


def figures_of(bank: Bank) -> Figures:
    """The counts of this process so far."""
    stats = bank.accounts.stats()
    return Figures(stats.decisions, stats.conflicts, stats.caused)


def read_figures(folder: Path) -> Figures:
    """The sums of the figures of all workers."""
    found = [
        msgspec.json.decode(path.read_bytes(), type=Figures) for path in folder.glob("*.figures")
    ]
    return Figures(*map(sum, zip(*found, strict=True))) if found else Figures()


def work(url: str, name: str, member: str, path: Path) -> None:
    """Carry transfers out until the process is told to stop; blocks."""

    @asynccontextmanager
    async def lifespan(app: Streams) -> AsyncIterator[None]:
        writing = asyncio.create_task(_keep_writing(bank, path))
        try:
            yield
        finally:
            writing.cancel()
            _write(bank, path)

    # KIP-848 has no static members that can be restarted.
    bank = create(url, name, None if "group.protocol=consumer" in url else member, lifespan)
    bank.app.run()


async def _keep_writing(bank: Bank, path: Path) -> None:
    while True:
        _write(bank, path)
        await asyncio.sleep(INTERVAL)


def _write(bank: Bank, path: Path) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(msgspec.json.encode(figures_of(bank)))
    os.replace(beside, path)


def main() -> None:
    logging.basicConfig(level=logging.ERROR, format="worker: %(message)s")
    url, name, member, path = sys.argv[1:5]
    work(url, name, member, Path(path))


if __name__ == "__main__":
    main()
