"""Open a log by its URL: ``open_log("sqlite:///events.db")``.

The scheme names the log, whose module, and with it its driver, is imported only then.

A URL may hold a password, so only this module reads and shows it. :func:`parse` reads it by a
strict grammar, in which a login can end at one character only:

    scheme://[login@]host[:port][,host[:port]…][/path][?name=value[&name=value…]]

The login ends at the last ``@``; the path and the settings contain none, and no part contains
``#``. A password that should have been percent-encoded and was not is either read as it was meant,
or the URL is refused, and the error quotes nothing of it but the scheme. The shown form of a valid
URL (:meth:`Url.__str__`, :func:`redact`) is composed of its parts: scheme, user, hosts, path and
the settings that are known to be harmless.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from typing_extensions import override

from streams.clock import SYSTEM, Clock
from streams.errors import ConfigError
from streams.log.claims import ClaimStore
from streams.log.protocol import Log, OpenMode, OpenRequest
from streams.secrets import (
    CONTROL_CHARACTER,
    ENCODING_HINT,
    HIDDEN,
    Secrets,
    is_secret_name,
)

URL_VARIABLE = "STREAMS_URL"
"""The environment variable with the log's URL, used where nothing else gives one."""

URL_FORMS = (
    "sqlite:///relative.db",
    "sqlite:////absolute.db",
    "memory://name",
    "redis://host:6379/0",
    "kafka://host:9092,host2:9092",
)
"""The forms of URLs, with one example each."""

WHY_CLUSTERS_HAVE_NO_OUTPUTS = (
    "the partitions of a Redis Cluster are on several nodes, which cannot share a transaction; "
    "use one server (redis://), Kafka, or leave exactly_once out: then what is published twice has "
    "the same ID, and the groups that read it handle it once"
)

_DISTRIBUTIONS = {"confluent_kafka": "confluent-kafka", "redis": "redis[hiredis]"}

LocationKind = Literal["file", "hosts", "name"]
"""The part of a URL between the scheme and the settings."""


class _Scheme(NamedTuple):
    """What is known of a log by the scheme of its URL.

    :param module: the log's package, which has ``open``.
    :param example: a URL, named in errors; only for those with hosts.
    :param has_claims: the package has ``claims.open_claims``.
    """

    module: str
    example: str = ""
    location: LocationKind = "hosts"
    has_claims: bool = False


_REDIS = _Scheme("streams.log.redis", "redis://localhost:6379/0", has_claims=True)
_SENTINEL = _REDIS._replace(example="redis+sentinel://localhost:26379/main")
_CLUSTER = _REDIS._replace(example="redis+cluster://localhost:6379")

