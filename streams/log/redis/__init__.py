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
link             one connection
servers          which server a key is on: single, Sentinel, cluster
client           pooled, pipelined requests; the scripts (``scripts/*.lua``)
topics, groups   what is stored of them
columns          entries as batches
writing          appends
reading          random reads
membership       heartbeat and leases
feed             reading ahead
trail            counting what was read
subscription     the member as a whole
trimming         retention
===============  ==================================================================================

``docs/redis.md`` says what people need who look at it with ``redis-cli``.
"""

from __future__ import annotations

from streams.log.protocol import OpenRequest
from streams.log.redis.log import RedisLog
from streams.log.redis.settings import read_settings

__all__ = ["RedisLog", "open"]


def open(request: OpenRequest) -> RedisLog:
    """Open a log by its URL. Nothing connects before the first request.

    :raises ConfigError: the URL or a setting cannot be used.
    """
    return RedisLog(read_settings(request))
