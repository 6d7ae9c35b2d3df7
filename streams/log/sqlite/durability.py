"""What decides whether a message that SQLite acknowledged can be lost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from streams.log.protocol import Fact
from streams.log.sqlite.database import Database

_MODES = ("off", "normal", "full", "extra")
"""SQLite's words for ``PRAGMA synchronous``, by its numbers."""

MOUNTS = Path("/proc/self/mounts")
"""Where Linux says what is mounted where."""

_VOLATILE = {"ramfs", "tmpfs"}
_LAYERED = {"aufs", "overlay"}
_REMOTE = {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}


def facts(database: Database) -> tuple[Fact, ...]:
    """How the file is written, and what it lies on."""
    with database.read() as connection:
        ((mode,),) = connection.rows("PRAGMA synchronous")
        ((journal,),) = connection.rows("PRAGMA journal_mode")
    synced = mode >= 2
    return (
        Fact(
            "synchronous",
            _MODES[mode] if 0 <= mode < len(_MODES) else str(mode),
            synced,
            "" if synced else "a power cut may take the last messages: take ?synchronous= out",
        ),
        Fact("journal_mode", str(journal), journal == "wal", "" if journal == "wal" else "use WAL"),
        *_place(database.path),
        Fact("copies", "one file", True, "back it up, if the loss of this disk must not matter"),
    )


def _place(path: str) -> Iterable[Fact]:
    """What the file lies on, where that can be known."""
    kind = filesystem(path)
    if kind is None:
        return
    if kind in _VOLATILE:
        yield Fact("file system", kind, False, "it is memory: put the file on a disk")
    elif kind in _REMOTE:
        yield Fact(
            "file system",
            kind,
            False,
            "SQLite's locks do not hold over a network: use a local disk",
        )
    elif kind in _LAYERED:
        yield Fact("file system", kind, None, "in a container it goes with it: put it on a volume")
    else:
        yield Fact("file system", kind, True)


def filesystem(path: str, mounts: Path = MOUNTS) -> str | None:
    """The kind of file system that a file lies on; None where nobody says."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best, kind = "", None
    for line in lines:
        words = line.split()
        if len(words) < 3:
            continue
        place = words[1].replace("\\040", " ")
        inside = place == "/" or real == place or real.startswith(place + "/")
        if inside and len(place) >= len(best):  # of two mounts at one place the later one counts
            best, kind = place, words[2]
    return kind
