"""The log itself: what its parts can do, under one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from streams.config import Flow
from streams.errors import NotFound
from streams.log.names import check_group
from streams.log.protocol import (
    TRIM_MARGIN,
    Capabilities,
    Committed,
    Done,
    Fact,
    GroupInfo,
    Listener,
    Retention,
    Static,
    TopicInfo,
    check_retention,
)
from streams.log.redis import durability
from streams.log.redis.client import Client
from streams.log.redis.groups import Groups
from streams.log.redis.keys import EntryId, parse, topic_key
from streams.log.redis.membership import Membership
from streams.log.redis.reading import Reading, RedisReader
from streams.log.redis.settings import Settings
from streams.log.redis.subscription import RedisSubscription
from streams.log.redis.topics import Topics
from streams.log.redis.trimming import Trimmer
from streams.log.redis.writing import Writer
from streams.message import Record

CAPABILITIES = Capabilities("redis", append_once=True)


class RedisLog:
    """Topics, appends, reads and groups on Redis Streams: :class:`streams.log.protocol.Log`."""

    def __init__(self, settings: Settings) -> None:
        self._client = Client(settings)
        self._topics = Topics(self._client)
        self._reading = Reading(self._client, self._topics)
        self._groups = Groups(self._client, self._topics, self._reading)
        self._trimmer = Trimmer(self._client, self._topics)
        self._writer = Writer(self._client, self._topics)
        self._capabilities = replace(CAPABILITIES, append_once=settings.once > 0)

    def __repr__(self) -> str:
        return f"<RedisLog {self._client.settings.name}>"

    @property
    def capabilities(self) -> Capabilities:
        """What this log can do."""
        return self._capabilities

    # -- topics

    def create(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic. The one setting in ``config`` is ``most``: entries a partition keeps at
        most, whatever groups have settled.

        :raises Mismatch: it exists with another number of partitions, or is no stream.
        :raises ConfigError: there is no such retention here.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.create(topic, partitions, retention, config)

    def retain(self, topic: str, retention: Retention) -> TopicInfo:
        """Give a topic that exists another retention; other processes see it within
        :data:`~streams.log.redis.topics.FRESH` seconds. ``most`` stays as it is.

        :raises NotFound: there is none of that name.
        :raises ConfigError: there is no such retention here.
        """
        check_retention(topic, retention, CAPABILITIES)
        return self._topics.retain(topic, retention)

    def topic(self, topic: str) -> TopicInfo:
        """A topic's facts; a stream that was made by others is a topic with one partition.

        :raises NotFound: there is none of that name.
        """
        return self._topics.facts(topic, fresh=True).info

    def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        return self._topics.all()

    def durability(self, topic: str) -> tuple[Fact, ...]:
        """How the server that has the topic's facts keeps what it is given."""
        return durability.facts(self._client, topic, topic_key(topic))

    def delete(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        self._topics.delete(topic)

    # -- writing

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """Write records in order; ``done`` is called before this returns."""
        self._writer.append(topic, records, done)
        if records and self._topics.trimmed(topic):
            for part in self._topics.parts(topic):
                self._trimmer.turn(part)

    # -- reading

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First position that can be read, and the one the next message will get or exceed."""
        return self._reading.bounds(topic, partition)

    def end(self, topic: str, partition: int) -> int:
        """The end, all of which can be read."""
        return self.bounds(topic, partition)[1]

    def at(self, topic: str, partition: int, time: float) -> int:
        """Position of the first message the log took at or after ``time``; the end if none."""
        return self._reading.at(topic, partition, time)

    def back(self, topic: str, partition: int, position: int, count: int) -> int:
        """Position of the message ``count`` before ``position``, or the first there is."""
        return self._reading.back(topic, partition, position, count)

    def lag(self, topic: str, partition: int, position: int) -> int | None:
        """How many messages stand at or behind ``position``; None where it cannot be known."""
        return self._reading.lag(topic, partition, position)

    def reader(self, topic: str, partition: int, start: int, end: int) -> RedisReader:
        """Read from position ``start`` up to, not including, position ``end``."""
        return self._reading.reader(topic, partition, start, end)

    # -- groups

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a *new* group its positions, all at once: True where it had none in this topic."""
        return self._groups.begin(group, topic, positions)

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        return self._groups.group(group)

    def places(self, group: str, topic: str) -> dict[int, Committed]:
        """Where a group is in one topic, by partition; nothing if it never was there."""
        try:
            return self.group(group).places(topic)
        except NotFound:
            return {}

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return self._groups.all()

    def move(
        self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """Set a group's places in a topic.

        :raises GroupLive: it has running members, and ``force`` is not set.
        """
        self._groups.move(group, topic, places, force=force)

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        """
        self._groups.forget(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        flow: Flow = Flow(),
        window: int = TRIM_MARGIN,
        member: Static | None = None,
    ) -> RedisSubscription:
        """Join a group; partitions are taken by polling."""
        check_group(group)
        names = list(dict.fromkeys(topics))
        for name in names:
            self._topics.facts(name, fresh=True)
        self._groups.register(group, names)
        membership = Membership(
            self._client, self._topics, self._groups, group, names, window, member
        )
        membership.join()
        return RedisSubscription(self._client, self._trimmer, membership, group, listener, flow)

    def expel(self, group: str, member: Static) -> None:
        """Remove a member whose process has certainly ended; its partitions are free at once."""
        self._groups.expel(group, str(member))

    # -- the rest

    def show(self, offset: int) -> str:
        """An offset as Redis writes it: ``ms-seq``."""
        return str(EntryId(offset))

    def parse(self, text: str) -> int:
        """An offset as :meth:`show` writes it.

        :raises ConfigError: it is none.
        """
        return parse(text)

    def flush(self, timeout: float) -> None:
        """Wait until every append so far has been told its outcome.

        :raises Unavailable: some have not, after ``timeout`` seconds.
        """
        self._writer.flush(timeout)

    def close(self) -> None:
        """Let go of everything; appends that wait for the server end now."""
        self._writer.close()
        self._client.close()
