"""A driver's client that several threads share, and that is replaced when it is broken.

librdkafka can come out of an outage with a client that never answers again: when every connection
was lost, or a broker was missing from the metadata for a moment, it does away with the handle of
that broker and goes on using it (seen with 2.16 where connections were cut or a broker stood
still: each question ends with ``_DESTROY_BROKER``, or finds no broker). Another client of the same
process reaches the broker at once. So a client that did not answer is not asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import AdminClient

from streams.errors import LogError
from streams.text import get_logger

logger = get_logger("streams.kafka")

C = TypeVar("C", bound="Consumer | AdminClient")


class _CountedClient(Generic[C]):
    """One client, how many are using it, and whether it is to go."""

    __slots__ = ("client", "retired", "users")

    def __init__(self, client: C) -> None:
        self.client = client
        self.users = 0
        self.retired = False


class SharedClient(Generic[C]):
    """Makes its client when it is first needed (any thread).

    A client that is retired is let go of when the last one that uses it is done, in a thread of
    its own: a broken one may take its time.

    :param make: makes a client; raises ConfigError.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._current: _CountedClient[C] | None = None
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[C]:
        """The client, for as long as it takes.

        :raises LogError: closed.
        """
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            counted = self._current
            if counted is None:
                counted = self._current = _CountedClient(self._make())
            counted.users += 1
        try:
            yield counted.client
        finally:
            with self._lock:
                counted.users -= 1
                last_user = counted.retired and not counted.users
            if last_user:
                close_in_background(counted.client)

    def retire(self, client: C) -> None:
        """Whoever comes next gets a new one."""
        with self._lock:
            if self._current is None or self._current.client is not client:
                return
            idle = self._detach()
        if idle is not None:
            close_in_background(idle)

    def close(self) -> None:
        """Let go of the client; those who use it finish."""
        with self._lock:
            self._closed = True
            idle = self._detach()
        if idle is not None:
            close_client(idle)

    def _detach(self) -> C | None:
        """Nobody else gets this client (the lock is held). It is given out to be let go of, unless
        it is in use: then its last user does that."""
        counted, self._current = self._current, None
        if counted is None:
            return None
        counted.retired = True
        return None if counted.users else counted.client


def close_client(client: Consumer | AdminClient) -> None:
    """Close what has to be closed; whatever the driver says about it only goes to the log."""
    if isinstance(client, Consumer):
        try:
            client.close()
        except (KafkaException, RuntimeError) as error:
            logger.debug("closing a client: %s", error)


def close_in_background(client: Consumer | AdminClient) -> None:
    """Let go of a client that may be broken, without waiting for it."""
    threading.Thread(
        target=close_client, args=(client,), name="streams-kafka-close", daemon=True
    ).start()
