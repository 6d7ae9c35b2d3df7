"""The log itself: implements :class:`streams.log.protocol.Log` with the package's parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from streams.clock import SYSTEM
from streams.config import Flow
from streams.errors import Fatal
from streams.log.dense_offsets import DenseOffsets
from streams.log.event_filter import EventFilter, EventReader, EventSubscription, ForeignRecords
from streams.log.history_log import HistoryLog
from streams.log.names import check_group
from streams.log.protocol import (
    TRIM_MARGIN,
    Capabilities,
    Committed,
    DurabilityFact,
    GroupInfo,
    Log,
    OnAppended,
    OpenRequest,
    RebalanceListener,
    Retention,
    StaticMember,
    TopicInfo,
    check_retention,
)
from streams.log.sqlite import durability, reader, settings
from streams.log.sqlite.database import ConnectionPool, Database
from streams.log.sqlite.documents import SqliteDocuments
from streams.log.sqlite.events import Events
from streams.log.sqlite.groups import Groups
from streams.log.sqlite.producer import Writer
from streams.log.sqlite.reader import SqliteReader
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.subscription import SqliteSubscription
from streams.log.sqlite.topics import Topics
from streams.log.sqlite.transaction import FileConnection, SqliteFileTransaction
from streams.log.sqlite.user_sql import QueryRunner
from streams.message import Record

CAPABILITIES = Capabilities(
    name="sqlite",
    transactions=True,
    uses_app_clock=True,
    events=True,
    documents=True,
    commits_outputs=True,
    fences_appends=True,
)


def open(request: OpenRequest) -> Log:
    """The log in a file, which is created if it does not exist (unless ``mode`` forbids it).

    :raises ConfigError: the URL cannot be used.
    :raises Unavailable: the file is locked, or cannot be opened.
    :raises NotFound: there is no such file, or no log in it, and none may be created.
    :raises Fatal: it is no SQLite database, damaged, read-only, or of a newer version.
    """
    return SqliteLog(request)


class SqliteLog(DenseOffsets, Log, HistoryLog[Events]):
    """A log in one file. Usable from any thread of the process that opened it."""

    def __init__(self, request: OpenRequest) -> None:
        self._database = Database(settings.read_settings(request), request.clock or SYSTEM)
        self._trimmer = Trimmer(self._database)
        try:
            self._trimmer.finish_deletions()
        except BaseException:
            self._database.close()
            raise
        self._topics = Topics(self._database, self._trimmer)
        self._writer = Writer(self._database, self._trimmer)
        self._events = Events(self._database)
        self.documents = SqliteDocuments(self._database)
        self._event_filter = EventFilter(ForeignRecords())
        self._groups = Groups(self._database)
        self._queries = QueryRunner(self._database)
        self._transactions = ConnectionPool(lambda: FileConnection(self._database.settings))
        self._subscriptions: set[SqliteSubscription] = set()

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(self._database.path)

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic; ``config`` is for servers and is ignored here.

        If the topic exists, a given retention replaces its own; without one, it keeps what it has.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.create_topic(topic, partitions, retention)

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.set_retention(topic, retention)

    def describe_topic(self, topic: str) -> TopicInfo:
        return self._topics.describe_topic(topic)

    def describe_topics(self) -> list[TopicInfo]:
        return self._topics.list_topics()

    def incarnation(self, topic: str) -> str:
        return self._topics.incarnation(topic)

    def list_topics(self) -> list[str]:
        return self._topics.list_names()

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        return durability.durability_facts(self._database)

    def topic_bytes(self, topic: str) -> int:
        """About how many bytes a topic's messages take in the file, estimated from the newest
        ones."""
        partitions = self._topics.describe_topic(topic).partitions
        with self._database.read(snapshot=True) as db:
            return sum(reader.partition_bytes(db, topic, each) for each in range(partitions))

    def delete_topic(self, topic: str) -> None:
        self._topics.delete_topic(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Write records in one transaction; ``on_appended`` is called before this returns."""
        self._writer.append(topic, records, on_appended)

    def flush(self, timeout: float) -> None:
        self._writer.flush(timeout)

    # -- histories

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        return self._topics.create_event_topic(topic, partitions)

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        self._trimmer.trim_if_due(topic)  # expired messages must not be seen
        with self._database.read() as db:
            found = reader.partition_row(db, topic, partition)
        return found.first_offset, found.end_offset

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        with self._database.read(snapshot=True) as db:
            return reader.offset_for_time(db, topic, partition, time)

    def reader(
        self, topic: str, partition: int, start: int, end: int
    ) -> SqliteReader | EventReader:
        reader = self.raw_reader(topic, partition, start, end)
        if self._topics.describe_topic(topic).is_event_topic:
            return EventReader(reader, self._event_filter)
        return reader

    def raw_reader(self, topic: str, partition: int, start: int, end: int) -> SqliteReader:
        return SqliteReader(self._database, topic, partition, start, end)

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        return self._groups.initialize_offsets(check_group(group), topic, positions)

    def describe_group(self, group: str, topics: Collection[str] | None = None) -> GroupInfo:
        return self._groups.describe_group(group).within(topics)

    def list_groups(self) -> list[str]:
        return self._groups.list_groups()

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        self._groups.reset_offsets(check_group(group), topic, offsets, force=force)

    def delete_group(self, group: str) -> None:
        self._groups.delete_group(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        *,
        flow: Flow = Flow(),
        trim_margin: int = TRIM_MARGIN,
        member: StaticMember | None = None,
    ) -> SqliteSubscription | EventSubscription:
        check_group(group)
        event_topics = [name for name in topics if self._topics.describe_topic(name).is_event_topic]
        db, trimmer, on_close = self._database, self._trimmer, self._subscriptions.discard
        subscription = SqliteSubscription(
            db, trimmer, group, topics, listener, flow, trim_margin, on_close, self._writer, member
        )
        self._subscriptions.add(subscription)
        if event_topics:
            return EventSubscription(subscription, event_topics, self._event_filter)
        return subscription

    def remove_member(self, group: str, member: StaticMember) -> None:
        """Nothing to do: the others see that the process's lock is gone."""

    # -- the rest

    def query(
        self, sql: str, parameters: Any = (), is_cancelled: Callable[[], bool] = lambda: False
    ) -> list[tuple[Any, ...]]:
        """The rows of one read-only SQL statement."""
        return self._queries.run(sql, parameters, is_cancelled)

    def begin_file_transaction(self) -> SqliteFileTransaction:
        """Begin a transaction of the user's own SQL and messages. Blocks while others write.

        :raises Unavailable: others have been writing for too long.
        :raises Fatal: the file was opened read-only.
        """
        if self._database.settings.mode == "ro":
            raise Fatal(f"{self._database.path}: it was opened read-only (mode=ro)")
        return SqliteFileTransaction(self._database, self._writer, self._transactions)

    def close(self) -> None:
        """Close everything. Subscriptions still open leave their groups undrained."""
        if not self._database.is_forked:
            for subscription in list(self._subscriptions):
                subscription.abandon()
            self._queries.close()
            self._transactions.close()
            self._database.close()