_SCHEMES: Mapping[str, _Scheme] = {
    "memory": _Scheme("streams.log.memory", location="name", has_claims=True),
    "sqlite": _Scheme("streams.log.sqlite", location="file", has_claims=True),
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+sentinel": _SENTINEL,
    "rediss+sentinel": _SENTINEL,
    "redis+cluster": _CLUSTER,
    "rediss+cluster": _CLUSTER,
    "kafka": _Scheme("streams.log.kafka", "kafka://localhost:9092"),
    "kafka+ssl": _Scheme("streams.log.kafka", "kafka+ssl://localhost:9093"),
}
"""The logs, by the schemes of their URLs."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31})://(?P<rest>.*)", re.DOTALL)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEMORY_NAME = re.compile(r"[A-Za-z0-9._-]*\Z")
_USER = re.compile(r"[A-Za-z0-9._~%+-]*\Z")
_PATH = re.compile(r"[A-Za-z0-9._~%+/-]*\Z")
_HARMLESS_VALUE = re.compile(
    r"(?:[0-9.]{1,12}|(?:[0-9.]{1,12}(?:ms|[smhdw])){1,6}|full|normal|rwc?|ro)\Z"
)

_HARMLESS_SETTINGS = frozenset(
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
"""The toolkit's own settings, which are shown if their values are valid."""


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """A URL in its parts, decoded. As text it shows no secret.

    :param hosts: the hosts, with the port if one is given; an IPv6 address is in brackets.
    :param path: the text behind the hosts, unchanged; a file's or a memory log's name, decoded.
    :param settings: names and values in the order of the query.
    :param login: the shown form of the login, empty if there is none.
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
    def location(self) -> str:
        """Scheme, hosts and path, without login and settings: the log's name in errors."""
        hosts = ",".join(host if port is None else f"{host}:{port}" for host, port in self.hosts)
        return f"{self.scheme}://{hosts}{self._encoded_path()}"

    def addresses(self, default_port: int) -> str:
        """The hosts with their ports, with commas between them."""
        return ",".join(f"{host}:{port or default_port}" for host, port in self.hosts)

    def _encoded_path(self) -> str:
        if not self.hosts:
            path = self.path.replace("%", "%25").replace("?", "%3F")
            return f"/{path}" if self.scheme == "sqlite" else path
        return self.path if _PATH.match(self.path) else f"/{HIDDEN}"

    @override
    def __str__(self) -> str:
        start, _, location = self.location.partition("://")
        login = f"{self.login}@" if self.login else ""
        shown = [f"{name}={value}" for name, value in self.settings if _is_harmless(name, value)]
        if len(shown) < len(self.settings):
            shown.append(HIDDEN)
        return f"{start}://{login}{location}{'?' if shown else ''}{'&'.join(shown)}"

    @override
    def __repr__(self) -> str:
        return f"<{self}>"

    def display_name(self, name: str) -> str:
        """A setting's name for an error.

        A name behind a secret may be a part of that secret, in which a ``&`` was not encoded.
        """
        secret_before = self._secret_before(name)
        if secret_before is None:
            return repr(name)
        return (
            f"(its name is not shown, as it follows {secret_before}; a & in a value is written %26)"
        )

    def possible_secret_names(self) -> Iterator[str]:
        """The setting names behind a secret."""
        return (name for name, _ in self.settings if self._secret_before(name) is not None)

    def _secret_before(self, name: str) -> str | None:
        names = [each for each, _ in self.settings]
        before = names[: names.index(name)] if name in names else []
        return next(filter(is_secret_name, before), None)

    def secrets(self, config: Mapping[str, Any] | None = None) -> Secrets:
        """The parts of this URL and of the settings given in code that a driver's text must not
        show."""
        return Secrets(self.secret_values(config or {}))

    def secret_values(self, config: Mapping[str, Any]) -> Iterator[str]:
        """The values of the URL and of the driver's own settings that must not be printed."""
        if self.password:
            yield self.password
        elif self.user:  # a token, perhaps
            yield self.user
        after_secret = False
        for name, value in self.settings:
            if after_secret and not _is_harmless(name, value):
                if name not in _HARMLESS_SETTINGS:
                    yield name
                yield value
            elif is_secret_name(name):
                after_secret = True
                yield value
        for name, value in config.items():
            if is_secret_name(str(name)):
                if isinstance(value, (str, int, float)):
                    yield str(value)
                elif isinstance(value, bytes):
                    yield value.decode("utf-8", "replace")


def _is_harmless(name: str, value: str) -> bool:
    return name in _HARMLESS_SETTINGS and _HARMLESS_VALUE.match(value) is not None


def open_log(
    url: str,
    config: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    member: str = "",
    mode: OpenMode = "rwc",
) -> Log:
    """Open the log a URL names.

    :param config: driver settings, passed through.
    :param clock: the app's clock; the machine's own if None.
    :param member: the name under which static members join groups, if the app has any.
    :param mode: for a log that is a file: ``ro`` only reads, ``rw`` uses an existing file, ``rwc``
        creates the file if it does not exist.
    :raises ConfigError: the URL has none of the :data:`URL_FORMS`, a setting is invalid, or the
        log's driver is not installed.
    :raises NotFound: there is no such file, and ``mode`` forbids creating it.
    :raises LogError: the log itself could not be opened.
    """
    scheme, request = read_url(url, config, clock, member, mode)
    log: Log = import_log(scheme).open(request)
    return log


def open_claims(
    url: str, config: Mapping[str, Any] | None = None, clock: Clock | None = None
) -> ClaimStore:
    """The store of claims at a log's URL.

    :param config: driver settings, passed through.
    :param clock: for claims in this process or on this machine; the machine's own clock if None.
    :raises ConfigError: it is no log's URL, or that log keeps no claims.
    """
    scheme, request = read_url(url, config, clock)
    if not _SCHEMES[scheme].has_claims:
        raise ConfigError(
            f"{redact(url)}: {scheme} cannot say who came first; keep claims in Redis "
            "(redis://host:6379/0), a file (sqlite:///claims.db) or memory://"
        )
    store: ClaimStore = import_log(scheme, "claims").open_claims(request)
    return store


def why_no_outputs(url: str) -> str:
    """Why the log at a URL cannot store records and positions in one step, as far as the URL shows
    it; empty if it does not."""
    try:
        scheme = parse(url).scheme
    except ConfigError:
        return ""  # it is refused when it is opened
    return WHY_CLUSTERS_HAVE_NO_OUTPUTS if scheme.endswith("+cluster") else ""


