"""The store of outcomes and claims by idempotency key.

In memory (``memory://``), in a file (``sqlite:///claims.db``, which may be a log's) or in Redis
(``redis://…``, also Sentinel and cluster). The three behave the same, which one test suite checks.
Values are encoded by a codec, JSON by default.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from typing_extensions import TypeForm
from uuid_utils import uuid4

from stream_codecs import BindError, Bound, Codec, default_codec, type_name
from streams.clock import Clock
from streams.errors import ConfigError, InvalidValue
from streams.log.claims import (
    Claim,
    Complete,
    DeleteClaim,
    GetClaim,
    PutOutcome,
    Release,
    Renew,
    StoredClaim,
)
from streams.log.protocol import Log
from streams.log.url import open_claims, redact
from streams.numbers import is_seconds
from streams.patterns.arguments import check_mapping
from streams.patterns.idempotency import outcome
from streams.patterns.idempotency.claims_client import ClaimsClient
from streams.topic import check_codec

if TYPE_CHECKING:
    from streams.app import Streams

T = TypeVar("T")

DAY = 86_400.0
"""Seconds for which outcomes are kept by default."""

DEFAULT_LEASE = 30.0
"""Seconds for which a claim lasts without being renewed, by default."""

MAX_KEY_BYTES = 1_024
"""The longest key, in bytes."""

MAX_SECONDS = 100 * 365 * DAY

_NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")


class IdempotencyStore:
    """Outcomes and claims by key. Usable from any thread and any loop.

    The store of an app is where the app's log is, is usable while the app is entered, and needs
    no closing. With a URL it is opened by its first request, and its creator closes it after its
    users have ended: with :meth:`close`, or at the end of ``async with``, which opens it
    again when it is entered again. All calls that ask the store raise :class:`~streams.LogError` if
    it cannot be reached.

    :param url: an app, whose log, driver settings and clock it uses; or ``memory://`` (this store
        alone), ``memory://name`` (shared in the process), ``sqlite:///file.db`` (shared on the
        machine) or ``redis://…``. Options are the log's.
    :param name: keys of one name are one namespace: letters, digits, ``.``, ``_``, ``-``.
    :param config: driver settings, as in ``Streams(config=...)``.
    :param clock: an app's or a test's clock, for memory and SQLite; Redis has its own.
    :raises ConfigError: the URL cannot be used, or names a log that keeps no claims (Kafka). For an
        app this is raised when it is entered.
    """

    def __init__(
        self,
        url: str | Streams = "memory://",
        *,
        name: str = "default",
        config: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME_PATTERN.match(name):
            raise ConfigError(
                f"IdempotencyStore(name={name!r}): 1 to 100 letters, digits, '.', '_', '-'"
            )
        check_mapping("IdempotencyStore", "config", config)
        self.name = name
        self._prefix = name.encode() + b":"
        self._untyped = bind_codec(Any, None)
        self._lock = threading.Lock()
        self._app = None if isinstance(url, str) else _check_app(url)
        if self._app is None:
            self._location = redact(str(url))
            self._open_claims = partial(open_claims, str(url), config, clock)
            self._client = self._new_client()
        else:
            if config is not None or clock is not None:
                raise ConfigError("IdempotencyStore(app): config and clock are the app's")
            self._location = repr(self._app)
            self._clients: WeakKeyDictionary[Log, ClaimsClient] = WeakKeyDictionary()
            self._app.add_resource(self)

    def __repr__(self) -> str:
        return f"<IdempotencyStore {self.name!r} in {self._location}>"

    async def __aenter__(self) -> Self:
        if self._app is not None:
            _ = self.client  # raises here, when the app is entered, if its log keeps no claims
        elif self._client.closed:
            self._client = self._new_client()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what was requested, and close file and connections.

        The store of an app is closed with it, and opened again when the app is entered again.
        """
        if self._app is None:
            await self._client.close()
            return
        for client in list(self._clients.values()):
            await client.close()

    @property
    def clock(self) -> Clock:
        """The clock of the leases."""
        return self.client.clock

    @property
    def client(self) -> ClaimsClient:
        """Sends requests to the claims.

        :raises NotRunning: the app is not entered.
        :raises ConfigError: the app's log keeps no claims.
        """
        app = self._app
        if app is None:
            return self._client
        log = app.log
        with self._lock:
            client = self._clients.get(log)
            if client is None:
                self._open_claims = partial(open_claims, app.url, app.driver_config, app.clock)
                client = self._clients[log] = self._new_client()
        return client

    def _new_client(self) -> ClaimsClient:
        return ClaimsClient(self._open_claims(), f"idempotency store {self.name}")

    def _bind(self, type: TypeForm[Any]) -> Bound[Any]:
        return self._untyped if type is Any else bind_codec(type, None)

    # -- outcomes

    async def get(self, key: str, default: Any = None, *, type: TypeForm[Any] = Any) -> Any:
        """The outcome under a key; ``default`` if there is none (yet).

        :param type: the type that the value is decoded as; without one, any JSON value.
        :raises OperationFailed: the outcome is a failure.
        """
        found = await self.client.send(GetClaim(self.store_key(key)))
        if not isinstance(found, StoredClaim) or found.value is None:
            return default
        return outcome.decode_outcome(key, found.value, self._bind(type).decode)

    async def set(
        self, key: str, value: Any, ttl: float = DAY, *, type: TypeForm[Any] = Any
    ) -> None:
        """Store an outcome under a key, replacing its outcome or claim; the claim's owner loses it.

        :param ttl: seconds for which it is kept.
        :raises EncodeError: the value cannot be written as its type.
        """
        data = outcome.encode_result(self._bind(type).encode(value))
        await self.client.send(PutOutcome(self.store_key(key), data, check_seconds("ttl", ttl)))

    async def forget(self, key: str) -> bool:
        """Remove the outcome or claim under a key; returns whether there was one."""
        return bool(await self.client.send(DeleteClaim(self.store_key(key))))

    # -- claims

    async def claim(
        self, key: str, *, lease: float = DEFAULT_LEASE, fingerprint: object = None
    ) -> str | None:
        """Claim a key: a token, or None if it is claimed already or has an outcome.

        :param lease: seconds after which another caller may claim it, unless :meth:`renew` is
            called.
        :param fingerprint: of the request, for others to compare; see
            :meth:`streams.patterns.IdempotentProcessor.process`.
        """
        token = new_token()
        fingerprint_hash = hash_fingerprint(fingerprint)
        request = Claim(self.store_key(key), token, check_seconds("lease", lease), fingerprint_hash)
        return token if await self.client.send(request) is None else None

    async def complete(
        self, key: str, token: str, value: Any, ttl: float = DAY, *, type: TypeForm[Any] = Any
    ) -> bool:
        """Replace the claim with the outcome: True, or False if the key is claimed by others now.

        :raises EncodeError: the value cannot be written as its type.
        """
        data = outcome.encode_result(self._bind(type).encode(value))
        request = Complete(self.store_key(key), token, data, check_seconds("ttl", ttl))
        return bool(await self.client.send(request))

    async def release(self, key: str, token: str) -> bool:
        """Release a key without an outcome: True, or False if it is claimed by others now."""
        return bool(await self.client.send(Release(self.store_key(key), token)))

    async def renew(self, key: str, token: str, lease: float = DEFAULT_LEASE) -> bool:
        """Renew a claim for ``lease`` seconds from now: False if it is claimed by others now."""
        request = Renew(self.store_key(key), token, check_seconds("lease", lease))
        return bool(await self.client.send(request))

    def store_key(self, key: str) -> bytes:
        """The stored form of a key, within this store's name.

        :raises InvalidValue: it cannot be one.
        """
        if not isinstance(key, str) or not key:
            raise InvalidValue(f"idempotency key {key!r}: a str that is not empty")
        data = key.encode("utf-8", "surrogateescape")
        if len(data) > MAX_KEY_BYTES:
            raise InvalidValue(
                f"idempotency key {key[:40]!r}…: {len(data)} bytes; {MAX_KEY_BYTES} at most: "
                "use a hash of it"
            )
        return self._prefix + data


