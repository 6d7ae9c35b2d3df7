"""Opens a processor's database, prepares its tables, and begins its partitions.

The database is opened with the app; its tables are checked when the first message is handled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from streams.connection import Connection
from streams.databases.protocol import Busy, is_file_of
from streams.errors import ConfigError
from streams.inbox.calls import Access, Calls
from streams.inbox.failures import Failures
from streams.inbox.marks import RecordedPositions
from streams.inbox.outage import RETRY_PAUSE
from streams.inbox.partitions import Partitions
from streams.inbox.results import ChosenOutbox
from streams.inbox.tables import check_version, create_missing, find_version
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import describe_error


class Opening:
    """Makes one processor's database ready for transactions. For any thread.

    :param on_opened: called when the database was opened.
    """

    def __init__(
        self,
        connection: Connection,
        access: Access,
        failures: Failures,
        partitions: Partitions,
        outbox: ChosenOutbox,
        processor_name: str,
        on_opened: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._access = access
        self._database = access.database
        self._failures = failures
        self._partitions = partitions
        self._outbox = outbox
        self._processor_name = processor_name
        self._on_opened = on_opened
        self._left = False
        """Whether the app was left: a later call must not open the database again."""
        self._opened = False
        self._ready = False
        """Whether the database is open and its tables are there."""
        self._life = threading.Lock()
        """Held while the three above change."""
        self._preparing = access.new_lock()

    # -- its life

    def enter(self) -> Calls[None]:
        """Open the database, as the app is entered."""
        self._left = False
        return self._open()

    def _open(self) -> Calls[None]:
        """:raises TransactionPostponed: the app was left."""
        self._check()
        self._check_not_left()
        yield self._access.enter()
        with self._life:
            if not self._left:
                self._opened = True
                self._on_opened()
                return
        yield self._access.leave()  # the app was left meanwhile
        self._check_not_left()

    def _check(self) -> None:
        """:raises ConfigError: the database is the log's own file, or results have no outbox."""
        file = getattr(self._database, "path", None)
        if file is not None and is_file_of(self._connection.log, file):
            raise ConfigError(
                f"processor {self._processor_name}: transaction=Sqlite(...) names the log's own "
                "file; leave transaction= out, and message.transaction is the transaction that "
                "commits the message's position"
            )
        self._outbox.choose()

    def _check_not_left(self) -> None:
        """:raises TransactionPostponed: the app was left, so nothing would close the database."""
        if self._left:
            raise TransactionPostponed("its app was left")

    def mark_left(self) -> bool:
        """Note that the app is being left; returns whether the database is open, and is to be
        closed by :meth:`close`."""
        with self._life:
            self._left = True
            opened, self._opened, self._ready = self._opened, False, False
        self._preparing = self._access.new_lock()  # that of tasks belongs to a loop
        return opened

    def close(self) -> Calls[None]:
        """Close the database, unless others still use it."""
        yield self._access.leave()

    # -- ready for a transaction

    @property
    def is_ready(self) -> bool:
        """Whether :meth:`make_ready` has nothing to do."""
        return self._ready and self._partitions.all_begun

    def make_ready(self) -> Calls[None]:
        """Open the database, create its tables if they are missing, and begin the new partitions.

        :raises Busy: another handler is doing it.
        """
        # A long wait here would miss that nothing is to be started any more.
        lock = self._preparing
        acquired: bool = yield lock.acquire(RETRY_PAUSE)
        if not acquired:
            raise Busy("another handler waits for the database")
        try:
            if not self._ready:
                yield from self._prepare()
            for owned in self._partitions.not_begun():
                begin = partial(self._partitions.begin, owned)
                with suppress(OwnershipLost):
                    found: RecordedPositions = yield from self._access.run_in_transaction(begin)
                    self._partitions.set_begun(owned, found)
        finally:
            lock.release()

    def _prepare(self) -> Calls[None]:
        if not self._opened:  # the processor was declared on an app that was entered already
            yield from self._open()
        found = yield from self._access.run_in_transaction(find_version)
        if found is None and self._database.create:
            try:
                found = yield from self._access.run_in_transaction(create_missing)
            except Exception as error:
                if self._failures.may_pass(error):
                    raise
                raise ConfigError(
                    f"transaction={self._database.name}: the inbox's tables cannot be made "
                    f"({describe_error(error)}); ask an administrator to run the output of "
                    f"`streams inbox ddl {self._database.dialect}`"
                ) from error
        check_version(found, self._database.name, self._database.dialect)
        yield from self._outbox.create_tables()
        self._ready = True
