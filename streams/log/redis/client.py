"""Requests and answers, on redis-py's connection level: pooled, pipelined, routed, certain.

Rules
-----
* A connection goes back to the pool only after its last answer was read, and is closed on any
  exception before (:mod:`streams.log.redis.connection`).
* The driver retries nothing. This module retries where that is certain to be harmless: when the
  server says that the command was *not* done (NOSCRIPT, MOVED, ASK, TRYAGAIN), and when a
  connection that was idle in the pool turns out to be dead, for commands that may be done twice.
* A command that was sent and got no answer is *unknown* if it writes messages, even if it cannot be
  sent again then, and unavailable otherwise (those scripts may all be repeated).
* A WAIT counts only for the writes of its own connection: a command that was sent again over
  another one, as its slot has moved, was not waited for.
* A failure raises a :class:`~streams.errors.LogError`, or is one in a list of answers.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import (
    AskError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from streams.errors import Fatal, LogError, OutcomeUnknown, TopicMismatch, Unavailable
from streams.log.redis.connection import RedisConnection
from streams.log.redis.errors import (
    WritesRefused,
    is_connection_lost,
    is_not_primary,
    translate,
)
from streams.log.redis.keys import PartitionKeys, expected_type
from streams.log.redis.lua import Script, load_script
from streams.log.redis.servers import servers_for
from streams.log.redis.settings import Address, Settings
from streams.log.redis.stored_values import evicts_streams, parse_info, printable
from streams.text import get_logger

logger = get_logger("streams")

MAX_REDIRECTS = 5
"""MOVED and ASK replies that one command follows before the cluster counts as unavailable."""

MIN_VERSION = (7, 0)
"""Redis 7.0 counts the entries ever added to a stream, from which lag and loss are derived."""


class Command:
    """One command.

    :param context: the topic, partition or group that an error names.
    :param key: decides which server the command goes to.
    :param keys: all keys that the command names, if there are more.
    :param is_append: it writes messages, whose outcome is unknown if the answer never comes.
    :param is_repeatable: it may be done twice.
    :param writes: for a WAIT: the commands that it waits for.
    """

    __slots__ = ("args", "context", "is_append", "is_repeatable", "key", "keys", "script", "writes")

    def __init__(
        self,
        context: str,
        key: bytes,
        *args: Any,
        keys: Sequence[bytes] = (),
        script: Script | None = None,
        is_append: bool = False,
        is_repeatable: bool = True,
        writes: Sequence[Command] = (),
    ) -> None:
        self.context = context
        self.key = key
        self.keys = keys or (key,)
        self.args = args
        self.script = script
        self.is_append = is_append
        self.is_repeatable = is_repeatable
        self.writes = writes

    def eval_args(self) -> tuple[Any, ...]:
        """The arguments with the script's text instead of its hash."""
        if self.script is None:
            return self.args
        return ("EVAL", self.script.text, *self.args[2:])


def key_command(context: str, name: str, key: bytes, *args: Any) -> Command:
    """A command whose first argument is its key."""
    return Command(context, key, name, key, *args)


def script_command(
    context: str,
    name: str,
    keys: Sequence[bytes],
    *args: Any,
    is_append: bool = False,
    before_wait: bool = False,
) -> Command:
    """A call of one of our scripts.

    :param before_wait: a WAIT follows on the same connection, so the script's text is sent: if the
        server did not know the hash, the script would be sent again over another connection, which
        WAIT does not cover.
    """
    script = load_script(name)
    call = ("EVALSHA", script.sha, len(keys), *keys, *args)
    command = Command(context, keys[0], *call, keys=keys, script=script, is_append=is_append)
    if before_wait:
        command.args = command.eval_args()
    return command


def group_command(keys: PartitionKeys, group: str, name: str, *args: Any) -> Command:
    """A call of a script on a group's hash in a partition, and on the partition's stream."""
    return script_command(str(keys), name, (keys.group_key(group), keys.stream), *args)


RECONNECT_BACKOFF = 0.1, 1.0
"""Seconds, at first and at most, before a server that could not be connected to is tried again: its
partitions must not each wait for the same timeout."""


class Backoff(NamedTuple):
    """The backoff of a server that could not be connected to."""

    until: float
    seconds: float
    error: LogError


