"""Opening a SQLite log: what the URL may say, and what can be wrong with the file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from streams.errors import ConfigError, Fatal, LogError, NotFound, Unavailable
from streams.log.sqlite.log import SqliteLog
from streams.log.sqlite.settings import MAX_RECORD, read_settings
from streams.log.url import open_log
from tests.conformance.records import append, record


def opened(path: Path | str, query: str = "") -> SqliteLog:
    log = open_log(f"sqlite:///{path}{query}")
    assert isinstance(log, SqliteLog)
    return log


@contextmanager
def one_line(kind: type[LogError] | type[ConfigError], *words: str) -> Iterator[None]:
    """The error is of this kind, one line long, and says these words."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_three_slashes_are_relative_four_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///here%20it is.db", f"sqlite:////{tmp_path}/absolute.db"):
        log = open_log(url)
        log.create_topic("t", 1)
        log.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"here it is.db", "absolute.db"} <= names


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///", "missing"),
        ("sqlite://x.db", "sqlite:///relative.db"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///no/such/folder/x.db", "create it"),
        ("sqlite:////tmp", "is a directory"),
        ("sqlite:///x.db?sync=full", "synchronous, lease, timeout, max_record"),
        ("sqlite:///x.db?synchronous=off", "'normal'"),
        ("sqlite:///x.db?lease=0", "greater than 0"),
        ("sqlite:///x.db?timeout=soon", "timeout='soon'"),
        ("sqlite:///x.db?max_record=nan", "greater than 0"),
        ("sqlite:///x.db?max_record=1000000000", str(MAX_RECORD)),
    ],
)
def test_a_url_that_cannot_be_used_says_what_to_write(url: str, words: str) -> None:
    with one_line(ConfigError, words):
        open_log(url)


def test_only_some_pragmas_can_be_set(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    open_log(url, {"cache_size": -1000}).close()
    with one_line(ConfigError, "writable_schema", "cache_size"):
        open_log(url, {"writable_schema": 1})
    with one_line(ConfigError, "integer"):
        open_log(url, {"cache_size": "1; DROP TABLE streams_blocks"})


@pytest.mark.parametrize("query", ["", "?synchronous=normal", "?synchronous=FULL&lease=2.5"])
def test_durable_unless_told_otherwise(tmp_path: Path, query: str) -> None:
    log = opened(tmp_path / "x.db", query)
    with log._database.read() as connection:
        level = connection.pragma("synchronous")
    assert level == (1 if "normal" in query else 2)
    log.close()


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are not the tables you are looking for" * 100)
    before = path.read_bytes()
    with one_line(Fatal, str(path), "not a SQLite database"):
        opened(path)
    assert path.read_bytes() == before


def test_a_database_in_utf_16_cannot_hold_a_log(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "x.db"))
    connection.execute("PRAGMA encoding = 'UTF-16le'; CREATE TABLE theirs (x)")
    connection.close()
    with one_line(Fatal, "UTF-16le"):
        opened(tmp_path / "x.db")


def test_a_newer_schema_is_not_touched(tmp_path: Path) -> None:
    opened(tmp_path / "x.db").close()
    with apsw.Connection(str(tmp_path / "x.db")) as connection:
        connection.execute("UPDATE streams_meta SET value = 999 WHERE name = 'version'")
    connection.close()
    with one_line(Fatal, "schema 999", "install"):
        opened(tmp_path / "x.db")


def test_the_users_own_tables_and_version_stay(tmp_path: Path) -> None:
    path = str(tmp_path / "x.db")
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE mine (x); INSERT INTO mine VALUES (1); PRAGMA user_version=7")
    connection.close()
    log = opened(path)
    log.create_topic("t", 1)
    log.close()
    connection = apsw.Connection(path)
    assert connection.pragma("user_version") == 7
    assert connection.execute("SELECT x FROM mine").fetchall() == [(1,)]
    connection.close()


