"""Open a log by its URL: ``open_log("sqlite:///events.db")``.

The scheme names the log, whose module, and with it its driver, is imported only then.

A URL may hold a password, so it is read and shown in one place, here. :func:`parse` reads it by a
strict grammar, in which a login can end in one place only:

    scheme://[login@]host[:port][,host[:port]…][/path][?name=value[&name=value…]]

The login ends at the last ``@``, and behind it, in the path and the settings, there is none; ``#``
stands nowhere. A password that was not percent-encoded as it should have been either reads as it
was meant, or the URL is refused, and the error quotes nothing of it but the scheme. What is shown
of a URL that could be read (:meth:`Url.__str__`, :func:`redact`) is put together from its parts:
scheme, user, hosts, path and the settings that are known to be harmless.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from typing_extensions import override

from streams.clock import SYSTEM, Clock
from streams.errors import ConfigError
from streams.log.protocol import Log, Mode, Opened
from streams.log.secrets import HIDDEN, Secrets, sounds_secret

__all__ = ["FORMS", "VARIABLE", "Given", "Url", "choose", "open_log", "parse", "redact"]

VARIABLE = "STREAMS_URL"
"""The variable of the environment that gives the log's URL where nothing else does."""

FORMS = (
    "sqlite:///relative.db",
    "sqlite:////absolute.db",
    "memory://name",
    "redis://host:6379/0",
    "kafka://host:9092,host2:9092",
)
"""How URLs are written, one example a form."""

ENCODING = (
    "in a user, password or value, write @ as %40, / as %2F, ? as %3F, # as %23, & as %26, % as %25"
)

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

Place = Literal["file", "hosts", "name"]
"""What stands between the scheme and the settings."""

_PLACES: Mapping[str, Place] = {"memory": "name", "sqlite": "file"}
"""What is not here has hosts."""

_EXAMPLES: Mapping[str, str] = {
    "redis": "redis://localhost:6379/0",
    "redis+sentinel": "redis+sentinel://localhost:26379/main",
    "redis+cluster": "redis+cluster://localhost:6379",
    "kafka": "kafka://localhost:9092",
    "kafka+ssl": "kafka+ssl://localhost:9093",
}

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31})://(?P<rest>.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?")
_MEMORY = re.compile(r"[A-Za-z0-9._-]*\Z")
_USER = re.compile(r"[A-Za-z0-9._~%+-]*\Z")
_PATH = re.compile(r"[A-Za-z0-9._~%+/-]*\Z")
_VALUE = re.compile(r"(?:[0-9.]{1,12}|(?:[0-9.]{1,12}(?:ms|[smhdw])){1,6}|full|normal|rwc?|ro)\Z")

_HARMLESS = frozenset(
    {
        "lease",
        "max_record",
        "mode",
        "once",
        "replication.factor",
        "synchronous",
        "timeout",
        "wait",
        "wait_timeout",
    }
)
"""Settings that are shown, where they have the values that they can have: the toolkit's own."""


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """A URL in its parts, decoded. As text it shows no secret.

    :param hosts: with the port where one is given; an IPv6 address stands in brackets.
    :param path: what follows the hosts, as it is written; a file's name or a memory log's, decoded.
    :param settings: names and values in the order of the query.
    :param login: how the login is shown, empty if there is none.
    """

    scheme: str
    hosts: tuple[tuple[str, int | None], ...] = ()
    path: str = ""
    user: str | None = None
    password: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    login: str = ""

    @property
    def options(self) -> dict[str, str]:
        """The settings by name."""
        return dict(self.settings)

    @property
    def place(self) -> str:
        """Scheme, hosts and path: what names the log in errors, without login and settings."""
        hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{hosts}{self._path()}"

    def _path(self) -> str:
        if not self.hosts:
            path = self.path.replace("%", "%25").replace("?", "%3F")
            return f"/{path}" if self.scheme == "sqlite" else path
        return self.path if _PATH.match(self.path) else f"/{HIDDEN}"

    @override
    def __str__(self) -> str:
        start, _, place = self.place.partition("://")
        login = f"{self.login}@" if self.login else ""
        shown = [f"{name}={value}" for name, value in self.settings if _harmless(name, value)]
        if len(shown) < len(self.settings):
            shown.append(HIDDEN)
        return f"{start}://{login}{place}{'?' if shown else ''}{'&'.join(shown)}"

    @override
    def __repr__(self) -> str:
        return f"<{self}>"

    def named(self, name: str) -> str:
        """A setting's name for an error.

        Behind a secret it may be a part of that secret, in which a ``&`` was not encoded.
        """
        before = self._secret_before(name)
        if before is None:
            return repr(name)
        return f"(its name is not shown, as it follows {before}; a & in a value is written %26)"

    def doubtful(self) -> Iterator[str]:
        """The names that stand behind a secret."""
        return (name for name, _ in self.settings if self._secret_before(name) is not None)

    def _secret_before(self, name: str) -> str | None:
        secret: str | None = None
        for each, _ in self.settings:
            if each == name:
                return secret
            if secret is None and sounds_secret(each):
                secret = each
        return None

    def secrets(self, config: Mapping[str, Any] | None = None) -> Secrets:
        """What a driver's text must not show of this URL and of the settings given in code."""
        return Secrets(self._secrets(config or {}))

    def _secrets(self, config: Mapping[str, Any]) -> Iterator[str]:
        if self.password:
            yield self.password
        elif self.user:  # a token, perhaps
            yield self.user
        behind = False
        for name, value in self.settings:
            if behind and not _harmless(name, value):
                if name not in _HARMLESS:
                    yield name
                yield value
            elif sounds_secret(name):
                behind = True
                yield value
        for name, value in config.items():
            if sounds_secret(str(name)):
                if isinstance(value, (str, int, float)):
                    yield str(value)
                elif isinstance(value, bytes):
                    yield value.decode("utf-8", "replace")


