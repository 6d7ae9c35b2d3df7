"""The command line on an aggregate's events, without its app and with it: they are shown, and not
written."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

from streams.cli import log_queries, output
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Appended, Base, EventLog
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.message import ID, Record
from tests.cli.conftest import Run, Shell
from tests.conformance.histories import append, append_all, event, grow
from tests.conformance.member import PATIENCE
from tests.servers.find import KafkaAddress


def fill_events(log: Log, topic: str) -> None:
    """Three events of one aggregate, one of a strange one, and refused causes, one last of all."""
    assert isinstance(log, EventLog)
    log.create_event_topic(topic, 1)
    head = grow(log, topic, b"a-1", b'{"n":1}', b'{"n":2}', cause="order/17")
    made, outcome = append(log, topic, b"a-1", head.base, b"no", cause="x", is_refusal=True)
    assert isinstance(outcome, Appended)
    append(log, topic, b"a-1", made.head.base, b'{"n":3}')
    append(log, topic, b"\xff", NO_HISTORY, b'{"n":4}')
    append(log, topic, b"r", NO_HISTORY, b"never", cause="y", is_refusal=True)


@pytest.fixture
def filled(shell: Shell) -> Shell:
    with shell.log() as log:
        fill_events(log, "accounts.events")
    return shell


def values(rows: list[Any]) -> list[int]:
    return [row["value"]["n"] for row in rows]


def test_tail_shows_aggregates_and_versions(filled: Shell, run: Run) -> None:
    rows = run("tail", "accounts.events", "--json").lines
    assert values(rows) == [1, 2, 3, 4]
    assert [row.get("aggregate") for row in rows] == ["a-1", "a-1", "a-1", None]
    assert [row["version"] for row in rows] == [1, 2, 3, 1]
    assert rows[3]["aggregate_base64"] == base64.b64encode(b"\xff").decode()
    assert [row.get("cause") for row in rows] == ["order/17", "order/17", None, None]
    assert values(run("tail", "accounts.events", "-n", "2", "--json").lines) == [3, 4]
    lines = run("tail", "accounts.events").out.splitlines()
    assert [line.split("  ")[2] for line in lines] == ["a-1 v1", "a-1 v2", "a-1 v3", r"\xff v1"]
    assert values(run("tail", "accounts.events", "-k", "a-1", "--json").lines) == [1, 2, 3]


def test_tail_raw_judges_nothing(filled: Shell, run: Run) -> None:
    rows = run("tail", "accounts.events", "--raw", "--json").lines
    found = [row.get("text") or row["value"]["n"] for row in rows]
    assert found == [1, 2, "no", 3, 4, "never"]
    assert not any("version" in row or "aggregate" in row for row in rows)
    assert rows[2]["headers"]["streams_event"].startswith("0/0/2/")
    assert " v1" not in run("tail", "accounts.events", "--raw").out


TODAY = """
from msgspec import Struct

from streams import Streams
from streams.eventsourcing import Aggregate


class Counted(Struct, tag="counted", frozen=True):
    n: int


class One(Struct, tag="one", frozen=True):
    n: int


class Two(Struct, tag="two", frozen=True):
    n: int


class Gone(Struct, tag="gone", frozen=True):
    pass


class Nothing(Struct, frozen=True):
    pass


app = Streams(config=CONFIG)
accounts = Aggregate(app, "accounts", Counted, Nothing, lambda state, event: state)


@accounts.upcast(One)
def renamed(old: One) -> Counted:
    return Counted(old.n * 100)


@accounts.upcast(Two)
def several(old: Two) -> list[Counted]:
    return [Counted(old.n), Counted(old.n + 1)]


@accounts.upcast(Gone)
def left_out(old: Gone) -> None:
    return None


@accounts.upcast(bytes)
def cured(data: bytes) -> Counted:
    return Counted(7) if data == b"seven" else NotImplemented
