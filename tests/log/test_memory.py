"""The memory log's own: sharing by name, columns, crash points and faults. What it has in common
with the other logs stands in ``tests/conformance``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import ConfigError, Fatal, GroupNotEmpty, LogError, OutcomeUnknown, Unavailable
from streams.log.membership import DEFAULT_TERMS
from streams.log.memory import MemoryLog
from streams.log.memory.topics import Partition
from streams.log.protocol import Assignment, Commit
from streams.log.url import open_log
from streams.message import Position, Record
from streams.testing import Clock
from tests.servers.lifetime import until

NAME = "memory://test-memory"


class Listens:
    """Starts where the group is; remembers what it was told."""

    def __init__(self) -> None:
        self.owned: list[Assignment] = []
        self.told: list[str] = []

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self.owned += assignments
        self.told.append("assigned")

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self.told.append("revoked")

    def lost(self, assignments: Sequence[Assignment]) -> None:
        self.told.append("lost")


def memory(url: str = "memory://", clock: Clock | None = None) -> MemoryLog:
    log = open_log(url, clock=clock)
    assert isinstance(log, MemoryLog)
    return log


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[MemoryLog]:
    opened = memory(NAME, clock)
    opened.create_topic("t", 1)
    yield opened
    opened.close()


def append(log: MemoryLog, *values: bytes) -> Sequence[Position | LogError]:
    told: list[Sequence[Position | LogError]] = []
    log.append("t", [Record(value, b"k", value.decode()) for value in values], told.append)
    assert len(told) == 1
    return told[0]


# -- opening --------------------------------------------------------------------------------------


def test_a_name_is_shared_until_the_last_one_closes_it() -> None:
    one, two, private = memory(NAME), memory(NAME), memory()
    one.create_topic("t", 3)
    assert two.describe_topic("t").partitions == 3
    assert private.describe_topics() == []
    one.close()
    assert two.describe_topic("t").partitions == 3
    two.close()
    again = memory(NAME)
    assert again.describe_topics() == []
    again.close()
    private.close()


def test_one_name_has_one_clock(log: MemoryLog) -> None:
    with pytest.raises(ConfigError, match="clock"):
        memory(NAME, Clock())


@pytest.mark.parametrize("url", ["memory://?size=1", "memory:///name", "memory://a/b"])
def test_what_it_does_not_know_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="memory://"):
        memory(url)


def test_closing_ends_what_waits(log: MemoryLog, clock: Clock) -> None:
    """A poll and a read that are blocked come out with an error, not never."""
    other = memory(NAME, clock)
    subscription = other.subscribe("g", ["t"], Listens())
    reader = other.reader("t", 0, 0, 1)
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except LogError as error:
            errors.append(error)

    waiting = log.store.topics["t"].waiters
    threads = [
        threading.Thread(target=run, args=[lambda: subscription.poll(1, 60)]),
        threading.Thread(target=run, args=[lambda: reader.read(1, 60)]),
    ]
    for thread in threads:
        thread.start()
    while len(waiting) < 2:
        time.sleep(0.001)
    other.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [Fatal, Fatal]
    with pytest.raises(Fatal):
        subscription.poll(1, 0)


# -- columns --------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 5)),
        st.tuples(st.just("trim"), st.integers(0, 40)),
    ),
    max_size=20,
)


@given(steps, st.data())
def test_columns_hold_what_a_list_of_messages_would(
    done: list[tuple[str, int]], data: st.DataObject
) -> None:
    partition = Partition()
    kept: list[tuple[int, float, str]] = []  # offset, time, id
    offset = 0
    for now, (step, number) in enumerate(done):
        if step == "append":
            records = [Record(b"", None, f"{offset + i}") for i in range(number)]
            assert list(partition.append(records, now)) == list(range(offset, offset + number))
            kept += [(offset + i, float(now), f"{offset + i}") for i in range(number)]
            offset += number
        else:
            first = min(number, offset)
            partition.trim(first)
            kept = [message for message in kept if message[0] >= first]
    assert partition.end == offset
    assert partition.first == (kept[0][0] if kept else partition.first)
    start = data.draw(st.integers(partition.first, partition.end))
    batch = partition.batch("t", 0, start, partition.end - start, None)
    found = [(batch.offset(i), batch.time(i), batch.id(i)) for i in range(len(batch))]
    assert found == [message for message in kept if message[0] >= start]
    moment = data.draw(st.integers(0, len(done)))
    later = [at for at, taken, _ in kept if taken >= moment]
    assert partition.offset_for_time(moment) == (later[0] if later else partition.end)


def test_a_clock_that_goes_back_does_not_unsort_a_partition() -> None:
    partition = Partition()
    for now in (5.0, 3.0, 7.0):
        partition.append([Record(b"", None, "i")], now)
    assert [partition.offset_for_time(moment) for moment in (5.0, 5.1, 7.1)] == [0, 2, 3]


def test_letting_go_of_a_batchs_bytes_leaves_the_log_alone(log: MemoryLog) -> None:
    append(log, b"kept")
    first = log.reader("t", 0, 0, 1).read(1)
    assert first is not None
    first.release(0)
    again = log.reader("t", 0, 0, 1).read(1)
    assert again is not None
    assert again.values == [b"kept"]


# -- crash points ---------------------------------------------------------------------------------


def test_a_crashed_member_commits_nothing_and_blocks_its_partitions_for_a_lease(
    log: MemoryLog, clock: Clock
) -> None:
    append(log, b"1", b"2")
    dead, successor = Listens(), Listens()
    doomed = log.subscribe("g", ["t"], dead)
    (batch,) = doomed.poll(10, 0)
    doomed.commit([Commit(batch.assignment, 1, "", 1)])
    doomed.crash()
    doomed.commit([Commit(batch.assignment, 2, "", 2)])
    with pytest.raises(Fatal, match="crashed"):
        doomed.poll(10, 0)
    assert dead.told == ["assigned"]
    assert batch.assignment.valid_until == float("-inf")

    survivor = log.subscribe("g", ["t"], successor)
    clock.advance(DEFAULT_TERMS.lease - 0.1)
    assert survivor.poll(10, 0) == ()
    with pytest.raises(GroupNotEmpty):
        log.delete_group("g")
    clock.advance(0.2)
    (batch,) = survivor.poll(10, 0)
    assert batch.values == [b"2"]
    assert successor.owned[0].epoch > dead.owned[0].epoch
    assert [member.id for member in log.describe_group("g").members] == [survivor.id]


def test_a_crash_in_a_blocked_poll_holds_the_lease_from_then_on(
    log: MemoryLog, clock: Clock
) -> None:
    doomed = log.subscribe("g", ["t"], Listens())
    doomed.poll(1, 0)
    ended: list[type[BaseException]] = []

    def run() -> None:
        try:
            doomed.poll(1, 60)
        except Fatal as error:
            ended.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: doomed.is_polling, 60, "it polls")
    clock.advance(DEFAULT_TERMS.lease * 20)
    survivor = log.subscribe("g", ["t"], Listens())
    doomed.crash()
    thread.join()
    assert ended == [Fatal]
    survivor.poll(1, 0)
    assert not log.describe_group("g").members[1].partitions
    clock.advance(DEFAULT_TERMS.lease + 0.1)
    survivor.poll(1, 0)
    assert log.describe_group("g").members[0].partitions == (("t", 0),)


def test_a_crashed_log_does_nothing_any_more_and_the_others_go_on(
    log: MemoryLog, clock: Clock
) -> None:
    victim = memory(NAME, clock)
    member = victim.subscribe("g", ["t"], Listens())
    member.poll(1, 0)
    victim.crash()
    assert [type(outcome) for outcome in append(victim, b"from the grave")] == [Fatal]
    assert append(log, b"alive") == [Position("t", 0, 0)]
    successor = log.subscribe("g", ["t"], Listens())
    assert successor.poll(1, 0) == ()
    clock.advance(DEFAULT_TERMS.lease + 0.1)
    assert [batch.values for batch in successor.poll(1, 0)] == [[b"alive"]]


# -- faults ---------------------------------------------------------------------------------------


def strike(log: MemoryLog, where: str, error: LogError) -> None:
    """The next time this point is reached, it fails."""

    def hook(point: str, name: str) -> None:
        if point == where:
            log.fault(None)
            raise error

    log.fault(hook)


@pytest.mark.parametrize(
    ("where", "error", "written"),
    [("append", Unavailable("down"), 0), ("append.done", OutcomeUnknown("no answer"), 1)],
)
def test_an_append_can_fail_before_or_after_it_is_done(
    log: MemoryLog, where: str, error: LogError, written: int
) -> None:
    strike(log, where, error)
    assert append(log, b"1") == [error]
    assert log.watermarks("t", 0) == (0, written)
    assert append(log, b"2") == [Position("t", 0, written)]


@pytest.mark.parametrize(("where", "stored"), [("commit.before", 0), ("commit.after", 1)])
def test_a_commit_can_fail_before_or_after_it_is_done(
    log: MemoryLog, where: str, stored: int
) -> None:
    append(log, b"1")
    log.initialize_offsets("g", "t", {0: 0})
    subscription = log.subscribe("g", ["t"], Listens())
    (batch,) = subscription.poll(1, 0)
    strike(log, where, Unavailable("down"))
    commit = Commit(batch.assignment, 1, "", 1)
    with pytest.raises(Unavailable):
        subscription.commit([commit])
    assert log.describe_group("g").positions["t", 0].position == stored
    subscription.commit([commit])  # the same again is no older one
    assert log.describe_group("g").positions["t", 0].position == 1


def test_a_poll_or_read_that_failed_skips_nothing(log: MemoryLog) -> None:
    append(log, b"1")
    subscription = log.subscribe("g", ["t"], Listens())
    reader = log.reader("t", 0, 0, 1)
    strike(log, "poll", Unavailable("down"))
    with pytest.raises(Unavailable):
        subscription.poll(1, 0)
    strike(log, "read", Unavailable("down"))
    with pytest.raises(Unavailable):
        reader.read(1)
    assert [batch.values for batch in subscription.poll(1, 0)] == [[b"1"]]
    assert reader.read(1) is not None


def test_flush_waits_for_appends_that_are_held_up(log: MemoryLog) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(point: str, name: str) -> None:
        if point == "append.done":
            held.set()
            go.wait()

    log.fault(hold)
    thread = threading.Thread(target=append, args=[log, b"1"])
    thread.start()
    held.wait()
    with pytest.raises(Unavailable):
        log.flush(0.01)
    go.set()
    log.flush(60)
    thread.join()
