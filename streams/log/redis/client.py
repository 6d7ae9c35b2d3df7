"""Requests and answers, on redis-py's connection level: pooled, pipelined, routed, certain.

Rules
-----
* A connection goes back to the pool only after its last answer was read, and is closed on any
  exception before (:mod:`streams.log.redis.link`).
* The driver tries nothing twice. This module does so where it is certain to be harmless: a server
  that says the command was *not* done (NOSCRIPT, MOVED, ASK, TRYAGAIN), and a connection that was
  idle in the pool and turns out to be dead, for commands that may be done twice.
* What was sent and not answered is *unknown* for a command that writes messages, and unavailable
  for every other (their scripts may all be repeated).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from streams.errors import Fatal, LogError, Mismatch, Unavailable
from streams.log.redis.errors import lost, moved_away, translate
from streams.log.redis.keys import kind_of
from streams.log.redis.link import Link, packer
from streams.log.redis.scripts import Script, script
from streams.log.redis.servers import find
from streams.log.redis.settings import Address, Settings
from streams.log.redis.stored import shown
from streams.text import get_logger

logger = get_logger("streams")

REDIRECTIONS = 5
"""How often one command follows MOVED and ASK before the cluster counts as unavailable."""

OLDEST = (7, 0)
"""Redis 7.0 counts the entries ever added to a stream, which lag and loss are told from."""


class Command:
    """One command, and the key that says where it goes.

    ``appends``: it writes messages, so an answer that never comes leaves it unknown.
    ``again``: it may be done twice.
    """

    __slots__ = ("again", "appends", "args", "key", "packed", "script", "where")

    def __init__(
        self,
        where: str,
        key: bytes,
        *args: Any,
        script: Script | None = None,
        appends: bool = False,
        again: bool = True,
    ) -> None:
        self.where = where
        self.key = key
        self.args = args
        self.script = script
        self.appends = appends
        self.again = again
        self.packed: list[bytes] | None = None
        """As it is sent, where that was worked out ahead."""

    @property
    def keys(self) -> Sequence[bytes]:
        """The keys that it names."""
        return (self.key,) if self.script is None else self.args[3 : 3 + self.args[2]]

    def whole(self) -> tuple[Any, ...]:
        """The same with the script's text instead of its hash."""
        if self.script is None:
            return self.args
        return ("EVAL", self.script.text, *self.args[2:])


def scripted(
    where: str,
    name: str,
    keys: Sequence[bytes],
    *args: Any,
    appends: bool = False,
    again: bool = True,
) -> Command:
    """A call of one of our scripts."""
    found = script(name)
    call = ("EVALSHA", found.sha, len(keys), *keys, *args)
    return Command(where, keys[0], *call, script=found, appends=appends, again=again)


REST = 0.1, 1.0
"""Seconds for which a server that could not be connected to is not tried again, at first and at
most: many partitions on it must not each wait for the same timeout."""


