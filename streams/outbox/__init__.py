"""The outbox: publishes messages with a transaction of the user's own database.

``await outbox.publish(topic, value, connection=...)`` writes a row inside the caller's transaction,
so it is published if that commits and never if it does not. A *relay* publishes the rows to the log
and deletes each once the log has confirmed it. The table has the columns of Debezium's outbox, so a
Debezium connector can do a relay's work.

=================  ==================================================================
``outbox``         :class:`Outbox`: declared on an app; publishing
``rows``           a record as a row of the table, and a row as a record
``tables``         the tables and every SQL statement, for PostgreSQL and SQLite
``connections``    running a statement on a connection of the user's
``databases``      a relay's own connections
``buckets``        which relay owns which keys
``relay``          the relay
``groups``         rows of one topic on their way to the log
``inspection``     reports about an outbox, and retries of failed rows
``django``         a Django app: model, migration, ``publish_on_commit``
=================  ==================================================================
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.health import OutboxHealth as OutboxHealth
    from streams.health import OutboxStats as OutboxStats
    from streams.outbox.outbox import Outbox as Outbox
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.health": "OutboxHealth OutboxStats",
            "streams.outbox.outbox": "Outbox",
        },
    )