def _check_app(given: object) -> Streams:
    """:raises ConfigError: it is neither an app nor a URL."""
    from streams.app import Streams  # not before: a store with a URL needs no app

    if not isinstance(given, Streams):
        raise ConfigError(
            f"IdempotencyStore({given!r}): an app, Streams(...), or a URL such as "
            "'sqlite:///claims.db'"
        )
    return given


def bind_codec(type: TypeForm[Any], codec: Codec | None) -> Bound[Any]:
    """The codec's functions for outcomes of a type.

    :raises ConfigError: no codec can encode the type.
    """
    check_codec("idempotency store", codec)
    try:
        codec = codec if codec is not None else default_codec(type)
        return codec.bind(type, topic="idempotency store")
    except BindError as error:
        raise ConfigError(f"idempotency store: type={type_name(type)}: {error}") from error


def new_token() -> str:
    """A unique name for a claim."""
    return uuid4().hex


def hash_fingerprint(fingerprint: object) -> str:
    """A digest of a fingerprint; empty for None, which is never compared.

    :raises InvalidValue: JSON cannot represent it.
    """
    if fingerprint is None:
        return ""
    if isinstance(fingerprint, bytes):
        data = b"b" + fingerprint
    else:
        try:
            data = b"j" + msgspec.json.encode(fingerprint, order="deterministic")
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(fingerprint).__name__
            raise InvalidValue(
                f"fingerprint of type {kind}: bytes, or what JSON can hold ({error})"
            ) from None
    return hashlib.sha256(data).hexdigest()[:32]


def check_seconds(
    option: str, value: float, error: type[ConfigError | InvalidValue] = InvalidValue
) -> float:
    """Seconds, as a float.

    :param error: raised if they are invalid: ``ConfigError`` where they are declared.
    """
    if not is_seconds(value) or value > MAX_SECONDS:
        raise error(f"{option}={value!r}: must be a positive number of seconds, at most 100 years")
    return float(value)
