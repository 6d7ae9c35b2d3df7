"""A folder in memory for the temporary files of tests: the servers' data, logs and databases.

The tests write to disk thousands of times, and wait for each write to be durable. What they prove
does not need that: a process that is killed leaves its writes to the system, which keeps them, and
a power cut is a test that truncates files. In memory, the tests take a sixth less time.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
"""Linux's file system in memory."""

PREFIX = "streams-tests-"

MIN_FREE = 3 << 30
"""Bytes that the file system must have room for. With eight workers, the tests need 0.9 GB."""

MIN_AVAILABLE = 6 << 30
"""Bytes of memory that must be available to new programs."""


@contextmanager
def memory_folder(
    variables: Mapping[str, str],
    parent: Path = SHARED_MEMORY,
    meminfo: Path = Path("/proc/meminfo"),
) -> Iterator[Path | None]:
    """A new folder in memory, deleted at the end. None where there is no room, where programs
    cannot be run from there, or where the user has chosen: by ``TMPDIR``, or by
    ``STREAMS_TEST_KEEP``, which keeps the files.

    :param variables: the environment variables.
    :param meminfo: where the kernel says how much memory is available.
    """
    is_chosen = any(variables.get(name) for name in ("TMPDIR", "STREAMS_TEST_KEEP"))
    if is_chosen or not _has_room(parent, meminfo):
        yield None
        return
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    try:
        folder.chmod(0o711)  # PostgreSQL runs as another user under root
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _has_room(parent: Path, meminfo: Path) -> bool:
    try:
        found = os.statvfs(parent)
        available = re.search(r"^MemAvailable: *([0-9]+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return False
    return (
        os.access(parent, os.W_OK | os.X_OK)
        and not found.f_flag & os.ST_NOEXEC
        and found.f_bavail * found.f_frsize >= MIN_FREE
        and available is not None
        and int(available[1]) << 10 >= MIN_AVAILABLE
    )


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of runs that were killed before they could."""
    for folder in parent.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
