"""``sqlite:///path``: the embedded log, one file that many threads and processes share.

What it promises beyond :mod:`streams.log.protocol`:

* **durable**: an append is acknowledged after its transaction is on the disk
  (``?synchronous=full``, the default); with ``normal`` it survives a killed process, but not
  always a power cut. ``kill -9`` at any instant leaves a sound file.
* **one group over several processes**: partitions are leased to members under an epoch that every
  commit is checked against; a member whose process has died is noticed at once, by an operating
  system lock that dies with it, and a frozen one when its lease runs out.
* **the handler's own SQL** can join the transaction that commits its position.

The files, from the ground up:

=========================  ========================================================================
``settings``, ``errors``   the URL and its options; the driver's exceptions as ours
``schema``, ``files``      the tables; the file's mode and owner
``member_locks``           operating system locks that say which members still run
``shared_file``            what the logs of one process on one file share: write lock, events
``database``               connections, write transactions
``blocks``                 messages as they are stored: many to a row, as columns; ``SqliteBatch``
``reader``, ``producer``   reading a partition, looking things up in it; appends
``topics``, ``groups``     topics; groups and their positions
``member_rows``            members as the file has them
``membership``             a member's heartbeat, plan and leases
``offsets``                a member's commits
``subscription``           a member that polls
``user_sql``               SQL of users, and what only reads (``app.query``)
``transaction``            a handler's own SQL
``retention``              trimming
``durability``             how safe an acknowledged message is
``events``                 histories: appends under a condition, and one key's events
``documents``              documents of collections
``claims``                 claims of idempotency
``log``                    all of it behind the protocol
=========================  ========================================================================

Local file systems only: SQLite's write-ahead log is shared memory between processes.
"""

from streams.log.sqlite.log import open

__all__ = ["open"]
