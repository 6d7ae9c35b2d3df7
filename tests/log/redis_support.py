"""What the tests of the Redis log share: names, a member that the test polls, a proxy that cuts.

Their fixtures, a server, a client, a log and members, are in ``conftest.py``."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import redis

from streams.errors import LogError, Unavailable
from streams.log.protocol import Assignment, Commit, Committed, Retention
from streams.log.redis import RedisLog
from streams.log.url import open_log
from streams.message import Batch, Position, Record
from tests.servers.redis import Redis

PATIENCE = 60.0
"""Seconds until a test gives up on something that should happen; no measure of speed."""

SHORT = "lease=1&socket_timeout=0.5"
"""For a test that waits until a lease is over, or looks at the streams once a lease."""


def open_redis(url: str, **config: Any) -> RedisLog:
    """The log at a URL."""
    log = open_log(url, config)
    assert isinstance(log, RedisLog)
    return log


class SlotMove:
    """Moves a slot of a cluster, with all that is in it, to another node."""

    def __init__(self, slot: int, source: Redis, target: Redis) -> None:
        self._slot = slot
        self._port = target.port
        self._here, self._there = source.client(), target.client()

    def begin(self) -> list[bytes]:
        """Move what is in it; whoever asks for it is sent on by ASK. Its keys."""
        here, there, slot = self._here, self._there, self._slot
        call(there, "CLUSTER", "SETSLOT", slot, "IMPORTING", call(here, "CLUSTER", "MYID").decode())
        call(here, "CLUSTER", "SETSLOT", slot, "MIGRATING", call(there, "CLUSTER", "MYID").decode())
        keys: list[bytes] = call(here, "CLUSTER", "GETKEYSINSLOT", slot, 100)
        call(here, "MIGRATE", "127.0.0.1", self._port, "", 0, 5_000, "KEYS", *keys)
        return keys

    def end(self) -> None:
        """It is the other node's; whoever asks is sent on by MOVED."""
        owner = call(self._there, "CLUSTER", "MYID").decode()
        for client in (self._there, self._here):
            call(client, "CLUSTER", "SETSLOT", self._slot, "NODE", owner)
            client.close()


def call(client: redis.Redis, *command: Any) -> Any:
    """What a server answers to a command that the driver has no method for."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def has_everything(client: redis.Redis) -> bool:
    """A server's one replica has said that it has all that was written."""
    facts: Any = client.info("replication")
    return bool(facts["slave0"]["offset"] == facts["master_repl_offset"])


def patient(log: RedisLog) -> RedisLog:
    """The log, which waits for answers longer than anything stands still, short as its lease is."""
    connection: Any = log._client.settings.connection
    connection["socket_timeout"] = connection["socket_connect_timeout"] = 10.0
    for address in list(log._client.pool._idle):
        log._client.pool.close_idle(address)  # these have the shorter one
    return log


def name(kind: str) -> str:
    """A name nobody else has."""
    return f"{kind}-{uuid4().hex[:8]}"


def named(
    log: RedisLog, partitions: int = 1, retention: Retention = Retention()
) -> tuple[str, str]:
    """A new topic, and the name of a group that is new as well."""
    return log.create_topic(name("topic"), partitions, retention).name, name("group")


def record(
    value: bytes | None, key: bytes | None = None, id: str | None = None, **more: Any
) -> Record:
    """A record, with an ID of its own unless one is given."""
    return Record(value, key, id or uuid4().hex, **more)


def outcomes(log: RedisLog, topic: str, records: Sequence[Record]) -> list[Position | LogError]:
    """Append; how each record ended."""
    told: list[Sequence[Position | LogError]] = []
    log.append(topic, records, told.append)
    (found,) = told
    return list(found)


def append(log: RedisLog, topic: str, records: Iterable[Record | bytes]) -> list[Position]:
    """Append records, or values; their positions."""
    found = outcomes(log, topic, [record(r) if isinstance(r, bytes) else r for r in records])
    positions = [each for each in found if isinstance(each, Position)]
    assert len(positions) == len(found), {str(e) for e in found if not isinstance(e, Position)}
    return positions


def until(done: Callable[[], Any], what: str) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := done():
            return found
        time.sleep(0.005)
    raise AssertionError(f"never happened: {what}")


