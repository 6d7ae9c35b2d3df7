"""Documents on Kafka: who may write, what counts, and what a reader is shown."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from streams.errors import (
    Fenced,
    LogError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    TopicMismatch,
    Unavailable,
)
from streams.log.documents import (
    Checkpoint,
    CollectionInfo,
    CollectionTotals,
    DocumentChange,
    DocumentWriter,
    StoredDocument,
)
from streams.log.kafka import document_index, document_partition
from streams.log.kafka.document_records import (
    CHECKPOINT_KEY,
    COMPACTION_LAG,
    DELETE_RETENTION,
    DOCUMENT,
    documents_topic,
)
from streams.log.kafka.documents import KafkaDocuments
from streams.log.kafka.log import KafkaLog
from streams.log.protocol import Retention
from streams.log.url import open_log
from tests.conformance.member import PATIENCE
from tests.hostile.kafka_wire import Written, produce
from tests.log.kafka_histories import answered
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

Open = Callable[[], KafkaDocuments]
Headers = list[tuple[str, str | bytes | None]]


@pytest.fixture
def reopen(kafka: KafkaAddress) -> Iterator[Open]:
    """Opens the log anew, as another process does."""
    opened: list[KafkaLog] = []

    def open_one() -> KafkaDocuments:
        log = open_log(kafka.url)
        assert isinstance(log, KafkaLog)
        opened.append(log)
        return log.documents

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def store(reopen: Open) -> KafkaDocuments:
    return reopen()


@pytest.fixture
def name(store: KafkaDocuments) -> str:
    """A collection of one partition."""
    return store.create(f"documents-{uuid4().hex[:12]}", 1).name


@pytest.fixture
def admin(kafka: KafkaAddress) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap})


@pytest.fixture
def producer(kafka: KafkaAddress) -> Producer:
    """Somebody who writes what he likes."""
    return Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 0})


def put(producer: Producer, name: str, key: bytes, value: bytes | None, headers: Headers) -> None:
    producer.produce(documents_topic(name), value, key, 0, headers=headers)
    assert producer.flush(PATIENCE) == 0


def change(key: bytes, value: bytes | None, failure: bytes = b"") -> DocumentChange:
    document = None if value is None and not failure else StoredDocument(value, failure)
    return DocumentChange(key, document)


def value_of(store: KafkaDocuments, name: str, key: bytes) -> bytes | None:
    (document,) = store.read(name, 0, [key]).documents
    return None if document is None else document.value


# -- one writer ------------------------------------------------------------------------------------


class Child:
    """See ``kafka_documents_child.py``. It has written all of its second write but the end."""

    def __init__(self, url: str, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.log.kafka_documents_child", url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert [self.line(), self.line()] == ["written", "open"]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def child(kafka: KafkaAddress, name: str) -> Iterator[Child]:
    found = Child(kafka.url, name)
    yield found
    found.process.kill()
    found.process.communicate()


def test_a_writer_that_was_frozen_writes_nothing_when_it_wakes_up(
    reopen: Open, name: str, child: Child
) -> None:
    os.kill(child.process.pid, signal.SIGSTOP)
    store = reopen()
    writer = store.claim(name, 0)
    assert writer.checkpoint == Checkpoint(1)
    writer.write([change(b"a", b"2")], Checkpoint(2, b"mine"))
    child.go_on()
    os.kill(child.process.pid, signal.SIGCONT)
    assert (
        child.line() == f"Fenced: documents {name!r}, partition 0: another process writes them now"
    )
    writer.write([change(b"b", b"3")], Checkpoint(3))
    for each in (store, reopen()):
        assert value_of(each, name, b"a") == b"2"
        assert each.read(name, 0, [b"b"]) == ([StoredDocument(b"3")], Checkpoint(3))


def test_what_a_killed_writer_left_open_holds_up_neither_readers_nor_its_successor(
    reopen: Open, name: str, child: Child
) -> None:
    child.process.kill()
    store = reopen()
    assert store.read(name, 0, [b"a"]) == ([StoredDocument(b"1")], Checkpoint(1))
    writer = store.claim(name, 0)
    assert writer.checkpoint == Checkpoint(1)
    writer.write([], Checkpoint(2))
    assert reopen().read(name, 0, [b"a"]) == ([StoredDocument(b"1")], Checkpoint(2))


class FencedAtTheEnd:
    """A producer whose commit is answered with "fenced".

    :param committed: it is carried out all the same, and that answer is to its second try.
    """

    def __init__(self, producer: Producer, *, committed: bool) -> None:
        self._producer = producer
        self._committed = committed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def commit_transaction(self, timeout: float) -> None:
        if self._committed:
            self._producer.commit_transaction(timeout)
        else:
            self._producer.abort_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._FENCED, "fenced", True))


@pytest.mark.parametrize("committed", [False, True])
def test_fenced_means_that_nothing_was_written(
    store: KafkaDocuments, name: str, *, committed: bool
) -> None:
    writer: Any = store.claim(name, 0)
    writer._producer = FencedAtTheEnd(writer._producer, committed=committed)
    if committed:
        writer.write([change(b"a", b"1")], Checkpoint(1))
        assert store.checkpoint(name, 0) == Checkpoint(1)
    else:
        with pytest.raises(Fenced):
            writer.write([change(b"a", b"1")], Checkpoint(1))
        assert store.checkpoint(name, 0) is None


class Unanswered(FencedAtTheEnd):
    """A producer whose commit is never answered."""

    def commit_transaction(self, timeout: float) -> None:
        if self._committed:
            self._producer.commit_transaction(timeout)
            self._committed = False
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no answer", False, True))


@pytest.mark.parametrize("committed", [False, True])
def test_whoever_claims_again_knows_what_became_of_a_write_without_an_answer(
    store: KafkaDocuments, name: str, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    monkeypatch.setattr("streams.log.kafka.document_writer.WRITE_TIMEOUT", 5.0)
    writer: Any = store.claim(name, 0)
    writer._producer = Unanswered(writer._producer, committed=committed)
    with pytest.raises(OutcomeUnknown, match="claim the partition again"):
        writer.write([change(b"a", b"1")], Checkpoint(1))
    with pytest.raises(LogError, match="claim the partition again"):
        writer.write([change(b"a", b"2")], Checkpoint(2))
    assert store.claim(name, 0).checkpoint == (Checkpoint(1) if committed else None)


class Overtaken:
    """A producer that another one of its ID overtakes while it is initialized, the first time: as
    brokers answer then."""

    times = 0

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def init_transactions(self, timeout: float) -> None:
        Overtaken.times += 1
        if Overtaken.times == 1:
            raise KafkaException(KafkaError(KafkaError._FENCED, "there is a newer producer"))
        self._producer.init_transactions(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


def test_a_claim_that_is_overtaken_by_another_one_is_made_again(
    store: KafkaDocuments, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver says that this is fatal, which it is for that producer alone."""
    connect: Callable[..., Any] = store._tools.connect
    monkeypatch.setattr(Overtaken, "times", 0)
    overtaken: Any = lambda config: Overtaken(connect(config))  # noqa: E731
    tools = store._tools._replace(connect=overtaken)
    monkeypatch.setattr(store, "_tools", tools)
    store.claim(name, 0).write([change(b"a", b"1")], Checkpoint(1))
    assert value_of(store, name, b"a") == b"1"
    assert Overtaken.times == 2