class ConnectionPool:
    """Idle connections by server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: dict[Address, list[RedisConnection]] = {}
        self._closed = False
        self._server_checked = False
        self._backoffs: dict[Address, Backoff] = {}
        self._pid = os.getpid()

    def acquire(self, address: Address) -> tuple[RedisConnection, bool]:
        """A connection for one exchange, and whether it was idle before (and may be dead)."""
        while True:
            with self._lock:
                self._require_open()
                idle = self._idle.get(address)
                connection = idle.pop() if idle else None
            if connection is None:
                return self.connect(address), False
            try:
                if not connection.has_input():
                    return connection, True
            except (RedisError, OSError):
                pass
            connection.close()  # the server closed it, or sent something unasked

    def connect(self, address: Address) -> RedisConnection:
        """A new connection, which the caller owns."""
        with self._lock:
            self._require_open()
            backoff = self._backoffs.get(address)
        if backoff is not None and time.monotonic() < backoff.until:
            raise type(backoff.error)(str(backoff.error)) from backoff.error
        try:
            before = self._server_checked
            connection = RedisConnection(self._settings, address, connected_before=before)
        except LogError as error:
            least, most = RECONNECT_BACKOFF
            seconds = least if backoff is None else min(most, 2 * backoff.seconds)
            self._backoffs[address] = Backoff(time.monotonic() + seconds, seconds, error)
            raise
        self._backoffs.pop(address, None)
        if not self._server_checked:
            self._check_server(connection, address)
        return connection

    def release(self, address: Address, connection: RedisConnection) -> None:
        """Take back a connection whose answers have all been read."""
        if not connection.is_open:
            return
        with self._lock:
            if not self._closed and self._pid == os.getpid():
                self._idle.setdefault(address, []).append(connection)
                return
        connection.close()

    def close_idle(self, address: Address) -> None:
        """Close the idle connections to a server that failed or is no longer the primary."""
        with self._lock:
            idle = self._idle.pop(address, [])
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close the idle connections; none can be acquired any more."""
        with self._lock:
            self._closed = True
        for address in list(self._idle):
            self.close_idle(address)

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable(f"{self._settings.name}: closed")
        if self._pid != os.getpid():
            # In a forked child these sockets are the parent's.
            self._pid = os.getpid()
            self._idle = {}

    def _check_server(self, connection: RedisConnection, address: Address) -> None:
        """Check once whether the server is new enough and does not evict keys."""
        server = f"{address[0]}:{address[1]}"
        try:
            info = parse_info(connection.request("INFO"))
        except ResponseError:
            info = {}  # the ACL does not allow it: the first script will show it
        except (RedisError, OSError) as error:
            connection.close()
            raise translate(error, server) from error
        self._server_checked = True
        version = info.get("redis_version", "")
        if version and tuple(map(int, version.split(".")[:2])) < MIN_VERSION:
            connection.close()
            raise Fatal(f"{server}: the server is Redis {version}; 7.0 or newer is needed")
        policy = info.get("maxmemory_policy", "noeviction")
        if evicts_streams(policy, info.get("maxmemory", "0")):
            logger.warning(
                "%s: maxmemory-policy %s may evict whole streams and the groups' positions: "
                "set noeviction",
                server, policy,
            )  # fmt: skip


class SentBatch(NamedTuple):
    """Commands that were sent to one server."""

    address: Address
    connection: RedisConnection
    was_idle: bool
    """The connection came from the pool, and may have been dead."""
    indexes: list[int]


