"""The URL of a Redis log and the driver's settings, read once and checked before anything connects.

======================================================  ==========================================
``redis://[user:password@]host[:port][/db]``            one server (Redis 7.0, Valkey 7.2, or newer)
``redis+sentinel://[user:password@]host[:port],…/service[/db]``  the primary that Sentinels name
``redis+cluster://[user:password@]host[:port],…``       a cluster, found from any of its nodes
``rediss://``, ``rediss+sentinel://``, ``rediss+cluster://``     the same over TLS
======================================================  ==========================================

Options are in the query, and so are redis-py's connection settings that are plain text or numbers
(``?lease=5&ssl_ca_certs=ca.pem``); the mapping ``config`` takes those that are objects or secret.
Settings that would break a promise of this toolkit or load code are refused, with the reason.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from streams import wire
from streams.errors import ConfigError
from streams.log.membership import DEFAULT_TERMS, MAX_LEASE, LeaseTerms
from streams.log.protocol import OpenRequest
from streams.log.url import Url, parse
from streams.secrets import Secrets
from streams.text import close_match

Address = tuple[str, int]
"""Host and port."""

Topology = Literal["single", "sentinel", "cluster"]

_TOPOLOGIES: Mapping[str, Topology] = {"sentinel": "sentinel", "cluster": "cluster"}

DEFAULT_PORTS: Mapping[Topology, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}

READ_SIZE = 128 * 1024
"""Bytes requested of the socket at once. A message took 1,530 ns with redis-py's 32 KiB, 1,440 with
64 KiB, 1,290 with 128 KiB, 1,300 with 256 KiB and 1,350 with 1 MiB (200-byte events, two cores)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A Redis log's servers and options.

    :param name: the URL without its secrets, for messages.
    :param topology: how the server of a key is found.
    :param addresses: servers, Sentinels or cluster nodes named by the URL.
    :param service: the name the Sentinels know the primary by.
    :param terms: how long a member owns its partitions without confirming its leases.
    :param dedup_seconds: seconds for which the log remembers message IDs, so that one written twice
        is one entry; 0: not at all.
    :param append_timeout: seconds for which an append is retried while the server cannot be
        reached.
    :param wait_replicas: replicas that must have an append before it is acknowledged.
    :param wait_timeout: seconds to wait for those replicas.
    :param connection: keyword arguments of redis-py's connections.
    :param sentinel: the same, for the connections to the Sentinels.
    :param secrets: texts that no message may show.
    """

    name: str
    topology: Topology
    addresses: tuple[Address, ...]
    service: str = ""
    tls: bool = False
    terms: LeaseTerms = DEFAULT_TERMS
    dedup_seconds: float = 120.0
    append_timeout: float = 10.0
    wait_replicas: int = 0
    wait_timeout: float = 1.0
    connection: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default_factory=Secrets, repr=False)


class _Given(NamedTuple):
    """A setting that the user gave."""

    key: str
    value: Any
    in_url: bool


def read_settings(request: OpenRequest) -> Settings:
    """The settings of a URL, its query and the driver's mapping.

    :raises ConfigError: the settings cannot be used; the message says what to write instead.
    """
    url = parse(request.url)
    base, _, variant = url.scheme.partition("+")
    topology = _TOPOLOGIES.get(variant, "single")
    name = url.location
    service, db = _path(url, topology)
    tls = base == "rediss"
    secrets = url.secrets(request.config)

    options: dict[str, float] = {}
    connection: dict[str, Any] = {}
    sentinel: dict[str, Any] = {}
    given = [_Given(key, value, in_url=True) for key, value in request.options.items()]
    given += [_Given(key, value, in_url=False) for key, value in request.config.items()]
    for key, value, in_url in given:
        if key in _OPTIONS:
            options[key] = _convert(secrets, _OPTIONS[key], name, key, str(value))
        elif key in _SENTINEL_OPTIONS:
            sentinel[_SENTINEL_OPTIONS[key]] = _convert(secrets, _text, name, key, value)
        else:
            shown = url.display_name(key) if in_url else repr(key)
            converter = _converter_of(name, key, tls, shown)
            if in_url and key in _OBJECT_OPTIONS:
                instead = f"give it in config={{{key!r}: …}} instead"
                raise ConfigError(f"{name}: {key} is no text: {instead}")
            connection[key] = _convert(secrets, converter, name, key, value)
    if sentinel and topology != "sentinel":
        raise ConfigError(f"{name}: only redis+sentinel:// has settings for Sentinels")

    if url.user:
        connection["username"] = url.user
    if url.password:
        connection["password"] = url.password
    if db is not None:
        connection["db"] = db
    terms = LeaseTerms(options.pop("lease", DEFAULT_TERMS.lease))
    connection.setdefault("socket_timeout", max(0.5, min(5.0, terms.lease / 3)))
    connection.setdefault("socket_connect_timeout", connection["socket_timeout"])
    # A cluster has a connection for each partition, and each has a buffer of that size.
    read_size = READ_SIZE // 4 if topology == "cluster" else READ_SIZE
    connection.setdefault("socket_read_size", read_size)
    # Bytes are not decoded, whatever the driver's defaults become; RESP2 has no push messages
    # that could come between a request and its answer.
    connection |= {"protocol": 2, "decode_responses": False}
    for key in connection:
        if key.startswith(("ssl_", "socket_")) and topology == "sentinel":
            sentinel.setdefault(key, connection[key])
    default = DEFAULT_PORTS[topology]
    settings = Settings(
        name=name,
        topology=topology,
        addresses=tuple((host.strip("[]").lower(), port or default) for host, port in url.hosts),
        service=service,
        tls=tls,
        terms=terms,
        dedup_seconds=options.get("once", 120.0),
        append_timeout=options.get("timeout", 10.0),
        wait_replicas=int(options.get("wait", 0)),
        wait_timeout=options.get("wait_timeout", 1.0),
        connection=connection,
        sentinel=sentinel,
        secrets=secrets,
    )
    _check_settings(settings)
    return settings


def _check_settings(settings: Settings) -> None:
    name = settings.name
    if settings.topology == "single" and len(settings.addresses) > 1:
        raise ConfigError(
            f"{name}: several servers: write redis+cluster:// for a cluster, "
            "redis+sentinel:// for Sentinels"
        )
    if settings.terms.lease < 0.5:
        raise ConfigError(f"{name}: lease={settings.terms.lease:g}: half a second at least")
    if settings.terms.lease > MAX_LEASE:
        raise ConfigError(f"{name}: lease={settings.terms.lease:g}: {MAX_LEASE:g} s at most")
    if 0 < settings.dedup_seconds < 3 * settings.append_timeout:
        raise ConfigError(
            f"{name}: once={settings.dedup_seconds:g}: an append is tried again for timeout="
            f"{settings.append_timeout:g} s, and its ID must be remembered three times as long"
        )
    connection = settings.connection
    if connection.get("ssl_validate_ocsp") and connection.get("ssl_validate_ocsp_stapled"):
        raise ConfigError(f"{name}: ssl_validate_ocsp and ssl_validate_ocsp_stapled: give one")
    timeout = connection["socket_timeout"]
    if not 0 < timeout <= settings.terms.lease / 2:
        raise ConfigError(
            f"{name}: socket_timeout={timeout:g}: a member that waits longer than half its lease "
            f"({settings.terms.lease:g} s) for an answer may lose its partitions; "
            "take less, or a longer lease"
        )


def _path(url: Url, topology: Topology) -> tuple[str, int | None]:
    # The path is not quoted: it may be meant for another part of the URL.
    context = f"{url.scheme}:// URL"
    segments = [unquote(step) for step in url.path.split("/") if step]
    service = ""
    if topology == "sentinel":
        if not segments:
            raise ConfigError(
                f"{context}: name the service the Sentinels watch: redis+sentinel://host:26379/main"
            )
        service = segments.pop(0)
    if not segments:
        return service, None
    if topology == "cluster":
        raise ConfigError(f"{context}: a cluster has no databases; leave the path out")
    if len(segments) > 1 or not segments[0].isdecimal():
        raise ConfigError(f"{context}: the database is a number, as in redis://host:6379/0")
    return service, int(segments[0])


_Converter = Callable[[Any], Any]
"""Converts a text of the URL, or an object from code, and refuses values that the driver would only
refuse when it connects. The text of its error is put behind the setting's name."""


