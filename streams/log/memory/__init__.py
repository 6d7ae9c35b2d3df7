"""``memory://``: the log in this process's memory, with the semantics of the others.

Partitions, retention, groups with several members, cooperative rebalances, leases and fencing
epochs are real, so that a test that passes here is meaningful for the other logs; only durability
is missing. All openers of ``memory://name`` in a process share one log, which is deleted when the
last one closes it; ``memory://`` is private to its opener.

All times are by the opener's clock: a test that advances its clock makes leases expire. Waits are
on a condition; there are no sleeps and no background threads.

For tests it can fail on demand: :meth:`MemorySubscription.crash` and :meth:`MemoryLog.crash` are
the ``kill -9`` of a member and of everything that uses one opened log; :meth:`MemoryLog.fault`
injects errors and delays at named points.

``log`` implements the protocol and opens logs, ``store`` holds the data of one log, ``registry``
shares logs by name, ``faults`` injects failures. ``topics``, ``batch``, ``membership``,
``subscription``, ``reader``, ``events``, ``documents`` and ``claims`` correspond to the modules of
the same names in the other logs.
"""

from streams.log.memory.faults import POINTS, Fault
from streams.log.memory.log import MemoryLog, open
from streams.log.memory.subscription import MemorySubscription

__all__ = ["POINTS", "Fault", "MemoryLog", "MemorySubscription", "open"]
