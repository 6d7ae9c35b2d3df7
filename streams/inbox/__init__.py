"""The inbox: a message's effect in the user's database happens once, on any log.

A processor with ``transaction=`` runs each handler in a transaction of that database, which also
records the message's identity and commits when the handler returns. A redelivered message, in
whatever process, finds the row and is settled without running the handler.

From the bottom up; a module knows those above it in this table.

================  ===============================================================
``identity``      a message's identity in the database, and its partition
``tables``        the tables and functions, and the statements that create them
``recording``     statements that record a message as handled or as given up
``marks``         statements upon the marks of partitions
``calls``         code written once for plain and for async databases and handlers
``failures``      what an error means
``outage``        whether the database can be used, and who may try it
``results``       what handlers with ``to=`` return: rows of an outbox
``partitions``    the owned partitions: learned from the log, begun in the database
``entries``       finds the entries of a job's messages
``opening``       opens the database, prepares its tables, begins partitions
``transactions``  begins a transaction once there can be one
``companion``     the interface of what adds statements to each transaction
``reruns``        what follows a failed run of a transaction
``handling``      handlers inside transactions: of one message, and of a batch
``giving_up``     gives messages up before their dead letters are written
``purging``       deletes rows in bounds
``inbox``         :class:`Inbox`: of one processor; puts these together
================  ===============================================================
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
