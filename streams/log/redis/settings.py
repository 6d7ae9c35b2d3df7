"""The URL of a Redis log and the driver's settings, read once and checked before anything connects.

======================================================  ==========================================
``redis://[user:password@]host[:port][/db]``            one server (Redis 7.0, Valkey 7.2, or newer)
``redis+sentinel://[user:password@]host[:port],…/service[/db]``  the primary that Sentinels name
``redis+cluster://[user:password@]host[:port],…``       a cluster, found from any of its nodes
``rediss://``, ``rediss+sentinel://``, ``rediss+cluster://``     the same over TLS
======================================================  ==========================================

Options stand in the query, redis-py's connection settings too where they are plain text or numbers
(``?lease=5&ssl_ca_certs=ca.pem``); the mapping ``config`` takes those that are objects or secret.
What would break a promise of this toolkit or load code is refused, with the reason.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from streams import wire
from streams.errors import ConfigError
from streams.log.membership import LONGEST, TERMS, Terms
from streams.log.protocol import Opened
from streams.log.secrets import Secrets
from streams.log.url import Url, parse
from streams.text import close_match

Address = tuple[str, int]
"""Host and port."""

Kind = Literal["single", "sentinel", "cluster"]

PORTS: Mapping[Kind, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}

READ_SIZE = 128 * 1024
"""Bytes asked of the socket at once. A message took 1,530 ns with redis-py's 32 KiB, 1,440 with
64 KiB, 1,290 with 128 KiB, 1,300 with 256 KiB and 1,350 with 1 MiB (200-byte events, two cores)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A Redis log's servers and options.

    :param name: the URL without its secrets, for messages.
    :param kind: how the server of a key is found.
    :param addresses: servers, Sentinels or cluster nodes named by the URL.
    :param service: the name the Sentinels know the primary by.
    :param terms: how long a member owns its partitions without confirming it.
    :param once: seconds for which the log remembers message IDs, so that one written twice is one
        entry; 0: not at all.
    :param timeout: seconds for which an append is tried while the server cannot be reached.
    :param wait: replicas that must have an append before it is acknowledged.
    :param wait_timeout: seconds given to them.
    :param connection: keyword arguments of redis-py's connections.
    :param sentinel: the same, for the Sentinels themselves.
    :param secrets: what no text may show.
    """

    name: str
    kind: Kind
    addresses: tuple[Address, ...]
    service: str = ""
    tls: bool = False
    terms: Terms = TERMS
    once: float = 120.0
    timeout: float = 10.0
    wait: int = 0
    wait_timeout: float = 1.0
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default_factory=Secrets, repr=False)


def read(opened: Opened) -> Settings:
    """The settings of a URL, its query and the driver's mapping.

    :raises ConfigError: they cannot be used, and what to write instead.
    """
    url = parse(opened.url)
    base, _, how = url.scheme.partition("+")
    kind: Kind = "single"
    if how in ("sentinel", "cluster"):
        kind = "sentinel" if how == "sentinel" else "cluster"
    name = url.place
    service, db = _path(url, kind)
    tls = base == "rediss"
    secrets = url.secrets(opened.config)

    own: dict[str, float] = {}
    driver: dict[str, Any] = {}
    sentinel: dict[str, Any] = {}
    for key, text in opened.options.items():
        if key in _OPTIONS:
            own[key] = _quiet(secrets, _OPTIONS[key], name, key, text)
        elif key in _SENTINEL:
            sentinel[_SENTINEL[key]] = text
        else:
            convert = _accepted(name, key, tls, url.named(key))
            if convert is None:
                raise ConfigError(
                    f"{name}: {key} is no text: give it in config={{{key!r}: …}} instead"
                )
            driver[key] = _quiet(secrets, convert, name, key, text)
    for key, value in opened.config.items():
        if key in _OPTIONS:
            own[key] = _OPTIONS[key](name, key, str(value))
        elif key in _SENTINEL:
            sentinel[_SENTINEL[key]] = _text(name, key, value)
        else:
            convert = _accepted(name, key, tls, repr(key)) or _OBJECTS[key]
            driver[key] = convert(name, key, value)
    if sentinel and kind != "sentinel":
        raise ConfigError(f"{name}: only redis+sentinel:// has settings for Sentinels")

    if url.user:
        driver["username"] = url.user
    if url.password:
        driver["password"] = url.password
    if db is not None:
        driver["db"] = db
    terms = Terms(own.pop("lease", TERMS.lease))
    driver.setdefault("socket_timeout", max(0.5, min(5.0, terms.lease / 3)))
    driver.setdefault("socket_connect_timeout", driver["socket_timeout"])
    # A cluster has a connection for each partition, and each has a buffer of that size.
    driver.setdefault("socket_read_size", READ_SIZE // 4 if kind == "cluster" else READ_SIZE)
    # Bytes come as they stand, whatever the driver's defaults become; RESP2 has no push messages
    # that could come between a request and its answer.
    driver |= {"protocol": 2, "decode_responses": False}
    for key in driver:
        if key.startswith(("ssl_", "socket_")) and kind == "sentinel":
            sentinel.setdefault(key, driver[key])
    settings = Settings(
        name=name,
        kind=kind,
        addresses=_addresses(url, kind),
        service=service,
        tls=tls,
        terms=terms,
        once=own.get("once", 120.0),
        timeout=own.get("timeout", 10.0),
        wait=int(own.get("wait", 0)),
        wait_timeout=own.get("wait_timeout", 1.0),
        connection=driver,
        sentinel=sentinel,
        secrets=secrets,
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    name = settings.name
    if settings.kind == "single" and len(settings.addresses) > 1:
        raise ConfigError(
            f"{name}: several servers: write redis+cluster:// for a cluster, "
            "redis+sentinel:// for Sentinels"
        )
    if settings.terms.lease < 0.5:
        raise ConfigError(f"{name}: lease={settings.terms.lease:g}: half a second at least")
    if settings.terms.lease > LONGEST:
        raise ConfigError(f"{name}: lease={settings.terms.lease:g}: {LONGEST:g} s at most")
    if 0 < settings.once < 3 * settings.timeout:
        raise ConfigError(
            f"{name}: once={settings.once:g}: an append is tried again for timeout="
            f"{settings.timeout:g} s, and its ID must be remembered three times as long"
        )
    if settings.connection.get("ssl_validate_ocsp") and settings.connection.get(
        "ssl_validate_ocsp_stapled"
    ):
        raise ConfigError(f"{name}: ssl_validate_ocsp and ssl_validate_ocsp_stapled: give one")
    timeout = settings.connection["socket_timeout"]
    if not 0 < timeout <= settings.terms.lease / 2:
        raise ConfigError(
            f"{name}: socket_timeout={timeout:g}: a member that waits longer than half its lease "
            f"({settings.terms.lease:g} s) for an answer may lose its partitions; "
            "take less, or a longer lease"
        )


# -- the URL ---------------------------------------------------------------------------------------


def _path(url: Url, kind: Kind) -> tuple[str, int | None]:
    # The path is not quoted: it may be meant for another place.
    said = f"{url.scheme}:// URL"
    steps = [unquote(step) for step in url.path.split("/") if step]
    service = ""
    if kind == "sentinel":
        if not steps:
            raise ConfigError(
                f"{said}: name the service the Sentinels watch: redis+sentinel://host:26379/main"
            )
        service = steps.pop(0)
    if not steps:
        return service, None
    if kind == "cluster":
        raise ConfigError(f"{said}: a cluster has no databases; leave the path out")
    if len(steps) > 1 or not steps[0].isdecimal():
        raise ConfigError(f"{said}: the database is a number, as in redis://host:6379/0")
    return service, int(steps[0])


def _addresses(url: Url, kind: Kind) -> tuple[Address, ...]:
    return tuple((host.strip("[]").lower(), port or PORTS[kind]) for host, port in url.hosts)


# -- options and the driver's settings -------------------------------------------------------------


# Each takes a text of the URL, or what code gave, and refuses what the driver would only find out
# about when it connects.


def _seconds(least: float) -> Callable[[str, str, Any], float]:
    def convert(name: str, key: str, given: Any) -> float:
        number: float | None = None
        if isinstance(given, str):
            number = wire.seconds(given)
        elif isinstance(given, (int, float)):
            number = float(given)
        if number is None or not least <= number < float("inf"):
            raise ConfigError(
                f"{name}: {key}={given!r}: a number of seconds from {least:g} on is needed, or a "
                "duration such as 90s or 2h30m"
            )
        return number

    return convert


def _whole(name: str, key: str, given: Any) -> int:
    text = str(given)
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ConfigError(f"{name}: {key}={given!r}: a whole number is needed")
    return int(text)


def _truth(name: str, key: str, given: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    found = known.get(str(given).lower())
    if found is None:
        raise ConfigError(f"{name}: {key}={given!r}: write true or false")
    return found


def _text(name: str, key: str, given: Any) -> str | bytes:
    if not isinstance(given, (str, bytes)):
        raise ConfigError(f"{name}: {key}: text is needed, not of type {type(given).__name__}")
    return given


def _login(name: str, key: str, given: Any) -> Any:
    return given if callable(given) else _text(name, key, given)


def _file(name: str, key: str, given: Any) -> Any:
    return given if isinstance(given, os.PathLike) else _text(name, key, given)


def _certificates(name: str, key: str, given: Any) -> ssl.VerifyMode:
    if isinstance(given, ssl.VerifyMode):
        return given
    known = {
        "none": ssl.CERT_NONE,
        "optional": ssl.CERT_OPTIONAL,
        "required": ssl.CERT_REQUIRED,
    }
    found = known.get(given) if isinstance(given, str) else None
    if found is None:
        raise ConfigError(f"{name}: {key}={given!r}: write {', '.join(known)}")
    return found


def _ciphers(name: str, key: str, given: Any) -> str:
    if isinstance(given, str):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(given)
        except ssl.SSLError:
            pass
        else:
            return given
    raise ConfigError(f"{name}: {key}={given!r}: OpenSSL knows no such ciphers")


def _quiet(secrets: Secrets, convert: _Convert, name: str, key: str, text: str) -> Any:
    """Convert. A value behind a password may be a part of it, so the error does not quote that."""
    try:
        return convert(name, key, text)
    except ConfigError as error:
        said = secrets.hide(str(error))
    raise ConfigError(said)


def _one_of(kind: type[Any]) -> _Convert:
    def convert(name: str, key: str, given: Any) -> Any:
        if not isinstance(given, kind):
            raise ConfigError(
                f"{name}: {key}: a {kind.__name__} of the module ssl is needed, not of type "
                f"{type(given).__name__}"
            )
        return given

    return convert


def _flags(name: str, key: str, given: Any) -> list[ssl.VerifyFlags]:
    one = _one_of(ssl.VerifyFlags)
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise ConfigError(f"{name}: {key}: a list of ssl.VerifyFlags is needed")
    return [one(name, key, each) for each in given]


def _any(name: str, key: str, given: Any) -> Any:
    return given


_Convert = Callable[[str, str, Any], Any]

_OPTIONS: Mapping[str, _Convert] = {
    "lease": _seconds(0),
    "once": _seconds(0),
    "timeout": _seconds(0),
    "wait": _whole,
    "wait_timeout": _seconds(0.001),
}

_SENTINEL = {"sentinel_username": "username", "sentinel_password": "password"}

_DRIVER: Mapping[str, _Convert | None] = {
    "username": _text,
    "password": _text,
    "client_name": _text,
    "socket_timeout": _seconds(0),
    "socket_connect_timeout": _seconds(0),
    "socket_read_size": _whole,
    "socket_keepalive": _truth,
    "socket_keepalive_options": None,
    "socket_type": None,
    "driver_info": None,
    "credential_provider": None,
}
"""redis-py's settings for every connection, and how each is read from text; None: not at all."""

