"""Addresses of databases: URLs (``postgresql://user@host/database``, ``sqlite:///file.db``), and
what libpq takes besides (``host=... dbname=...``). Nothing is connected to here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

_WORD = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|[^\s']\S*)")


class Scheme(NamedTuple):
    """How an address begins: ``postgresql+asyncpg`` names a driver, too. Empty where it has none.

    :param rest: what follows the colon.
    """

    kind: str
    driver: str
    rest: str


def scheme_of(address: str) -> Scheme:
    """How an address begins; ``postgres`` is as good as ``postgresql``."""
    scheme, colon, rest = address.partition(":")
    if not colon or not rest.startswith("//"):
        return Scheme("", "", address)
    kind, _, driver = scheme.partition("+")
    return Scheme("postgresql" if kind == "postgres" else kind, driver, rest)


def has_words(address: str) -> bool:
    """Whether it is written as libpq's ``name=value ...``."""
    return "=" in address and "://" not in address


def sqlite_file(address: str) -> str | None:
    """The file of ``sqlite:///file.db``; None: it is none."""
    kind, _, rest = scheme_of(address)
    if kind != "sqlite" or not rest.startswith("///"):
        return None
    return unquote(rest[3:].partition("?")[0]) or None


def place_without_secrets(address: str) -> str:
    """Host and database of a PostgreSQL, without who logs in."""
    if "://" not in address:
        return "the outbox's PostgreSQL"
    parts = urlsplit(address)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"postgresql://{parts.hostname or ''}{port}{parts.path}"


class _Place(NamedTuple):
    """Where a database is, whoever logs in."""

    host: str
    port: str
    name: str


def is_same_database(one: str, other: str) -> bool:
    """Whether two addresses are certainly those of one database."""
    return one == other or _place_of(one) == _place_of(other) is not None


def _place_of(address: str) -> _Place | None:
    """None: it cannot be known."""
    kind, _, rest = scheme_of(address)
    if kind == "sqlite":
        file = sqlite_file(address)
        return _Place("", "", str(Path(file).resolve())) if file else None
    words: dict[str, str] = {}
    if kind == "postgresql":
        parts = urlsplit(f"postgresql:{rest}")
        try:
            port = parts.port
        except ValueError:
            return None  # several hosts
        words = {
            "host": parts.hostname or "", "port": str(port or ""), "user": parts.username or "",
            "dbname": unquote(parts.path[1:]),
        }  # fmt: skip
        words |= {name: each[-1] for name, each in parse_qs(parts.query).items()}
    elif has_words(address):
        words = {name: each.strip("'") for name, each in _WORD.findall(address)}
    name = words.get("dbname") or words.get("user", "")
    if not name or "service" in words:
        return None
    return _Place(words.get("host", ""), words.get("port") or "5432", name)