class Pool:
    """Idle connections by server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._idle: dict[Address, list[Link]] = {}
        self._closed = False
        self._greeted = False
        self._resting: dict[Address, tuple[float, float, LogError]] = {}
        """Servers that are left alone: until when, for how long, and why."""
        self._process = os.getpid()

    def take(self, address: Address) -> tuple[Link, bool]:
        """A connection for one exchange, and whether it was idle before (and may be dead).

        :raises LogError: none could be made.
        """
        while True:
            with self._lock:
                self._check()
                idle = self._idle.get(address)
                link = idle.pop() if idle else None
            if link is None:
                return self.new(address), False
            try:
                if not link.readable():
                    return link, True
            except (RedisError, OSError):
                pass
            link.close()  # closed by the server, or it says what nobody asked

    def new(self, address: Address) -> Link:
        """A connection of its own.

        :raises LogError: it could not be made.
        """
        with self._lock:
            self._check()
            until, rest, why = self._resting.get(address, (0.0, 0.0, None))
        if why is not None and time.monotonic() < until:
            raise type(why)(str(why)) from why
        try:
            link = Link(self._settings, address, known=self._greeted)
        except LogError as error:
            rest = min(REST[1], max(REST[0], 2 * rest))
            self._resting[address] = (time.monotonic() + rest, rest, error)
            raise
        self._resting.pop(address, None)
        if not self._greeted:
            self._greet(link, address)
        return link

    def give(self, address: Address, link: Link) -> None:
        """Take a connection back whose answers have all been read."""
        if not link.open:
            return
        with self._lock:
            if not self._closed and self._process == os.getpid():
                self._idle.setdefault(address, []).append(link)
                return
        link.close()

    def clear(self, address: Address) -> None:
        """Close what is idle to a server that failed or changed its part."""
        with self._lock:
            idle = self._idle.pop(address, [])
        for link in idle:
            link.close()

    def close(self) -> None:
        """Close what is idle; nothing can be taken any more."""
        with self._lock:
            self._closed = True
            idle = [each for connections in self._idle.values() for each in connections]
            self._idle.clear()
        for link in idle:
            link.close()

    def _check(self) -> None:
        if self._closed:
            raise Unavailable(f"{self._settings.name}: closed")
        if self._process != os.getpid():
            # A forked child: these sockets are its parent's.
            self._process = os.getpid()
            self._idle = {}

    def _greet(self, link: Link, address: Address) -> None:
        """Once: is the server new enough, and does it keep what it is given?"""
        where = f"{address[0]}:{address[1]}"
        try:
            facts = dict(
                line.split(":", 1)
                for line in bytes(link.ask("INFO")).decode().splitlines()
                if ":" in line
            )
        except ResponseError:
            facts = {}  # the ACL does not allow it: the first script will tell
        except (RedisError, OSError) as error:
            link.close()
            raise translate(error, where) from error
        self._greeted = True
        version = facts.get("redis_version", "")
        if version and tuple(map(int, version.split(".")[:2])) < OLDEST:
            link.close()
            raise Fatal(f"{where}: the server is Redis {version}; 7.0 or newer is needed")
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and facts.get("maxmemory", "0") != "0":
            logger.warning(
                "%s: maxmemory-policy %s may evict whole streams and the groups' positions: "
                "set noeviction",
                where, policy,
            )  # fmt: skip


class Flight:
    """Commands that were sent and whose answers are still to be read, once, by :meth:`land`."""

    def __init__(self, client: Client, commands: Sequence[Command]) -> None:
        self._client = client
        self._commands = commands
        self._answers: list[Any] = [None] * len(commands)
        self._sent: list[tuple[Address, Link, bool, list[int]]] = []
        by_server: dict[Address, list[int]] = {}
        for index, command in enumerate(commands):
            try:
                by_server.setdefault(client.servers.of(command.key), []).append(index)
            except LogError as error:
                self._answers[index] = error
        for address, indexes in by_server.items():
            try:
                link, idle = client.pool.take(address)
            except LogError as error:
                client.failed(address)
                for index in indexes:
                    self._answers[index] = error
                continue
            try:
                self._send(link, [commands[index] for index in indexes])
            except (RedisError, OSError) as error:
                client.failed(address)
                self._dropped(indexes, error, idle)
            except BaseException:
                link.close()
                raise
            else:
                self._sent.append((address, link, idle, indexes))

    def _send(self, link: Link, commands: Sequence[Command]) -> None:
        small: list[tuple[Any, ...]] = []
        for command in commands:
            if command.packed is None:
                small.append(command.args)
                continue
            if small:
                link.send_all(small)
                small = []
            link.send_packed(command.packed)
        if small:
            link.send_all(small)

    def _dropped(self, indexes: Iterable[int], error: BaseException, idle: bool) -> None:
        """These were sent, wholly or in part, and will not be answered."""
        once_more = idle and not isinstance(error, TimeoutError)
        for index in indexes:
            command = self._commands[index]
            if once_more and command.again:
                try:
                    self._answers[index] = self._client.once_more(command)
                except LogError as other:
                    self._answers[index] = other
                    once_more = False
            else:
                self._answers[index] = translate(error, command.where, unknown=command.appends)

    def land(self) -> list[Any]:
        """Every command's answer, in order: what the server said, or a :class:`LogError`."""
        client, commands, answers = self._client, self._commands, self._answers
        try:
            while self._sent:
                address, link, idle, indexes = self._sent.pop()
                failure: BaseException | None = None
                read = 0
                for index in indexes:
                    try:
                        answers[index] = link.receive()
                    except (RedisError, OSError) as error:
                        if lost(error):
                            failure = error
                            break
                        answers[index] = error
                    except BaseException:
                        link.close()
                        raise
                    read += 1
                if failure is None:
                    client.pool.give(address, link)
                else:
                    link.close()
                    client.failed(address)
                    self._dropped(indexes[read:], failure, idle)
        finally:
            for _, link, _, _ in self._sent:
                link.close()
        for index, answer in enumerate(answers):
            if isinstance(answer, Exception) and not isinstance(answer, LogError):
                try:
                    answers[index] = client.after(commands[index], answer)
                except LogError as error:
                    answers[index] = error
        return answers


