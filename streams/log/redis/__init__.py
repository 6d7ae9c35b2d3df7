"""``redis://``: the log on Redis Streams (Redis 7.0, Valkey 7.2, or newer), on redis-py.

Promises
--------
* **One owner.** A partition is a stream that one member at a time reads. Consumer groups of Redis
  share entries out and so lose the order of a key; here a lease with an epoch, checked by the
  server in the same step as every commit, decides who is the owner.
* **One entry per message ID**, within the last ``once`` seconds at least: an append whose answer
  was lost is sent again until its outcome is known.
* **What Redis's own tools show is true**: each group also is a native one with the same position,
  and with its lag.
* **Nothing is skipped silently**: entries that others trimmed before a group read them are
  reported, and a group that the server has lost is stored again at the positions that its owners
  know.

Theory of operation
-------------------
=============================  ====================================================================
``settings``, ``errors``       the URL, its options, the driver's settings; its errors as ours
``keys``                       the keys in Redis, and entry IDs as offsets
``stored_values``              stored values, parsed without trusting them
``connection``, ``servers``    one connection; which server a key is on: single, Sentinel, cluster
``client``, ``lua``            pooled, pipelined requests; the scripts (``scripts/*.lua``)
``topics``, ``groups``         the stored facts of topics and groups
``producer``, ``batch``        appends; entries as batches
``reader``                     plain reads, watermarks, and the offset for a time
``membership``, ``leases``     a member's heartbeat and plan; its leases
``offsets``, ``lag_counter``   a member's commits; counting what was read
``outputs``                    the records of an exactly-once processor, for the script that commits
``fetcher``, ``subscription``  reading ahead; the member as a whole
``retention``, ``durability``  trimming; how durable an acknowledged message is
``events``                     histories: appends under a condition, and one key's events
``documents``                  documents: one hash slot a partition, and one writer
``claims``                     claims of idempotency
``log``                        the log's protocol, on top of these modules
=============================  ====================================================================

``docs/redis.md`` is for people who use ``redis-cli``.
"""

from streams.log.redis.log import RedisLog, open

__all__ = ["RedisLog", "open"]
