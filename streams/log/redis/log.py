"""The log itself: implements :class:`streams.log.protocol.Log` with the package's parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from streams.config import Flow
from streams.log.event_filter import EventFilter, EventReader, EventSubscription, ForeignRecords
from streams.log.events import EventAppend, OnEventsAppended
from streams.log.history_log import HistoryLog
from streams.log.names import check_group
from streams.log.protocol import (
    TRIM_MARGIN,
    Assignment,
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
from streams.log.redis import durability
from streams.log.redis.client import Client
from streams.log.redis.documents import RedisDocuments
from streams.log.redis.events import Events
from streams.log.redis.groups import Groups
from streams.log.redis.keys import RedisEntryId, parse_offset, topic_key
from streams.log.redis.membership import Membership
from streams.log.redis.producer import Owners, Writer
from streams.log.redis.reader import OffsetLookup, RedisReader
from streams.log.redis.retention import Trimmer
from streams.log.redis.settings import Settings, read_settings
from streams.log.redis.subscription import RedisSubscription
from streams.log.redis.topics import Topics
from streams.log.url import WHY_CLUSTERS_HAVE_NO_OUTPUTS
from streams.message import Record

CAPABILITIES = Capabilities(
    "redis",
    append_once=True,
    events=True,
    documents=True,
    commits_outputs=True,
    fences_appends=True,
    # A script of this many takes the server about 10 ms.
    outputs_at_once=2_000,
)


def open(request: OpenRequest) -> RedisLog:
    """Open a log by its URL. Nothing connects before the first request.

    :raises ConfigError: the URL or a setting cannot be used.
    """
    return RedisLog(read_settings(request))


class RedisLog(Log, HistoryLog[Events]):
    """Topics, appends, reads and groups on Redis Streams. Usable from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._client = Client(settings)
        self._topics = Topics(self._client)
        self._offsets = OffsetLookup(self._client, self._topics)
        self._groups = Groups(self._client, self._topics, self._offsets)
        self._trimmer = Trimmer(self._client, self._topics)
        self._writer = Writer(self._client, self._topics)
        self._events = Events(self._client, self._topics)
        self.documents = RedisDocuments(self._client)
        self._event_filter = EventFilter(ForeignRecords())
        is_cluster = settings.topology == "cluster"
        self._capabilities = replace(
            CAPABILITIES,
            append_once=settings.dedup_seconds > 0,
            commits_outputs=not is_cluster,
            # In a cluster the lease and the appended records are on different nodes.
            fences_appends=not is_cluster,
            why_no_outputs=WHY_CLUSTERS_HAVE_NO_OUTPUTS if is_cluster else "",
        )

    def __repr__(self) -> str:
        return f"<RedisLog {self._client.settings.name}>"

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    # -- topics

    def create_topic(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic. The one setting in ``config`` is
        :data:`~streams.log.redis.topics.MAX_ENTRIES`.

        :raises TopicMismatch: it exists with another number of partitions, or the key is no stream.
        :raises ConfigError: this log does not have such a retention.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.create_topic(topic, partitions, retention, config)

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """Change the retention of a topic; other processes see it within
        :data:`~streams.log.redis.topics.CACHE_SECONDS` seconds."""
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.set_retention(topic, retention)

    def describe_topic(self, topic: str) -> TopicInfo:
        """A topic's facts; a stream that another program created is a topic with one partition."""
        return self._topics.lookup(topic, fresh=True).info

    def describe_topics(self) -> list[TopicInfo]:
        return self._topics.list_topics()

    def incarnation(self, topic: str) -> str:
        return self._topics.incarnation(topic)

    def list_topics(self) -> list[str]:
        return self._topics.list_names()

    def durability(self, topic: str) -> tuple[DurabilityFact, ...]:
        return durability.durability_facts(self._client, topic, topic_key(topic))

    def topic_bytes(self, topic: str) -> int | None:
        """About how many bytes of the server's memory a topic's entries take, estimated from some.

        :returns: None: this user may not ask (``MEMORY USAGE``).
        """
        return self._topics.memory_usage(topic)

    def delete_topic(self, topic: str) -> None:
        self._topics.delete_topic(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """Write records in order; ``on_appended`` is called before this returns."""
        self._writer.append(topic, records, on_appended)
        self._trim_if_due(topic, records)

    def _append_as_owners(
        self,
        group: str,
        member: str,
        topic: str,
        records: Sequence[Record],
        owners: Sequence[Assignment],
        on_appended: OnAppended,
    ) -> None:
        """Append as a member of a group."""
        self._writer.append(topic, records, on_appended, Owners(group, member, owners))
        self._trim_if_due(topic, records)

    def _trim_if_due(self, topic: str, records: Sequence[Record]) -> None:
        if records and self._topics.may_need_trimming(topic):
            for keys in self._topics.all_partition_keys(topic):
                self._trimmer.trim_if_due(keys)

    # -- histories

    @property
    def fails_by_partition(self) -> bool:
        return self._client.servers.is_cluster

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        durability.refuse_eviction(self._client, topic, topic_key(topic))
        return self._topics.create_event_topic(topic, partitions)

    def append_events_once(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        self._events.append(topic, appends, on_appended, once=True)

    # -- reading

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        return self._offsets.watermarks(topic, partition)

    def log_end_offset(self, topic: str, partition: int) -> int:
        return self.watermarks(topic, partition)[1]

    def offset_for_time(self, topic: str, partition: int, time: float) -> int:
        return self._offsets.offset_for_time(topic, partition, time)

    def offset_before(self, topic: str, partition: int, position: int, count: int) -> int:
        return self._offsets.offset_before(topic, partition, position, count)

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        return self._offsets.lag(topic, partition, position)

    def reader(self, topic: str, partition: int, start: int, end: int) -> RedisReader | EventReader:
        reader = self.raw_reader(topic, partition, start, end)
        if self._topics.lookup(topic).info.is_event_topic:
            return EventReader(reader, self._event_filter)
        return reader

    def raw_reader(self, topic: str, partition: int, start: int, end: int) -> RedisReader:
        return self._offsets.reader(topic, partition, start, end)

    # -- groups

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        return self._groups.initialize_offsets(group, topic, positions)

    def describe_group(self, group: str, topics: Collection[str] | None = None) -> GroupInfo:
        return self._groups.describe_group(group).within(topics)

    def list_groups(self) -> list[str]:
        return self._groups.list_groups()

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        self._groups.reset_offsets(group, topic, offsets, force=force)

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
    ) -> RedisSubscription | EventSubscription:
        check_group(group)
        names = list(dict.fromkeys(topics))
        event_topics = [
            name for name in names if self._topics.lookup(name, fresh=True).info.is_event_topic
        ]
        self._groups.register(group, names)
        client = self._client
        membership = Membership(
            client, self._topics, self._groups, group, names, trim_margin, member
        )
        membership.join()
        subscription = RedisSubscription(
            client, self._trimmer, membership, group, listener, flow, self._topics,
            partial(self._append_as_owners, group, membership.member_id)
            if self._capabilities.fences_appends
            else None,
        )  # fmt: skip
        if event_topics:
            return EventSubscription(subscription, event_topics, self._event_filter)
        return subscription

    def remove_member(self, group: str, member: StaticMember) -> None:
        self._groups.remove_member(group, str(member))

    # -- the rest

    def format_offset(self, offset: int) -> str:
        """An offset as Redis writes it: ``ms-seq``."""
        return str(RedisEntryId(offset))

    def parse_offset(self, text: str) -> int:
        return parse_offset(text)

    def flush(self, timeout: float) -> None:
        self._writer.flush(timeout)

    def close(self) -> None:
        self._writer.close()
        self._client.close()
