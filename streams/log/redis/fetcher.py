"""Reads ahead: the next batch is requested before this one, unless it is small, is handed out.

One ``XREAD … BLOCK`` is in progress on a connection nearly all the time, over all partitions that
are wanted, from this member's own positions. It costs the server nothing while it waits, and
while there is a backlog the server works on the next batch as the handlers work on this one.
No thread ever blocks *in* the driver: it waits for the socket to become readable, together with a
socket that :meth:`SocketWaiter.wake` writes to, and reads only a reply that has begun to arrive. So
the server's BLOCK may be longer than the socket's timeout.

On a cluster one command cannot span slots, so there is one connection for each partition;
elsewhere one for all.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from redis.exceptions import AskError, MovedError, RedisError, ResponseError

from streams.config import Flow
from streams.errors import LogError, Unavailable
from streams.log.redis.batch import RawEntries
from streams.log.redis.client import Client
from streams.log.redis.connection import RedisConnection
from streams.log.redis.errors import is_connection_lost, is_not_primary, translate
from streams.log.redis.leases import OwnedPartition
from streams.text import get_logger

logger = get_logger("streams")

BLOCK_SECONDS = 5.0
"""Seconds for which the server waits for new entries before it answers that there are none."""

_REPLY_GRACE = 5.0
"""Seconds an answer may be late before the connection counts as dead."""

FETCH_LIMIT = 2_000
"""Entries requested at once, over all partitions: with 200-byte events, half a megabyte. More was
no faster, and does not fit into the CPU cache."""

FIRST_FETCH = 64
"""Entries requested at first, while their size is unknown."""

SIZE_SAMPLE = 8
"""Entries of each partition's reply that are measured."""


