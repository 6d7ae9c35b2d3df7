"""Untrusted text as it is printed and logged: one line, and nothing that steers a terminal."""

from __future__ import annotations

import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import streams
from streams.cli import output
from streams.cli.logging_setup import configure_logging
from streams.text import escape, escape_json, get_logger, is_misspelling, one_line, suggestion

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
FORGED = "x\n2026-01-01 00:00:00 ERROR streams: all is lost\x1b[2J\u202e"

texts = st.text() | st.text(
    "\x00\x1b\x7f\x80\x9b\x85\n\r\t\u2028\u2029\ud800\udcffa\\" + BIDIRECTIONAL
)


def unfit(text: str) -> set[str]:
    """What must not reach a terminal or a log, by what Unicode says of it."""
    return {
        each
        for each in text
        if unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or each in BIDIRECTIONAL
    }


@given(texts)
@example("\u009b31m")
@example("\U000e0041")
def test_what_is_escaped_is_one_line_that_steers_nothing(text: str) -> None:
    shown = escape(text)
    assert not unfit(shown)
    assert escape(shown) == shown
    assert not unfit(one_line(text))
    shown.encode()
    assert unfit(escape(text, keep_lines=True)) <= {"\n", "\t"}
    assert escape(text, keep_lines=True).count("\n") == text.count("\n")


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs", "M"))))
@example("naïve Καλημέρα, مرحبا 👩\u200d🚀 C:\\path")
def test_what_people_write_stays(text: str) -> None:
    assert escape(text) == text


def test_escapes_as_python_writes_them() -> None:
    assert escape("a\n\t\x1b[m\x9b\u202e\ud800\U000e0041") == (
        r"a\n\t\x1b[m\x9b\u202e\ud800\U000e0041"
    )


_JSON = st.recursive(
    texts.filter(lambda text: not any("\ud800" <= each <= "\udfff" for each in text))
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
)


@given(_JSON, st.booleans())
def test_json_stays_the_same_document(value: object, ascii: bool) -> None:
    document = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    shown = escape_json(document)
    assert not unfit(shown.decode())
    assert json.loads(shown) == json.loads(document)
    assert output.json_bytes(value).count(b"\n") == 1
    assert not unfit(output.json_bytes(value).decode()) - {"\n"}
    assert orjson.loads(output.json_bytes(value)) == value


def test_a_lone_surrogate_in_json_is_told_as_text() -> None:
    found = json.loads(output.json_bytes({"a\ud800": ["b\udcff", ("c\ud800", 1)], "d": 1}))
    assert found == {"a\\ud800": ["b\\xff", ["c\\ud800", 1]], "d": 1}


# -- log lines -------------------------------------------------------------------------------------


@contextmanager
def heard(name: str) -> Iterator[io.StringIO]:
    """What a plain handler of the root writes of this logger's records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger, root = logging.getLogger(name), logging.getLogger()
    before = logger.level
    logger.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        logger.setLevel(before)


def test_every_module_has_its_logger_from_here() -> None:
    folder = Path(streams.__file__).parent
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if "getLogger(" in path.read_text()
    }
    assert found == {"text.py", "cli/logging_setup.py"}


@given(texts)
@example(FORGED)
def test_a_record_is_one_line(text: str) -> None:
    logger = get_logger("streams.dead")

    class Rude(Exception):
        def __repr__(self) -> str:
            return text

    with heard("streams.dead") as stream:
        logger.warning("saga %s: %r, %d", text, Rude(), 1)
        logger.error("%s", {text: 1})
        logger.info(text.replace("%", "%%"))
    lines = stream.getvalue().split("\n")
    assert len(lines) == 4
    assert not unfit("".join(lines))


def test_the_lines_of_a_traceback_cannot_pass_for_records() -> None:
    logger = get_logger("streams.dead")
    with heard("streams.dead") as stream:
        try:
            try:
                raise KeyError(FORGED)
            except KeyError as error:
                error.add_note(FORGED)
                raise ValueError(FORGED) from error
        except ValueError:
            logger.exception("it failed")
    first, *rest = stream.getvalue().rstrip("\n").split("\n")
    assert first.endswith("ERROR streams.dead: it failed")
    assert len(rest) > 5
    assert all(line.startswith("  ") for line in rest)
    assert unfit("".join(rest)) == set()


def test_what_cannot_be_told_does_not_fail_where_it_is_logged() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    with heard("streams.dead") as stream:
        get_logger("streams.dead").error("%s: it %s", Broken(), "failed", exc_info=Broken())
    first, *_ = stream.getvalue().split("\n")
    assert first.endswith("%s: it %s (its arguments cannot be shown: RuntimeError)")


def test_arguments_stay_for_those_who_look_at_them(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("streams.dead").warning("%s: %d", "fine", 3)
    (record,) = caplog.records
    assert (record.msg, record.args) == ("%s: %d", ("fine", 3))


def test_the_command_line_escapes_what_others_log(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", partial(bool, terminal), raising=False)
        monkeypatch.setattr("sys.stderr", stream)
        root.handlers.clear()
        configure_logging(logging.INFO)
        try:
            raise ValueError(FORGED)
        except ValueError:
            logging.getLogger("somebody.else").exception(FORGED)
        text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
        assert "all is lost" in text
        assert unfit(text) <= {"\n"}
    root.setLevel(level)


def test_the_nearest_of_what_is_known_is_named() -> None:
    assert suggestion("mial", {"mails", "jobs"}) == "did you mean 'mails'?"
    assert suggestion("zzz", {"mails", "jobs"}) == "there are 'jobs', 'mails'."
    assert (
        suggestion(7, [f"q{n}" for n in range(7)])
        == "there are 'q0', 'q1', 'q2', 'q3', 'q4' and 2 more."
    )
    assert suggestion("m" * 100_000, {"mails"}) == "there are 'mails'."


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("lost-mials", "lost-mails"),  # the wrong way round
        ("lost-mail", "lost-mails"),
        ("lost-mailss", "lost-mails"),
        ("lost_mails", "lost-mails"),
        ("Lost-Mails", "lost-mails"),
        ("xost-mails", "lost-mails"),
    ],
)
def test_one_slip(name: str, other: str) -> None:
    assert is_misspelling(name, other)
    assert is_misspelling(other, name)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("lost-mails", "lost-mails"),
        ("mails-dead", "mails"),
        ("lost-mails-de", "lost-mails-us"),
        ("lost-mails-1", "lost-mails-2"),
        ("lost-mails2", "lost-mails"),
        ("dead", "read"),
        ("", "lost-mails"),
        ("mails", "lost-mails"),
    ],
)
def test_names_that_may_be_meant_so(name: str, other: str) -> None:
    assert not is_misspelling(name, other)
    assert not is_misspelling(other, name)


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_slip_goes_both_ways_and_no_name_is_one_of_itself(name: str, other: str) -> None:
    assert not is_misspelling(name, name)
    assert is_misspelling(name, other) == is_misspelling(other, name)


@given(st.text("abc-", min_size=6, max_size=12), st.data())
def test_any_one_slip_is_seen(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 2))
    wrong = data.draw(
        st.sampled_from(
            [
                name[:at] + name[at + 1 :],
                name[:at] + "x" + name[at:],
                name[:at] + "x" + name[at + 1 :],
                name[:at] + name[at + 1] + name[at] + name[at + 2 :],
            ]
        )
    )
    assert is_misspelling(wrong, name) == (wrong != name)