class Client:
    """The way to the servers of one log. Usable from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers = find(settings)
        self.pool = Pool(settings)
        self._pack = packer(settings)

    def close(self) -> None:
        """Close the idle connections; whoever uses one still finishes."""
        self.pool.close()
        self.servers.close()

    def failed(self, address: Address) -> None:
        """A server does not answer or has changed its part."""
        self.pool.clear(address)
        self.servers.failed(address)

    def pack(self, command: Command) -> None:
        """Work out ahead what is to be sent."""
        command.packed = self._pack(*command.args)

    def launch(self, commands: Sequence[Command]) -> Flight:
        """Send commands, all of a server's in one piece; the servers work at the same time."""
        return Flight(self, commands)

    def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """Every command's answer, in order: what the server said, or a :class:`LogError`."""
        return self.launch(commands).land()

    def run(self, command: Command) -> Any:
        """One command's answer.

        :raises LogError: there is none, or it is an error.
        """
        (answer,) = self.run_all([command])
        if isinstance(answer, LogError):
            raise answer
        return answer

    def every(self, commands: Sequence[Command]) -> list[Any]:
        """Every command's answer, in order.

        :raises LogError: the first of the errors.
        """
        answers = self.run_all(commands)
        for answer in answers:
            if isinstance(answer, LogError):
                raise answer
        return answers

    def once_more(self, command: Command) -> Any:
        """Do a command over a new connection, wherever its key is now.

        :raises LogError: it failed again.
        """
        address = self.servers.of(command.key)
        try:
            return self._exchange(address, command, command.args)
        except (RedisError, OSError) as error:
            return self.after(command, error)

    def after(self, command: Command, error: BaseException) -> Any:
        """What comes of a command that was answered by an error: perhaps an answer elsewhere.

        :raises LogError: nothing else does.
        """
        args = command.args
        for turn in range(REDIRECTIONS):
            asking = False
            if isinstance(error, NoScriptError) and command.script is not None:
                args, address = command.whole(), self.servers.of(command.key)
            elif isinstance(error, MovedError):
                address = self._named(error, command)
                self.servers.moved(command.key, address)
            elif isinstance(error, AskError):
                address, asking = self._named(error, command), True
            elif isinstance(error, TryAgainError):
                address = self.servers.of(command.key)
                time.sleep(0.01 * 2**turn)
            else:
                break
            try:
                return self._exchange(address, command, args, asking)
            except (RedisError, OSError) as other:
                error = other
        if moved_away(error) and not isinstance(error, LogError):
            self.failed(self.servers.of(command.key))
        if isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE"):
            raise self._of_another_kind(command) or translate(error, command.where) from error
        raise translate(error, command.where, unknown=command.appends) from error

    def _of_another_kind(self, command: Command) -> Mismatch | None:
        """Which key of a command holds what it should not: the server does not say."""
        for key in command.keys:
            kind = kind_of(key)
            try:
                found = self._exchange(self.servers.of(key), command, ("TYPE", key))
            except (RedisError, OSError, LogError):
                return None
            if found not in (kind.encode(), b"none"):
                return Mismatch(
                    f"{command.where}: the key {shown(key)} in Redis holds a {shown(found)} "
                    f"instead of a {kind}: delete or rename it"
                )
        return None

    def _named(self, error: AskError, command: Command) -> Address:
        # MOVED names no host where the node does not know its own: it is the one that was asked.
        return (error.host or self.servers.of(command.key)[0], error.port)

    def _exchange(
        self, address: Address, command: Command, args: Sequence[Any], asking: bool = False
    ) -> Any:
        """Send one command over a fresh connection, and read its answer."""
        link = self.pool.new(address)
        try:
            if asking:
                link.ask("ASKING")
            answer = link.ask(*args)
        except ResponseError:
            self.pool.give(address, link)
            raise
        except BaseException as error:
            link.close()
            if lost(error):
                self.failed(address)
            raise
        self.pool.give(address, link)
        return answer