class SocketWaiter:
    """Waits for any of some sockets to become readable, or to be woken."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._poll.register(self._wake_receiver, select.POLLIN)

    def register(self, fileno: int) -> None:
        """Wait for this socket too."""
        self._poll.register(fileno, select.POLLIN)

    def unregister(self, fileno: int) -> None:
        """Wait for this socket no longer."""
        try:
            self._poll.unregister(fileno)
        except KeyError:
            pass

    def wake(self) -> None:
        """Make :meth:`wait` return soon (any thread)."""
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # the buffer is full, or the socket is closed

    def wait(self, seconds: float) -> tuple[set[int], bool]:
        """Wait; returns the readable sockets, and whether :meth:`wake` was called."""
        readable = {fileno for fileno, _ in self._poll.poll(max(0.0, seconds) * 1000)}
        woken = self._wake_receiver.fileno() in readable
        if woken:
            try:
                while self._wake_receiver.recv(4096):
                    pass
            except BlockingIOError:
                pass
        return readable, woken

    def close(self) -> None:
        """Close the sockets."""
        self._wake_receiver.close()
        self._wake_sender.close()


class Fetcher:
    """One connection that reads ahead for some partitions. Used by one thread at a time."""

    def __init__(self, client: Client, waiter: SocketWaiter) -> None:
        self.partitions: list[OwnedPartition] = []
        self.requested: list[OwnedPartition] = []
        """The partitions of the read in progress; empty while there is none."""
        self.entries_requested = 0
        """Entries requested from each partition."""
        self._client = client
        self._waiter = waiter
        self._connection: RedisConnection | None = None
        self._fileno = -1
        self._client_id: int | None = None
        """The connection's ID at the server, for CLIENT UNBLOCK."""
        self._reply_deadline = 0.0
        self._ask_target: tuple[str, int] | None = None
        """The node for the next request, from an ASK reply."""

    def send_read(self, partitions: Sequence[OwnedPartition], count: int, block: float) -> None:
        """Request the next entries of these partitions."""
        keys = partitions[0].keys
        connection = self._connection
        try:
            if connection is None:
                connection = self._connect(keys.stream)
            if self._ask_target is not None:
                connection.request("ASKING")
            connection.send(
                "XREAD", "COUNT", count, "BLOCK", int(block * 1000), "STREAMS",
                *(each.keys.stream for each in partitions),
                *(each.last_read_id for each in partitions),
            )  # fmt: skip
        except (RedisError, OSError) as error:
            if connection is not None:
                self._client.report_failure(connection.address)
            self.disconnect()
            raise translate(error, str(keys)) from error
        self.requested = list(partitions)
        self.entries_requested = count
        self._reply_deadline = time.monotonic() + block + _REPLY_GRACE

    def read_reply(self, readable: set[int]) -> list[tuple[OwnedPartition, RawEntries]] | None:
        """The entries read, by partition; None while no reply has begun to arrive. Only one is ever
        in progress, so while the socket is empty, so are the buffers of the driver and of TLS.

        :raises LogError: the server refused, or the connection is dead; it may be asked again.
        """
        connection, requested = self._connection, self.requested
        if not requested or connection is None:
            return None
        if self._fileno not in readable:
            if time.monotonic() > self._reply_deadline:
                raise self._connection_failed(OSError("no answer, long after it was due"))
            return None
        try:
            reply = connection.receive()
        except (RedisError, OSError) as error:
            raise self._connection_failed(error) from error
        self.requested = []
        if self._ask_target is not None:
            # ASK is for one request; the next one goes to the slot's own node again.
            self.disconnect()
        if not reply:
            return []
        if len(requested) == 1:
            ((_, rows),) = reply
            return [(requested[0], rows)]
        found = {each.keys.stream: each for each in requested}
        return [(found[name], rows) for name, rows in reply]

    def interrupt(self) -> None:
        """Have the server answer the read in progress at once, so that another one can be sent.

        If the server does not (its ACL, or it is gone), the connection is closed instead.
        """
        if not self.requested or self._connection is None:
            return
        try:
            if self._connection.has_input():
                return
            if self._client_id is not None:
                unblock = ("CLIENT", "UNBLOCK", self._client_id)
                self._client.request(self._connection.address, unblock, idle=True)
                return
        except (RedisError, OSError, LogError):
            pass
        self.disconnect()

    def disconnect_misrouted(self) -> None:
        """Close the connection if its partitions have moved to another server."""
        if self._connection is None or not self.partitions:
            return
        try:
            address = self._client.servers.address_of(self.partitions[0].keys.stream)
        except LogError:
            return  # no server says where the stream is
        if address != self._connection.address:
            self.disconnect()

    def misses_partition(self) -> bool:
        """Whether the read in progress leaves out a wanted partition."""
        if not self.requested:
            return False
        requested = set(self.requested)
        return any(not each.paused and each not in requested for each in self.partitions)

    def disconnect(self) -> None:
        """Close the connection; its read is requested again."""
        connection, self._connection = self._connection, None
        self.requested = []
        self._ask_target = None
        if self._fileno >= 0:
            self._waiter.unregister(self._fileno)
            self._fileno = -1
        if connection is not None:
            connection.close()

    def _connect(self, key: bytes) -> RedisConnection:
        address = self._ask_target or self._client.servers.address_of(key)
        connection = self._client.pool.connect(address)
        self._connection = connection
        try:
            self._client_id = int(connection.request("CLIENT", "ID"))
        except ResponseError:
            self._client_id = None  # the ACL does not allow it
        self._fileno = connection.socket.fileno()
        self._waiter.register(self._fileno)
        return connection

    def _connection_failed(self, error: BaseException) -> LogError:
        keys, connection = self.requested[0].keys, self._connection
        address = connection.address if connection is not None else None
        self.disconnect()
        if isinstance(error, MovedError | AskError) and address is not None:
            target = (error.host or address[0], error.port)
            if isinstance(error, MovedError):
                self._client.servers.slot_moved(keys.stream, target)
            else:
                self._ask_target = target
        elif address is not None and (is_connection_lost(error) or is_not_primary(error)):
            self._client.report_failure(address)
        return translate(error, str(keys))


