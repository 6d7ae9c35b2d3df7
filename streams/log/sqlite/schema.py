"""The tables. All names begin with ``streams_``; the rest of the file is the user's.

A handler's own tables may live in the same file, so ``user_version`` and ``application_id`` are
left to the user, and the schema's version is in a table of ours.

* A block's key (``place``) is a partition's number and an offset in one integer,
  ``no << 40 | offset``, so that a partition is one range of the table. A partition number is never
  used again, not even after a topic was deleted.
* Times are integers of microseconds since the epoch and never go back within a partition.
* ``streams_places`` holds a group's position in a partition and the partition's owner. The epoch
  outlives every owner; it has no expiry, as a lease lasts as long as its owner's row in
  ``streams_members``.
* ``generation`` is what the code calls a group's revision: it changes whenever members should plan
  again, as one joined or left, a partition was released, or a group was reset.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 1

OFFSET_BITS: Final = 40

TABLES: Final = """
CREATE TABLE IF NOT EXISTS streams_meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_topics (
    name TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL,
    seconds REAL,               -- retention by age, NULL for ever
    messages INTEGER            -- retention by count a partition, NULL without bound
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_partitions (
    no INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    first INTEGER NOT NULL DEFAULT 0,   -- the first offset that can be read
    next INTEGER NOT NULL DEFAULT 0,    -- the offset of the next message
    time INTEGER NOT NULL DEFAULT 0,    -- of the last message
    loose INTEGER NOT NULL DEFAULT 0,   -- how many small blocks are at the end
    UNIQUE (topic, partition)
);

CREATE TABLE IF NOT EXISTS streams_blocks (
    place INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    time INTEGER NOT NULL,      -- of the last message in it
    data BLOB NOT NULL
);

CREATE TABLE IF NOT EXISTS streams_groups (
    name TEXT PRIMARY KEY,
    window INTEGER NOT NULL DEFAULT 0,      -- messages below the position that are not trimmed
    generation INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_places (
    "group" TEXT NOT NULL,
    no INTEGER NOT NULL,
    position INTEGER,           -- NULL until something is committed
    progress TEXT NOT NULL DEFAULT '',
    epoch INTEGER NOT NULL DEFAULT 0,
    owner INTEGER,              -- a member's number, NULL when nobody has it
    PRIMARY KEY ("group", no)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_members (
    no INTEGER PRIMARY KEY,
    "group" TEXT NOT NULL,
    id TEXT NOT NULL,           -- for people: machine, process, number
    topics TEXT NOT NULL,       -- a JSON array
    expires REAL NOT NULL,      -- on a monotonic clock, in seconds
    timeline TEXT NOT NULL      -- which clock that is
);
"""

EVENT_TABLES: Final = """
CREATE TABLE IF NOT EXISTS streams_event_topics (
    topic TEXT PRIMARY KEY
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_histories (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    version INTEGER NOT NULL,
    last_id TEXT NOT NULL,      -- of the last record, which may be a refusal
    final INTEGER NOT NULL,     -- 1: nothing may follow
    PRIMARY KEY (no, key)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_events (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    version INTEGER NOT NULL,
    id TEXT NOT NULL,
    data BLOB NOT NULL,         -- MessagePack: offset, time, value, headers without the ID
    PRIMARY KEY (no, key, version)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_refusals (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,   -- of the event before it
    "offset" INTEGER NOT NULL,
    PRIMARY KEY (no, key, id)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_causes (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    cause BLOB NOT NULL,
    version INTEGER NOT NULL,   -- of the first event that was appended for it
    count INTEGER NOT NULL,
    PRIMARY KEY (no, key, cause)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS streams_snapshots (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    fingerprint TEXT NOT NULL,
    version INTEGER NOT NULL,
    last_id TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (no, key, fingerprint)
) WITHOUT ROWID;
"""
"""Histories (:mod:`streams.log.events`). The messages of an event topic are stored in blocks like
those of any topic; ``streams_events`` has them again by key, so that a history is one range of a
table."""

EVENT_TABLE_NAMES: Final = (
    "streams_events",
    "streams_causes",
    "streams_refusals",
    "streams_snapshots",
    "streams_histories",
)
"""The event tables whose rows belong to a partition."""

DOCUMENT_TABLES: Final = """
CREATE TABLE IF NOT EXISTS streams_checkpoints (
    no INTEGER PRIMARY KEY AUTOINCREMENT,   -- of a partition of documents; never used again
    collection TEXT NOT NULL,
    partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,       -- of the writer that claimed it last
    position INTEGER,                       -- NULL until something is written
    data BLOB NOT NULL DEFAULT x'',
    UNIQUE (collection, partition)
);

CREATE TABLE IF NOT EXISTS streams_documents (
    no INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB,
    failure BLOB,                           -- why it is behind the checkpoint; NULL: it is not
    PRIMARY KEY (no, key)
) WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS streams_stopped ON streams_documents (no, key)
WHERE failure IS NOT NULL;
"""
"""Documents and their checkpoints (:mod:`streams.log.documents`)."""

VIEWS: Final = """
CREATE VIEW IF NOT EXISTS streams_view_topics AS
SELECT name AS topic, partitions, seconds AS keep_seconds, messages AS keep_messages
FROM streams_topics;

CREATE VIEW IF NOT EXISTS streams_view_partitions AS
SELECT topic, partition, first AS first_offset, next AS end_offset,
    nullif(time, 0) / 1e6 AS last_time
FROM streams_partitions WHERE topic <> '';

CREATE VIEW IF NOT EXISTS streams_view_groups AS
SELECT c."group" AS group_name, p.topic AS topic, p.partition AS partition,
    c.position AS position, p.next - max(c.position, p.first) AS lag
FROM streams_places AS c JOIN streams_partitions AS p ON p.no = c.no
WHERE c.position IS NOT NULL AND p.topic <> '';
"""
"""The views that other programs may read: these names and columns stay (docs/sqlite.md), the tables
may change."""


def block_key(partition_number: int, offset: int) -> int:
    """The primary key of an offset in partition number ``partition_number``."""
    return partition_number << OFFSET_BITS | offset


OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1
"""``block_key & OFFSET_MASK`` is the offset."""
