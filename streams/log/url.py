"""Open a log by its URL: ``open_log("sqlite:///events.db")``.

The scheme names the log, whose module, and with it its driver, is imported only then. What follows
the scheme is the log's own business; the query is read here. A URL may hold a password, so no
error shows one: whoever shows a URL shows :func:`redact` of it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from streams.clock import SYSTEM, Clock
from streams.errors import ConfigError
from streams.log.protocol import Log, Opened

__all__ = ["FORMS", "open_log", "redact"]

FORMS = (
    "sqlite:///relative.db",
    "sqlite:////absolute.db",
    "memory://name",
    "redis://host:6379/0",
    "kafka://host:9092,host2:9092",
)
"""How URLs are written, one example a form."""

_MODULES = {
    "memory": "streams.log.memory",
    "sqlite": "streams.log.sqlite",
    "redis": "streams.log.redis",
    "rediss": "streams.log.redis",
    "redis+sentinel": "streams.log.redis",
    "rediss+sentinel": "streams.log.redis",
    "redis+cluster": "streams.log.redis",
    "rediss+cluster": "streams.log.redis",
    "kafka": "streams.log.kafka",
    "kafka+ssl": "streams.log.kafka",
}
_DISTRIBUTIONS = {"confluent_kafka": "confluent-kafka", "redis": "redis[hiredis]"}

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_SECRET = re.compile(r"passw|secret|token|credential|jaas|private|\.pem|key$", re.IGNORECASE)
_USER = re.compile(r"[A-Za-z0-9._~%+-]*\Z")


def open_log(
    url: str,
    config: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    member: str = "",
) -> Log:
    """Open the log a URL names.

    :param config: driver settings, passed through.
    :param clock: the app's clock; the machine's own if None.
    :param member: the name under which static members will join groups, if they will.
    :raises ConfigError: the URL is not one of :data:`FORMS`, a setting cannot be, or the log's
        driver is not installed.
    :raises LogError: the log itself could not be opened.
    """
    scheme, opened = read(url, config, clock, member)
    log: Log = driver(scheme).open(opened)
    return log


def read(
    url: str, config: Mapping[str, Any] | None, clock: Clock | None, member: str = ""
) -> tuple[str, Opened]:
    """The scheme of a URL, and all of it that is the same for every log.

    :raises ConfigError: it is not one of :data:`FORMS`.
    """
    found = _URL.match(url) if isinstance(url, str) else None
    if found is None:
        shown = repr(redact(url)) if isinstance(url, str) else f"of type {type(url).__name__}"
        raise ConfigError(f"log URL {shown}: write it as {_forms()}")
    scheme = found["scheme"].lower()
    if scheme not in _MODULES:
        raise ConfigError(f"log URL {redact(url)!r}: no log is called {scheme!r}; use {_forms()}")
    place, _, query = found["rest"].partition("?")
    opened = Opened(
        url=f"{scheme}://{found['rest']}",
        path=unquote(place.removeprefix("/") if scheme == "sqlite" else place),
        options=_options(url, query),
        config=dict(config or {}),
        clock=clock or SYSTEM,
        member=member,
    )
    return scheme, opened


def _forms() -> str:
    return f"{', '.join(FORMS[:-1])} or {FORMS[-1]}"


def _options(url: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(
            f"log URL {redact(url)!r}: after '?' come settings as name=value&name=value"
        ) from None
    options = dict(pairs)
    if len(options) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"log URL {redact(url)!r}: {twice!r} is set twice")
    return options


def driver(scheme: str, part: str = "") -> Any:
    """The package of a scheme, or a module in it, imported only now.

    :raises ConfigError: what it needs is not installed.
    """
    name = _MODULES[scheme]
    try:
        return importlib.import_module(f"{name}.{part}" if part else name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not isinstance(error, ModuleNotFoundError) or missing in ("", "streams"):
            raise ConfigError(f"{scheme}:// cannot be used here: {error}") from error
        distribution = _DISTRIBUTIONS.get(missing, missing)
        raise ConfigError(
            f"{scheme}:// needs the package {missing!r}, which is not installed:"
            f" pip install '{distribution}'"
        ) from error


def redact(url: str) -> str:
    """The URL without its secrets, for people to read.

    What stands before the last ``@`` is a login, whatever it looks like: a password that was not
    quoted as it should have been must not show either. Settings that sound like secrets go too.
    """
    found = _URL.match(url)
    start, rest = (f"{found['scheme']}://", found["rest"]) if found else ("", url)
    login, at, rest = rest.rpartition("@")
    if at:
        user, separator, _ = login.partition(":")
        login = f"{user}:***" if separator and _USER.match(user) else "***"
    place, mark, query = rest.partition("?")
    settings = []
    for setting in query.split("&") if mark else ():
        name, equals, _ = setting.partition("=")
        settings.append(f"{name}=***" if equals and _SECRET.search(unquote(name)) else setting)
    return f"{start}{login}{at}{place}{mark}{'&'.join(settings)}"