def read_url(
    url: str,
    config: Mapping[str, Any] | None,
    clock: Clock | None,
    member: str = "",
    mode: OpenMode = "rwc",
) -> tuple[str, OpenRequest]:
    """Parse the scheme of a URL, and the parts that are the same for every log.

    :raises ConfigError: it is not one of :data:`URL_FORMS`.
    """
    parsed = parse(url)
    driver_config = dict(config or {})
    for name, value in driver_config.items():
        if isinstance(value, str) and _SURROGATE.search(value):
            raise ConfigError(
                f"config={{{name!r}: ...}}: its text holds a lone surrogate, which no driver takes"
            )
    request = OpenRequest(
        url=url,
        path=parsed.path,
        options=parsed.options,
        config=driver_config,
        clock=clock or SYSTEM,
        member=member,
        mode=mode,
    )
    return parsed.scheme, request


# -- reading a URL ---------------------------------------------------------------------------------


def parse(url: str) -> Url:
    """Parse a log's URL.

    :raises ConfigError: it is not one of :data:`URL_FORMS`; nothing of it is quoted but its scheme.
    """
    if not isinstance(url, str):
        raise ConfigError(f"log URL of type {type(url).__name__}: write it as {_forms_text()}")
    match = _URL.match(url)
    if match is None:
        raise ConfigError(f"log URL without a scheme: write it as {_forms_text()}")
    scheme = match["scheme"].lower()
    known = _SCHEMES.get(scheme)
    if known is None:
        raise ConfigError(f"{scheme}:// URL: no log is called {scheme!r}; use {_forms_text()}")
    return _parse(scheme, match["rest"], known.location, known.example)


def parse_http(url: str) -> Url:
    """Parse an ``http://`` or ``https://`` URL by the same grammar.

    :raises ConfigError: it cannot be read; nothing of it is quoted but its scheme.
    """
    match = _URL.match(url)
    if match is None or match["scheme"].lower() not in ("http", "https"):
        raise ConfigError("an http URL is needed, such as http://localhost:9090")
    return _parse(match["scheme"].lower(), match["rest"], "hosts", "http://localhost:9090")


def _forms_text() -> str:
    return f"{', '.join(URL_FORMS[:-1])} or {URL_FORMS[-1]}"


def _parse(scheme: str, rest: str, location_kind: LocationKind, example: str) -> Url:
    label = f"{scheme}:// URL"
    if CONTROL_CHARACTER.search(rest):
        raise ConfigError(f"{label}: it holds a line break or another control character")
    location, _, query = rest.partition("?")
    if location_kind == "hosts":
        # Nothing behind the login may look like its end, or a password could be read as hosts,
        # path or settings, and be shown.
        found = _split_login(label, location, query, example)
        hosts, slash, path = found.hosts_and_path.partition("/")
        parsed = Url(
            scheme,
            hosts=tuple(_parse_hosts(label, hosts, example)),
            path=slash + path,
            settings=tuple(_parse_settings(label, query)),
        )
        if not found.has_login:
            return parsed
        name, _, secret = found.login.partition(":")
        return replace(
            parsed,
            user=_percent_decode(label, name),
            password=_percent_decode(label, secret),
            # A user without a password may be a token.
            login=f"{name}:{HIDDEN}" if secret and _USER.match(name) else HIDDEN,
        )
    if location_kind == "file":
        if not location.startswith("/"):
            raise ConfigError(
                f"{label}: write sqlite:///relative.db (three slashes) or sqlite:////absolute.db"
                " (four)"
            )
        path = _percent_decode(label, location[1:])
    else:
        path = _percent_decode(label, location)
        if not _MEMORY_NAME.match(path):
            raise ConfigError(
                f"{label}: write memory:// or memory://name (letters, digits, '.', '_', '-')"
            )
    return Url(scheme, path=path, settings=tuple(_parse_settings(label, query)))


class _Location(NamedTuple):
    """A URL's location in parts."""

    login: str
    has_login: bool
    hosts_and_path: str


def _split_login(label: str, location: str, query: str, example: str) -> _Location:
    authority, slash, path = location.partition("/")
    if "#" in location or "#" in query:
        raise ConfigError(f"{label}: a # has no meaning there; {ENCODING_HINT}")
    if "@" in path or "@" in query:
        raise ConfigError(f"{label}: an @ stands behind the first / or ?; {ENCODING_HINT}")
    login, at_sign, hosts = authority.rpartition("@")
    if not hosts:
        raise ConfigError(f"{label}: it names no host:port; write {example}")
    return _Location(login, bool(at_sign), hosts + slash + path)