def test_a_locked_file_is_waited_for_and_then_unavailable(tmp_path: Path) -> None:
    log = opened(tmp_path / "x.db", "?timeout=0.1")
    log.create_topic("t", 1)
    other = apsw.Connection(str(tmp_path / "x.db"))
    other.execute("BEGIN IMMEDIATE")
    (outcome,) = append(log, "t", [record(b"v")])
    assert isinstance(outcome, Unavailable)
    assert "timeout" in str(outcome)
    other.execute("ROLLBACK")
    append(log, "t", [record(b"v")])
    assert log.watermarks("t", 0) == (0, 1)
    other.close()
    log.close()


def test_a_file_that_another_program_has_for_itself(tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "x.db"))
    other.execute("CREATE TABLE theirs (x); BEGIN EXCLUSIVE")
    with one_line(Unavailable, "another process"):
        opened(tmp_path / "x.db", "?timeout=0.1")
    other.close()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everything, so that tests of permissions need somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_may_only_be_read(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is nobody else's to enter
        path = Path(folder, "x.db")
        opened(path).close()
        path.chmod(0o444)
        os.chmod(folder, 0o555)
        with as_nobody():
            with one_line(Fatal, str(path), "writable"):
                opened(path)
            with one_line(Unavailable, "permissions"):
                opened(Path(folder, "new.db"))
        os.chmod(folder, 0o755)


def test_a_forked_child_is_told_to_open_the_log_again(tmp_path: Path) -> None:
    log = opened(tmp_path / "x.db")
    log.create_topic("t", 1)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            log.describe_topic("t")
        except Fatal as error:
            said = str(error).encode()
        log.close()  # harmless
        again = opened(tmp_path / "x.db")
        append(again, "t", [record(b"from the child")])
        again.close()
        os.write(write_end, said)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert "fork" in pipe.read()
    append(log, "t", [record(b"from the parent")])
    assert log.watermarks("t", 0) == (0, 2)
    log.close()


def test_a_damaged_block_is_said_and_nothing_skipped(tmp_path: Path) -> None:
    log = opened(tmp_path / "x.db")
    log.create_topic("t", 1)
    for value in (b"sound", b"damaged"):
        append(log, "t", [record(value)])
    with log._database.write() as connection:
        connection.execute("UPDATE streams_blocks SET data = x'93c0' WHERE place & 1")
    reader = log.reader("t", 0, 0, 2)
    for _ in range(2):
        with one_line(Fatal, "damaged"):
            reader.read(10)
    batch = reader.read(1)
    assert batch is not None
    assert batch.values == [b"sound"]
    log.close()


def test_settings_do_not_show_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        open_log("sqlite://user:hunter2@host/x.db")
    assert "hunter2" not in str(caught.value)


def test_a_topic_made_anew_is_written_to_by_logs_that_knew_the_old_one(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "x.db"), opened(tmp_path / "x.db")
    one.create_topic("t", 2)
    append(two, "t", [record(b"old", partition=1)])
    one.delete_topic("t")
    (outcome,) = append(two, "t", [record(b"nowhere")])
    assert isinstance(outcome, NotFound)
    one.create_topic("t", 1)
    append(two, "t", [record(b"new")])
    assert one.watermarks("t", 0) == (0, 1)
    one.close()
    two.close()


def test_read_is_pure() -> None:
    from streams.log.protocol import OpenRequest

    found = read_settings(OpenRequest("sqlite:////tmp/x.db?lease=3", "/tmp/x.db", {"lease": "3"}))
    assert (found.path, found.terms.lease, found.synchronous) == ("/tmp/x.db", 3.0, "full")


def test_whose_file_is_only_looked_at_has_an_incarnation(tmp_path: Path) -> None:
    """The file has no number yet, and cannot be given one."""
    path = tmp_path / "x.db"
    with contextlib.closing(opened(path)) as log:
        log.create_topic("t", 1)
        log.create_topic("u", 1)
    with contextlib.closing(opened(path, "?mode=ro")) as log:
        assert log.incarnation("t") == log.incarnation("t") != log.incarnation("u")
