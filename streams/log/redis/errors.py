"""redis-py's and the server's errors, translated once into ours.

The first row of a table whose exception class and prefix of the reply match decides. Texts are the
server's own, cut to one line: they name commands, users and keys, never values or passwords. For a
connection that cannot be made, the text has the address, the reason and a hint.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from redis import exceptions as redis

from streams.errors import Fatal, LogError, OutcomeUnknown, TooLarge, TopicMismatch, Unavailable
from streams.log.advice import unreachable_advice


class WritesRefused(Unavailable):
    """The server answers, and takes no writes now (memory, disk, replicas): nothing was written.

    Trying again at once would only add to its load.
    """


class ErrorRule(NamedTuple):
    """One kind of failure."""

    error: type[Exception]
    prefix: str
    """The reply's first words, where the class alone does not decide; empty: any."""
    log_error: type[LogError]
    hint: str = ""


ERROR_RULES = (
    ErrorRule(redis.AuthenticationError, "", Fatal, "check user and password"),
    ErrorRule(redis.AuthenticationWrongNumberOfArgsError, "", Fatal, "check user and password"),
    ErrorRule(redis.NoPermissionError, "", Fatal, "the server's ACL must allow it"),
    ErrorRule(redis.BusyLoadingError, "", Unavailable, "the server is loading its data"),
    ErrorRule(redis.MaxConnectionsError, "", Unavailable),
    ErrorRule(redis.ReadOnlyError, "", Unavailable, "this server is a replica now"),
    ErrorRule(redis.MasterDownError, "", Unavailable),
    ErrorRule(redis.ClusterDownError, "", Unavailable),
    ErrorRule(redis.TryAgainError, "", Unavailable),
    ErrorRule(redis.MovedError, "", Unavailable, "slots are moving"),
    ErrorRule(redis.AskError, "", Unavailable, "slots are moving"),
    ErrorRule(
        redis.OutOfMemoryError, "", WritesRefused, "maxmemory is reached; nothing was written"
    ),
    ErrorRule(redis.ResponseError, "MISCONF", WritesRefused, "it cannot write to its disk"),
    ErrorRule(redis.ResponseError, "NOREPLICAS", WritesRefused, "it has too few replicas"),
    ErrorRule(redis.ResponseError, "BUSY ", Unavailable, "another client's script runs too long"),
    ErrorRule(redis.ResponseError, "UNBLOCKED", Unavailable),
    ErrorRule(redis.ResponseError, "WRONGTYPE", TopicMismatch, "the key holds something else"),
    ErrorRule(redis.ResponseError, "Protocol error", TooLarge, "see proto-max-bulk-len"),
    ErrorRule(redis.ResponseError, "string exceeds maximum", TooLarge, "see proto-max-bulk-len"),
    ErrorRule(redis.ResponseError, "Elements are too large", TooLarge),
    ErrorRule(
        redis.ResponseError, "unknown command 'SENTINEL'", Fatal,
        "that is no Sentinel: write redis:// for the server itself",
    ),
    ErrorRule(redis.ResponseError, "unknown command", Fatal, "Redis 7.0 or newer is needed"),
    ErrorRule(
        redis.ResponseError, "This instance has cluster support disabled", Fatal,
        "that is no cluster: write redis://",
    ),
    ErrorRule(redis.ClusterCrossSlotError, "", Fatal, "a cluster needs a redis+cluster:// URL"),
    ErrorRule(redis.ResponseError, "", LogError),
    ErrorRule(
        redis.ConnectionError, "certificate verify failed", Fatal,
        "check ssl_ca_certs, and that the certificate names this host",
    ),
    ErrorRule(
        redis.ConnectionError, "No such file or directory", Fatal,
        "check ssl_ca_certs, ssl_certfile and ssl_keyfile",
    ),
    ErrorRule(redis.ConnectionError, "", Unavailable),
    ErrorRule(redis.TimeoutError, "", Unavailable),
    ErrorRule(redis.InvalidResponse, "", Unavailable, "it does not speak Redis's protocol"),
    ErrorRule(OSError, "", Unavailable),
    ErrorRule(redis.DataError, "", LogError),
    ErrorRule(redis.RedisError, "", LogError),
)  # fmt: skip

CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse, OSError)
"""The connection failed, unless the class is also one of :data:`SERVER_REPLIES`."""

SERVER_REPLIES = (redis.AuthenticationError, redis.BusyLoadingError, redis.MaxConnectionsError)
"""Replies of the server that redis-py nevertheless raises as connection errors."""


def is_connection_lost(error: BaseException) -> bool:
    """Whether the connection failed, so that the commands sent may or may not have been done."""
    return isinstance(error, CONNECTION_ERRORS) and not isinstance(error, SERVER_REPLIES)


def is_not_primary(error: BaseException) -> bool:
    """Whether the server said that it is no longer the primary."""
    return isinstance(error, redis.ReadOnlyError | redis.MasterDownError | redis.ClusterDownError)


# The driver's text around the reason: error numbers, and the address, which is named anyway.
_DRIVER_PREFIX = re.compile(
    r"^Error -?\d+ (?:while )?connecting to \S+ |^Error while reading from \S+ : (?:\(\d+, ')?"
    r"|'\)$|\[SSL: \w+\] |\s*\(_ssl\.c:\d+\)"
)


def _reason_of(error: BaseException) -> str:
    text = _DRIVER_PREFIX.sub("", " ".join(str(error).split())[:200]).rstrip(". ")
    return text or type(error).__name__


def translate(error: BaseException, context: str, *, unanswered_write: bool = False) -> LogError:
    """Our error for a driver's.

    :param context: the operation, and its topic or server.
    :param unanswered_write: a write was sent, and its answer never came.
    """
    if isinstance(error, LogError):
        return error
    text = _reason_of(error)
    if unanswered_write and is_connection_lost(error):
        return OutcomeUnknown(f"{context}: sent, but the answer never came ({text})")
    for rule in ERROR_RULES:
        if isinstance(error, rule.error) and text.startswith(rule.prefix):
            hint = f"; {rule.hint}" if rule.hint else ""
            if is_connection_lost(error) and text[1:2].islower():  # no acronym
                text = text[0].lower() + text[1:]
            return rule.log_error(f"{context}: {text}{hint}")
    return LogError(f"{context}: {type(error).__name__}: {text}")


# A port of another protocol does this. (With TLS, a Redis without it waits for more.)
_WRONG_PROTOCOL = re.compile(
    r"(?i)closed by server|reset by peer|EOF occurred|closed \(EOF\)|wrong version number"
)


def unreachable_error(
    error: BaseException, host: str, port: int, *, tls: bool, connected_before: bool = False
) -> LogError:
    """The error for a connection that could not be made.

    :param tls: the connection was to be encrypted.
    :param connected_before: a connection to this server was made before.
    """
    context = f"Redis at {host}:{port}"
    found = translate(error, context)
    if connected_before or type(found) is not Unavailable or isinstance(error, SERVER_REPLIES):
        return found
    timed_out = isinstance(error, redis.TimeoutError)
    if not _WRONG_PROTOCOL.search(str(found)) and not (tls and timed_out):
        hint = unreachable_advice("Redis", [host])
    elif tls:
        hint = "is that Redis's port, and one for TLS? Without TLS it is redis://"
    else:
        hint = "is that Redis's port, or does it want TLS (rediss://)?"
    return Unavailable(f"{found}; {hint}")
