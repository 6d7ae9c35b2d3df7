"""Addresses of databases: URLs (``postgresql://user@host/database``, ``sqlite:///file.db``), and
libpq's other form (``host=... dbname=...``). This module connects to nothing.

An address may hold a password, so only this module reads and shows it. :func:`read_postgres` reads
the forms of libpq's documentation (34.1.1, Connection Strings)::

    postgresql[+driver]://[user[:password]@][host][:port][,...][/database][?name=value[&...]]
    name=value name='a value' ...

An address that no driver could use is refused, and the error quotes nothing of it: a driver would
fail at each connection, as in an outage, and quote the text that it could not read. The shown form
of an address is composed of the parts that are certainly no secret (:attr:`PostgresAddress.place`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from streams.errors import ConfigError
from streams.secrets import CONTROL_CHARACTER, ENCODING_HINT, HIDDEN, Secrets, is_secret_name

QUOTING_HINT = r"a value with blanks stands in '', where ' is written \' and \ is written \\"

_WORD = re.compile(
    r"\s*(?P<name>\w+)\s*=\s*"
    r"(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<bare>(?:[^\s\\']|\\.)(?:[^\s\\]|\\.)*)?)",
    re.DOTALL,
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%\w-]*\]|[\w.~%-]*)(?::([0-9]*))?")
_NO_ENCODING = re.compile("%(?![0-9A-Fa-f]{2})|%00")
_HARMLESS_NAME = re.compile(r"[\w.~+-]*\Z")
_HARMLESS_SETTINGS = frozenset({"host", "hostaddr", "port", "dbname", "user"})
_KNOWN_SETTINGS = _HARMLESS_SETTINGS | {
    "application_name", "channel_binding", "client_encoding", "command_timeout", "connect_timeout",
    "fallback_application_name", "gssencmode", "keepalives", "keepalives_count",
    "keepalives_idle", "keepalives_interval", "load_balance_hosts", "options", "passfile",
    "require_auth", "service", "sslcert", "sslcrl", "sslmode", "sslnegotiation", "sslrootcert",
    "target_session_attrs", "tcp_user_timeout",
}  # fmt: skip
_AMBIGUOUS = re.compile(r"[/?#].*@|@.*@", re.DOTALL)
"""Matches addresses in which parsers disagree about the end of the login."""


class Scheme(NamedTuple):
    """The scheme of an address: ``postgresql+asyncpg`` names a driver, too. Empty if there is none.

    :param rest: the text behind the colon.
    """

    kind: str
    driver: str
    rest: str


def scheme_of(address: str) -> Scheme:
    """Parse the scheme of an address; ``postgres`` is the same as ``postgresql``."""
    scheme, colon, rest = address.partition(":")
    if not colon or not rest.startswith("//"):
        return Scheme("", "", address)
    kind, _, driver = scheme.partition("+")
    return Scheme("postgresql" if kind == "postgres" else kind, driver, rest)


def has_words(address: str) -> bool:
    """Whether an address has libpq's form ``name=value ...``."""
    return _WORD.match(address) is not None


def sqlite_file(address: str) -> str | None:
    """The file of ``sqlite:///file.db``; None: the address has another form."""
    kind, _, rest = scheme_of(address)
    if kind != "sqlite" or not rest.startswith("///"):
        return None
    return unquote(rest[3:].partition("?")[0]) or None


@dataclass(frozen=True, slots=True, repr=False)
class PostgresAddress:
    """The decoded parts of a PostgreSQL address. As text it shows no secret.

    :param hosts: each with its port; empty if the driver's default applies.
    :param settings: names and values, in their order.
    :param text: the text behind the scheme, if it is ambiguous.
    """

    hosts: tuple[tuple[str, str], ...] = ()
    user: str = ""
    password: str = ""
    database: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    text: str = ""

    @property
    def place(self) -> str:
        """Hosts and database, without the login."""
        if self.text:
            return f"postgresql://{HIDDEN}"
        hosts = ",".join(f"{host}:{port}" if port else host for host, port in self.hosts)
        database = self.database if _HARMLESS_NAME.match(self.database) else HIDDEN
        return f"postgresql://{hosts}/{database}".removesuffix("/")

    def __repr__(self) -> str:
        return f"<{self.place}>"

    def secrets(self) -> Secrets:
        """The parts of the address that a driver's text must not show."""
        return Secrets(self._secret_values())

    def _secret_values(self) -> Iterator[str]:
        if self.text:
            yield self.text
            yield unquote(self.text)
        if self.password:
            yield self.password
        after_secret = False
        for name, value in self.settings:
            if is_secret_name(name):
                after_secret = True
                yield value
                continue
            # It may be part of a secret in which a character was not encoded.
            if name not in _KNOWN_SETTINGS:
                yield name
                yield value
            elif after_secret and name not in _HARMLESS_SETTINGS:
                yield value