class Pipeline:
    """Commands that were sent and whose answers are still to be read, once, by
    :meth:`read_replies`."""

    def __init__(self, client: Client, commands: Sequence[Command]) -> None:
        self._client = client
        self._commands = commands
        self._replies: list[Any] = [None] * len(commands)
        self._sent: list[SentBatch] = []
        self._done_by: dict[Command, RedisConnection] = {}
        """The connection over which each command was done, unless it was then done on another
        server."""
        by_server: dict[Address, list[int]] = {}
        for index, command in enumerate(commands):
            try:
                by_server.setdefault(client.servers.address_of(command.key), []).append(index)
            except LogError as error:
                self._replies[index] = error
        for address, indexes in by_server.items():
            try:
                connection, was_idle = client.pool.acquire(address)
            except LogError as error:
                client.report_failure(address)
                for index in indexes:
                    self._replies[index] = error
                continue
            try:
                connection.send_many([commands[index].args for index in indexes])
            except (RedisError, OSError) as error:
                client.report_failure(address)
                self._fail(indexes, error, was_idle)
            except BaseException:
                connection.close()
                raise
            else:
                self._sent.append(SentBatch(address, connection, was_idle, indexes))

    def _fail(self, indexes: Iterable[int], error: BaseException, was_idle: bool) -> None:
        """Answer with an error for commands that were sent, wholly or in part, and will get no
        answer."""
        may_repeat = was_idle and not isinstance(error, TimeoutError)
        for index in indexes:
            command = self._commands[index]
            if may_repeat and command.is_repeatable:
                try:
                    self._replies[index] = self._client.repeat(command)
                except LogError as other:
                    may_repeat = False
                    # The first attempt may have been done. But a script whose first write is
                    # refused has checked before that the first attempt wrote nothing.
                    is_refused = isinstance(other, WritesRefused)
                    if command.is_append and isinstance(other, Unavailable) and not is_refused:
                        other = translate(error, command.context, unanswered_write=True)
                    self._replies[index] = other
            else:
                is_write = command.is_append
                self._replies[index] = translate(error, command.context, unanswered_write=is_write)

    def read_replies(self) -> list[Any]:
        """Every command's answer, in order: what the server said, or a :class:`LogError`."""
        replies = self._replies
        try:
            while self._sent:
                self._read_server(self._sent.pop())
        finally:
            self.discard()
        for index, reply in enumerate(replies):
            if isinstance(reply, Exception) and not isinstance(reply, LogError):
                try:
                    replies[index] = self._client.resolve_error(self._commands[index], reply)
                except LogError as error:
                    replies[index] = error
        self._check_waits()
        return replies

    def _check_waits(self) -> None:
        """Turn the answer of a WAIT into an error if a command that it waits for was done
        elsewhere."""
        if not any(command.writes for command in self._commands):
            return
        failed = {
            command
            for command, reply in zip(self._commands, self._replies, strict=True)
            if isinstance(reply, LogError)
        }
        for index, command in enumerate(self._commands):
            connection = self._done_by.get(command)
            if command not in failed and any(
                self._done_by.get(write) is not connection
                for write in command.writes
                if write not in failed
            ):
                self._replies[index] = Unavailable(
                    f"{command.context}: written over another connection than the WAIT for it"
                )

    def discard(self) -> None:
        """Give up the answers."""
        for sent in self._sent:
            sent.connection.close()

    def _read_server(self, sent: SentBatch) -> None:
        connection = sent.connection
        for number, index in enumerate(sent.indexes):
            try:
                self._replies[index] = connection.receive()
                self._done_by[self._commands[index]] = connection
            except (RedisError, OSError) as error:
                if is_connection_lost(error):
                    connection.close()
                    self._client.report_failure(sent.address)
                    self._fail(sent.indexes[number:], error, sent.was_idle)
                    return
                self._replies[index] = error
            except BaseException:
                connection.close()
                raise
        self._client.pool.release(sent.address, connection)


