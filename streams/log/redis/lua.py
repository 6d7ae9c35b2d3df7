"""The Lua scripts, as files beside this module.

Each begins with ``common.lua``. They are called by their SHA-1, and sent whole only if the server
does not know them (SCRIPT FLUSH, a restart, a failover). Data reaches them through KEYS and ARGV
alone.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

MAX_ARGUMENTS = 7_900
"""Most arguments of one call: Lua's stack takes 8,000 values at once (LUAI_MAXCSTACK)."""

ALLOWED_WHEN_FULL: Set[str] = frozenset(
    (
        *("acquire", "commit", "heartbeat", "release", "renew", "trim"),
        *("claim_complete", "claim_release", "claim_renew"),
    )
)
"""Scripts that must run even when ``maxmemory`` is reached: these write next to nothing, and
without them no group could settle entries, which frees memory. (Redis 7.0, "Eval flags".) So must
the script that stores the outcome of a claim: a completed operation must be known as such, and no
new claims are accepted meanwhile."""


_PARTS = {
    **{
        name: ("histories", name) for name in ("append_events", "read_histories", "write_snapshots")
    },
    **{name: ("claims", name) for name in ("claim_get", "claim_take")},
    "append_as_owner": ("owned", "append"),
}
"""The files of scripts that have several; each file becomes a block together with
``common.lua``."""


@dataclass(frozen=True, slots=True)
class Script:
    """One script."""

    name: str
    text: bytes
    sha: bytes


@cache
def load_script(name: str) -> Script:
    """The script of this name: ``scripts/<name>.lua``, unless it has several parts."""
    folder = files("streams.log.redis") / "scripts"
    shebang = b"#!lua flags=allow-oom\n" if name in ALLOWED_WHEN_FULL else b""
    parts = ("common", *_PARTS.get(name, (name,)))
    text = shebang + b"".join((folder / f"{part}.lua").read_bytes() for part in parts)
    return Script(name, text, sha1(text, usedforsecurity=False).hexdigest().encode())
