r"""Untrusted text, made fit to be shown: what is printed or logged passes through here.

Names, keys, header names, values, an exception's words, a request's line: somebody else wrote them,
and a terminal obeys what is in them. :func:`escape` writes as an escape (``\x1b``, ``\u202e``)

* the controls of C0 and C1 and DEL, so line breaks, too: a line stays one line;
* the line and paragraph separators;
* what changes the direction of writing or cannot be seen: bidirectional controls, blanks without
  width, annotations, tags (but not the joiners, which scripts and emoji are written with);
* lone surrogates, which no encoding takes.

Everything else stays as it is. The result is for people: a backslash is not doubled, so a text
that is escaped again stays the same.

JSON is escaped by its own rules (:func:`escape_json`), whether a terminal reads it or a program: it
is the same document, and does not depend on where it goes.

Loggers of the toolkit come from :func:`get_logger`, which gives them :class:`EscapingFilter`: one
record is one line, and a traceback's lines are indented, so that none can pass for a record.
"""

from __future__ import annotations

import difflib
import logging
import re
import traceback
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

from typing_extensions import override

_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls (Unicode UAX #9)
    "\u2028\u2029"  # line and paragraph separators
    "\u00ad\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # invisible ones
    "\U000e0000-\U000e007f"  # tags
    "\ud800-\udfff"  # surrogates
    "]"
)


def _escaped(found: re.Match[str]) -> str:
    text = found[0]
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(text) or _code_escape(ord(text))


def _code_escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: str, *, keep_lines: bool = False) -> str:
    """The text on one line, without anything that could steer a terminal.

    :param keep_lines: line breaks and tabs stay, for what is a text of several lines.
    """
    if text.isascii() and text.isprintable():
        return text
    if keep_lines:
        return "\n".join("\t".join(map(escape, row.split("\t"))) for row in text.split("\n"))
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """The text with its blanks and line breaks as single blanks, and the rest escaped."""
    return escape(" ".join(text.split()))


def escape_json(document: bytes) -> bytes:
    """A JSON document, the same one, without anything that could steer a terminal.

    All that has to be escaped stands in its strings: outside of them JSON is ASCII, and of the
    controls only blanks, which are left.
    """
    if document.isascii() and b"\x7f" not in document:
        return document
    return _UNSAFE.sub(_escaped_in_json, document.decode()).encode()


def _escaped_in_json(found: re.Match[str]) -> str:
    text = found[0]
    if text in "\t\n\r":
        return text
    utf16 = text.encode("utf-16-be")
    return "".join(f"\\u{utf16[at]:02x}{utf16[at + 1]:02x}" for at in range(0, len(utf16), 2))


# -- log lines -------------------------------------------------------------------------------------


def printable_text(text: str) -> str:
    r"""Text of the wire, where surrogates stand for what is not UTF-8, with ``\xNN`` instead."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def without_surrogates(found: Any) -> Any:
    r"""A document with lone surrogates written as text: ``\udcff``."""
    if isinstance(found, str):
        return printable_text(found)
    if isinstance(found, Mapping):
        return {printable_text(str(name)): without_surrogates(each) for name, each in found.items()}
    if isinstance(found, (list, tuple)):
        return [without_surrogates(each) for each in found]
    return found


class EscapingFilter(logging.Filter):
    """Escapes a record's message and traceback; for a logger or a handler. Lets everything pass.

    A message that cannot be put together (an argument's own ``__str__`` fails) is told as such
    instead of failing where it was logged.
    """

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        """Escape, and let pass."""
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg} (its arguments cannot be shown: {type(error).__name__})"
            record.msg, record.args = escape(message), ()
        else:
            shown = escape(message)
            if shown != message:
                record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = format_traceback(record.exc_info[1])
        return True


def format_traceback(error: BaseException) -> str:
    """An exception's traceback, escaped and indented."""
    rows = escape(traceback_text(error), keep_lines=True).rstrip("\n").split("\n")
    return "\n".join(f"  {row}" for row in rows)


def traceback_text(error: BaseException) -> str:
    """An exception's traceback as Python prints it. Python cannot print all exceptions: it asks
    for attributes, and some classes' ``__getattr__`` raises more than ``AttributeError``."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception as failure:
        kind = type(failure).__name__
        return f"{type(error).__name__} (its traceback cannot be shown: {kind})"


_ESCAPING_FILTER = EscapingFilter()


def get_logger(name: str) -> logging.Logger:
    """A logger of the toolkit: ``streams`` or below it."""
    logger = logging.getLogger(name)
    logger.addFilter(_ESCAPING_FILTER)  # a second time does nothing
    return logger


def error_text(error: BaseException) -> str:
    """What an error says; some classes' ``__str__`` fails itself, and that must not matter."""
    try:
        return str(error)
    except Exception as failure:
        return f"(its str() raised {type(failure).__name__})"


def describe_error(error: BaseException) -> str:
    """An error in one line's words."""
    return f"{type(error).__name__}: {error_text(error)}".removesuffix(": ")


def count_with_noun(count: int, noun: str) -> str:
    """``1 attempt``, ``2 attempts``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


_MAX_COMPARED = 10_000
"""Names that are compared with one that is not known, at most."""


def close_match(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of these names that is most like this one, if any is like it at all.

    :param cutoff: how much alike it must be, from 0 to 1.
    """
    among = islice(known, _MAX_COMPARED)
    return next(iter(difflib.get_close_matches(name[:256], among, 1, cutoff)), None)


def is_misspelling(name: str, other: str) -> bool:
    """Whether one name can hardly be meant to be another one than ``other``, but is written
    differently: one character is wrong, missing or too many, two are the wrong way round, or only
    the case of letters differs. Names that differ by a digit, and short ones, may be meant so.
    """
    one, two = name.casefold(), other.casefold()
    if name == other or min(len(one), len(two)) < _SHORTEST_MISSPELLING:
        return False
    start = _common_prefix(one, two)
    one, two = one[start:], two[start:]
    end = _common_prefix(one[::-1], two[::-1])
    one, two = one[: len(one) - end], two[: len(two) - end]
    if len(one) <= 1 and len(two) <= 1:
        return not (one + two).isdigit()
    return len(one) == 2 and one == two[::-1]


def _common_prefix(one: str, two: str) -> int:
    """How many characters are the same at the beginning of both."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


_SHORTEST_MISSPELLING = 5
"""Shorter names are never taken for a misspelling."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether the name most like this one was meant; empty where none is like it."""
    found = close_match(name, known)
    return "" if found is None else f"did you mean {found!r}?"


def suggestion(name: object, known: Collection[str]) -> str:
    """A sentence for an error about a name that is not known: which one was probably meant, or
    what there is."""
    if isinstance(name, str) and (question := did_you_mean(name, known)):
        return question
    if not known:
        return "there is none."
    shown = ", ".join(repr(each) for each in sorted(known)[:5])
    more = f" and {len(known) - 5} more" if len(known) > 5 else ""
    return f"there are {shown}{more}."
