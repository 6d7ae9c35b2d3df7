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
``member_locks``           operating system locks that show which members still run
``shared_file``            shared by a process's logs on one file: the write lock, wakeups
``database``               connections, write transactions
``blocks``                 stored messages: many to a row, as columns; ``SqliteBatch``
``reader``, ``producer``   reading a partition, offset lookups in it; appends
``topics``, ``groups``     topics; groups and their positions
``member_rows``            the members' rows in the file
``membership``             a member's heartbeat, plan and leases
``offsets``                a member's commits
``subscription``           a member that polls
``user_sql``               users' SQL, and read-only queries (``app.query``)
``transaction``            a handler's own SQL
``retention``              trimming
``durability``             how durable an acknowledged message is
``events``                 histories: appends under a condition, and one key's events
``documents``              documents of collections
``claims``                 claims of idempotency
``log``                    the log's protocol, on top of these modules
=========================  ========================================================================

Local file systems only: SQLite's write-ahead log is shared memory between processes.
"""

from streams.log.sqlite.log import open

__all__ = ["open"]
