"""Histories: what is appended counts under its condition, wholly, once, and stays."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import pytest

from streams.config import Retention
from streams.errors import (
    ConfigError,
    EventTopicError,
    LogError,
    NotFound,
    PartitionCountMismatch,
)
from streams.eventsourcing.inspection import read_refusals
from streams.log.event_headers import (
    MAX_COUNT,
    cause_of,
    event_header,
    is_final,
    make_append,
    parse_event,
)
from streams.log.events import (
    EMPTY,
    NO_HISTORY,
    Appended,
    AppendOutcome,
    Base,
    Caused,
    EventAppend,
    EventLog,
    Head,
    History,
    HistoryRequest,
    Refused,
    StoredSnapshot,
    values_of,
)
from streams.log.protocol import Log
from tests.conformance.histories import (
    append,
    append_all,
    event,
    event_topic,
    events_of,
    grow,
    history,
    values,
    versions,
)
from tests.conformance.logs import Case
from tests.conformance.member import PATIENCE
from tests.conformance.world import World
from tests.servers.lifetime import until

pytestmark = pytest.mark.needs("events")


def test_it_says_whether_partitions_have_servers_of_their_own(world: World, case: Case) -> None:
    log = world.log
    assert isinstance(log, EventLog)
    several = {"kafka", "kip848", "brokers", "cluster"}
    assert log.fails_by_partition is (case.name in several)


def test_events_are_read_as_they_were_appended(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    records = [event(b"one", [("x", b"\xff"), ("x", None)]), event(b""), event(b"\x00" * 10_000)]
    made = make_append(b"\xff/key\x00", NO_HISTORY, records)
    (outcome,) = append_all(log, topic, [made])
    assert isinstance(outcome, Appended)
    found = history(log, topic, b"\xff/key\x00")
    assert [
        (each.record.id, each.record.value, list(each.record.headers)) for each in found.events
    ] == [(each.id, each.value, list(each.headers)) for each in records]
    assert [each.record.key for each in found.events] == [b"\xff/key\x00"] * 3
    assert versions(found) == [1, 2, 3]
    assert tuple(each.offset for each in found.events) == outcome.offsets
    assert found.head == made.head == Head(Base(3, records[2].id))
    assert found.partition == outcome.partition
    assert all(abs(each.time - world.clock.time()) < 3600 for each in found.events)


def test_the_events_of_an_answer_are_a_sequence(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"other", b"0", b"1")
    head = grow(log, topic, b"k", *(b"%d" % number for number in range(5)))
    asked = [
        HistoryRequest(b"other"),
        HistoryRequest(b"k", Base(1, history(log, topic, b"k").events[0].record.id)),
    ]
    _, found = log.read_histories(topic, asked)
    events = list(found.events)
    assert [each.version for each in events] == [2, 3, 4, 5]
    assert (
        list(values_of(found.events))
        == [each.record.value for each in events]
        == [b"1", b"2", b"3", b"4"]
    )
    assert (len(found.events), found.events[0], found.events[-1]) == (4, events[0], events[3])
    assert (list(found.events[1:3]), list(found.events[::-1])) == (events[1:3], events[::-1])
    assert found.events[-1].record.id == head.base.last_id
    for missing in (4, -5):
        with pytest.raises(IndexError):
            found.events[missing]


def test_a_key_that_was_never_appended_to_has_an_empty_history(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    found = history(log, topic, b"k", cause="c")
    assert (versions(found), found.head, found.caused) == ([], EMPTY, None)
    assert not found.is_truncated


def test_each_append_names_the_end_of_the_one_before(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    base = NO_HISTORY
    for number in range(20):
        made, outcome = append(log, topic, b"k", base, b"%d" % number)
        assert isinstance(outcome, Appended)
        base = made.head.base
    assert values(history(log, topic, b"k")) == [b"%d" % number for number in range(20)]
    assert base.version == 20


def test_an_append_on_a_base_that_has_passed_is_refused(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1", b"2", b"3")
    for base in [NO_HISTORY, *bases(log, topic, b"k")[:-1]]:
        _, outcome = append(log, topic, b"k", base, b"late")
        assert outcome == Refused("conflict", head)
    assert values(history(log, topic, b"k")) == [b"1", b"2", b"3"]


def bases(log: EventLog, topic: str, key: bytes) -> list[Base]:
    """Where a history ended after each of its events."""
    return [Base(each.version, each.record.id) for each in history(log, topic, key).events]


def test_a_base_that_the_history_does_not_have_is_not_a_conflict(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1", b"2")
    first = bases(log, topic, b"k")[0]
    for base in [
        Base(2, "another"),  # the number matches, on another history
        Base(1, head.base.last_id),
        Base(2, first.last_id),
        Base(3, "more"),
        Base(7, head.base.last_id),
        Base(0, "nothing"),
    ]:
        _, outcome = append(log, topic, b"k", base, b"forked")
        assert outcome == Refused("truncated", head), base
    _, outcome = append(log, topic, b"new", Base(1, "lost"), b"forked")
    assert outcome == Refused("truncated", EMPTY)
    assert values(history(log, topic, b"k")) == [b"1", b"2"]
    assert values(history(log, topic, b"new")) == []


def test_the_same_append_again_is_a_success_for_ever(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1")
    made, first = append(log, topic, b"k", head.base, b"2", b"3")
    assert isinstance(first, Appended)
    assert append_all(log, topic, [made]) == [first]
    assert append_all(log, topic, [made, made]) == [first, first]
    grow(log, topic, b"k", *(b"more" for _ in range(50)))
    assert append_all(log, topic, [made]) == [first]
    assert values(history(log, topic, b"k")) == [b"1", b"2", b"3"] + [b"more"] * 50


def test_the_same_append_twice_in_one_call_counts_once(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    made = make_append(b"k", NO_HISTORY, [event(b"1"), event(b"2")])
    first, second = append_all(log, topic, [made, made])
    assert isinstance(first, Appended)
    assert first == second
    assert values(history(log, topic, b"k")) == [b"1", b"2"]


def test_appends_of_one_call_count_in_order(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 4)
    appends: list[EventAppend] = []
    for number in range(50):
        key = b"key %d" % number
        one = make_append(key, NO_HISTORY, [event(b"1"), event(b"2")])
        rival = make_append(key, NO_HISTORY, [event(b"rival")])
        behind = make_append(key, one.head.base, [event(b"3")])
        appends += [one, rival, behind]
    outcomes = append_all(log, topic, appends)
    for number in range(50):
        first, refused, last = outcomes[number * 3 : number * 3 + 3]
        assert isinstance(first, Appended)
        assert isinstance(last, Appended)
        assert refused == Refused("conflict", appends[number * 3].head)
        found = history(log, topic, b"key %d" % number)
        assert values(found) == [b"1", b"2", b"3"]
        assert found.head == appends[number * 3 + 2].head


def test_nothing_follows_a_final_append(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1")
    made, outcome = append(log, topic, b"k", head.base, b"2", b"closed", is_final=True)
    assert isinstance(outcome, Appended)
    closed = made.head
    assert closed.is_final
    assert history(log, topic, b"k").head == closed
    for base in (closed.base, head.base):
        _, refused = append(log, topic, b"k", base, b"late")
        assert refused == Refused("final", closed)
    assert append_all(log, topic, [made]) == [outcome]
    last = history(log, topic, b"k").events[-1].record
    assert is_final(last.headers)


def test_a_refusal_has_no_version_and_ends_what_was_decided_before_it(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1")
    made, outcome = append(log, topic, b"k", head.base, b"no", cause="c", is_refusal=True)
    assert isinstance(outcome, Appended)
    assert made.head.base.version == 1
    found = history(log, topic, b"k", cause="c")
    assert (values(found), found.head, found.caused) == ([b"1"], made.head, Caused(2, 0))
    _, frozen = append(log, topic, b"k", head.base, b"late")
    assert frozen == Refused("conflict", made.head)
    assert append_all(log, topic, [made]) == [outcome]
    later, outcome = append(log, topic, b"k", made.head.base, b"2")
    assert isinstance(outcome, Appended)
    assert versions(history(log, topic, b"k")) == [1, 2]
    # Both ends of version 1 were ends of this history, and are only conflicts now.
    for base in (head.base, made.head.base):
        assert append(log, topic, b"k", base, b"x")[1] == Refused("conflict", later.head)
    assert append_all(log, topic, [made])[0] == Appended(
        found.partition, appended_at(made, world, topic)
    )


def appended_at(made: EventAppend, world: World, topic: str) -> tuple[int, ...]:
    """Where the records of an append stand, as whoever reads every record finds them."""
    ids = [each.id for each in made.records]
    log, found = events_of(world), []
    for partition in range(world.log.describe_topic(topic).partitions):
        reader = log.raw_reader(topic, partition, *world.log.watermarks(topic, partition))
        while (batch := reader.read(1_000)) is not None:
            found += [batch.offsets[index] for index in range(len(batch)) if batch.id(index) in ids]
        reader.close()
    return tuple(found)


def test_a_refusal_can_be_the_first_record_of_a_history(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    made, outcome = append(log, topic, b"k", NO_HISTORY, b"no", cause="c", is_refusal=True)
    assert isinstance(outcome, Appended)
    found = history(log, topic, b"k", cause="c")
    assert (versions(found), found.head, found.caused) == ([], made.head, Caused(1, 0))
    assert append(log, topic, b"k", NO_HISTORY, b"x")[1] == Refused("conflict", made.head)
    _, outcome = append(log, topic, b"k", made.head.base, b"1")
    assert isinstance(outcome, Appended)
    assert versions(history(log, topic, b"k")) == [1]


ODD_KEYS = [b"k", b"1:k", b"", b"\x00", b"*", b"[k]", b"k?", b"\\k", b"^\xff"]
"""Keys whose bytes mean something where a log searches by patterns or prefixes."""


def test_the_refusals_of_a_key_are_listed_in_their_order(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    assert log.list_refusals(topic, b"k") == []
    wanted: dict[bytes, list[tuple[int, str, str]]] = {}
    for key in ODD_KEYS:
        base = NO_HISTORY
        for number in range(3):
            cause, error = f"{key!r}/{number}", f"Error{number}"
            made, outcome = append(
                log, topic, key, base, b"", cause=cause, is_refusal=True, refused_by=error
            )
            assert isinstance(outcome, Appended)
            wanted.setdefault(key, []).append((base.version, cause, error))
            if number != 1:  # so that two refusals follow each other
                made, outcome = append(log, topic, key, made.head.base, b"event")
                assert isinstance(outcome, Appended)
            base = made.head.base
        # An append that is not refused as a decision, but by the log, is no refusal.
        append(log, topic, key, NO_HISTORY, b"", cause="late", is_refusal=True)
    other = world.open()
    assert isinstance(other, EventLog)
    for key in ODD_KEYS:
        stored = log.list_refusals(topic, key)
        assert [each.version for each in stored] == [0, 1, 1]
        assert stored == sorted(stored, key=lambda each: each.offset)
        partition = history(log, topic, key).partition
        for reading in (log, other):
            found = read_refusals(reading, topic, key, partition)
            assert [(each.version, each.cause, each.error) for each in found] == wanted[key]
            assert [each.offset for each in found] == [each.offset for each in stored]
            last = read_refusals(reading, topic, key, partition, range(1, 2), 1)
            assert last == found[2:]


def test_causes_are_found_as_long_as_the_history_is(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", b"1")
    _, outcome = append(log, topic, b"k", end(log, topic, b"k"), b"2", b"3", cause="a/\N{SNOWMAN}")
    assert isinstance(outcome, Appended)
    grow(log, topic, b"k", b"4", cause="b")
    grow(log, topic, b"k", *(b"more" for _ in range(30)))
    found = history(log, topic, b"k", end(log, topic, b"k"), cause="a/\N{SNOWMAN}")
    assert (versions(found), found.caused) == ([], Caused(2, 2))
    assert history(log, topic, b"k", cause="b").caused == Caused(4, 1)
    assert history(log, topic, b"k", cause="c").caused is None
    assert history(log, topic, b"other", cause="b").caused is None
    assert cause_of(history(log, topic, b"k").events[1].record.headers) == "a/\N{SNOWMAN}"


def end(log: EventLog, topic: str, key: bytes) -> Base:
    """Where a history ends."""
    return history(log, topic, key).head.base


def test_only_what_is_not_known_is_read(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", *(b"%d" % number for number in range(10)))
    known = bases(log, topic, b"k")
    for number, base in enumerate(known):
        found = history(log, topic, b"k", base)
        assert versions(found) == list(range(number + 2, 11))
        assert not found.is_truncated
    found = history(log, topic, b"k", known[2], limit=3)
    assert (versions(found), found.head.base) == ([4, 5, 6], known[-1])
    for base in (Base(3, "other"), Base(11, "beyond"), Base(0, "x")):
        found = history(log, topic, b"k", base)
        assert (list(found.events), found.head.base, found.is_truncated) == ([], known[-1], True)


def test_many_histories_are_read_at_once(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 3)
    keys = [b"key %d" % number for number in range(200)]
    append_all(
        log, topic, [make_append(key, NO_HISTORY, [event(key), event(b"2")]) for key in keys]
    )
    asked = [HistoryRequest(key) for key in [*keys, b"none", *keys[:3]]]
    found = log.read_histories(topic, asked)
    assert [values(each) for each in found] == [
        *([key, b"2"] for key in keys),
        [],
        *([key, b"2"] for key in keys[:3]),
    ]


def test_many_long_histories_are_read_at_once_in_parts(world: World) -> None:
    """However many are asked for in one call, each has something in its answer until it is read;
    where one call would be too much for a log, some have less than they might."""
    log, topic = events_of(world), event_topic(world, 1)
    keys = [b"key %d" % number for number in range(12)]
    records = {key: [event(b"%d" % number) for number in range(600)] for key in keys}
    append_all(log, topic, [make_append(key, NO_HISTORY, records[key]) for key in keys])
    seen: dict[bytes, list[str]] = {key: [] for key in keys}
    after = dict.fromkeys(keys, NO_HISTORY)
    rounds = 0
    while left := [key for key in keys if len(seen[key]) < 600]:
        rounds += 1
        found = log.read_histories(topic, [HistoryRequest(key, after[key]) for key in left])
        for key, each in zip(left, found, strict=True):
            assert each.events, "nothing, though there is more"
            seen[key] += [stored.record.id for stored in each.events]
            after[key] = Base(each.events[-1].version, seen[key][-1])
    assert seen == {key: [each.id for each in records[key]] for key in keys}
    assert rounds > 1 or world.case.capabilities.name not in ("redis", "valkey")


def test_a_long_history_is_read_in_parts(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 1)
    base = NO_HISTORY
    for _ in range(4):
        made = make_append(b"k", base, [event(b"%d" % number) for number in range(1_000)])
        (outcome,) = append_all(log, topic, [made])
        assert isinstance(outcome, Appended)
        assert len(outcome.offsets) == 1_000
        base = made.head.base
    seen: list[int] = []
    after = NO_HISTORY
    while after != base:
        found = history(log, topic, b"k", after, limit=700)
        assert 0 < len(found.events) <= 700
        seen += versions(found)
        after = Base(found.events[-1].version, found.events[-1].record.id)
    assert seen == list(range(1, 4_001))


def test_an_append_of_as_many_events_as_there_may_be(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 1)
    made = make_append(b"k", NO_HISTORY, [event() for _ in range(MAX_COUNT)])
    (outcome,) = append_all(log, topic, [made])
    assert isinstance(outcome, Appended)
    assert append_all(log, topic, [made]) == [outcome]
    assert history(log, topic, b"k", limit=1).head == made.head


def test_what_an_append_writes_is_read_by_groups_and_readers_as_messages(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 1)
    append(log, topic, b"a", NO_HISTORY, b"1", b"2", cause="why")
    grow(log, topic, b"b", b"1")
    member = world.member(world.group(), topic)
    member.until_delivered(3)
    assert member.delivered() == world.values(topic) == [b"1", b"2", b"1"]
    (batch,) = world.read(topic)
    assert list(batch.keys) == [b"a", b"a", b"b"]
    headers = [
        parse_event(event_header(batch.headers(index)), batch.id(index)) for index in range(3)
    ]
    assert [
        (each.record_index, each.record_count, each.base.version) for each in headers if each
    ] == [
        (0, 2, 0),
        (1, 2, 0),
        (0, 1, 0),
    ]
    assert headers[1]
    assert headers[1].append_id == batch.id(0)


def test_an_event_topic_takes_nothing_but_appends_of_events(world: World) -> None:
    log, topic = world.log, event_topic(world)
    outcomes = world.outcomes(topic, [event(b"x")])
    assert all(isinstance(each, EventTopicError) for each in outcomes), outcomes
    with pytest.raises((EventTopicError, ConfigError)):
        log.set_retention(topic, Retention(seconds=1))
    with pytest.raises((EventTopicError, ConfigError)):
        log.create_topic(topic, 2, Retention(seconds=1))
    assert log.describe_topic(topic).is_event_topic
    assert log.describe_topic(topic) in log.describe_topics()
    assert world.values(topic, 0) == world.values(topic, 1) == []


def test_a_topic_that_is_none_keeps_no_histories(world: World) -> None:
    log, plain = events_of(world), world.topic(2)
    with pytest.raises(EventTopicError, match=plain):
        log.create_event_topic(plain, 2)
    with pytest.raises(EventTopicError, match=plain):
        history(log, plain, b"k")
    (outcome,) = append_all(log, plain, [make_append(b"k", NO_HISTORY, [event()])])
    assert isinstance(outcome, EventTopicError)
    assert not world.log.describe_topic(plain).is_event_topic


def test_a_topic_that_is_missing_is_said(world: World) -> None:
    log, missing = events_of(world), world.name("missing")
    with pytest.raises(NotFound, match=missing):
        history(log, missing, b"k")
    (outcome,) = append_all(log, missing, [make_append(b"k", NO_HISTORY, [event()])])
    assert isinstance(outcome, NotFound)


def test_an_event_topic_keeps_its_partitions(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 2)
    assert log.create_event_topic(topic, 2).partitions == 2
    with pytest.raises(PartitionCountMismatch, match="2"):
        log.create_event_topic(topic, 3)


def test_a_deleted_topic_takes_its_histories_along(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", b"1", cause="c")
    world.log.delete_topic(topic)
    log.create_event_topic(topic, 2)
    assert history(log, topic, b"k", cause="c").head == EMPTY
    assert history(log, topic, b"k", cause="c").caused is None
    grow(log, topic, b"k", b"2")
    assert values(history(log, topic, b"k")) == [b"2"]


def test_another_handle_reads_a_topic_that_was_made_anew(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    other = world.open()
    assert isinstance(other, EventLog)
    grow(log, topic, b"k", b"1", b"2")
    assert values(history(other, topic, b"k")) == [b"1", b"2"]
    assert history(other, topic, b"other").head == EMPTY
    world.log.delete_topic(topic)
    log.create_event_topic(topic, 2)
    for key in (b"k", b"other"):
        grow(log, topic, key, b"3")

        def has_it(key: bytes = key) -> bool:
            with suppress(LogError):  # on Kafka, while its index finds out
                return values(history(other, topic, key)) == [b"3"]
            return False

        until(has_it, PATIENCE, "it reads what is there now")
    _, outcome = append(other, topic, b"other", NO_HISTORY, b"4")
    assert isinstance(outcome, Refused)
    assert outcome.head.base.version == 1


def test_another_handle_has_the_same_history(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1", b"2", cause="c")
    other = world.open()
    assert isinstance(other, EventLog)
    assert history(other, topic, b"k").head == head
    made, outcome = append(other, topic, b"k", head.base, b"3")
    assert isinstance(outcome, Appended)
    assert history(log, topic, b"k").head == made.head
    assert append(log, topic, b"k", head.base, b"late")[1] == Refused("conflict", made.head)


@pytest.mark.needs("durable")
def test_histories_outlive_the_log_that_wrote_them(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    head = grow(log, topic, b"k", b"1", b"2", cause="c")
    made, _ = append(log, topic, b"k", head.base, b"end", is_final=True)
    world.log.close()
    again = world.open()
    assert isinstance(again, EventLog)
    found = history(again, topic, b"k", cause="c")
    assert (values(found), found.head, found.caused) == (
        [b"1", b"2", b"end"],
        made.head,
        Caused(1, 1),
    )


def test_keys_are_listed_in_order_and_in_parts(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 2)
    keys = [*(b"key %d" % number for number in range(50)), b"\xff\xfe", b""]
    append_all(log, topic, [make_append(key, NO_HISTORY, [event(), event()]) for key in keys])
    found: list[bytes] = []
    for partition in range(2):
        after: bytes | None = None
        while page := log.list_keys(topic, partition, after, 7):
            assert len(page) <= 7
            assert [each.head.base.version for each in page] == [2] * len(page)
            found += [each.key for each in page]
            after = page[-1].key
            assert [each.key for each in page] == sorted(each.key for each in page)
    assert sorted(found) == sorted(keys)


def test_totals_count_keys_events_and_causes(world: World) -> None:
    log, topic = events_of(world), event_topic(world, 3)
    assert log.event_totals(topic)[:3] == (0, 0, 0)
    grow(log, topic, b"a", b"1", b"2")
    append(log, topic, b"b", NO_HISTORY, b"1", b"2", cause="c")
    append(log, topic, b"c", NO_HISTORY, b"1", b"2", b"3", cause="c")
    found = log.event_totals(topic)
    assert (found.keys, found.events, found.causes) == (3, 7, 2)
    assert found.cause_bytes > 0


def snapshot_of(found: History, key: bytes, fingerprint: str, data: bytes) -> StoredSnapshot:
    """A snapshot at the end of what was read."""
    last = found.events[-1]
    return StoredSnapshot(key, fingerprint, Base(last.version, last.record.id), last.offset, data)


def test_a_history_is_read_from_its_snapshot_on(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", b"1", b"2", b"3")
    snapshot = snapshot_of(history(log, topic, b"k"), b"k", "f1", b"\xffstate")
    log.write_snapshots(topic, [snapshot])
    head = grow(log, topic, b"k", b"4", b"5")
    (found,) = log.read_histories(topic, [HistoryRequest(b"k", fingerprint="f1")])
    assert (found.snapshot, versions(found), found.head) == (snapshot, [4, 5], head)
    (found,) = log.read_histories(topic, [HistoryRequest(b"k", limit=1, fingerprint="f1")])
    assert (found.snapshot, versions(found)) == (snapshot, [4])
    for other in (HistoryRequest(b"k"), HistoryRequest(b"k", fingerprint="f2")):
        (found,) = log.read_histories(topic, [other])
        assert (found.snapshot, versions(found)) == (None, [1, 2, 3, 4, 5])
    for base in bases(log, topic, b"k")[2:]:  # who knows as much needs no snapshot
        (found,) = log.read_histories(topic, [HistoryRequest(b"k", base, fingerprint="f1")])
        assert (found.snapshot, versions(found)) == (None, list(range(base.version + 1, 6)))


def test_an_older_snapshot_does_not_replace_a_newer_one(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", b"1", b"2")
    old = snapshot_of(history(log, topic, b"k", limit=1), b"k", "f", b"old")
    new = snapshot_of(history(log, topic, b"k"), b"k", "f", b"new")
    for snapshots in ([old], [new], [old], [new, old]):
        log.write_snapshots(topic, snapshots)
    (found,) = log.read_histories(topic, [HistoryRequest(b"k", fingerprint="f")])
    assert found.snapshot == new


def test_a_snapshot_of_another_history_is_dropped(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    grow(log, topic, b"k", b"1", b"2")
    true = snapshot_of(history(log, topic, b"k"), b"k", "f", b"state")
    for base in (Base(2, "other"), Base(3, true.base.last_id), Base(0, "x")):
        log.write_snapshots(topic, [true._replace(base=base), true._replace(key=b"none")])
    for key in (b"k", b"none"):
        (found,) = log.read_histories(topic, [HistoryRequest(key, fingerprint="f")])
        assert found.snapshot is None


def test_snapshots_are_deleted_by_fingerprint_and_nothing_else_changes(world: World) -> None:
    log, topic = events_of(world), event_topic(world)
    for key in (b"a", b"b", b"c"):
        grow(log, topic, key, b"1", b"2")
        found = history(log, topic, key)
        log.write_snapshots(topic, [snapshot_of(found, key, f, b"x") for f in ("f1", "f2")])
    assert dict(log.event_totals(topic).snapshots) == {"f1": 3, "f2": 3}
    for key in (b"a", b"b", b"c", b"none"):
        kept = [(each.key, each.fingerprint) for each in log.list_snapshots(topic, key)]
        assert kept == ([] if key == b"none" else [(key, "f1"), (key, "f2")])
    assert log.delete_snapshots(topic, "f1") == 3
    assert dict(log.event_totals(topic).snapshots) == {"f2": 3}
    assert log.delete_snapshots(topic, "none") == 0
    assert log.delete_snapshots(topic) == 3
    assert values(history(log, topic, b"a")) == [b"1", b"2"]


def test_writers_beside_each_other_make_one_history(world: World) -> None:
    """Six writers in two handles append to five keys. What each was told is what the history says:
    all that was acknowledged, nothing that was refused, no version twice, none missing."""
    topic = event_topic(world, 2)
    keys = [b"key %d" % number for number in range(5)]
    acknowledged: list[EventAppend] = []
    refused: list[EventAppend] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def write(log: Log, seed: int) -> None:
        choose = random.Random(seed)
        assert isinstance(log, EventLog)
        try:
            for _ in range(40):
                batch = [
                    make_append(
                        key,
                        history(log, topic, key).head.base,
                        [event() for _ in range(choose.randint(1, 3))],
                    )
                    for key in choose.sample(keys, 2)
                ]
                for made, outcome in zip(batch, append_all(log, topic, batch), strict=True):
                    assert isinstance(outcome, (Appended, Refused)), outcome
                    with lock:
                        (acknowledged if isinstance(outcome, Appended) else refused).append(made)
                    if isinstance(outcome, Refused):
                        assert outcome.reason == "conflict"
        except BaseException as error:
            errors.append(error)

    logs = [world.log, world.open()]
    threads = [threading.Thread(target=write, args=(logs[n % 2], n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    log = events_of(world)
    found = {key: history(log, topic, key) for key in keys}
    for key in keys:
        assert versions(found[key]) == list(range(1, found[key].head.base.version + 1))
        offsets = [each.offset for each in found[key].events]
        assert offsets == sorted(offsets)
    stored = [each.record.id for key in keys for each in found[key].events]
    assert len(stored) == len(set(stored))
    assert set(stored) == {each.id for made in acknowledged for each in made.records}
    assert not set(stored) & {each.id for made in refused for each in made.records}
    for made in acknowledged:
        at = [each.record.id for each in found[made.key].events].index(made.records[0].id)
        ids = [each.record.id for each in found[made.key].events[at : at + len(made.records)]]
        assert ids == [each.id for each in made.records]
        assert at == made.base.version


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_appends_ends_as_a_naive_model_says(world: World, seed: int) -> None:
    choose = random.Random(seed)
    log, topic = events_of(world), event_topic(world, 2)
    keys = [b"a", b"b", b"c"]
    model: dict[bytes, list[Base]] = {key: [NO_HISTORY] for key in keys}
    closed: set[bytes] = set()
    done: dict[str, AppendOutcome] = {}
    known: list[EventAppend] = []
    for _ in range(60):
        batch: list[EventAppend] = []
        expected: list[object] = []
        for _ in range(choose.randint(1, 4)):
            if known and choose.random() < 0.2:
                made = choose.choice(known)
            else:
                key = choose.choice(keys)
                base = choose.choice(
                    [model[key][-1]] * 3 + model[key] + [Base(choose.randint(0, 9), "forged")]
                )
                is_refusal = choose.random() < 0.1
                made = make_append(
                    key,
                    base,
                    [event() for _ in range(1 if is_refusal else choose.randint(1, 3))],
                    is_final=not is_refusal and choose.random() < 0.01,
                    is_refusal=is_refusal,
                )
                known.append(made)
            head = Head(model[made.key][-1], made.key in closed)
            batch.append(made)
            if made.records[0].id in done:
                expected.append(Appended)
            elif made.base == head.base and not head.is_final:
                version = made.base.version
                for record in made.records:
                    version += not made.is_refusal
                    model[made.key].append(Base(version, record.id))
                closed |= {made.key} if made.is_final else set()
                done[made.records[0].id] = Appended(0, ())
                expected.append(Appended)
            elif made.base not in model[made.key]:
                expected.append(Refused("truncated", head))
            else:
                expected.append(Refused("final" if head.is_final else "conflict", head))
        for outcome, wanted in zip(append_all(log, topic, batch), expected, strict=True):
            assert isinstance(outcome, Appended) if wanted is Appended else outcome == wanted
    for key in keys:
        found = history(log, topic, key)
        assert found.head == Head(model[key][-1], key in closed)
        ids = [each.last_id for each in model[key]]
        assert [each.record.id for each in found.events] == [
            base.last_id
            for before, base in zip(model[key], model[key][1:], strict=False)
            if base.version > before.version
        ]
        assert len(ids) == len(set(ids))


def test_nobody_sees_a_part_of_an_append(world: World) -> None:
    """While events are appended several at a time, whoever reads finds a history that ends with
    the last event of an append."""
    topic = event_topic(world, 1)
    keys = [b"a", b"b"]
    over = threading.Event()
    errors: list[BaseException] = []
    seen: set[Base] = set()

    def look(log: Log) -> None:
        assert isinstance(log, EventLog)
        known = dict.fromkeys(keys, NO_HISTORY)
        try:
            while not over.is_set():
                for key in keys:
                    found = history(log, topic, key, known[key])
                    check_whole(found, known[key])
                    known[key] = found.head.base
                    seen.add(found.head.base)
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=look, args=(log,)) for log in (world.log, world.open())]
    for reader in readers:
        reader.start()
    until(lambda: bool(seen or errors), PATIENCE, "the readers begin")
    choose, log = random.Random(0), events_of(world)
    bases = dict.fromkeys(keys, NO_HISTORY)
    for _ in range(25):
        batch = [
            make_append(key, bases[key], [event() for _ in range(choose.randint(2, 5))])
            for key in keys
        ]
        for made, outcome in zip(batch, append_all(log, topic, batch), strict=True):
            assert isinstance(outcome, Appended), outcome
            bases[made.key] = made.head.base
    over.set()
    for reader in readers:
        reader.join()
    assert not errors, errors
    assert seen


def check_whole(found: History, after: Base) -> None:
    """What was read ends with the last event of an append."""
    assert versions(found) == list(range(after.version + 1, found.head.base.version + 1))
    if found.events:
        last = found.events[-1].record
        assert found.head.base.last_id == last.id
        header = parse_event(event_header(last.headers), last.id)
        assert header is not None
        assert header.is_last, f"half an append is seen: {header}"
