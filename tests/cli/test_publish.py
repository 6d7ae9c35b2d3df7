"""Publishing JSON lines: what is written, what is refused, and where it stops."""

from __future__ import annotations

import io
import json
import subprocess
from typing import Any

import pytest

from streams.cli.publish import _read_lines
from tests.cli.conftest import Run, Shell, eventually


@pytest.fixture
def topic(shell: Shell) -> Shell:
    with shell.log() as log:
        log.create_topic("orders", 2)
    return shell


def values(shell: Shell) -> list[tuple[bytes | None, bytes | None, str]]:
    """Key, value and ID of everything, by time."""
    with shell.log() as log:
        found = []
        for partition in range(2):
            reader = log.reader("orders", partition, *log.watermarks("orders", partition))
            while (batch := reader.read(1_000)) is not None:
                found += [
                    (batch.time(at), batch.keys[at], batch.values[at], batch.id(at))
                    for at in range(len(batch))
                ]
            reader.close()
    return [(key, value, id) for _, key, value, id in sorted(found, key=lambda each: each[0])]


def test_lines_are_published_byte_for_byte(topic: Shell) -> None:
    text = b'\xef\xbb\xbf{"n": 1.10,  "k": "a"}\r\n\n  [1,2] \n"\xc3\xa9"'
    ended = topic("publish", "orders", "-k", "c1", stdin=text)
    assert (ended.status, ended.err) == (0, "3 messages published to orders\n")
    assert [(key, value) for key, value, _ in values(topic)] == [
        (b"c1", b'{"n": 1.10,  "k": "a"}'),
        (b"c1", b"[1,2]"),
        (b"c1", b'"\xc3\xa9"'),
    ]


def test_a_file_with_keys_and_ids_of_its_own(topic: Shell) -> None:
    count = 12_000
    lines = [json.dumps({"id": n, "who": f"c{n % 7}" if n % 5 else None}) for n in range(count)]
    topic.write("orders.jsonl", "\n".join(lines) + "\n")
    command = ("publish", "orders", "orders.jsonl", "--key-field", "who", "--id-field", "id")
    ended = topic(*command, "--json").json
    assert ended == {"topic": "orders", "published": count, "skipped": 0}
    found = values(topic)
    assert {id: key for key, _, id in found} == {
        str(n): f"c{n % 7}".encode() if n % 5 else None for n in range(count)
    }
    by_key = [int(id) for key, _, id in found if key == b"c3"]
    assert by_key == sorted(by_key)


@pytest.mark.parametrize(
    ("bad", "options", "says"),
    [
        (b"{bad", [], "not JSON"),
        (b"NaN", [], "not JSON"),
        (b'{"k": "\xff"}', [], "UTF-8"),
        (b"[" * 2_000, [], "depth"),
        (b'{"other": 1}', ["--key-field", "k"], "no field 'k'; it has: other"),
        (b"[1]", ["--key-field", "k"], "the value is not an object"),
        (b'{"k": 1.5}', ["--key-field", "k"], "text or a whole number"),
        (b'{"k": true}', ["--id-field", "k"], "text or a whole number"),
        (b'{"k": ""}', ["--id-field", "k"], "no message ID"),
        (b'{"k": "\x1b[31m', [], "not JSON"),
    ],
    ids=lambda each: (
        each[:12].decode("latin-1").encode("unicode_escape").decode()
        if isinstance(each, bytes)
        else ""
    ),
)
def test_an_invalid_line_stops_there_or_is_passed_over(
    topic: Shell, run: Run, bad: bytes, options: list[str], says: str
) -> None:
    good = b'{"k": "a"}\n'
    text = good + b"\n" + bad + b"\n" + good
    topic.write("in.jsonl", "")
    (topic.folder / "in.jsonl").write_bytes(text)
    stopped = run("publish", "orders", "in.jsonl", *options)
    assert stopped.status == 1
    assert "line 3: " in stopped.err
    assert says in stopped.err
    assert "published before it: 1 message" in stopped.err
    assert stopped.err.count("\n") == 1
    assert "\x1b" not in stopped.err
    assert len(values(topic)) == 1
    passed = run("publish", "orders", "in.jsonl", "--skip", "--json", *options)
    assert passed.json == {"topic": "orders", "published": 2, "skipped": 1}
    assert "line 3: " in passed.err


def test_a_pipe_that_trickles_is_published_as_it_comes(topic: Shell) -> None:
    with topic.start("publish", "orders", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for n in range(3):
            process.stdin.write(b'{"n":%d}\n' % n)
            process.stdin.flush()
            eventually(lambda: len(values(topic)) == n + 1)  # noqa: B023 - called at once
        process.stdin.write(b'{"n":3}')  # without a line's end
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert [value for _, value, _ in values(topic)] == [b'{"n":%d}' % n for n in range(4)]


class Reads(io.RawIOBase):
    """A pipe that gives out one piece at each read."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize(
    "pieces", [(b"\xef\xbb\xbf", b"1\n2\n"), (b"\xef", b"\xbb\xbf1\n", b"2"), (b"1\n2",)]
)
def test_a_byte_order_mark_is_no_end_however_it_arrives(pieces: tuple[bytes, ...]) -> None:
    found = [
        pair for chunk in _read_lines(io.BufferedReader(Reads(*pieces))) for pair in chunk.lines
    ]
    assert found == [(1, b"1"), (2, b"2")]
