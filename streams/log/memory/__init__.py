"""``memory://``: the log in this process's memory, with the semantics of the others.

Partitions, retention, groups with several members, cooperative rebalances, leases and fencing
epochs are real, so that a test that passes here means something for the other logs; only durability
is missing. All openers of ``memory://name`` in a process share one log, which is gone when the last
one closes it; ``memory://`` is private to its opener.

All its time is the opener's clock: a test that advances its clock makes leases expire. Waiting is
on a condition; there are no sleeps and no background threads.

For tests it can fail on demand: :meth:`MemorySubscription.crash` and :meth:`MemoryLog.crash` are
the ``kill -9`` of a member and of everything that uses one opened log; :meth:`MemoryLog.fault`
injects errors and delays at named points.

``log`` is the log protocol and opening, ``store`` everything that one log holds, ``registry``
sharing by name, ``faults`` failing on demand. ``topics``, ``batch``, ``membership``,
``subscription``, ``reader``, ``events``, ``documents`` and ``claims`` have the names that they have
in the other logs.
"""

from streams.log.memory.faults import POINTS, Fault
from streams.log.memory.log import MemoryLog, open
from streams.log.memory.subscription import MemorySubscription

__all__ = ["POINTS", "Fault", "MemoryLog", "MemorySubscription", "open"]
