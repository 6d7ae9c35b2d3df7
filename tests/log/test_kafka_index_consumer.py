"""What feeds an index is told of the end of transactions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.errors import LogError
from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.index_consumer import IndexConsumer
from streams.log.kafka.log import KafkaLog
from streams.log.url import open_log
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until


class Index:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.folded: list[int] = []
        self.reached = 0
        self.errors: list[LogError] = []
        self.ticks = 0

    def fold(self, batch: KafkaBatch) -> None:
        self.folded += batch.offsets
        self.reached = batch.offsets[-1] + 1

    def reach(self, partition: int, offset: int) -> None:
        self.reached = max(self.reached, offset)

    def has_reached(self, offset: int) -> bool:
        return self.reached == offset

    def next_offsets(self) -> Mapping[int, int]:
        return {0: self.reached}

    def tick(self) -> None:
        self.ticks += 1

    def fail(self, error: LogError) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("uncommitted", [True, False])
def test_the_end_of_a_transaction_is_told_before_a_fetch_has_found_nothing(
    kafka: KafkaAddress, uncommitted: bool
) -> None:
    """A fetch that finds nothing takes longer here than anybody waits."""
    log = open_log(f"{kafka.url}?fetch.wait.max.ms=50000")
    assert isinstance(log, KafkaLog)
    topic = f"index-{uuid4().hex[:8]}"
    log.create_topic(topic, 1)
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap, "transactional.id": topic, "log_level": 0}
    )
    producer.init_transactions(30)
    index = Index()
    consumer = IndexConsumer(topic, log._readers, index, uncommitted=uncommitted)
    consumer.follow({0: 0})
    try:
        # A record, and the marker that ends its transaction.
        for end, finish in (2, producer.commit_transaction), (4, producer.abort_transaction):
            producer.begin_transaction()
            producer.produce(topic, b"value", partition=0)
            producer.flush(30)
            finish(30)
            until(partial(index.has_reached, end), 20, f"offset {end} is reached")
    finally:
        consumer.close()
        log.close()
    assert index.folded == ([0, 2] if uncommitted else [0])
    assert not index.errors
