"""redis-py's and the server's errors, translated once into ours.

A table: the first row whose exception class and reply's first word fit decides. Texts are the
server's own, cut to one line: they name commands, users and keys, never values or passwords.
"""

from __future__ import annotations

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
    Row(redis.ResponseError, "unknown command", Fatal, "Redis 7.0 or newer is needed"),
    Row(redis.ClusterCrossSlotError, "", Fatal, "a cluster needs a redis+cluster:// URL"),
    Row(redis.ResponseError, "", LogError),
    Row(redis.ConnectionError, "", Unavailable),
    Row(redis.TimeoutError, "", Unavailable),
    Row(redis.InvalidResponse, "", Unavailable, "it does not speak Redis's protocol"),
    Row(OSError, "", Unavailable),
    Row(redis.DataError, "", LogError),
    Row(redis.RedisError, "", LogError),
)

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


def translate(error: BaseException, where: str, *, unknown: bool = False) -> LogError:
    """Our error for a driver's.

    :param where: what was being done, to which topic or server.
    :param unknown: a write was sent, and its answer never came.
    """
    if isinstance(error, LogError):
        return error
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if unknown and lost(error):
        return OutcomeUnknown(f"{where}: sent, but the answer never came ({text})")
    for row in TABLE:
        if isinstance(error, row.error) and text.startswith(row.word):
            hint = f"; {row.hint}" if row.hint else ""
            return row.becomes(f"{where}: {text}{hint}")
    return LogError(f"{where}: {type(error).__name__}: {text}")
