"""``memory://``: the log in this process's memory, with the semantics of the others.

Partitions, retention, groups with several members, cooperative rebalances, leases, fencing epochs:
all real, so that what passes here is worth something elsewhere; only durability is missing.
``memory://name`` is one log for everybody in the process who opens that name, and is gone when
the last one closes it; ``memory://`` is private to who opened it.

All its time is the opener's clock: a test that advances its clock makes leases run out. Whoever
has to wait, waits on a condition; there are no sleeps and no background threads.

For tests it can fail on demand: :meth:`MemorySubscription.crash` and :meth:`MemoryLog.crash` are
the ``kill -9`` of a member and of everything that uses one opened log; :meth:`MemoryLog.fault`
injects errors and delays at named points.

================  ============================================================
``batch``         messages as a poll returns them
``topics``        topics and partitions, messages as columns
``membership``    groups: positions, members, leases
``store``         all that one log holds
``reader``        reading outside groups
``subscription``  a member of a group
``faults``        failing on demand
``registry``      sharing by name
``claims``        claims of idempotency
``log``           the log protocol, opening
================  ============================================================
"""

from streams.log.memory.faults import POINTS, Fault
from streams.log.memory.log import MemoryLog, open
from streams.log.memory.subscription import MemorySubscription

__all__ = ["POINTS", "Fault", "MemoryLog", "MemorySubscription", "open"]
