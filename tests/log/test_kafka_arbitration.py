"""Which records of an event topic count: the rule alone, fed with any order of records."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.log.event_headers import (
    cause_of,
    event_header,
    is_final,
    make_append,
    parse_event,
)
from streams.log.events import NO_HISTORY, Base, EventAppend
from streams.log.kafka.arbitration import Arbiter, Counted
from streams.message import Record

ids = iter(range(10**9))


def event() -> Record:
    return Record(b"value", None, f"id-{next(ids)}", ())


def append(key: bytes, base: Base, count: int = 1, **options: object) -> EventAppend:
    return make_append(key, base, [event() for _ in range(count)], **options)  # type: ignore[arg-type]


class Partition:
    """Records in the order in which the log has them, and what an arbiter makes of them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.arbiter = Arbiter()

    def write(self, *records: Record) -> list[Counted]:
        found = []
        for record in records:
            self.records.append(record)
            if counted := feed(self.arbiter, len(self.records) - 1, record):
                found.append(counted)
        return found


def feed(arbiter: Arbiter, offset: int, record: Record) -> Counted | None:
    header = parse_event(event_header(record.headers), record.id)
    return arbiter.feed(
        offset, record.key, record.id, header, cause_of(record.headers), is_final(record.headers)
    )


def test_the_first_on_a_base_wins() -> None:
    log = Partition()
    one, two = append(b"k", NO_HISTORY), append(b"k", NO_HISTORY)
    assert [each.append_id for each in log.write(*one.records, *two.records)] == [one.records[0].id]
    assert log.arbiter.head(b"k") == one.head


def test_an_append_counts_at_its_last_record_and_not_before() -> None:
    log = Partition()
    made = append(b"k", NO_HISTORY, 3)
    assert log.write(*made.records[:2]) == []
    assert log.arbiter.head(b"k").base == NO_HISTORY
    (counted,) = log.write(made.records[2])
    assert (counted.offsets, counted.head) == ((0, 1, 2), made.head)


def test_an_append_upon_another_history_never_counts() -> None:
    """The number of its base matches; the event that it was decided upon is another."""
    log = Partition()
    one, other = append(b"k", NO_HISTORY), append(b"k", NO_HISTORY)
    log.write(*one.records)
    for count in (1, 2):
        assert log.write(*append(b"k", other.head.base, count).records) == []
    assert len(log.write(*append(b"k", one.head.base).records)) == 1


def test_of_two_that_are_interleaved_the_first_that_is_whole_wins() -> None:
    log = Partition()
    one, two = append(b"k", NO_HISTORY, 2), append(b"k", NO_HISTORY, 2)
    assert log.write(one.records[0], two.records[0]) == []
    (counted,) = log.write(two.records[1])
    assert counted.append_id == two.records[0].id
    assert log.write(one.records[1]) == []


def test_an_append_that_is_not_whole_holds_nobody_up() -> None:
    log = Partition()
    torn, other, rival = (
        append(b"k", NO_HISTORY, 2),
        append(b"o", NO_HISTORY),
        append(b"k", NO_HISTORY),
    )
    log.write(torn.records[0])
    assert len(log.write(*other.records)) == 1
    assert len(log.write(*rival.records)) == 1
    assert log.write(torn.records[1]) == []


def test_an_append_that_is_sent_again_counts_once() -> None:
    log = Partition()
    made = append(b"k", NO_HISTORY, 2)
    log.write(made.records[0])
    (counted,) = log.write(*made.records)
    assert counted.offsets == (1, 2)
    assert log.write(*made.records) == []


def test_nothing_follows_a_final_append() -> None:
    log = Partition()
    last = append(b"k", NO_HISTORY, is_final=True)
    (counted,) = log.write(*last.records)
    assert counted.head.is_final
    assert log.write(*append(b"k", last.head.base).records) == []


def test_a_refusal_ends_what_was_decided_before_it() -> None:
    log = Partition()
    refusal = append(b"k", NO_HISTORY, cause="c", is_refusal=True)
    (counted,) = log.write(*refusal.records)
    assert (counted.is_refusal, counted.cause, counted.head.base.version) == (True, "c", 0)
    assert log.write(*append(b"k", NO_HISTORY).records) == []
    assert len(log.write(*append(b"k", refusal.head.base).records)) == 1


def test_what_is_no_append_never_counts() -> None:
    log = Partition()
    made = append(b"k", NO_HISTORY, 3)
    first, second, third = made.records
    strangers = [
        Record(b"x", b"k", "plain"),
        Record(b"x", None, first.id, first.headers),
        Record(b"x", b"k", "other", second.headers),
        *(
            Record(b"x", b"k", "forged", [("streams_event", value)])
            for value in (
                b"", b"0/1/0", b"0/1/0/x/y/z", b"1/1/0//a", b"0/10001/0/", b"-1/1/0/", b"0/1/-1/",
                b"0/1/1/", b"9" * 100 + b"/1/0/", b"\xff/1/0/", None,
            )
        ),
    ]  # fmt: skip
    assert log.write(*strangers) == []
    assert log.write(first, third) == []  # one is missing between them
    assert log.write(second) == []
    assert log.arbiter.head(b"k").base == NO_HISTORY


class Model:
    """The rule in the plainest words: look at all records anew for each append."""

    def __init__(self, records: list[Record]) -> None:
        self.history: list[str] = []
        base, final = NO_HISTORY, False
        started: dict[str, list[int]] = {}
        for record in records:
            header = parse_event(event_header(record.headers), record.id)
            if header is None or header.base != base or final:
                continue
            if header.record_index == 0:
                started[header.append_id] = []
            if started.get(header.append_id) != list(range(header.record_index)):
                continue
            started[header.append_id].append(header.record_index)
            if header.is_last:
                self.history += [header.append_id]
                base = Base(header.base.version + header.record_count, record.id)
                final = is_final(record.headers)
                started = {}
        self.base = base


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_of_honest_and_dishonest_appends_has_one_history(data: st.DataObject) -> None:
    """Writers decide upon any base that ever was, or none, and their records meet in any order,
    torn, doubled and in between each other."""
    partition = Partition()
    bases = [NO_HISTORY, Base(3, "never")]
    queues: list[list[Record]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if data.draw(st.booleans()) or not queues:
            made = append(
                b"k",
                data.draw(st.sampled_from(bases)),
                data.draw(st.integers(1, 3)),
                is_final=data.draw(st.integers(0, 30)) == 0,
            )
            records = list(made.records)
            if data.draw(st.integers(0, 5)) == 0:
                records = records[: data.draw(st.integers(0, len(records)))]
            if data.draw(st.integers(0, 5)) == 0:
                records += list(made.records)
            queues.append(records)
        queue = data.draw(st.sampled_from(queues))
        if queue:
            bases += [counted.head.base for counted in partition.write(queue.pop(0))]
    model = Model(partition.records)
    assert partition.arbiter.head(b"k").base == model.base
    again = Arbiter()
    counted = [
        found.append_id
        for offset, record in enumerate(partition.records)
        if (found := feed(again, offset, record))
    ]
    assert counted == model.history
    assert again.heads == partition.arbiter.heads
    assert len(counted) == len(set(counted))
