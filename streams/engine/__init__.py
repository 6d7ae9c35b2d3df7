"""The engine: what may run next, and what may be committed. Pure: no I/O, clock, thread or loop.

Theory of operation
-------------------

A subscription delivers batches of consecutive messages of one partition. Each becomes a
:class:`~streams.engine.progress.FetchedBatch`: the batch plus one byte a message that says whether
the message is *settled* (handled, dropped as a duplicate, filtered out, or moved elsewhere with
that write confirmed). Settling a message is one byte store and nothing else; everything a commit
needs is derived from those bytes when a commit is due, about once a second, at C speed.

* :mod:`~streams.engine.progress` turns the bytes into a position, a settled set and a floor.
* :mod:`~streams.engine.dedup_window` remembers the identities of settled messages.
* :mod:`~streams.engine.dispatcher` keeps the order of each key: a key that is being handled is *in
  flight*, and later messages of it queue up behind. A key whose message failed stays in flight
  until its turn comes again, so the others go on and order holds.
  :mod:`~streams.engine.deferring_dispatcher` is that of an exactly-once processor, whose messages
  are done with before they are settled.
* :mod:`~streams.engine.retry` says what a failure means: when to try again, or to dead-letter it.
* :mod:`~streams.engine.flow_gate` says when enough is held in memory.
* :mod:`~streams.engine.commit_pace` says when positions are committed next.

The machine is driven by one caller at a time (a loop, or threads under one lock). Only two things
may happen beside it: settling bytes may be read by the thread that commits (a byte goes from 0 to
1 and never back, and only after its handler succeeded, so what that thread sees is at worst old),
and batches may be offered by the thread that polls.
"""
