"""What stands in an event topic, or in the log's own tables and keys beside it, never blinds
``streams aggregates``: what can be listed is, what cannot is named."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from redis import Redis

from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, HistoryRequest, StoredSnapshot
from streams.message import Record
from tests.cli.conftest import eventually
from tests.hostile.commands import command, lists
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written

DIGITS = b"9" * 5_000
APP = """
from streams import Streams
from streams.eventsourcing import Aggregate, Snapshot
from tests.eventsourcing.bank import Account, AccountEvent, evolve

app = Streams()
accounts = Aggregate(
    app, "NAME", AccountEvent, Account, evolve, partitions=1, snapshot=Snapshot(every=2)
)
"""


@pytest.fixture
def name(stage: Ground) -> str:
    """An aggregate with a few good histories in one partition."""
    log: Any = stage.anchor
    topic = f"{stage.topic_name}.events"
    log.create_event_topic(topic, 1)
    outcomes: list[Any] = []
    keys = [b"good", b"also good", b"zoe"]
    for key in keys:
        records = [
            Record(b'{"type":"deposited","cents":1}', key, f"{key.decode()}-{number}")
            for number in range(2)
        ]
        log.append_events(topic, [make_append(key, NO_HISTORY, records)], outcomes.extend)
    eventually(lambda: len(outcomes) == len(keys))
    assert not [each for each in outcomes if isinstance(each, Exception)]
    return stage.topic_name


@pytest.fixture
def app(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = f"bank_{name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(APP.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{module}:app"


def looked_at(stage: Ground, name: str, app: str, good: Sequence[str]) -> None:
    """Every command ends well, and shows the good ones."""
    if stage.case.name != "kafka":  # whose broker has those of all other tests as well
        rows = lists(stage.url, "aggregates", "ls").documents[0]
        assert name in [row["aggregate"] for row in rows]
    listed = lists(stage.url, "aggregates", "ls", name, "-n", "0").documents[0]
    assert set(good) <= {row["id"] for row in listed}
    lists(stage.url, "aggregates", "ls", app)
    stopped = lists(stage.url, "aggregates", "ls", app, name, "--undecodable").documents[0]
    assert not set(good) & {row["id"] for row in stopped}
    for row in listed:
        for words in ([name], [app, name]):
            shown = command(
                stage.url, "aggregates", "show", *words, row["id"], "--events", "--json"
            )
            if row["id"] in good:
                assert shown.status == 0, shown
                assert shown.documents[0]["version"] == 2
                assert [each["version"] for each in shown.documents[0]["events"]] == [1, 2]


@pytest.mark.only("redis", "kafka")
def test_records_that_no_append_wrote(stage: Ground, name: str, app: str) -> None:
    headers: list[Any] = [
        b"", b"1", b"0/1/0/", b"0/1/1/good-0", b"1/2/0//good-0", b"-1/1/0/", b"0/0/0/",
        b"0/" + DIGITS + b"/0/", b"9/1/0/", b"0/1/" + DIGITS + b"/x", b"\xff/\xfe/\xfd/", None,
        b"0/1/0/" + b"x" * 100_000,
    ]  # fmt: skip
    stage.write(
        f"{name}.events",
        [
            Written(b"\xff", key, [(b"ce_id", b"m%d" % n), (b"streams_event", header)])
            for n, header in enumerate(headers)
            for key in (b"good", b"\xff\x1b", None, b"")
        ],
    )
    looked_at(stage, name, app, ["good", "also good", "zoe"])


@pytest.mark.only("redis")
def test_keys_of_redis_that_somebody_has_changed(stage: Ground, name: str, app: str) -> None:
    topic = f"{name}.events"
    tag = f"{{{topic}}}"
    place = urlsplit(stage.url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        redis.zadd(f"{tag}:keys", {b"\xff\x1b[31m": 0, b"": 0, b"a wrong type": 0, b"junk": 5})
        redis.set(f"{tag}:history:a wrong type", "x")
        redis.rpush(f"{tag}:history:junk", "no entry", "9-9", b"\xff")
        redis.sadd(f"{tag}:snapshots", "a wrong type", b"\xff\x1b")
        redis.set(f"{tag}:snapshots:a wrong type", "x")
        redis.hset(f"{tag}:snapshots:odd", "good", DIGITS)
        redis.sadd(f"{tag}:snapshots", "odd")
        entries: Any = redis.lrange(f"{tag}:history:zoe", 0, -1)
        redis.xdel(topic, entries[0])
    looked_at(stage, name, app, ["good", "also good"])
    zoe = command(stage.url, "aggregates", "show", name, "zoe", "--events")
    assert zoe.status == 1
    assert "missing from its stream" in zoe.err


@pytest.mark.only("sqlite")
def test_rows_of_the_file_that_somebody_has_changed(stage: Ground, name: str, app: str) -> None:
    path = stage.url.removeprefix("sqlite:///").partition("?")[0]
    db = sqlite3.connect(path)
    ((number,),) = db.execute(
        "SELECT no FROM streams_partitions WHERE topic = ?", (f"{name}.events",)
    ).fetchall()
    histories: list[tuple[Any, ...]] = [
        (number, b"\xff\x1b[31m", 3, "x", 0), (number, "text", 1, "x", 0),
        (number, b"words", "many", "x", 0), (number, b"huge", 2**60, "x", 1),
        (number, b"negative", -5, "x", 0), (number, 7, 1, "x", 0), (number, b"", 1, "x", 0),
    ]  # fmt: skip
    db.executemany("INSERT INTO streams_histories VALUES (?, ?, ?, ?, ?)", histories)
    good = msgspec.msgpack.encode((10, 0, b"{}", []))
    events: list[tuple[Any, ...]] = [
        (number, b"\xff\x1b[31m", 1, "id\x1b", b"\x90"),
        (number, b"\xff\x1b[31m", 3, "x", b"\xff\xff"),
        (number, b"huge", 1, "x", "text"), (number, b"huge", 2, "x", good),
        (number, b"huge", 3, 7, msgspec.msgpack.encode((2**63, -(2**62), None, [("a", None)]))),
        (number, b"", 1, "x", good),
    ]  # fmt: skip
    db.executemany("INSERT INTO streams_events VALUES (?, ?, ?, ?, ?)", events)
    db.execute("INSERT INTO streams_causes VALUES (?, ?, ?, ?, ?)", (number, b"c", b"\xff", "x", 1))
    db.execute(
        "INSERT INTO streams_snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, b"good", "\x1b[31m", 1, "good-0", -5, b"\xff"),
    )
    db.execute(
        "INSERT INTO streams_snapshots VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, b"zoe", "words", "many", "x", 2**62, "text"),
    )
    db.commit()
    db.close()
    first = command(stage.url, "aggregates", "ls", name, "-n", "1", "--json")
    assert [each["id"] for each in first.documents[0]] == ["also good"]
    looked_at(stage, name, app, ["good", "also good", "zoe"])


def test_snapshots_that_make_no_sense(stage: Ground, name: str, app: str) -> None:
    log: Any = stage.anchor
    topic = f"{name}.events"
    (found,) = log.read_histories(topic, [HistoryRequest(b"good")])
    for fingerprint, data in (("\x1b[31m", b"\xff"), ("x" * 200, b""), ("deep", b"[" * 50_000)):
        kept = StoredSnapshot(b"good", fingerprint, found.head.base, 0, data)
        log.write_snapshots(topic, [kept])
    looked_at(stage, name, app, ["good", "also good", "zoe"])
    dropped = command(stage.url, "aggregates", "drop-snapshots", name, "--yes", "--json")
    assert dropped.documents[0]["deleted"] == 3
