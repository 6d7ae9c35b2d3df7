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

===================  ===========================================================================
``settings``         the URL, its options and what can be wrong with them
``errors``           the driver's exceptions in our words
``schema``           the tables
``files``            their modes and whose they are
``member_locks``     operating system locks that say which members still run
``shared_file``      what the logs of one process on one file share: write lock, wakers
``database``         connections, write transactions
``blocks``           messages as they are stored: many to a row, as columns; ``SqliteBatch``
``reader``           reading along a partition, looking things up in it
``retention``        trimming
``producer``         appends
``topics``           topics
``groups``           groups and their positions
``member_rows``      members as the file has them
``membership``       a member's heartbeat, plan and leases
``offsets``          commits
``subscription``     a member that polls
``user_sql``         what is common to all SQL of users
``transaction``      a handler's own SQL
``query``            SQL that only reads
``durability``       how safe an acknowledged message is
``claims``           claims of idempotency
``log``              all of it behind the protocol
===================  ===========================================================================

Local file systems only: SQLite's write-ahead log is shared memory between processes.
"""

from streams.log.sqlite.log import open

__all__ = ["open"]
