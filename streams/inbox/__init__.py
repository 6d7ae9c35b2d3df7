"""The inbox: a message's effect in the user's database happens once, on any log.

A processor with ``transaction=`` runs each handler in a transaction of that database, which also
records the message's identity and commits when the handler returns. A redelivered message, in
whatever process, finds the row and is settled without running the handler.

===============  ================================================================
``identity``     a message's identity in the database, and its partition
``tables``       the tables and functions, and the statements that create them
``recording``    statements that record a message as handled or as given up
``marks``        statements upon the marks of partitions
``handling``     handlers inside transactions: plain and async, single and batches
``inbox``        :class:`Inbox`: of one processor; opens the database, begins transactions
``results``      what handlers with ``to=`` return: rows of an outbox in their transaction
``purging``      deleting rows in bounds
===============  ================================================================
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.inbox.inbox import Inbox as Inbox
    from streams.inbox.tables import ddl as ddl
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__, {"streams.inbox.inbox": "Inbox", "streams.inbox.tables": "ddl"}
    )
