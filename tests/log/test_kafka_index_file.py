"""The index of an event topic in a file: what a restart relies on, and when it does not."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.errors import ConfigError
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Head
from streams.log.kafka.index_file import IndexFile, open_index_file
from streams.log.kafka.log import KafkaLog
from streams.log.kafka.partition_index import PartitionIndex
from streams.log.url import open_log
from tests.conformance.histories import append_all, event, grow, history, values
from tests.conformance.member import PATIENCE
from tests.log.kafka_histories import ask, made, new_topic, opening
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

Open = Callable[[], KafkaLog]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def reopen(kafka: KafkaAddress, folder: Path) -> Iterator[Open]:
    """Opens the log with the index file, as the next process does."""
    with opening(f"{kafka.url}?event_index={folder}") as open_one:
        yield open_one


@pytest.fixture
def topic(kafka: KafkaAddress) -> str:
    return new_topic(kafka)


def index_path(folder: Path, topic: str, number: int = 0) -> Path:
    return folder / f"{topic}.{number}.index"


def test_a_long_history_is_written_in_pieces(reopen: Open, topic: str) -> None:
    log = reopen()
    base = NO_HISTORY
    for count in (1000, 23, 1, 1, 1500, 600):
        appended = make_append(b"k", base, [event(b"x") for _ in range(count)])
        append_all(log, topic, [appended])
        base = appended.head.base
        log.close()
        log = reopen()
        found = history(log, topic, b"k")
        assert (found.head.base, len(found.events)) == (base, base.version)
        assert [each.version for each in found.events] == list(range(1, base.version + 1))


def test_each_process_has_a_file_of_its_own(reopen: Open, topic: str, folder: Path) -> None:
    first, second = reopen(), reopen()
    head = grow(first, topic, b"k", b"1")
    assert history(second, topic, b"k").head == head
    assert index_path(folder, topic, 0).exists()
    assert index_path(folder, topic, 1).exists()
    first.close()
    third = reopen()
    assert history(third, topic, b"k").head == head
    assert not index_path(folder, topic, 2).exists()


WRITER = """
import sys
from streams.log.url import open_log
from tests.conformance.histories import grow
log = open_log(sys.argv[1])
number = 0
while True:
    number += 1
    head = grow(log, sys.argv[2], b"key %d" % (number % 7), b"x")
    print(number % 7, head.base.version, head.base.last_id, flush=True)
"""


def test_a_process_that_is_killed_leaves_a_file_that_is_right(
    kafka: KafkaAddress, reopen: Open, topic: str, folder: Path
) -> None:
    acknowledged: dict[bytes, tuple[int, str]] = {}
    command = [sys.executable, "-c", WRITER, f"{kafka.url}?event_index={folder}", topic]
    for round_number in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for lines, line in enumerate(child.stdout, 1):
                if len(words := line.split()) == 3 and line.endswith("\n"):
                    acknowledged[b"key " + words[0].encode()] = int(words[1]), words[2]
                if lines >= 100 + 50 * round_number and index_path(folder, topic).exists():
                    os.kill(child.pid, signal.SIGKILL)
    plain = open_log(kafka.url)
    log = reopen()
    try:
        for key, (version, last_id) in acknowledged.items():
            found = history(log, topic, key)
            assert found.events[version - 1].record.id == last_id
            assert found == history(plain, topic, key)  # type: ignore[arg-type]
        assert log.event_totals(topic) == plain.event_totals(topic)  # type: ignore[attr-defined]
    finally:
        plain.close()


def test_a_topic_that_was_made_anew_is_said_and_indexed_anew(
    kafka: KafkaAddress, reopen: Open, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = reopen()
    grow(log, topic, b"k", b"1", b"2")
    log.close()
    other = open_log(kafka.url)  # somebody without the file
    assert isinstance(other, KafkaLog)
    other.delete_topic(topic)
    other.create_event_topic(topic, 1)
    head = grow(other, topic, b"k", b"other", b"2", b"3")
    other.close()
    caplog.clear()
    log = reopen()
    found = history(log, topic, b"k")
    assert (found.head, values(found)) == (head, [b"other", b"2", b"3"])
    assert "HistoryTruncated" in caplog.text


def test_a_log_that_lost_what_was_folded_is_said(
    reopen: Open, topic: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file knows more than the log has, and other than it has: as after an unclean election."""
    log = reopen()
    head = grow(log, topic, b"k", b"1", b"2")
    log.close()
    for changed in ({"next_offset": 9}, {"last_id": b"another"}):
        file = open_index_file(str(folder), topic, "", 1)
        assert file is not None
        state = file.partition(0).state
        for name, value in changed.items():
            setattr(state, name, value)
        index: Any = log_index(file)
        index.next_offset, index._last_id = state.next_offset, state.last_id
        file.write(0, index.take_changes())
        file.close()
        caplog.clear()
        log = reopen()
        assert history(log, topic, b"k").head == head
        assert "HistoryTruncated" in caplog.text
        log.close()


