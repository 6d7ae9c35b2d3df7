"""redis-py's and the server's errors, translated once into ours.

A table: the first row whose exception class and reply's first word fit decides. Texts are the
server's own, cut to one line: they name commands, users and keys, never values or passwords. Of a
connection that cannot be made, the address, the reason and what to look at are left.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from redis import exceptions as redis

from streams.errors import (
    Fatal,
    LogError,
    Mismatch,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from streams.log.away import advice


class Refusing(Unavailable):
    """The server answers, and takes no writes now (memory, disk, replicas): nothing was written.

    Trying again at once would only add to what it suffers from.
    """


class Row(NamedTuple):
    """One kind of failure."""

    error: type[Exception]
    word: str
    """The reply's first words, where the class alone does not tell; empty: any."""
    becomes: type[LogError]
    hint: str = ""


TABLE = (
    Row(redis.AuthenticationError, "", Fatal, "check user and password"),
    Row(redis.AuthenticationWrongNumberOfArgsError, "", Fatal, "check user and password"),
    Row(redis.NoPermissionError, "", Fatal, "the server's ACL must allow it"),
    Row(redis.BusyLoadingError, "", Unavailable, "the server is loading its data"),
    Row(redis.MaxConnectionsError, "", Unavailable),
    Row(redis.ReadOnlyError, "", Unavailable, "this server is a replica now"),
    Row(redis.MasterDownError, "", Unavailable),
    Row(redis.ClusterDownError, "", Unavailable),
    Row(redis.TryAgainError, "", Unavailable),
    Row(redis.MovedError, "", Unavailable, "slots are moving"),
    Row(redis.AskError, "", Unavailable, "slots are moving"),
    Row(redis.OutOfMemoryError, "", Refusing, "maxmemory is reached; nothing was written"),
    Row(redis.ResponseError, "MISCONF", Refusing, "it cannot write to its disk"),
    Row(redis.ResponseError, "NOREPLICAS", Refusing, "it has too few replicas"),
    Row(redis.ResponseError, "BUSY ", Unavailable, "a script of somebody's runs too long"),
    Row(redis.ResponseError, "UNBLOCKED", Unavailable),
    Row(redis.ResponseError, "WRONGTYPE", Mismatch, "the key holds something else"),
    Row(redis.ResponseError, "Protocol error", TooLarge, "see proto-max-bulk-len"),
    Row(redis.ResponseError, "string exceeds maximum", TooLarge, "see proto-max-bulk-len"),
    Row(redis.ResponseError, "Elements are too large", TooLarge),
    Row(
        redis.ResponseError, "unknown command 'SENTINEL'", Fatal,
        "that is no Sentinel: write redis:// for the server itself",
    ),
    Row(redis.ResponseError, "unknown command", Fatal, "Redis 7.0 or newer is needed"),
    Row(
        redis.ResponseError, "This instance has cluster support disabled", Fatal,
        "that is no cluster: write redis://",
    ),
    Row(redis.ClusterCrossSlotError, "", Fatal, "a cluster needs a redis+cluster:// URL"),
    Row(redis.ResponseError, "", LogError),
    Row(
        redis.ConnectionError, "certificate verify failed", Fatal,
        "check ssl_ca_certs, and that the certificate names this host",
    ),
    Row(
        redis.ConnectionError, "No such file or directory", Fatal,
        "check ssl_ca_certs, ssl_certfile and ssl_keyfile",
    ),
    Row(redis.ConnectionError, "", Unavailable),
    Row(redis.TimeoutError, "", Unavailable),
    Row(redis.InvalidResponse, "", Unavailable, "it does not speak Redis's protocol"),
    Row(OSError, "", Unavailable),
    Row(redis.DataError, "", LogError),
    Row(redis.RedisError, "", LogError),
)  # fmt: skip

LOST = (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse, OSError)
"""The connection failed, rather than the server refused (unless the class is also in ANSWERED)."""

ANSWERED = (redis.AuthenticationError, redis.BusyLoadingError, redis.MaxConnectionsError)
"""redis-py makes these connection errors though the server itself gave this answer."""


def lost(error: BaseException) -> bool:
    """Whether the connection failed, so that what was sent may or may not have been done."""
    return isinstance(error, LOST) and not isinstance(error, ANSWERED)


def moved_away(error: BaseException) -> bool:
    """Whether the server said that it is no longer the one to write to."""
    return isinstance(error, redis.ReadOnlyError | redis.MasterDownError | redis.ClusterDownError)


# What the driver puts around the reason: error numbers, and the address, which is told anyway.
_AROUND = re.compile(
    r"^Error -?\d+ (?:while )?connecting to \S+ |^Error while reading from \S+ : (?:\(\d+, ')?"
    r"|'\)$|\[SSL: \w+\] |\s*\(_ssl\.c:\d+\)"
)


def _reason(error: BaseException) -> str:
    text = _AROUND.sub("", " ".join(str(error).split())[:200]).rstrip(". ")
    return text or type(error).__name__


def translate(error: BaseException, where: str, *, unknown: bool = False) -> LogError:
    """Our error for a driver's.

    :param where: what was being done, to which topic or server.
    :param unknown: a write was sent, and its answer never came.
    """
    if isinstance(error, LogError):
        return error
    text = _reason(error)
    if unknown and lost(error):
        return OutcomeUnknown(f"{where}: sent, but the answer never came ({text})")
    for row in TABLE:
        if isinstance(error, row.error) and text.startswith(row.word):
            hint = f"; {row.hint}" if row.hint else ""
            if lost(error) and text[1:2].islower():  # no acronym
                text = text[0].lower() + text[1:]
            return row.becomes(f"{where}: {text}{hint}")
    return LogError(f"{where}: {type(error).__name__}: {text}")


# What another protocol's port does. (Where TLS is spoken to a Redis without, it waits for more.)
_CLOSED = re.compile("closed by server|reset by peer|EOF occurred|wrong version number", re.I)


def unreachable(
    error: BaseException, host: str, port: int, *, tls: bool, known: bool = False
) -> LogError:
    """The error for a connection that could not be made.

    :param tls: it was to be encrypted.
    :param known: such a connection was made before.
    """
    where = f"Redis at {host}:{port}"
    found = translate(error, where)
    if known or type(found) is not Unavailable or isinstance(error, ANSWERED):
        return found
    closed = _CLOSED.search(str(found)) or (tls and isinstance(error, redis.TimeoutError))
    if not closed:
        hint = advice("Redis", [host])
    elif tls:
        hint = "is that Redis's port, and one for TLS? Without TLS it is redis://"
    else:
        hint = "is that Redis's port, or does it want TLS (rediss://)?"
    return Unavailable(f"{found}; {hint}")