def _parse_hosts(label: str, text: str, example: str) -> Iterator[tuple[str, int | None]]:
    hosts = text.split(",")
    for number, host in enumerate(hosts, 1):
        match = _HOST.fullmatch(host)
        port = None if match is None or match["port"] is None else int(match["port"])
        if match is None or (port is not None and not 0 < port < 65_536):
            # The host is not quoted: if the @ of a login is missing, this is the login.
            which = "its host" if len(hosts) == 1 else f"host {number} of {len(hosts)}"
            raise ConfigError(
                f"{label}: {which} is no host:port ({ENCODING_HINT}); write {example}"
            )
        yield match["host"], port


def _parse_settings(label: str, query: str) -> Iterator[tuple[str, str]]:
    names: set[str] = set()
    pairs = query.split("&") if query else []
    for number, pair in enumerate(pairs, 1):
        which = f"setting {number} of {len(pairs)} behind the ?"
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigError(
                f"{label}: {which} is not written name=value; a & in a value is written %26"
            )
        if "#" in pair:
            raise ConfigError(f"{label}: {which} holds a #, which is written %23")
        name, value = _percent_decode(label, name), _percent_decode(label, value)
        if name in names:
            which = repr(name) if name in _HARMLESS_SETTINGS else which
            raise ConfigError(f"{label}: {which} is set twice; a & in a value is written %26")
        names.add(name)
        yield name, value


def _percent_decode(label: str, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass  # the exception holds the text: it must not become this error's context
    raise ConfigError(f"{label}: what is percent-encoded in it is not UTF-8")


def import_log(scheme: str, submodule: str = "") -> Any:
    """Import the package of a scheme, or a module in it.

    :raises ConfigError: a package that it needs is not installed.
    """
    name = _SCHEMES[scheme].module
    try:
        return importlib.import_module(f"{name}.{submodule}" if submodule else name)
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


class ChosenUrl(NamedTuple):
    """A log's URL, and its source. As text it shows no secret."""

    url: str
    source: str
    """``--url``, ``the code`` or ``STREAMS_URL``."""

    @property
    def _ignores_variable(self) -> bool:
        """Whether the environment names another log."""
        return os.environ.get(URL_VARIABLE, "") not in ("", self.url)

    @property
    def log_level(self) -> int:
        """The level at which the choice is logged: a warning if the code's URL overrides the
        environment's, which is easily overlooked; not if ``--url`` does."""
        ignored = self.source == "the code" and self._ignores_variable
        return logging.WARNING if ignored else logging.INFO

    @override
    def __str__(self) -> str:
        unused = ""
        if self._ignores_variable:
            unused = f"; {URL_VARIABLE} names another log and is not used"
        return f"{redact(self.url)} (from {self.source}{unused})"


def choose_url(option: str | None, code: str | None = None) -> ChosenUrl | None:
    """The URL to use: that of ``--url``, else the code's, else the environment's, if any. The
    order is the same wherever a log is opened."""
    if option:
        return ChosenUrl(option, "--url")
    if code is not None:
        return ChosenUrl(code, "the code")
    variable = os.environ.get(URL_VARIABLE, "")
    return ChosenUrl(variable, URL_VARIABLE) if variable else None


# -- showing a URL ---------------------------------------------------------------------------------


def redact(url: str) -> str:
    """The URL without its secrets, for people to read; only the scheme of an invalid one."""
    try:
        return str(parse(url))
    except ConfigError:
        match = _URL.match(url) if isinstance(url, str) else None
        return f"{match['scheme'].lower()}://{HIDDEN}" if match else HIDDEN


def secrets_in(texts: Iterable[str]) -> Secrets:
    """The secrets in a user's texts, such as arguments and variables, some of which are URLs."""
    return Secrets(secret for text in texts for secret in _secrets_in_text(text))


def _secrets_in_text(text: str) -> Iterator[str]:
    start, separator, rest = text.partition("://")
    if not separator:
        return
    scheme = re.search(r"[A-Za-z][A-Za-z0-9+.-]*\Z", start)
    url = text if scheme is None else text[scheme.start() :]
    try:
        parsed = parse_http(url) if url.lower().startswith("http") else parse(url)
    except ConfigError:
        yield rest
        return
    yield from parsed.secret_values({})