_TLS: Mapping[str, _Convert | None] = {
    "ssl_keyfile": _file,
    "ssl_certfile": _file,
    "ssl_password": _login,
    "ssl_cert_reqs": _certificates,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _file,
    "ssl_ca_data": _text,
    "ssl_ciphers": _ciphers,
    "ssl_check_hostname": _truth,
    "ssl_min_version": None,
    "ssl_include_verify_flags": None,
    "ssl_exclude_verify_flags": None,
    "ssl_validate_ocsp": _truth,
    "ssl_validate_ocsp_stapled": _truth,
    "ssl_ocsp_context": None,
    "ssl_ocsp_expected_cert": None,
}

_OBJECTS: Mapping[str, _Convert] = {
    "socket_keepalive_options": _any,
    "socket_type": _any,
    "driver_info": _any,
    "credential_provider": _any,
    "ssl_min_version": _one_of(ssl.TLSVersion),
    "ssl_include_verify_flags": _flags,
    "ssl_exclude_verify_flags": _flags,
    "ssl_ocsp_context": _any,
    "ssl_ocsp_expected_cert": _any,
}
"""What is no text: only code can give it."""

_RETRIES = (
    "an append sent again by the driver would be written twice; the log retries by message ID"
)
_BYTES = "values and headers are bytes of the codec's own"
_PLACE = "it belongs into the URL"
_CODE = "it would run code of its own on the connection"
_PUSH = "answers are read in the order they were asked for, and nothing may come between"