class Member:
    """A member of a group that polls when the test says so."""

    def __init__(self, log: RedisLog, group: str, topics: str | list[str], **options: Any) -> None:
        self.log = log
        self.owned: dict[tuple[str, int], Assignment] = {}
        self.events: list[tuple[str, int]] = []
        """What it was told, and of which partition."""
        self.values: list[bytes | None] = []
        self.batches: list[Batch] = []
        """All that was delivered."""
        self.versions = itertools.count(1)
        self.ahead: dict[int, tuple[Assignment, int]] = {}
        """What was delivered and is not committed."""
        names = [topics] if isinstance(topics, str) else topics

        def joined() -> Any:
            """The short timeouts here run out on a busy machine; a processor waits that out."""
            try:
                return log.subscribe(group, names, self, **options)
            except Unavailable:
                return None

        self.subscription: Any = until(joined, "it has joined")

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            first, _ = self.log.watermarks(each.topic, each.partition)
            each.position = first if each.committed is None else each.committed.position
        for each in assignments:  # all or none: a failure above has all of it told again
            self.owned[each.topic, each.partition] = each
            self.events.append(("assigned", each.partition))

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            del self.owned[each.topic, each.partition]
            self.events.append(("revoked", each.partition))

    def lost(self, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            del self.owned[each.topic, each.partition]
            self.events.append(("lost", each.partition))

    def poll(self, limit: int = 1_000, timeout: float = 0.05) -> Sequence[Batch]:
        """One poll; an outage is no news."""
        try:
            batches: Sequence[Batch] = self.subscription.poll(limit, timeout)
        except Unavailable:
            time.sleep(0.01)
            return ()
        for batch in batches:
            self.values += batch.values
            self.batches.append(batch)
            self.ahead[id(batch.assignment)] = (batch.assignment, batch.offsets[-1] + 1)
        return batches

    def poll_until(self, done: Callable[[], Any], what: str) -> Any:
        """Poll until something is true, and return it."""

        def look() -> Any:
            self.poll()
            return done()

        return until(look, what)

    def owns(self, count: int) -> None:
        """Poll until it owns that many partitions."""
        self.poll_until(lambda: len(self.owned) == count, f"owning {count}")

    def commit(self, assignment: Assignment, position: int, progress: str = "") -> None:
        """Commit a place."""
        version = next(self.versions)
        self.subscription.commit([Commit(assignment, position, progress, version)])

    def commit_all(self) -> bool:
        """Commit what was delivered; whether that was possible."""
        for assignment, place in list(self.ahead.values()):
            try:
                self.commit(assignment, place)
            except Unavailable:
                return False
            del self.ahead[id(assignment)]
        return True

    def take_in(self, count: int) -> None:
        """Poll until that many messages have come in all, and commit them."""

        def more() -> bool:
            self.poll()
            return self.commit_all() and len(self.values) >= count

        until(more, f"{count} messages, not {len(self.values)}")


def position(log: RedisLog, group: str, topic: str, partition: int = 0) -> Committed:
    """Where a group stands."""
    return log.describe_group(group).positions[topic, partition]


class Proxy:
    """Stands between a client and a server on loopback. Used as a context manager.

    ``cut_reply(n)``: let the next ``n`` requests through and close instead of answering them.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._cuts = 0
        self._word = b""
        self.refusing = False
        """Close new connections at once."""
        self.cut = 0
        """Answers that were not passed on."""
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown() ends a blocking accept() where close() alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(PATIENCE)

    def cut_reply(self, count: int, word: bytes) -> None:
        """Do not pass on the answers to the next requests that hold a word, but close."""
        with self._lock:
            self._cuts, self._word = count, word

    def cut_all(self) -> None:
        """Close every connection, in the midst of whatever it was."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            doomed = threading.Event()
            self._start(self._poller, client, server, doomed, True)
            self._start(self._poller, server, client, doomed, False)

    def _poller(
        self, source: socket.socket, target: socket.socket, doomed: threading.Event, asks: bool
    ) -> None:
        try:
            while data := source.recv(65536):
                if asks:
                    with self._lock:
                        if self._cuts and self._word in data:
                            self._cuts -= 1
                            doomed.set()
                elif doomed.is_set():
                    self.cut += 1
                    break
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self._lock:
            self._sockets.discard(source)
        source.close()