def _harmless(name: str, value: str) -> bool:
    return name in _HARMLESS and _VALUE.match(value) is not None


def open_log(
    url: str,
    config: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    member: str = "",
    mode: Mode = "rwc",
) -> Log:
    """Open the log a URL names.

    :param config: driver settings, passed through.
    :param clock: the app's clock; the machine's own if None.
    :param member: the name under which static members will join groups, if they will.
    :param mode: of a log that is a file: ``ro`` only looks, ``rw`` makes none, ``rwc`` makes the
        file if there is none.
    :raises ConfigError: the URL is not one of :data:`FORMS`, a setting cannot be, or the log's
        driver is not installed.
    :raises NotFound: there is no such file, and ``mode`` says not to make it.
    :raises LogError: the log itself could not be opened.
    """
    scheme, opened = read(url, config, clock, member, mode)
    log: Log = driver(scheme).open(opened)
    return log


def read(
    url: str,
    config: Mapping[str, Any] | None,
    clock: Clock | None,
    member: str = "",
    mode: Mode = "rwc",
) -> tuple[str, Opened]:
    """The scheme of a URL, and all of it that is the same for every log.

    :raises ConfigError: it is not one of :data:`FORMS`.
    """
    found = parse(url)
    given = dict(config or {})
    for name, value in given.items():
        if isinstance(value, str) and not _encodable(value):
            raise ConfigError(
                f"config={{{name!r}: ...}}: its text holds a lone surrogate, which no driver takes"
            )
    opened = Opened(
        url=url,
        path=found.path,
        options=found.options,
        config=given,
        clock=clock or SYSTEM,
        member=member,
        mode=mode,
    )
    return found.scheme, opened


def _encodable(text: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in text)


# -- reading a URL ---------------------------------------------------------------------------------


def parse(url: str) -> Url:
    """A log's URL in its parts.

    :raises ConfigError: it is not one of :data:`FORMS`; nothing of it is quoted but its scheme.
    """
    if not isinstance(url, str):
        raise ConfigError(f"log URL of type {type(url).__name__}: write it as {_forms()}")
    found = _URL.match(url)
    if found is None:
        raise ConfigError(f"log URL without a scheme: write it as {_forms()}")
    scheme = found["scheme"].lower()
    if scheme not in _MODULES:
        raise ConfigError(f"{scheme}:// URL: no log is called {scheme!r}; use {_forms()}")
    example = _EXAMPLES.get(scheme.replace("rediss", "redis"), "")
    return _parse(scheme, found["rest"], _PLACES.get(scheme, "hosts"), example)


def parse_http(url: str) -> Url:
    """An ``http://`` or ``https://`` URL in its parts, by the same grammar.

    :raises ConfigError: it cannot be read; nothing of it is quoted but its scheme.
    """
    found = _URL.match(url)
    if found is None or found["scheme"].lower() not in ("http", "https"):
        raise ConfigError("an http URL is needed, such as http://localhost:9090")
    return _parse(found["scheme"].lower(), found["rest"], "hosts", "http://localhost:9090")


def _forms() -> str:
    return f"{', '.join(FORMS[:-1])} or {FORMS[-1]}"


def _parse(scheme: str, rest: str, kind: Place, example: str) -> Url:
    said = f"{scheme}:// URL"
    if _CONTROL.search(rest):
        raise ConfigError(f"{said}: it holds a line break or another control character")
    place, mark, query = rest.partition("?")
    if kind == "hosts":
        # Nothing behind the login may look like its end, or a password could be read as hosts,
        # path or settings, and be shown.
        login, at, place = _authority(said, place, query, example)
        hosts, slash, path = place.partition("/")
        found = Url(
            scheme,
            hosts=tuple(_hosts(said, hosts, example)),
            path=slash + path,
            settings=tuple(_settings(said, query)) if mark else (),
        )
        return _with_login(said, found, login) if at else found
    if kind == "file":
        if not place.startswith("/"):
            raise ConfigError(
                f"{said}: write sqlite:///relative.db (three slashes) or sqlite:////absolute.db"
                " (four)"
            )
        path = _decoded(said, place[1:])
    else:
        path = _decoded(said, place)
        if not _MEMORY.match(path):
            raise ConfigError(
                f"{said}: write memory:// or memory://name (letters, digits, '.', '_', '-')"
            )
    return Url(scheme, path=path, settings=tuple(_settings(said, query)) if mark else ())