class Client:
    """Sends the commands of one log to its servers. Usable from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers = servers_for(settings)
        self.pool = ConnectionPool(settings)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they are released."""
        self.pool.close()
        self.servers.close()

    def report_failure(self, address: Address) -> None:
        """Note that a server does not answer or has changed its role."""
        self.pool.close_idle(address)
        self.servers.report_failure(address)

    def wait_command(self, context: str, key: bytes, writes: Sequence[Command]) -> Command:
        """WAIT until as many replicas as the settings ask for have the connection's earlier writes,
        so it is not repeated over another one. Its answer is for :meth:`replication_failure`.

        :param writes: the commands that it waits for. If one of these was done over another
            connection (its slot has moved), the answer is an error.
        """
        count, seconds = self.settings.wait_replicas, self.settings.wait_timeout
        args = ("WAIT", count, int(seconds * 1000))
        return Command(context, key, *args, is_repeatable=False, writes=writes)

    def write_failure(self, context: str, answers: Sequence[Any]) -> LogError | None:
        """Why a write was not done, or not by enough servers: from its answer, and that of the WAIT
        behind it if the settings ask for one. None: it was done."""
        written, *waited = answers
        if isinstance(written, LogError):
            return written
        return self.replication_failure(context, *waited) if waited else None

    def replication_failure(self, context: str, answer: int | LogError) -> OutcomeUnknown | None:
        """Why too few replicas may have what the server has confirmed, from WAIT's answer; None: as
        many as the settings ask for have it."""
        wanted = self.settings.wait_replicas
        if isinstance(answer, LogError):
            return OutcomeUnknown(f"{context}: written, but no replica has confirmed it: {answer}")
        if answer < wanted:
            return OutcomeUnknown(
                f"{context}: written, but {answer} replicas have it after "
                f"{self.settings.wait_timeout:g} s, not {wanted}"
            )
        return None

    def send_all(self, commands: Sequence[Command]) -> Pipeline:
        """Send commands, in one pipeline for each server; the servers work at the same time."""
        return Pipeline(self, commands)

    def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """Every command's answer, in order: what the server said, or a :class:`LogError`."""
        return self.send_all(commands).read_replies()

    def execute(self, command: Command) -> Any:
        """One command's answer."""
        return self.execute_or_raise([command])[0]

    def execute_or_raise(self, commands: Sequence[Command]) -> list[Any]:
        """Every command's answer, in order.

        :raises LogError: the first of the errors.
        """
        replies = self.execute_all(commands)
        for reply in replies:
            if isinstance(reply, LogError):
                raise reply
        return replies

    def repeat(self, command: Command) -> Any:
        """Do a command over a new connection to the server that has its key now."""
        address = self.servers.address_of(command.key)
        try:
            return self.request(address, command.args)
        except (RedisError, OSError) as error:
            return self.resolve_error(command, error)

    def resolve_error(self, command: Command, error: BaseException) -> Any:
        """The answer that a command gets from the server to which its error redirects it.

        :raises LogError: there is none.
        """
        args = command.args
        for redirect in range(MAX_REDIRECTS):
            asking = False
            if isinstance(error, NoScriptError) and command.script is not None:
                args, address = command.eval_args(), self.servers.address_of(command.key)
            elif isinstance(error, MovedError):
                address = self._redirect_target(error, command)
                self.servers.slot_moved(command.key, address)
            elif isinstance(error, AskError):
                address, asking = self._redirect_target(error, command), True
            elif isinstance(error, TryAgainError):
                address = self.servers.address_of(command.key)
                time.sleep(0.01 * 2**redirect)
            else:
                break
            try:
                return self.request(address, args, asking=asking)
            except (RedisError, OSError) as other:
                error = other
        if is_not_primary(error) and not isinstance(error, LogError):
            self.report_failure(self.servers.address_of(command.key))
        if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
            raise self._wrong_type_error(command) or translate(error, command.context) from error
        raise translate(error, command.context, unanswered_write=command.is_append) from error

    def _wrong_type_error(self, command: Command) -> TopicMismatch | None:
        """The error for a key of the wrong type, which the server does not name: it is looked
        for."""
        for key in command.keys:
            expected = expected_type(key)
            try:
                found = self.request(self.servers.address_of(key), ("TYPE", key))
            except (RedisError, OSError, LogError):
                return None
            if found not in (expected.encode(), b"none"):
                return TopicMismatch(
                    f"{command.context}: the key {printable(key)} in Redis holds a "
                    f"{printable(found)} instead of a {expected}: delete or rename it"
                )
        return None

    def _redirect_target(self, error: AskError, command: Command) -> Address:
        # A node that does not know its own host name sends MOVED without one: its host is the one
        # asked.
        return (error.host or self.servers.address_of(command.key)[0], error.port)

    def request(
        self, address: Address, args: Sequence[Any], *, asking: bool = False, idle: bool = False
    ) -> Any:
        """Send one command to a server, and read its answer.

        :param asking: an ASK redirected the command there.
        :param idle: use an idle connection of the pool, if there is one; else a new one.
        :raises RedisError: the server's answer is an error, or there is none.
        """
        connection = self.pool.acquire(address)[0] if idle else self.pool.connect(address)
        try:
            if asking:
                connection.request("ASKING")
            reply = connection.request(*args)
        except ResponseError:
            self.pool.release(address, connection)
            raise
        except BaseException as error:
            connection.close()
            if is_connection_lost(error):
                self.report_failure(address)
            raise
        self.pool.release(address, connection)
        return reply