"""

STORED = (
    b'{"type":"counted","n":1}', b'{"type":"one","n":2}', b'{"type":"two","n":3}',
    b'{"type":"gone"}', b"seven", b'{"type":"\xe2\x80\xae"}',
)  # fmt: skip


def fill_old_events(log: Log, topic: str) -> None:
    assert isinstance(log, EventLog)
    log.create_event_topic(topic, 1)
    grow(log, topic, b"a-1", *STORED)


@pytest.fixture
def old(shell: Shell) -> Shell:
    shell.write("today.py", TODAY.replace("CONFIG", "None"))
    with shell.log() as log:
        fill_old_events(log, "accounts.events")
    return shell


def test_with_the_app_events_are_shown_as_its_code_reads_them(old: Shell, run: Run) -> None:
    rows = run("tail", "today:app", "accounts.events", "--json").lines
    assert [(row["version"], row.get("type"), row.get("value")) for row in rows] == [
        (1, "Counted", {"type": "counted", "n": 1}),
        (2, "Counted", {"type": "counted", "n": 200}),
        (3, "Counted", {"type": "counted", "n": 3}),
        (3, "Counted", {"type": "counted", "n": 4}),
        (4, None, None),
        (5, "Counted", {"type": "counted", "n": 7}),
        (6, None, {"type": "\u202e"}),
    ]
    ids = [row["id"] for row in run("tail", "accounts.events", "--json").lines]
    assert [row["id"] for row in rows] == [*ids[:2], f"{ids[2]}#0", f"{ids[2]}#1", *ids[3:]]
    assert ["why" in row for row in rows] == [False] * 6 + [True]
    assert not any({"text", "tombstone"} & set(row) for row in rows)
    assert run("replay", "today:app", "accounts.events").lines == rows
    shown = [
        line.split("  ", 2)[2]
        for line in run("tail", "today:app", "accounts.events").out.splitlines()
    ]
    assert shown[:6] == [
        'a-1 v1  Counted {"type":"counted","n":1}',
        'a-1 v2  Counted {"type":"counted","n":200}',
        'a-1 v3#0  Counted {"type":"counted","n":3}',
        'a-1 v3#1  Counted {"type":"counted","n":4}',
        "a-1 v4  (dropped by upcast)",
        'a-1 v5  Counted {"type":"counted","n":7}',
    ]
    assert shown[6].startswith(r'a-1 v6  {"type":"\u202e"}  (cannot be decoded: ')
    assert len(shown) == 7
    last = run("tail", "today:app", "accounts.events", "-n", "4", "--json").lines
    assert last == rows[2:]  # of those that are stored


def test_without_it_and_raw_they_are_shown_as_they_are_stored(old: Shell, run: Run) -> None:
    rows = run("tail", "accounts.events", "--json").lines
    found = [row.get("text") or row["value"] for row in rows]
    assert found == [json.loads(each) if each != b"seven" else "seven" for each in STORED[:5]] + [
        {"type": "\u202e"}
    ]
    assert run("replay", "accounts.events").lines == rows
    raw = run("tail", "accounts.events", "--raw", "--json").lines
    assert run("tail", "today:app", "accounts.events", "--raw", "--json").lines == raw
    assert [row["id"] for row in raw] == [row["id"] for row in rows]
    with old.log() as log:
        log.create_topic("orders", 1)
        log.append("orders", [Record(b"1", b"k", "m")], lambda results: None)
    (row,) = run("tail", "today:app", "orders", "--json").lines  # the app declares no such topic
    assert row["value"] == 1


def test_an_app_alone_names_no_topic_and_upcasts_that_end_nowhere_are_said_once(
    old: Shell, run: Run
) -> None:
    ended = run("tail", "today:app")
    assert ended.status == 2
    assert "no topic given; write streams tail today:app TOPIC" in ended.err
    wrong = TODAY.replace("CONFIG", "None").replace("-> None:", "-> Nothing:")
    old.write("wrong.py", wrong)
    for command in ("tail", "replay"):
        ended = run(command, "wrong:app", "accounts.events")
        assert ended.status == 2, command
        assert ended.err.count("neither an event of today nor upcast") == 1, command


def test_the_last_events_are_found_behind_any_number_of_other_records(
    shell: Shell, run: Run
) -> None:
    with shell.log() as log:
        assert isinstance(log, EventLog)
        log.create_event_topic("accounts.events", 2)
        for key in (b"a", b"b", b"c"):
            head = grow(log, "accounts.events", key, *(b'{"n":%d}' % n for n in range(5)))
            for number in range(30):
                made, _ = append(
                    log, "accounts.events", key, head.base, b"no",
                    cause=f"{number}", is_refusal=True,
                )  # fmt: skip
                head = made.head
    rows = run("tail", "accounts.events", "-n", "7", "--json").lines
    assert [(row["aggregate"], row["version"]) for row in rows] == [
        ("b", 4), ("b", 5), *(("c", version) for version in range(1, 6))
    ]  # fmt: skip
    assert len(run("tail", "accounts.events", "-n", "99", "--json").lines) == 15


def test_replay_shows_them_too_and_copies_them_as_messages(filled: Shell, run: Run) -> None:
    rows = run("replay", "accounts.events").lines
    assert values(rows) == [1, 2, 3, 4]
    assert [row["version"] for row in rows] == [1, 2, 3, 1]
    with filled.log() as log:
        log.create_topic("copy", 1)
    assert run("replay", "accounts.events", "--to", "copy", "--json").json["handled"] == 4
    copied = run("tail", "copy", "--json").lines
    assert values(copied) == [1, 2, 3, 4]
    assert [row["headers"] for row in copied] == [
        {"streams_event_version": version} for version in ("1", "2", "3", "1")
    ]
    assert [row["id"] for row in copied] == [row["id"] for row in rows]


def test_nothing_is_written_to_them(filled: Shell, run: Run) -> None:
    filled.write("line.json", '{"n": 5}\n')
    with filled.log() as log:
        log.create_topic("orders", 1)
        log.append("orders", [Record(b"1", b"k", "m")], lambda results: None)
    for command in (
        ("publish", "accounts.events", "line.json"),
        ("replay", "orders", "--to", "accounts.events"),
        ("topics", "retain", "accounts.events", "--keep-for", "1d"),
        ("topics", "create", "accounts.events", "-p", "1", "--keep", "1000"),
    ):
        ended = run(*command)
        assert ended.status == 1, command
        assert "'accounts.events' holds the histories of an aggregate" in ended.err, command
    assert values(run("tail", "accounts.events", "--json").lines) == [1, 2, 3, 4]
    assert run("topics", "delete", "accounts.events", "--yes").status == 0


def test_an_index_is_for_kafka(filled: Shell, run: Run) -> None:
    for command in (("tail", "accounts.events"), ("replay", "accounts.events")):
        ended = run(*command, "--index", "kept")
        assert ended.status == 2
        assert "only for Kafka" in ended.err


def test_on_kafka_they_are_known_by_their_headers(
    shell: Shell, run: Run, kafka: KafkaAddress
) -> None:
    topic = f"{uuid4().hex[:12]}.events"
    producer = Producer({"bootstrap.servers": kafka.bootstrap})

    def write(*records: Record) -> None:
        for each in records:
            headers: Any = [(ID, each.id.encode()), *each.headers]
            producer.produce(topic, each.value, each.key, 0, headers=headers)
        assert producer.flush(PATIENCE) == 0

    log = open_log(kafka.url)
    try:
        fill_events(log, topic)
        loser = make_append(b"a-1", Base(1, "another"), [event(b'{"n":9}'), event(b'{"n":9}')])
        write(*loser.records, Record(b'{"n":0}', b"a-1", "foreign"))
    finally:
        log.close()
    rows = run("tail", topic, "--url", kafka.url, "--json").lines
    assert values(rows) == [1, 2, 3, 4]
    assert [row["version"] for row in rows] == [1, 2, 3, 1]
    assert values(run("tail", topic, "-n", "1", "--url", kafka.url, "--json").lines) == [4]
    assert values(run("replay", topic, "--url", kafka.url, "--start", "1").lines) == [2, 3, 4]
    for number in range(2):
        kept = run("tail", topic, "--url", kafka.url, "--json", "--index", "kept").lines
        assert values(kept) == [1, 2, 3, 4]
        assert [each.name for each in (shell.folder / "kept").iterdir()], number
    assert len(run("tail", topic, "--raw", "--url", kafka.url, "--json").lines) == 9
    for verb in ("tail", "replay"):  # an app's own settings are those of its command
        kept_in = f"kept-by-{verb}"
        name = repr(topic.removesuffix(".events"))
        text = TODAY.replace("CONFIG", repr({"event_index": kept_in}))
        shell.write(f"{verb}_app.py", text.replace('"accounts"', name))
        rows = run(verb, f"{verb}_app:app", topic, "--url", kafka.url, "--json").lines
        assert ["why" in row for row in rows] == [True] * 4, verb  # of no tag that it knows
        assert list((shell.folder / kept_in).iterdir()), verb
    shell.write("line.json", '{"n": 5}\n')
    for command in (
        ("publish", topic, "line.json"),
        ("topics", "retain", topic, "--keep-for", "1d"),
    ):
        ended = run(*command, "--url", kafka.url)
        assert ended.status == 1
        assert "holds the histories of an aggregate" in ended.err


def test_how_far_an_index_is_built_is_shown(
    kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whoever looks on, from the first record to the last, before anything is read."""
    topic, url = f"accounts-{uuid4().hex[:8]}.events", kafka.url
    shown: list[tuple[int, int | None]] = []
    described: list[str] = []

    @contextmanager
    def recorded(description: str) -> Iterator[Callable[[int, int | None], None]]:
        described.append(description)
        yield lambda done, total: shown.append((done, total))

    monkeypatch.setattr(output, "progress_bar", recorded)
    monkeypatch.setattr(log_queries, "INDEX_LOOK", 0.0)
    # No fetch has all of them.
    small = f"{url}?max.partition.fetch.bytes=1000"
    with closing(open_log(url)) as log, closing(open_log(small)) as fresh:
        assert isinstance(log, EventLog)
        log.create_event_topic(topic, 2)
        for key in (b"a", b"b", b"c", b"d"):
            appended = make_append(key, NO_HISTORY, [event(b"x" * 100) for _ in range(100)])
            append_all(log, topic, [appended])
        log_queries.await_index(fresh, topic)
        assert described == [f"finding out which events of {topic} count"]
        done = [each for each, _ in shown]
        assert done[0] < 400
        assert done == sorted(done)
        assert {total for _, total in shown} == {400}
        assert isinstance(fresh, EventLog)
        assert fresh.index_progress(topic) == (400, 400)
        shown.clear()
        log_queries.await_index(fresh, topic)  # it is known now
        assert (len(described), shown) == (1, [])
