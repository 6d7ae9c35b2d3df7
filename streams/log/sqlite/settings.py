"""The URL of a SQLite log, read once and checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from streams import wire
from streams.errors import ConfigError
from streams.log.membership import DEFAULT_TERMS, MAX_LEASE, LeaseTerms
from streams.log.protocol import OpenMode, OpenRequest
from streams.log.url import Url, parse
from streams.text import close_match

MAX_RECORD = 999_000_000
"""Bytes of key and value together. SQLite keeps no row above 1,000,000,000 bytes, and the headers
and the ID of a record must fit into the same row."""

_OPTIONS = ("synchronous", "lease", "timeout", "max_record", "mode")
_MODES: tuple[OpenMode, ...] = ("ro", "rw", "rwc")
"""The modes, from the most restrictive on."""
_PRAGMAS = ("cache_size", "journal_size_limit", "mmap_size", "temp_store", "wal_autocheckpoint")


@dataclass(frozen=True, slots=True)
class Settings:
    """A SQLite log's file and options.

    :param path: the file's absolute path.
    :param synchronous: ``full``: an append is on the disk when it is acknowledged. ``normal``: it
        survives a killed process, a power cut may take the last ones.
    :param terms: how long a member owns its partitions without confirming its membership.
    :param write_timeout: seconds to wait while another process or thread writes.
    :param max_record: bytes of key and value that one record may have.
    :param pragmas: SQLite's own settings, for every connection.
    :param mode: ``ro``: read only, nothing is changed and no file is created. ``rw``: use an
        existing file. ``rwc``: create the file if it does not exist.
    """

    path: str
    synchronous: Literal["full", "normal"] = "full"
    terms: LeaseTerms = DEFAULT_TERMS
    write_timeout: float = 10.0
    max_record: int = MAX_RECORD
    pragmas: Mapping[str, int] = field(default_factory=dict)
    mode: OpenMode = "rwc"


def read_settings(request: OpenRequest) -> Settings:
    """The settings in a URL such as ``sqlite:///flights.db?synchronous=normal&lease=5``.

    Three slashes: relative to the working directory; four: absolute.

    :raises ConfigError: the URL cannot be used; the message says what to write instead.
    """
    url = parse(request.url)
    options = request.options
    for name in options:
        if name not in _OPTIONS:
            shown = url.display_name(name)
            # A name that may be a part of a secret gets no suggestion.
            meant = close_match(name, _OPTIONS) if shown == repr(name) else None
            hint = "" if meant is None else f"did you mean {meant!r}? "
            raise ConfigError(
                f"{url.location}: no option {shown}; {hint}a sqlite:// URL takes "
                f"{', '.join(_OPTIONS)}"
            )
    synchronous = options.get("synchronous", "full").lower()
    if synchronous not in ("full", "normal"):
        raise ConfigError(
            f"{url.location}: synchronous={synchronous!r}: use 'full' (durable, the default) or "
            "'normal' (a power cut may take the last messages)"
        )
    lease = _number(url, options, "lease", DEFAULT_TERMS.lease, wire.parse_seconds)
    if lease > MAX_LEASE:
        raise ConfigError(f"{url}: lease={options['lease']!r}: {MAX_LEASE:g} seconds at most")
    timeout = _number(url, options, "timeout", 10.0, wire.parse_seconds)
    max_record = _number(url, options, "max_record", MAX_RECORD)
    if max_record > MAX_RECORD:
        raise ConfigError(
            f"{url.location}: max_record={options['max_record']!r}: SQLite takes {MAX_RECORD} bytes"
            " at most"
        )
    return Settings(
        path=_path(url),
        synchronous="full" if synchronous == "full" else "normal",
        terms=LeaseTerms(lease),
        write_timeout=timeout,
        max_record=int(max_record),
        pragmas=_pragmas(url, request.config),
        mode=_open_mode(url, options, request.mode),
    )


def _open_mode(url: Url, options: Mapping[str, str], requested: OpenMode) -> OpenMode:
    """The mode that both the URL and the opener allow."""
    text = options.get("mode", "rwc")
    for mode in _MODES:
        if mode == text:
            return mode if _MODES.index(mode) < _MODES.index(requested) else requested
    raise ConfigError(
        f"{url.location}: mode={text!r}: use 'rwc' (create the file if there is none, the "
        "default), 'rw' (use an existing file) or 'ro' (read-only)"
    )


def _number(
    url: Url,
    options: Mapping[str, str],
    name: str,
    default: float,
    convert: Callable[[str], float | None] = wire.parse_float,
) -> float:
    text = options.get(name)
    if text is None:
        return default
    number = convert(text)
    if number is None or not number > 0:
        hint = ", or a duration such as 90s or 2h30m," if convert is wire.parse_seconds else ""
        needed = f"a number greater than 0{hint} is needed"
        raise ConfigError(f"{url.location}: {name}={text!r}: {needed}")
    return number


def _pragmas(url: Url, config: Mapping[str, object]) -> dict[str, int]:
    pragmas: dict[str, int] = {}
    for name, value in config.items():
        context = f"{url.location}: config={{{name!r}: ...}}"
        if name not in _PRAGMAS:
            meant = close_match(name, _PRAGMAS)
            hint = "" if meant is None else f"did you mean {meant!r}? "
            possible = f"the pragmas that can be set are {', '.join(_PRAGMAS)}"
            raise ConfigError(f"{context}: {hint}{possible}")
        if not isinstance(value, int):
            given = type(value).__name__
            raise ConfigError(f"{context}: an integer is needed, not of type {given}")
        pragmas[name] = value
    return pragmas


def _path(url: Url) -> str:
    name, where = url.path, url.location
    if name == ":memory:":
        raise ConfigError(f"{where}: several connections cannot share it; use memory:// instead")
    if not name or "\0" in name:
        raise ConfigError(f"{where}: the file's name is missing, as in sqlite:///streams.db")
    path = os.path.abspath(name)
    if os.path.isdir(path):
        raise ConfigError(f"{where}: {path} is a directory; name a file in it")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise ConfigError(f"{where}: there is no directory {folder}; create it first")
    return path
