"""The names of keys in Redis, and entry IDs as offsets.

A topic ``orders`` with one partition is the stream ``orders``; with more, partition 3 is the
stream ``{orders:3}``. The partition's other keys share its hash tag, and so are on the same node of
a cluster (the tag of a key is what is between the first braces, else all of it: Redis Cluster
specification, "Hash tags"):

==============================  ===================================================================
``{orders:3}:group:billing``    hash: lease (owner, epoch, beat, until) and position of a group
``{orders:3}:ids:0`` … ``:2``   hashes: message ID to entry ID, of the last minutes
``{orders:3}:history:KEY``      list: the entry IDs of a key's events (of an event topic)
``{orders:3}:keys``             sorted set: the keys that have a history
``{orders:3}:causes``           hash: key and cause to first version and number of events
``{orders:3}:refusals``         hash: key and record ID to version and entry ID
``{orders:3}:refused``          hash: key to the refusal that its history ends with
``{orders:3}:snapshots``        set: the kinds of snapshots that there are
``{orders:3}:snapshots:KIND``   hash: key to version, record ID, entry ID and state
``{orders}:topic``              hash: partitions and retention
``{documents:D:3}:checkpoint``  hash: writer, position of partition 3 of the documents ``D``
``{documents:D:3}:values``      hash: key to value
``{documents:D:3}:failures``    hash: key to failure, of stopped documents
``{documents:D:3}:keys``        sorted set: the keys of all documents
``{documents:D:3}:stopped``     sorted set: the keys of stopped documents
``{group:billing}:members``     hash: member to "times written, lease, until, topics"
``{group:billing}:topics``      hash: topic to the positions the group began at
``streams:topics``              set: the topics created through this toolkit
``streams:groups``              set: the groups
``streams:documents``           hash: collection of documents to its number of partitions
``streams:claims:NAME:KEY``     hash: a claim, or its outcome (:mod:`streams.log.redis.claims`)
==============================  ===================================================================

Names of topics and groups hold no braces and no colons (:mod:`streams.log.names`), so none of
these can be mistaken for another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from streams import wire
from streams.errors import ConfigError
from streams.wire import RedisEntryId as RedisEntryId

TOPICS_KEY = b"streams:topics"
GROUPS_KEY = b"streams:groups"
COLLECTIONS_KEY = b"streams:documents"

MAX_OFFSET = (1 << 128) - 1
"""The greatest entry ID there can be."""
_LOW64 = (1 << 64) - 1


class PartitionKeys:
    """The keys of one partition."""

    __slots__ = ("_hash_tag", "id_hashes", "partition", "stream", "topic")

    def __init__(self, topic: str, partition: int, partitions: int) -> None:
        self.topic = topic
        self.partition = partition
        if partitions == 1:
            self.stream = topic.encode()
            self._hash_tag = b"{%s}" % self.stream
        else:
            self.stream = self._hash_tag = b"{%s:%d}" % (topic.encode(), partition)
        self.id_hashes = tuple(b"%s:ids:%d" % (self._hash_tag, number) for number in range(3))

    def history_key(self, key: bytes) -> bytes:
        """The list with the entry IDs of a key's events."""
        return b"%s:history:%s" % (self._hash_tag, key)

    def event_key(self, name: str) -> bytes:
        """One of the keys that an event topic's partition has beside the histories."""
        return b"%s:%s" % (self._hash_tag, name.encode())

    def snapshots_key(self, fingerprint: str) -> bytes:
        """The hash with snapshots of one kind."""
        name = fingerprint.encode("utf-8", "surrogateescape")
        return b"%s:snapshots:%s" % (self._hash_tag, name)

    def group_key(self, group: str) -> bytes:
        """The hash with a group's lease and position in this partition."""
        return b"%s:group:%s" % (self._hash_tag, group.encode())

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class DocumentKeys:
    """The keys of one partition of a collection of documents."""

    __slots__ = ("checkpoint", "collection", "failures", "keys", "partition", "stopped", "values")

    def __init__(self, collection: str, partition: int) -> None:
        self.collection = collection
        self.partition = partition
        tag = b"{documents:%s:%d}" % (collection.encode("utf-8", "surrogatepass"), partition)
        self.checkpoint = tag + b":checkpoint"
        self.values = tag + b":values"
        self.failures = tag + b":failures"
        self.keys = tag + b":keys"
        self.stopped = tag + b":stopped"

    @property
    def all(self) -> tuple[bytes, ...]:
        """All keys of the partition, the checkpoint first."""
        return self.checkpoint, self.values, self.failures, self.keys, self.stopped

    def __str__(self) -> str:
        return f"documents {self.collection!r}, partition {self.partition}"


def expected_type(key: bytes) -> str:
    """The Redis type of one of the keys above, as TYPE calls it."""
    if key in (TOPICS_KEY, GROUPS_KEY) or key.endswith(b"}:snapshots"):
        return "set"
    if b"}:history:" in key:
        return "list"
    if key.endswith((b"}:keys", b"}:stopped")):
        return "zset"
    if key == COLLECTIONS_KEY or key.startswith(b"streams:claims:"):
        return "hash"
    return "hash" if _HASH_KEY.search(key) else "stream"


_HASH_KEY = re.compile(
    rb"\}:(?:topic|members|topics|ids:\d|group:[^:]*|causes|refusals|refused|snapshots:.*"
    rb"|checkpoint|values|failures)\Z"
)


def topic_key(topic: str) -> bytes:
    """The hash with a topic's facts."""
    return b"{%s}:topic" % topic.encode()


def members_key(group: str) -> bytes:
    """The hash of a group's members."""
    return b"{group:%s}:members" % group.encode()


def topics_key(group: str) -> bytes:
    """The hash of a group's topics, with its initial offsets in each."""
    return b"{group:%s}:topics" % group.encode()


# -- entry IDs -------------------------------------------------------------------------------------


def entry_id(offset: int) -> bytes:
    """An offset as Redis writes it."""
    offset = min(max(offset, 0), MAX_OFFSET)
    return b"%d-%d" % (offset >> 64, offset & _LOW64)


def entry_id_before(position: int) -> bytes:
    """The entry ID just below a position, which XREAD and XGROUP take as the last one read."""
    return entry_id(position - 1)


def offset_of(id: bytes) -> int:
    """An entry ID as an offset."""
    high, _, low = id.partition(b"-")
    return int(high) << 64 | int(low or 0)


def offsets_of(ids: Sequence[bytes]) -> list[int]:
    """Entry IDs as offsets, parsed as one JSON list, which is several times as fast."""
    numbers = _int_list.decode(b"[%s]" % b",".join(ids).replace(b"-", b","))
    return [high << 64 | low for high, low in zip(*[iter(numbers)] * 2, strict=True)]


_int_list = msgspec.json.Decoder(list[int])


def parse_offset(text: str) -> int:
    """The offset of an entry ID as people write it: ``ms-seq``, or ``ms`` for the first of that
    millisecond; or the offset itself, a number larger than any millisecond.

    :raises ConfigError: the text is no entry ID.
    """
    found = wire.parse_offset(text)
    if found is not None:
        return found << 64 if "-" not in text and found <= _LOW64 else found
    raise ConfigError(
        f"{wire.shorten(text, 60)!r} is no entry ID of Redis: write 1700000000000-0, or its first "
        "half"
    )
