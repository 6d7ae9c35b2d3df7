"""``redis://``: the log on Redis Streams (Redis 7.0, Valkey 7.2, or newer), on redis-py.

Promises
--------
* **One owner.** A partition is a stream that one member at a time reads. Consumer groups of Redis
  share entries out and so lose the order of a key; here a lease with an epoch, checked by the
  server in the same step as every commit, says who may go on.
* **One entry per message ID**, within the last ``once`` seconds at least: an append whose answer
  was lost is sent again until its outcome is known.
* **What Redis's own tools show is true**: each group also is a native one that stands where ours
  does, with its lag.
* **Nothing is skipped in silence**: entries that others trimmed before a group read them are
  reported, and a server that has lost streams or groups finds them again where their owner knows
  them to be.

Theory of operation
-------------------
===============  ==================================================================================
settings         the URL, its options, the driver's settings
errors           the driver's errors as ours
keys             the layout in Redis; entry IDs as offsets
stored_values    reading what anybody may have written there
connection       one connection
servers          which server a key is on: single, Sentinel, cluster
client, lua      pooled, pipelined requests; the scripts (``scripts/*.lua``)
topics, groups   what is stored of them
batch            entries as batches
producer         appends
reader           plain reads, watermarks, and the offset for a time
membership       a member's heartbeat and plan
leases           its leases
offsets          its commits
fetcher          reading ahead
lag_counter      counting what was read
subscription     the member as a whole
retention        trimming
durability       how safe an acknowledged message is
claims           claims of idempotency
log              all of it behind the protocol
===============  ==================================================================================

``docs/redis.md`` says what people need who look at it with ``redis-cli``.
"""

from streams.log.redis.log import RedisLog, open

__all__ = ["RedisLog", "open"]