class Fetchers:
    """The connections that read ahead for one member: one for all its partitions, in a cluster one
    for each. Used by one thread at a time.

    :param on_failure: called when a read has failed.
    """

    def __init__(
        self, client: Client, group: str, flow: Flow, on_failure: Callable[[], None]
    ) -> None:
        self.waiter = SocketWaiter()
        self.is_outdated = False
        """Whether a read in progress may leave out a wanted partition."""
        self._client = client
        self._group = group
        self._on_failure = on_failure
        self._is_cluster = client.servers.is_cluster
        self._fetchers = [] if self._is_cluster else [Fetcher(client, self.waiter)]
        self._entry_size = 1024.0
        """Bytes of an entry, estimated from the last reads."""
        self._byte_budget = max(1, flow.bytes // 8)
        self._max_messages = max(1, flow.messages)
        self._failed_reads = 0
        """Reads that failed since the last success."""

    def add(self, owned: OwnedPartition) -> None:
        """Read this partition too."""
        if self._is_cluster:
            self._fetchers.append(Fetcher(self._client, self.waiter))
        self._fetchers[-1].partitions.append(owned)
        self.is_outdated = True

    def remove(self, removed: Iterable[OwnedPartition]) -> None:
        """Stop reading these partitions."""
        leaving = set(removed)
        for fetcher in self._fetchers:
            fetcher.partitions = [each for each in fetcher.partitions if each not in leaving]
            if self._is_cluster and not fetcher.partitions:
                fetcher.disconnect()
        if self._is_cluster:
            self._fetchers = [fetcher for fetcher in self._fetchers if fetcher.partitions]

    def interrupt_outdated(self) -> None:
        """End the reads that leave out a wanted partition."""
        if not self.is_outdated:
            return
        self.is_outdated = False
        for fetcher in self._fetchers:
            if fetcher.misses_partition():
                fetcher.interrupt()

    def disconnect_misrouted(self) -> None:
        """Close the connections whose partitions have moved to another server."""
        for fetcher in self._fetchers:
            fetcher.disconnect_misrouted()

    def send_reads(self, limit: int) -> None:
        """Have a read in progress on every connection that has nothing waiting to be delivered.

        :param limit: messages that a poll returns at most.
        :raises Unavailable: no read could be sent.
        """
        failure: LogError | None = None
        reads_sent = 0
        for fetcher in self._fetchers:
            if fetcher.requested:
                reads_sent += 1
                continue
            wanted = [each for each in fetcher.partitions if not each.paused]
            if not wanted or any(each.fetched for each in wanted):
                continue
            # With many idle connections, block longer, so that their empty polls stay cheap.
            block = max(BLOCK_SECONDS, len(self._fetchers) / 20)
            try:
                fetcher.send_read(wanted, self._entries_each(fetcher, len(wanted), limit), block)
                reads_sent += 1
            except Unavailable as error:
                failure = error
        if failure is not None and not reads_sent:
            raise failure

    def _entries_each(self, fetcher: Fetcher, partitions: int, limit: int) -> int:
        """Entries to request from each partition. The number grows in steps, as the size of the
        next entries is unknown and the whole reply is kept in memory."""
        most = min(limit, FETCH_LIMIT, self._max_messages)
        share = max(1, min(most, int(self._byte_budget / self._entry_size)) // partitions)
        return min(share, max(FIRST_FETCH // partitions, 1, 4 * fetcher.entries_requested))

    def read_replies(self, readable: set[int]) -> None:
        """Take the replies that have arrived.

        :raises Unavailable: a read failed, and so did the one before.
        """
        failure: LogError | None = None
        for fetcher in self._fetchers:
            try:
                replies = fetcher.read_reply(readable)
            except Unavailable as error:
                failure = error
                continue
            if replies is None:
                continue
            self._failed_reads = 0
            partitions = set(fetcher.partitions)
            for owned, rows in replies:
                if owned not in partitions:
                    continue  # revoked meanwhile
                owned.last_read_id, _ = rows[-1]
                owned.fetched = rows if not owned.fetched else owned.fetched + rows
            if replies:
                self._measure_entries([rows for _, rows in replies])
        if failure is not None:
            self._on_failure()
            # Usually a new connection helps; if it does not, the caller waits for a while.
            self._failed_reads += 1
            if self._failed_reads > 1:
                raise failure
            logger.info("%s: reading again: %s", self._group, failure)

    def _measure_entries(self, replies: Sequence[RawEntries]) -> None:
        samples = [row for rows in replies for _, row in rows[:: len(rows) // SIZE_SAMPLE + 1]]
        mean = sum(sum(map(len, row)) for row in samples) / len(samples) + 64
        # Larger entries count at once, smaller ones only gradually.
        self._entry_size = max(mean, (7 * self._entry_size + mean) / 8)

    def close(self) -> None:
        """Close all connections."""
        for fetcher in self._fetchers:
            fetcher.disconnect()
        self.waiter.close()
