r"""Keys and IDs that a shell cannot pass: written with escapes, the same way in every command."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.cli.command_errors import UsageError
from streams.cli.key_arguments import as_argument, unescape
from streams.cli.options import argument_bytes
from streams.text import escape
from tests.cli.conftest import Run, Shell, command_paths, eventually, order

NUL = r"a\x00b"

TAKERS = [
    "publish", "tail", "replay", "dead ls", "dead show", "dead retry", "dead edit", "dead drop",
    "dead purge", "saga status", "saga resume", "saga abandon", "aggregates ls", "aggregates show",
    "views retry", "managers show",
]  # fmt: skip
"""The commands that take a key or an ID."""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", b""),
        ("order-1", b"order-1"),
        (r"a\x00b", b"a\x00b"),
        (r"\xff\xC3\xa9", b"\xff\xc3\xa9"),
        (r"\u00e9\u200B\U0001F600", "é\u200b😀".encode()),
        (r"\ud83d\ude00", "😀".encode()),  # as JSON writes it
        (r"a\n\r\t\\x00", b"a\n\r\t\\x00"),
        ("ü\udcff", b"\xc3\xbc\xff"),  # bytes that were not UTF-8 on the command line
    ],
)
def test_a_key_is_read_with_its_escapes(text: str, key: bytes) -> None:
    assert argument_bytes(unescape(text, escapes=True)) == key


@pytest.mark.parametrize(
    "text", ["\\", r"\0", r"\x0", r"\u12", r"\ud800", r"\ud800\u0041", r"\Uffffffff", r"\q"]
)
def test_what_is_no_escape_is_refused(text: str) -> None:
    assert unescape(text, escapes=False) == text
    with pytest.raises(UsageError, match="is no escape"):
        unescape(text, escapes=True)


@given(st.binary(max_size=12) | st.text(max_size=12).map(lambda text: text.encode()))
@example("\x85".encode())
@example(b"it's\x00")
@example(b"back\\slash")
def test_a_key_that_a_note_names_can_be_given_as_it_is_written_there(key: bytes) -> None:
    written = as_argument(key)
    assert escape(written) == written
    plain = written.removesuffix(" --escapes")
    if plain == written:
        assert argument_bytes(unescape(written, escapes=False)) == key
    else:
        (word,) = shlex.split(plain)
        assert argument_bytes(unescape(word, escapes=True)) == key


def test_every_command_that_takes_a_key_or_an_id_takes_escapes() -> None:
    from streams.cli.root import _COMMANDS, _command

    takers = []
    every = _command(*_COMMANDS)
    for path in command_paths(every):
        found = every
        for name in path.split():
            found = found.commands[name]
        metavars = {word for each in found.params for word in (each.metavar or "").split("|")}
        if metavars & {"KEY", "ID", "WHICH", "[WHICH]..."}:
            takers.append(path)
            assert "escapes" in {each.name for each in found.params}, path
    assert takers == TAKERS


def test_a_key_with_a_nul_is_published_read_and_put_back(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        log.create_topic("orders", 2)
    for customer in ("c1", NUL):
        options = ("--key", customer, "--escapes")
        line = order(-1, customer="x", id=f"o-{customer[0]}")
        assert shell("publish", "orders", *options, stdin=line).status == 0
    assert run("tail", "orders", "-k", NUL, "--json").out == ""
    (told,) = run("tail", "orders", "-k", NUL, "--escapes", "--json").lines
    assert told["key"] == "a\0b"
    assert run("replay", "orders", "-k", NUL, "--escapes").lines == [told]
    wrong = run("tail", "orders", "-k", r"a\0b", "--escapes")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert r"is no escape; there are \xNN (a byte)" in wrong.err

    with shell.start("run", "shop:app", "-l", "error"):
        eventually(lambda: _dead(run) == 2)
    listed = run("dead", "ls", "billing", "orders", "--key", NUL, "--escapes", "--json").json
    assert [each["key"] for each in listed] == ["a\0b"]
    words = ("billing", "orders", "--key", NUL, "--escapes", "--yes", "--json")
    assert run("dead", "retry", *words).json["retried"] == 1
    assert run("dead", "purge", *words).json["purged"] == 0
    dropped = run("dead", "drop", "billing", "orders", NUL, "--escapes")
    assert dropped.status == 1


def _dead(run: Run) -> int:
    found = json.loads(run("dead", "ls", "--json").out or "[]")
    return sum(each["waiting"] for each in found)