def _convert(secrets: Secrets, converter: _Converter, name: str, key: str, value: Any) -> Any:
    """Convert a value. A value behind a password may be a part of it, so the error does not quote
    it."""
    try:
        return converter(value)
    except ConfigError as error:
        message = secrets.hide(f"{name}: {key}{error}")
    raise ConfigError(message)


def _seconds(least: float) -> _Converter:
    def convert(value: Any) -> float:
        number = wire.parse_seconds(value) if isinstance(value, str) else value
        if not isinstance(number, (int, float)) or not least <= number < float("inf"):
            raise ConfigError(
                f"={value!r}: a number of seconds from {least:g} on is needed, or a duration such "
                "as 90s or 2h30m"
            )
        return float(number)

    return convert


def _whole_number(value: Any) -> int:
    text = str(value)
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ConfigError(f"={value!r}: a whole number is needed")
    return int(text)


def _boolean(value: Any) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    found = values.get(str(value).lower())
    if found is None:
        raise ConfigError(f"={value!r}: write true or false")
    return found


def _text(value: Any) -> str | bytes:
    if not isinstance(value, (str, bytes)):
        raise ConfigError(f": text is needed, not of type {type(value).__name__}")
    return value


def _text_or_callable(value: Any) -> Any:
    return value if callable(value) else _text(value)