def limit_records(admin: AdminClient, name: str) -> None:
    """To 2,000,000 bytes."""
    limit = ConfigEntry("max.message.bytes", "2000000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ResourceType.TOPIC, documents_topic(name), incremental_configs=[limit])
    for future in admin.incremental_alter_configs([topic]).values():
        future.result(PATIENCE)

    def is_limited() -> bool:  # the broker learns of it after the controller has answered
        (asked,) = admin.describe_configs([topic]).values()
        return bool(asked.result(PATIENCE)["max.message.bytes"].value == "2000000")

    until(is_limited, PATIENCE, "the limit is known")


def test_a_document_that_is_too_large_is_refused_and_nothing_is_written(
    store: KafkaDocuments, name: str, admin: AdminClient, reopen: Open
) -> None:
    limit_records(admin, name)
    store.claim(name, 0).write([change(b"a", b"1")], Checkpoint(1))
    for size in (2_100_000, 33 << 20):  # refused by the broker, and by the driver
        writer = store.claim(name, 0)
        with pytest.raises(TooLarge, match=r"max\.message\.bytes"):
            writer.write([change(b"a", b"2"), change(b"big", b"x" * size)], Checkpoint(2))
        with pytest.raises(LogError, match="claim the partition again"):
            writer.write([], Checkpoint(2))
        for each in (store, reopen()):
            assert each.read(name, 0, [b"a", b"big"]) == (
                [StoredDocument(b"1"), None],
                Checkpoint(1),
            )
    writer = store.claim(name, 0)
    assert writer.checkpoint == Checkpoint(1)
    writer.write([change(b"big", b"x" * 1_900_000)], Checkpoint(2))
    assert value_of(store, name, b"big") == b"x" * 1_900_000


def test_one_that_is_too_large_in_front_of_many_is_what_the_error_names(
    store: KafkaDocuments, name: str, admin: AdminClient
) -> None:
    """The broker has refused it while others are still being sent."""
    limit_records(admin, name)
    behind = [change(b"%d" % number, b"x" * 100) for number in range(50_000)]
    writer = store.claim(name, 0)
    with pytest.raises(TooLarge, match=r"max\.message\.bytes"):
        writer.write([change(b"big", b"x" * 2_100_000), *behind], Checkpoint(2))


def test_many_documents_that_fill_the_drivers_queue(
    kafka: KafkaAddress, name: str, store: KafkaDocuments
) -> None:
    log = open_log(f"{kafka.url}?queue.buffering.max.messages=100")
    assert isinstance(log, KafkaLog)
    changes = [change(b"%d" % number, b"x") for number in range(1_000)]
    log.documents.claim(name, 0).write(changes, Checkpoint(1))
    log.close()
    assert store.totals(name) == CollectionTotals(1_000, 0)


def test_a_strangers_open_transaction_holds_up_no_reader(
    kafka: KafkaAddress, store: KafkaDocuments, name: str, reopen: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store.claim(name, 0).write([change(b"a", b"1")], Checkpoint(1))
    stranger = Producer(
        {"bootstrap.servers": kafka.bootstrap, "transactional.id": f"stranger-{name}"}
    )
    stranger.init_transactions(PATIENCE)
    stranger.begin_transaction()
    put(stranger, name, b"a", b"stranger", [])
    for each in (store, reopen()):
        assert each.read(name, 0, [b"a"]) == ([StoredDocument(b"1")], Checkpoint(1))
    # Whether the writer before has written behind that cannot be known.
    with monkeypatch.context() as short:
        short.setattr(document_index, "WAIT_TIMEOUT", 0.5)
        with pytest.raises(Unavailable, match="a transaction open"):
            store.claim(name, 0)
    assert value_of(store, name, b"a") == b"1"
    stranger.abort_transaction(PATIENCE)
    assert store.claim(name, 0).checkpoint == Checkpoint(1)


def test_an_open_transaction_is_told_of_while_another_partition_moves(
    kafka: KafkaAddress, store: KafkaDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.create(f"documents-{uuid4().hex[:12]}", 2).name
    store.claim(name, 0).write([change(b"a", b"1")], Checkpoint(1))
    stranger = Producer(
        {"bootstrap.servers": kafka.bootstrap, "transactional.id": f"stranger-{name}"}
    )
    stranger.init_transactions(PATIENCE)
    stranger.begin_transaction()
    put(stranger, name, b"a", b"stranger", [])
    monkeypatch.setattr(document_index, "WAIT_TIMEOUT", 0.5)
    ended, writer = threading.Event(), store.claim(name, 1)

    def move() -> None:
        number = 1
        while not ended.wait(0.05):
            writer.write([change(b"b", b"%d" % number)], Checkpoint(number))
            number += 1

    moving = threading.Thread(target=move)
    moving.start()
    try:
        with pytest.raises(Unavailable, match=r"partition 0: .*a transaction open"):
            answered(lambda: store.claim(name, 0))
    finally:
        ended.set()
        moving.join()
        stranger.abort_transaction(PATIENCE)


# -- what counts -----------------------------------------------------------------------------------

FOREIGN = [
    Written(b"plain", b"a"),
    Written(None, b"a"),
    Written(b"x" * 1_000_000, b"a", [(b"x" * 10_000, b"y" * 10_000)]),
    Written(b"x", b"a", [(b"\xff\xfe", b"2")]),
    Written(b"x", b"a", [(b"streams_document", b"2"), (b"\xff\xfe", b"2")]),
    *(
        Written(b"x", b"a", [(b"streams_document", header)])
        for header in [
            None, b"", b"\xff\xfe", b"-1", b"0", b"1", b"9" * 18, b"9" * 100_000, "٣".encode(),
            b"2/-", b"2/", b"2/x", b"1e3", b" 2",
        ]
    ),
    Written(None, b"a", [(b"streams_document", b"2"), (b"streams_failure", b"why")]),
    Written(b"x", b"a", [(b"streams_document", b"2"), (b"streams_failure", b"")]),
    Written(b"x", b"a", [(b"streams_document", b"2"), (b"streams_failure", b"1"), (b"c", b"")]),
    Written(b"x", b"a", [(b"c", b""), (b"streams_document", b"2")]),
    Written(b"", CHECKPOINT_KEY),
    Written(None, CHECKPOINT_KEY),
    Written(None, CHECKPOINT_KEY, [(b"streams_checkpoint", b"2/0/9/%b")]),
    *(
        Written(b"", CHECKPOINT_KEY, [(b"streams_checkpoint", header)])
        for header in [
            None, b"", b"\xff", b"1/0/1/%b", b"2/0/x/%b", b"2/0/-1/%b", b"2/0/" + b"9" * 40,
            b"2/0/" + b"9" * 40 + b"/%b",
            b"2/3/1/%b", b"2/0/1", b"2/0/1/", b"2/0/1/%b/1", b"x/0/1/%b", b"2//1/%b",
            b"9" * 19 + b"/0/1/%b", b"2/0/1/other", b"2/0/1/" + b"x" * 33,
        ]
    ),
]  # fmt: skip
"""Records that do not count; ``%b`` is the origin of the writes that do."""


def test_what_is_none_of_ours_is_left_out_and_reported_once(
    store: KafkaDocuments, name: str, kafka: KafkaAddress, reopen: Open,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1"), change(b"b", b"2", b"why")], Checkpoint(1, b"one"))
    origin = writer._origin
    with caplog.at_level(logging.WARNING):
        for record in FOREIGN:
            headers = [
                (key, value and value.replace(b"%b", origin)) for key, value in record.headers
            ]
            produce(kafka.bootstrap, documents_topic(name), [record._replace(headers=headers)])
        expected = [StoredDocument(b"1"), StoredDocument(b"2", b"why")], Checkpoint(1, b"one")
        for each in (store, reopen()):
            writer = each.claim(name, 0)  # has read to the end
            assert each.read(name, 0, [b"a", b"b"]) == expected
            assert writer.checkpoint == Checkpoint(1, b"one")
    assert (
        len([each for each in caplog.messages if "does not belong to a collection" in each]) == 2
    ), "once a handle"
    # Nothing is blinded: what is written from now on counts, everywhere.
    writer.write([change(b"c", b"3")], Checkpoint(2))
    until(lambda: store.checkpoint(name, 0) == Checkpoint(2), PATIENCE, "the next write")
    for each in (store, reopen()):
        found = each.read(name, 0, [b"a", b"b", b"c"])
        assert found == ([*expected[0], StoredDocument(b"3")], Checkpoint(2))
        assert [stopped.key for stopped in each.stopped(name, 0, None, 9)] == [b"b"]


def test_every_key_is_possible(store: KafkaDocuments, name: str, reopen: Open) -> None:
    keys = [CHECKPOINT_KEY, CHECKPOINT_KEY * 2, CHECKPOINT_KEY + b"x", CHECKPOINT_KEY[:-1], b""]
    store.claim(name, 0).write([change(key, key) for key in keys], Checkpoint(1))
    for each in (store, reopen()):
        found = each.read(name, 0, keys)
        assert found == ([StoredDocument(key) for key in keys], Checkpoint(1))
        assert [document.key for document in each.scan(name, 0, b"", None, 9)] == sorted(keys)


def records_of(kafka: KafkaAddress, name: str) -> list[tuple[bytes, bytes | None, Headers]]:
    """What a foreign consumer reads of a collection."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "foreign",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(documents_topic(name), 0, 0)])
    found: list[tuple[bytes, bytes | None, Headers]] = []
    while True:
        message: Any = consumer.poll(PATIENCE)
        if message.error() is not None:
            assert message.error().code() == KafkaError._PARTITION_EOF
            consumer.close()
            return found
        found.append((message.key(), message.value(), message.headers() or []))


def test_a_foreign_consumer_reads_key_and_document(
    store: KafkaDocuments, name: str, kafka: KafkaAddress
) -> None:
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1"), change(b"b", b"2")], Checkpoint(1))
    writer.write([change(b"a", b"3"), change(b"b", None)], Checkpoint(2))
    assert store.checkpoint(name, 0) == Checkpoint(2)  # its end stands in the log, too
    table = {key: value for key, value, _ in records_of(kafka, name) if key != CHECKPOINT_KEY}
    assert table == {b"a": b"3", b"b": None}


@pytest.mark.parametrize("held", [20_000, 3])
def test_an_index_that_is_made_after_compaction_is_right(
    store: KafkaDocuments, name: str, kafka: KafkaAddress, producer: Producer, reopen: Open,
    monkeypatch: pytest.MonkeyPatch, held: int,
) -> None:  # fmt: skip
    """Of each key the last record is there, and of the checkpoints the last.

    :param held: how many documents memory may hold.
    """
    writer = store.claim(name, 0)
    for number in range(1, 40):
        keys = [b"%d" % (number * 7 % 13), b"%d" % (number * 5 % 11 + 20)]
        changes = [change(key, b"%d" % number, b"why" * (number % 3 == 0)) for key in keys]
        if number % 4 == 0:
            changes[0] = change(keys[0], None)
        writer.write(changes, Checkpoint(number))
        if number == 20:
            store.clear(name, 0)
            writer = store.claim(name, 0)
    expected = list(store.scan(name, 0, b"", None, 100))
    last = {each[0]: (number, each) for number, each in enumerate(records_of(kafka, name))}
    copied = store.create(f"{name}-compacted", 1).name
    # What was there before it was cleared is back, as if nothing had been deleted at once.
    put(producer, copied, b"back", b"x", [(DOCUMENT, b"3")])
    for _, (key, value, headers) in sorted(last.values()):
        put(producer, copied, key, value, headers)
    # Of a write that no checkpoint followed.
    put(producer, copied, b"back", b"x", [(DOCUMENT, b"77")])
    monkeypatch.setattr("streams.log.kafka.document_partition.FLUSH_COUNT", held)
    monkeypatch.setattr("streams.log.kafka.index_consumer.FETCH_LIMIT", min(held, 500))
    other = reopen()
    assert list(other.scan(copied, 0, b"", None, 100)) == expected
    assert other.checkpoint(copied, 0) == Checkpoint(39)
    assert other.totals(copied) == store.totals(name)
    writer = other.claim(copied, 0)
    writer.write([change(b"new", b"x")], Checkpoint(40))
    assert value_of(other, copied, b"new") == b"x"
    assert value_of(other, copied, b"back") is None
    gone = [each.key for each in expected[:8]]
    writer.write([change(key, None) for key in gone], Checkpoint(41))
    left = [each.key for each in expected[8:]] + [b"new"]
    assert [each.key for each in other.scan(copied, 0, b"", None, 100)] == sorted(left)


def test_what_was_cleared_does_not_come_back_where_nothing_may_be_deleted(
    store: KafkaDocuments, name: str, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1", b"why"), change(b"b", b"2")], Checkpoint(8))

    def refuse(*_: Any) -> None:
        raise LogError("this login may not")

    monkeypatch.setattr(store._requests, "run_admin", refuse)
    store.clear(name, 0)
    store.claim(name, 0).write([change(b"c", b"3")], Checkpoint(1))
    for each in (store, reopen()):
        assert each.read(name, 0, [b"a", b"b"]) == ([None, None], Checkpoint(1))
        assert each.totals(name) == CollectionTotals(1, 0)


# -- what is shown ---------------------------------------------------------------------------------


def written_and_read(
    store: KafkaDocuments, name: str, reopen: Open
) -> tuple[DocumentWriter, KafkaDocuments]:
    """A writer of one document, and another process that has read it."""
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1")], Checkpoint(1))
    reader = reopen()
    assert reader.checkpoint(name, 0) == Checkpoint(1)
    return writer, reader


@pytest.mark.parametrize("away", [COMPACTION_LAG, DELETE_RETENTION])
def test_a_reader_that_was_away_for_long_shows_nothing_that_is_half(
    store: KafkaDocuments, name: str, reopen: Open, away: float,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(document_index, "CHECK_INTERVAL", float("inf"))  # so that nobody sees it
    writer, reader = written_and_read(store, name, reopen)
    index = reader._index(name)
    aged, fold = index._partitions[0], document_partition.DocumentPartition.fold

    def fold_later(self: Any, batch: Any, now: float) -> None:
        fold(self, batch, now + away * (self is aged))

    monkeypatch.setattr(document_partition.DocumentPartition, "fold", fold_later)
    writer.write([change(b"a", b"2")], Checkpoint(2))
    until(lambda: reader.checkpoint(name, 0) == Checkpoint(2), PATIENCE, "the second checkpoint")
    assert value_of(reader, name, b"a") == b"2"
    anew = reader._index(name) is not index
    assert anew == (away == DELETE_RETENTION)
    assert anew == ("read again from the beginning" in caplog.text)


def test_a_partition_whose_broker_does_not_answer_holds_up_no_other(
    store: KafkaDocuments, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.create(f"documents-{uuid4().hex[:12]}", 2).name
    writer, reader = store.claim(name, 1), reopen()
    assert [reader.checkpoint(name, each) for each in range(2)] == [None, None]
    asked, answers = threading.Event(), threading.Event()
    watermarks = reader._readers.watermarks

    def hang(topic: str, partition: int) -> tuple[int, int]:
        if partition == 0:
            asked.set()
            assert answers.wait(2 * PATIENCE)
        return watermarks(topic, partition)

    monkeypatch.setattr(reader._readers, "watermarks", hang)
    monkeypatch.setattr(document_index, "CHECK_INTERVAL", 0.0)
    try:
        assert asked.wait(PATIENCE)
        writer.write([change(b"b", b"1")], Checkpoint(1))
        until(lambda: reader.checkpoint(name, 1) == Checkpoint(1), PATIENCE, "it is read")
    finally:
        answers.set()


def test_a_poll_that_found_nothing_does_not_say_that_a_reader_is_at_the_end(
    store: KafkaDocuments, name: str, reopen: Open, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A process can be frozen for long in the first poll after the last batch."""
    monkeypatch.setattr(document_index, "CHECK_INTERVAL", float("inf"))  # so that nobody sees it
    writer, reader = written_and_read(store, name, reopen)
    index = reader._index(name)
    index._partitions[0].caught_up_at -= DELETE_RETENTION
    index.reach(0, index.next_offsets()[0])
    writer.write([change(b"a", b"2")], Checkpoint(2))
    until(lambda: reader.checkpoint(name, 0) == Checkpoint(2), PATIENCE, "the second checkpoint")
    assert reader._index(name) is not index
    assert "read again from the beginning" in caplog.text


def test_a_writer_that_learns_that_it_is_fenced_while_it_hands_records_over(
    store: KafkaDocuments, name: str, reopen: Open
) -> None:
    """The driver then takes no other record and does not say why."""
    writer = store.claim(name, 0)
    reopen().claim(name, 0)
    with pytest.raises(Fenced, match="another process"):
        writer.write([change(b"%d" % number, b"x") for number in range(200_000)], Checkpoint(1))


def test_who_uses_nothing_follows_nothing(
    store: KafkaDocuments, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1")], Checkpoint(1))
    index = store._index(name)
    monkeypatch.setattr(document_index, "IDLE_TIMEOUT", 0.0)
    index.tick()
    assert store._indexes[name] is index, "it is written to"
    writer.close()
    until(lambda: name not in store._indexes, PATIENCE, "nothing is followed")
    monkeypatch.undo()
    assert value_of(store, name, b"a") == b"1"
    assert store._indexes[name] is not index


def test_a_collection_that_another_process_deletes_is_gone(
    store: KafkaDocuments, name: str, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_index, "EXISTS_INTERVAL", 0.1)
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1")], Checkpoint(1))
    other = reopen()
    other.delete(name)
    with pytest.raises(Fenced):
        writer.write([change(b"a", b"2")], Checkpoint(2))

    def is_gone() -> bool:
        try:
            store.read(name, 0, [b"a"])
        except NotFound:
            return True
        return False

    until(is_gone, PATIENCE, "the reader finds out")
    other.create(name, 1)
    with pytest.raises(LogError):
        writer.write([change(b"a", b"3")], Checkpoint(3))
    assert store.read(name, 0, [b"a"]) == ([None], None)


def test_a_writer_of_a_deleted_collection_does_not_write_to_the_next_one(
    store: KafkaDocuments, name: str, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = store.claim(name, 0)
    writer.write([change(b"a", b"1")], Checkpoint(1))
    producer = writer._producer
    # It has not heard of that yet.
    monkeypatch.setattr(writer, "_usable_producer", lambda: producer)
    monkeypatch.setattr(writer, "_check_index", lambda: None)
    other = reopen()
    other.delete(name)
    other.create(name, 1)
    with pytest.raises(Fenced):
        writer.write([change(b"a", b"2")], Checkpoint(2))
    assert reopen().read(name, 0, [b"a"]) == ([None], None)


def test_a_collection_that_is_made_anew_while_it_is_read_is_not_mixed_with_the_former(
    store: KafkaDocuments, name: str, reopen: Open
) -> None:
    store.claim(name, 0).write([change(b"old", b"1")], Checkpoint(1))
    other = reopen()
    other.delete(name)
    other.create(name, 1)
    writer = other.claim(name, 0)
    for number in range(2, 12):  # more than there was
        writer.write([change(b"new", b"%d" % number)], Checkpoint(number))
    until(lambda: store.checkpoint(name, 0) == Checkpoint(11), PATIENCE, "the new collection")
    assert store.read(name, 0, [b"old", b"new"]).documents == [None, StoredDocument(b"11")]


def test_only_compacted_topics_of_such_names_are_collections(
    kafka: KafkaAddress, store: KafkaDocuments, name: str
) -> None:
    log = open_log(kafka.url)
    plain, compacted = f"plain-{name}", f"compacted-{name}"
    log.create_topic(documents_topic(plain), 1)
    log.create_topic(compacted, 1, Retention(compacted=True))
    log.close()
    found = list(store.list())
    assert CollectionInfo(name, 1) in found
    assert not {plain, compacted} & {each.name for each in found}
    for each in (plain, compacted):
        with pytest.raises(NotFound):
            store.find(each)
    with pytest.raises(TopicMismatch, match="is not compacted"):
        store.create(plain, 1)
