"""The facts that decide whether a message that SQLite acknowledged can be lost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from streams.log.protocol import DurabilityFact
from streams.log.sqlite.database import Database

_SYNCHRONOUS_MODES = ("off", "normal", "full", "extra")
"""SQLite's names for the values of ``PRAGMA synchronous``, by their numbers."""

MOUNTS = Path("/proc/self/mounts")
"""Linux's list of mounted file systems."""

_VOLATILE = {"ramfs", "tmpfs"}
_LAYERED = {"aufs", "overlay"}
_REMOTE = {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}


def durability_facts(database: Database) -> tuple[DurabilityFact, ...]:
    """How the file is written, and the file system that it is on."""
    with database.read() as db:
        ((mode,),) = db.fetch_rows("PRAGMA synchronous")
        ((journal,),) = db.fetch_rows("PRAGMA journal_mode")
    is_synced = mode >= 2
    return (
        DurabilityFact(
            "synchronous",
            _SYNCHRONOUS_MODES[mode] if 0 <= mode < len(_SYNCHRONOUS_MODES) else str(mode),
            is_synced,
            "" if is_synced else "a power cut may lose the last messages: remove ?synchronous=",
        ),
        DurabilityFact(
            "journal_mode", str(journal), journal == "wal", "" if journal == "wal" else "use WAL"
        ),
        *_file_system_facts(database.path),
        DurabilityFact(
            "copies", "one file", True, "back it up if you cannot afford to lose this disk"
        ),
    )


def _file_system_facts(path: str) -> Iterable[DurabilityFact]:
    """The file system that the file is on, if that can be known."""
    kind = file_system_of(path)
    if kind is None:
        return
    if kind in _VOLATILE:
        yield DurabilityFact("file system", kind, False, "the file is in memory: put it on a disk")
    elif kind in _REMOTE:
        advice = "SQLite's locks do not hold over a network: use a local disk"
        yield DurabilityFact("file system", kind, False, advice)
    elif kind in _LAYERED:
        advice = "in a container it is lost with the container: put it on a volume"
        yield DurabilityFact("file system", kind, None, advice)
    else:
        yield DurabilityFact("file system", kind, True)


def file_system_of(path: str, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that a file is on; None if it is unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    longest, kind = "", None
    for line in lines:
        words = line.split()
        if len(words) < 3:
            continue
        mount_point = words[1].replace("\\040", " ")
        is_inside = mount_point == "/" or real == mount_point or real.startswith(mount_point + "/")
        # Of two mounts at one point the later one counts.
        if is_inside and len(mount_point) >= len(longest):
            longest, kind = mount_point, words[2]
    return kind
