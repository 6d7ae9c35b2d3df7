"""The part of the driver's statistics that we use (STATISTICS.md of librdkafka)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from streams.log.protocol import TopicPartition

COORDINATOR = "GroupCoordinator"
"""The name of the handle through which a member talks to its coordinator."""

STATE_UP = "UP"
"""The state of a broker to which there is a connection that works."""

STATE_INIT = "INIT"
"""The state of a broker to which no connection is wanted."""


class Broker(msgspec.Struct):
    """The driver's counters for one broker, or for the handle of a coordinator."""

    connects: int = 0
    disconnects: int = 0
    nodeid: int = -1
    outbuf_cnt: int = 0
    req: dict[str, int] = {}
    req_timeouts: int = 0
    rx: int = 0
    rxerrs: int = 0
    rxidle: int = 0
    """Microseconds since something was received; -1 for never."""
    state: str = ""
    tx: int = 0
    txerrs: int = 0
    txretries: int = 0
    waitresp_cnt: int = 0


class GroupState(msgspec.Struct):
    """The state of the membership."""

    state: str = ""
    join_state: str = ""
    rebalance_cnt: int = 0


class Partition(msgspec.Struct, gc=False):
    """One partition of a topic; the driver also lists a partition -1, which does not exist."""

    broker: int = -1
    """The one it is read from just now."""
    fetchq_cnt: int = 0
    """Messages that were fetched and are not consumed yet."""
    leader: int = -1
    msgq_cnt: int = 0
    next_offset: int = -1
    """The offset that is fetched next; negative before the first."""
    xmit_msgq_cnt: int = 0


class Topic(msgspec.Struct):
    """One topic's partitions, by number."""

    partitions: dict[str, Partition] = {}


class Snapshot(msgspec.Struct):
    """One report; what is not needed is skipped without being decoded."""

    ts: int
    brokers: dict[str, Broker] = {}
    cgrp: GroupState | None = None
    msg_cnt: int = 0
    topics: dict[str, Topic] = {}

    def reached_brokers(self, previous_counts: Mapping[str, int]) -> set[str]:
        """The names of the brokers to which there is a connection, or which have answered since
        ``previous_counts``: connections may come and go between two reports. (A lower count is a
        new client's, or that of a broker which the driver had removed.)

        :param previous_counts: answers received, by the broker's name (:meth:`response_counts`).
        """
        return {
            name
            for name, each in self.brokers.items()
            if each.state == STATE_UP or each.rx not in (0, previous_counts.get(name, 0))
        }

    def response_counts(self) -> dict[str, int]:
        """How often each broker has answered, by its name."""
        return {name: each.rx for name, each in self.brokers.items()}

    def broker_ids(self, names: Iterable[str]) -> set[int]:
        """The IDs of brokers, but for a coordinator's own handle."""
        return {self.brokers[name].nodeid for name in names if name != COORDINATOR}

    def is_not_connecting(self) -> bool:
        """No broker is connected or tried, except perhaps by a coordinator's own handle."""
        return all(
            each.state == STATE_INIT for name, each in self.brokers.items() if name != COORDINATOR
        )

    def fetch_brokers(self) -> dict[TopicPartition, int]:
        """The ID of the broker that each partition is read from, of those that have one: its
        leader, or with ``client.rack`` one that follows it."""
        brokers = {
            key: partition.broker if partition.broker >= 0 else partition.leader
            for key, partition in self.all_partitions()
        }
        return {key: broker for key, broker in brokers.items() if broker >= 0}

    def produce_leaders(self) -> dict[TopicPartition, int]:
        """The ID of the leader of each partition for which records wait, of those that have one."""
        return {
            key: partition.leader
            for key, partition in self.all_partitions()
            if partition.leader >= 0 and partition.msgq_cnt + partition.xmit_msgq_cnt
        }

    def all_partitions(self) -> Iterator[tuple[TopicPartition, Partition]]:
        """Every partition of every topic, one -1 included."""
        for name, topic in self.topics.items():
            for number, partition in topic.partitions.items():
                yield (name, int(number)), partition


decode_snapshot = msgspec.json.Decoder(Snapshot).decode
"""A report (JSON)."""
