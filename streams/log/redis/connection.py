"""One connection to one server: redis-py's, with types, and without its retries.

After an exception while sending or receiving it is unknown how much the server has read and how
much of its answer is still to come, so the connection is closed, whatever the exception was.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis import connection as driver
from redis.exceptions import RedisError, ResponseError

from streams.log.redis.errors import unreachable_error
from streams.log.redis.settings import Address, Settings


class RedisConnection:
    """An open connection. Used by one thread at a time."""

    __slots__ = ("_driver", "_secrets", "address")

    def __init__(
        self, settings: Settings, address: Address, *, connected_before: bool = False
    ) -> None:
        """Connect, authenticate, select the database.

        :param connected_before: a connection to this server was made before, so the port is right.
        :raises LogError: it could not be made.
        """
        self.address = address
        connection_class: Any = driver.SSLConnection if settings.tls else driver.Connection
        self._secrets = settings.secrets
        try:
            self._driver = connection_class(host=address[0], port=address[1], **settings.connection)
            self._driver.connect()
        except (RedisError, OSError) as error:
            # A server that does not know AUTH, or has renamed it, repeats the password.
            self._secrets.hide_in_error(error)
            raise unreachable_error(
                error, *address, tls=settings.tls, connected_before=connected_before
            ) from error

    def send(self, *args: Any) -> None:
        """Send one command."""
        self._driver.send_command(*args)

    def send_many(self, commands: Sequence[Sequence[Any]]) -> None:
        """Send several commands in as few packets as possible."""
        # The driver's own pack_commands() looks at each argument in Python first.
        packed = b"".join([pack_command(tuple(each)) for each in commands])
        self._driver.send_packed_command([packed])

    def receive(self) -> Any:
        """The next answer.

        :raises redis.exceptions.ResponseError: the server's error; the connection is in order.
        """
        try:
            return self._driver.read_response(disable_decoding=True)
        except ResponseError:
            raise
        except BaseException:
            self.close()
            raise

    def request(self, *args: Any) -> Any:
        """Send one command, and wait for its answer."""
        self.send(*args)
        return self.receive()

    def has_input(self) -> bool:
        """Whether something has been received, at least in part.

        :raises RedisError: the server closed the connection.
        """
        return bool(self._driver.can_read(0))

    @property
    def is_open(self) -> bool:
        """Whether the connection was not closed."""
        return bool(self._driver.is_connected)

    @property
    def socket(self) -> socket.socket:
        """The socket, to wait for.

        :raises OSError: it is closed.
        """
        # The driver has no public accessor for it.
        found: socket.socket | None = self._driver._get_socket()  # noqa: SLF001
        if found is None:
            raise OSError("the connection is closed")
        return found

    def close(self) -> None:
        """Close the connection; harmless if it is closed."""
        self._driver.disconnect()
