"""What can go wrong, as one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from streams.errors import ConfigError, InvalidValue, StreamsError
from streams.text import escape, one_line, words

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""
PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output has enough (``| head``)."""


class Failed(Exception):
    """A command could not do what it was asked to; its text is the line for the user."""

    status = FAILED


class Misused(Failed):
    """The command line itself cannot be: a value that means nothing, a URL that is missing."""

    status = USAGE


class PipeClosed(Exception):
    """Nobody reads standard output any more."""


def describe(error: BaseException) -> tuple[str, int]:
    """The line to show for an error, and the status to end with."""
    if isinstance(error, Failed):
        return line(str(error)), error.status
    text = "; ".join([words(error), *map(str, getattr(error, "__notes__", ()))])
    if isinstance(error, (ConfigError, InvalidValue)):
        return line(text), USAGE
    if isinstance(error, StreamsError):
        return line(text), FAILED
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return line(f"{place}{error.strerror}"), FAILED
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line(f"{text} (STREAMS_DEBUG=1 shows where)"), FAILED


def line(text: str) -> str:
    """The text as one line."""
    return one_line(text)


def report(text: str) -> None:
    """Say on standard error what went wrong, without any secret of the command line's."""
    _tell(f"{_formed(_hidden(line(text)))}\n")


def report_traceback(error: BaseException) -> None:
    """Show where an error comes from, for whoever asked for it (:func:`debugging`)."""
    _tell(_hidden(escape("".join(traceback.format_exception(error)), lines=True)))


def _plain(text: str) -> str:
    return f"streams: {text}"


_formed: Callable[[str], str] = _plain


def speak(formed: Callable[[str], str] = _plain) -> None:
    """From now on :func:`report` writes its lines in this form."""
    global _formed
    _formed = formed


_given: Sequence[str] = ()


def given(arguments: Sequence[str]) -> None:
    """The words of the command line: of a URL among them, wherever it stands, no error shows a
    secret."""
    global _given
    _given = arguments


def also_given(text: str) -> None:
    """The same of a word that came another way."""
    given([*_given, text])


def _hidden(text: str) -> str:
    from streams.log.url import VARIABLE, secrets_in

    variables = (os.environ.get(name, "") for name in (VARIABLE, "STREAMS_PROMETHEUS"))
    return secrets_in([*_given, *variables]).hide(text)


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
    except OSError:
        return  # nobody listens there either


def debugging() -> bool:
    """Tracebacks are wanted."""
    return os.environ.get("STREAMS_DEBUG", "") not in ("", "0")


def is_closed_pipe(error: BaseException) -> bool:
    """The error says that nobody reads what we write."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
    )