def log_index(file: IndexFile) -> PartitionIndex:
    return PartitionIndex(0, file.partition(0))


def damage(path: Path, seed: int) -> None:
    """Change some bytes, cut the file, or put something else in its place."""
    choose = random.Random(seed)
    data = bytearray(path.read_bytes())
    what = seed % 4
    if what == 0:
        for _ in range(200):
            data[choose.randrange(len(data))] = choose.randrange(256)
    elif what == 1:
        del data[choose.randrange(len(data)) :]
    elif what == 2:
        start = choose.randrange(len(data))
        data[start : start + 3000] = bytes(len(data[start : start + 3000]))
    else:
        data[:] = choose.randbytes(5_000)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_never_gives_a_wrong_answer(
    reopen: Open, topic: str, folder: Path, seed: int
) -> None:
    log = reopen()
    keys = [b"key %d" % number for number in range(120)]
    appends = [made(key, count=1 + number % 3) for number, key in enumerate(keys)]
    append_all(log, topic, appends)
    expected = ask(log, topic, keys)
    totals, uncounted = log.event_totals(topic), log._events.uncounted_offsets(topic, 0, 0, 200)
    log.close()
    damage(index_path(folder, topic), seed)
    log = reopen()
    assert ask(log, topic, keys) == expected
    assert log._events.uncounted_offsets(topic, 0, 0, 200) == uncounted
    assert log.event_totals(topic).events == totals.events
    assert grow(log, topic, keys[0], b"more").base.version == 2


def test_rows_that_were_exchanged_are_noticed(reopen: Open, topic: str, folder: Path) -> None:
    log = reopen()
    heads: dict[bytes, Head] = {key: grow(log, topic, key, b"1") for key in (b"a", b"b")}
    log.close()
    with sqlite3.connect(index_path(folder, topic)) as db:
        rows = dict(db.execute("SELECT key, row FROM keys"))
        for key, other in ((b"a", b"b"), (b"b", b"a")):
            db.execute("UPDATE keys SET row = ? WHERE key = ?", (rows[other], key))
    db.close()
    log = reopen()
    assert {each.key: each.head for each in log.list_keys(topic, 0, None, 9)} == heads
    for key, head in heads.items():
        assert history(log, topic, key).head == head


@pytest.mark.parametrize("what", ["folder", "link", "fifo"])
def test_what_is_no_file_of_ours_is_not_opened(
    reopen: Open, topic: str, folder: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    path = index_path(folder, topic)
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(folder / "elsewhere")
    else:
        os.mkfifo(path)
    log = reopen()
    head = grow(log, topic, b"k", b"1")
    assert history(log, topic, b"k").head == head
    assert "kept in memory only" in caplog.text
    assert not (folder / "elsewhere").exists()


def test_a_folder_that_cannot_be_is_said_at_once(kafka: KafkaAddress, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="event_index"):
        open_log(f"{kafka.url}?event_index={tmp_path / 'file'}")


def test_the_file_is_the_owners_alone(reopen: Open, topic: str, folder: Path) -> None:
    log = reopen()
    grow(log, topic, b"k", b"1")
    until(index_path(folder, topic).exists, PATIENCE, "the file")
    assert index_path(folder, topic).stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0