def read_postgres(address: str, *, libpq: bool = True) -> PostgresAddress:
    """Parse a PostgreSQL address.

    :param libpq: the address is for libpq (psycopg); else it is a URL that another driver parses.
    :raises ConfigError: the address is invalid, or the driver could not use it; nothing of it is
        quoted.
    """
    kind, _, rest = scheme_of(address)
    if kind == "postgresql":
        return _read_url(rest[2:], libpq=libpq)
    if libpq and has_words(address):
        return _read_words(address)
    forms = "postgresql://user@host/database" + (", or host=... dbname=..." if libpq else "")
    raise ConfigError(f"a DSN of PostgreSQL is written as {forms}")


def place_of(address: str) -> str:
    """An address without secrets; takes any text."""
    try:
        return read_postgres(address).place
    except ConfigError:
        return f"postgresql://{HIDDEN}"


def secrets_of(address: str) -> Secrets:
    """The parts of an address that a driver's text must not show; takes any text."""
    if scheme_of(address).kind == "sqlite":
        return Secrets()
    try:
        return read_postgres(address).secrets()
    except ConfigError:
        return Secrets([address])


def _read_url(text: str, *, libpq: bool) -> PostgresAddress:
    label = "postgresql:// URL"
    if CONTROL_CHARACTER.search(text):
        raise ConfigError(f"{label}: it holds a line break or another control character")
    if libpq and _NO_ENCODING.search(text):
        raise ConfigError(f"{label}: a % in it begins no percent-encoding; {ENCODING_HINT}")
    authority, slash, tail = text.partition("/")
    login, _, hosts = authority.rpartition("@")
    if libpq and "@" in login:
        raise ConfigError(f"{label}: it holds several @; {ENCODING_HINT}")
    location, _, query = f"{hosts}{slash}{tail}".partition("?")
    hosts, _, path = location.partition("/")
    found = []
    for number, host in enumerate(hosts.split(","), 1):
        match = _HOST.fullmatch(host)
        if match is None:
            # It is not quoted: if a / or an @ is misplaced, this is the login.
            raise ConfigError(f"{label}: its host {number} is no host:port ({ENCODING_HINT})")
        found.append((unquote(match[1]), match[2] or ""))
    user, _, password = login.partition(":")
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    if libpq and not all(equals for _, equals, _ in pairs):
        raise ConfigError(f"{label}: not all behind its ? is name=value; {ENCODING_HINT}")
    return PostgresAddress(
        hosts=tuple(found),
        user=unquote(user),
        password=unquote(password),
        database=unquote(path),
        settings=tuple((unquote(name), unquote(value)) for name, _, value in pairs),
        text=text if _AMBIGUOUS.search(text) else "",
    )


def _read_words(text: str) -> PostgresAddress:
    label = "DSN of name=value"
    settings: list[tuple[str, str]] = []
    at, text = 0, text.strip()
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            raise ConfigError(
                f"{label}: what follows its part {len(settings)} is no name=value; {QUOTING_HINT}"
            )
        value = match["quoted"] if match["quoted"] is not None else match["bare"] or ""
        settings.append((match["name"], re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)))
        at = match.end()
    words = dict(settings)
    hosts, ports = words.get("host", "").split(","), words.get("port", "").split(",")
    return PostgresAddress(
        hosts=tuple(
            (host if _HARMLESS_NAME.match(host) else HIDDEN, port if port.isdecimal() else "")
            for host, port in zip_longest(hosts, ports[: len(hosts)], fillvalue="")
        ),
        user=words.get("user", ""),
        password=words.get("password", ""),
        database=words.get("dbname", ""),
        settings=tuple(settings),
    )


class _DatabaseTarget(NamedTuple):
    """Where a database is, and the settings that choose the schema of an unqualified table name:
    options, and the user, as PostgreSQL's ``search_path`` begins with the schema of the user's
    name."""

    host: str
    port: str
    name: str
    options: str
    user: str


def is_same_database(one: str, other: str, *, any_user: bool = False) -> bool:
    """Whether two addresses certainly lead to one database, and a table's name to the same table.

    :param any_user: ignore the users: the table's name has a schema.
    """
    target = _target_of(one, any_user=any_user)
    return one == other or target == _target_of(other, any_user=any_user) is not None


def _target_of(address: str, *, any_user: bool) -> _DatabaseTarget | None:
    """The target of an address; None: it cannot be known."""
    kind, _, _ = scheme_of(address)
    if kind == "sqlite":
        file = sqlite_file(address)
        return _DatabaseTarget("", "", str(Path(file).resolve()), "", "") if file else None
    try:
        found = read_postgres(address)
    except ConfigError:
        return None
    words = dict(found.settings)
    user = words.get("user") or found.user
    name = words.get("dbname") or found.database or user
    if not name or "service" in words or len(found.hosts) > 1:
        return None
    host, port = found.hosts[0] if found.hosts else ("", "")
    return _DatabaseTarget(
        words.get("host") or host,
        words.get("port") or port or "5432",
        name,
        words.get("options", ""),
        "" if any_user else user,
    )