def _authority(said: str, place: str, query: str, example: str) -> tuple[str, str, str]:
    authority, slash, path = place.partition("/")
    if "#" in place or "#" in query:
        raise ConfigError(f"{said}: a # has no meaning there; {ENCODING}")
    if "@" in path or "@" in query:
        raise ConfigError(f"{said}: an @ stands behind the first / or ?; {ENCODING}")
    login, at, hosts = authority.rpartition("@")
    if not hosts:
        raise ConfigError(f"{said}: it names no host:port; write {example}")
    return login, at, hosts + slash + path


def _with_login(said: str, found: Url, login: str) -> Url:
    name, _, secret = login.partition(":")
    return Url(
        found.scheme,
        hosts=found.hosts,
        path=found.path,
        user=_decoded(said, name),
        password=_decoded(said, secret),
        settings=found.settings,
        # A user without a password may be a token.
        login=f"{name}:{HIDDEN}" if secret and _USER.match(name) else HIDDEN,
    )


def _hosts(said: str, text: str, example: str) -> Iterator[tuple[str, int | None]]:
    parts = text.split(",")
    for number, part in enumerate(parts, 1):
        found = _HOST.fullmatch(part)
        port = None if found is None or found["port"] is None else int(found["port"])
        if found is None or (port is not None and not 0 < port < 65_536):
            # It is not quoted: where the @ of a login is missing, this is the login.
            which = "its host" if len(parts) == 1 else f"host {number} of {len(parts)}"
            raise ConfigError(f"{said}: {which} is no host:port ({ENCODING}); write {example}")
        yield found["host"], port


def _settings(said: str, query: str) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    pairs = query.split("&") if query else []
    for number, pair in enumerate(pairs, 1):
        which = f"setting {number} of {len(pairs)} behind the ?"
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"{said}: {which} is not written name=value; a & in a value is written %26"
            )
        if "#" in pair:
            raise ConfigError(f"{said}: {which} holds a #, which is written %23")
        name, value = _decoded(said, name), _decoded(said, value)
        if name in names:
            which = repr(name) if name in _HARMLESS else which
            raise ConfigError(f"{said}: {which} is set twice; a & in a value is written %26")
        names.add(name)
        yield name, value


def _decoded(said: str, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass  # the exception holds the text: it must not become this error's context
    raise ConfigError(f"{said}: what is percent-encoded in it is not UTF-8")


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


# -- which URL -------------------------------------------------------------------------------------


class Given(NamedTuple):
    """A log's URL, and what gave it. As text it shows no secret."""

    url: str
    by: str
    """``--url``, ``the code`` or ``STREAMS_URL``."""

    @override
    def __str__(self) -> str:
        other = os.environ.get(VARIABLE, "")
        ignored = bool(other) and self.by != VARIABLE and other != self.url
        unused = f"; {VARIABLE} names another log and is not used" if ignored else ""
        return f"{redact(self.url)} (from {self.by}{unused})"


def choose(option: str | None, code: str | None = None) -> Given | None:
    """The URL to use: that of ``--url``, else the code's, else the environment's; None: there is
    none. The order is the same wherever a log is opened.
    """
    if option:
        return Given(option, "--url")
    if code is not None:
        return Given(code, "the code")
    variable = os.environ.get(VARIABLE, "")
    return Given(variable, VARIABLE) if variable else None


# -- showing a URL ---------------------------------------------------------------------------------


def redact(url: str) -> str:
    """The URL without its secrets, for people to read; of one that cannot be read, the scheme."""
    try:
        return str(parse(url))
    except ConfigError:
        found = _URL.match(url) if isinstance(url, str) else None
        return f"{found['scheme'].lower()}://{HIDDEN}" if found else HIDDEN


def secrets_in(texts: Iterable[str]) -> Secrets:
    """What must not be shown of texts that a user gave, some of which are URLs.

    :param texts: words of a command line, values from the environment.
    """
    return Secrets(secret for text in texts for secret in _secrets_in(text))


def _secrets_in(text: str) -> Iterator[str]:
    start, separator, rest = text.partition("://")
    if not separator:
        return
    scheme = re.search(r"[A-Za-z][A-Za-z0-9+.-]*\Z", start)
    url = text if scheme is None else text[scheme.start() :]
    try:
        known = parse_http(url) if url.lower().startswith("http") else parse(url)
    except ConfigError:
        yield rest
        return
    yield from known._secrets({})