def _text_or_path(value: Any) -> Any:
    return value if isinstance(value, os.PathLike) else _text(value)


_CERT_MODES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def _verify_mode(value: Any) -> ssl.VerifyMode:
    if isinstance(value, ssl.VerifyMode):
        return value
    found = _CERT_MODES.get(value) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(f"={value!r}: write {', '.join(_CERT_MODES)}")
    return found


def _ciphers(value: Any) -> str:
    if isinstance(value, str):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(value)
        except ssl.SSLError:
            pass
        else:
            return value
    raise ConfigError(f"={value!r}: OpenSSL knows no such ciphers")


def _instance_of(kind: type[Any]) -> _Converter:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ConfigError(
                f": a {kind.__name__} of the module ssl is needed, not of type "
                f"{type(value).__name__}"
            )
        return value

    return convert


def _verify_flags(value: Any) -> list[ssl.VerifyFlags]:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise ConfigError(": a list of ssl.VerifyFlags is needed")
    return list(map(_instance_of(ssl.VerifyFlags), value))


def _as_given(value: Any) -> Any:
    return value


_OPTIONS: Mapping[str, _Converter] = {
    "lease": _seconds(0),
    "once": _seconds(0),
    "timeout": _seconds(0),
    "wait": _whole_number,
    "wait_timeout": _seconds(0.001),
}

_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}

_TEXT_OPTIONS: Mapping[str, _Converter] = {
    "username": _text,
    "password": _text,
    "client_name": _text,
    "socket_timeout": _seconds(0),
    "socket_connect_timeout": _seconds(0),
    "socket_read_size": _whole_number,
    "socket_keepalive": _boolean,
    "ssl_keyfile": _text_or_path,
    "ssl_certfile": _text_or_path,
    "ssl_password": _text_or_callable,
    "ssl_cert_reqs": _verify_mode,
    "ssl_ca_certs": _text_or_path,
    "ssl_ca_path": _text_or_path,
    "ssl_ca_data": _text,
    "ssl_ciphers": _ciphers,
    "ssl_check_hostname": _boolean,
    "ssl_validate_ocsp": _boolean,
    "ssl_validate_ocsp_stapled": _boolean,
}
"""redis-py's connection settings that can be text, and how each is converted."""

_OBJECT_OPTIONS: Mapping[str, _Converter] = {
    "socket_keepalive_options": _as_given,
    "socket_type": _as_given,
    "driver_info": _as_given,
    "credential_provider": _as_given,
    "ssl_min_version": _instance_of(ssl.TLSVersion),
    "ssl_include_verify_flags": _verify_flags,
    "ssl_exclude_verify_flags": _verify_flags,
    "ssl_ocsp_context": _as_given,
    "ssl_ocsp_expected_cert": _as_given,
}
"""redis-py's connection settings that are objects: only code can give them."""

_REFUSED: Mapping[str, tuple[str, ...]] = {
    "an append sent again by the driver would be written twice; the log retries by message ID": (
        *("retry", "retry_on_timeout", "retry_on_error"),
    ),
    "values and headers are bytes of the codec's own": (
        *("decode_responses", "encoding", "encoding_errors"),
    ),
    "it belongs in the URL": ("host", "port", "db"),
    "it would run code of its own on the connection": (
        *("redis_connect_func", "parser_class", "command_packer"),
        *("connection_class", "connection_pool", "event_dispatcher"),
    ),
    "answers are read in the order they were asked for, and nothing may come between": (
        *("protocol", "legacy_responses", "health_check_interval"),
        *("maint_notifications_config", "maint_notifications_pool_handler"),
    ),
    "the log opens the connections it needs": ("single_connection_client", "max_connections"),
}
"""Settings that are refused, by the reason."""


def _converter_of(name: str, key: str, tls: bool, shown: str) -> _Converter:
    for reason, refused in _REFUSED.items():
        if key in refused:
            raise ConfigError(f"{name}: {key} cannot be set: {reason}")
    converter = _TEXT_OPTIONS.get(key) or _OBJECT_OPTIONS.get(key)
    if converter is not None:
        if key.startswith("ssl_") and not tls:
            raise ConfigError(f"{name}: {key} is for TLS: write rediss:// instead of redis://")
        return converter
    known = sorted({*_OPTIONS, *_TEXT_OPTIONS, *_OBJECT_OPTIONS, *_SENTINEL_OPTIONS})
    # A name that may be a part of a secret gets no suggestion.
    meant = close_match(key, known) if shown == repr(key) else None
    hint = "there are" if meant is None else f"did you mean {meant!r}? There are"
    raise ConfigError(f"{name}: no setting {shown}; {hint} {', '.join(known)}")