_REFUSED: Mapping[str, str] = {
    "retry": _RETRIES,
    "retry_on_timeout": _RETRIES,
    "retry_on_error": _RETRIES,
    "decode_responses": _BYTES,
    "encoding": _BYTES,
    "encoding_errors": _BYTES,
    "host": _PLACE,
    "port": _PLACE,
    "db": _PLACE,
    "redis_connect_func": _CODE,
    "parser_class": _CODE,
    "command_packer": _CODE,
    "connection_class": _CODE,
    "connection_pool": _CODE,
    "event_dispatcher": _CODE,
    "protocol": _PUSH,
    "legacy_responses": _PUSH,
    "health_check_interval": _PUSH,
    "maint_notifications_config": _PUSH,
    "maint_notifications_pool_handler": _PUSH,
    "single_connection_client": "the log opens the connections it needs",
    "max_connections": "the log opens the connections it needs",
}


def _accepted(name: str, key: str, tls: bool, shown: str) -> _Convert | None:
    if key in _REFUSED:
        raise ConfigError(f"{name}: {key} cannot be set: {_REFUSED[key]}")
    if key in _DRIVER:
        return _DRIVER[key]
    if key in _TLS:
        if not tls:
            raise ConfigError(f"{name}: {key} is for TLS: write rediss:// instead of redis://")
        return _TLS[key]
    known = sorted({*_OPTIONS, *_DRIVER, *_TLS, *_SENTINEL})
    # Of a name that may be a part of a secret nothing is said.
    meant = close_match(key, known) if shown == repr(key) else None
    there = "there are" if meant is None else f"did you mean {meant!r}? There are"
    raise ConfigError(f"{name}: no setting {shown}; {there} {', '.join(known)}")
