"""Errors of commands, as one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streams.errors import ConfigError, InvalidValue, StreamsError, attribute_of
from streams.text import error_text, escape, one_line, traceback_text

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""
PIPE_CLOSED = 141
"""128 + SIGPIPE: the reader of our output has closed it (``| head``)."""


class CommandFailed(Exception):
    """A command could not do its work; the text is the line for the user."""

    status = FAILED


class UsageError(CommandFailed):
    """The command line is invalid: a value without a meaning, a URL that is missing."""

    status = USAGE


class PipeClosed(Exception):
    """The other end of standard output is closed."""


class ErrorLine(NamedTuple):
    """The line to show for an error, and the exit status."""

    text: str
    status: int


def error_line(error: BaseException) -> ErrorLine:
    """The line to show for an error, and the exit status."""
    if isinstance(error, CommandFailed):
        return ErrorLine(one_line(str(error)), error.status)
    notes = attribute_of(error, "__notes__")
    notes = notes if isinstance(notes, (list, tuple)) else ()
    text = "; ".join([error_text(error), *map(str, notes)])
    if isinstance(error, StreamsError):
        usage = isinstance(error, (ConfigError, InvalidValue))
        return ErrorLine(one_line(text), USAGE if usage else FAILED)
    if isinstance(error, OSError) and error.strerror:
        file_prefix = f"{error.filename}: " if error.filename else ""
        return ErrorLine(one_line(f"{file_prefix}{error.strerror}"), FAILED)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ErrorLine(one_line(f"{text} (STREAMS_DEBUG=1 shows where)"), FAILED)


def print_error(text: str) -> None:
    """Print an error on standard error, without any secret of the command line's."""
    _write_stderr(f"{_format_error(_without_secrets(one_line(text)))}\n")


def print_traceback(error: BaseException) -> None:
    """Show where an error comes from, for users who ask for it (:func:`is_debugging`)."""
    _write_stderr(_without_secrets(escape(traceback_text(error), keep_lines=True)))


def _format_plain(text: str) -> str:
    return f"streams: {text}"


_format_error: Callable[[str], str] = _format_plain


def set_error_format(format_error: Callable[[str], str] = _format_plain) -> None:
    """Set the form of the lines that :func:`print_error` writes from now on."""
    global _format_error
    _format_error = format_error


_secret_sources: Sequence[str] = ()


def hide_secrets_of(arguments: Sequence[str]) -> None:
    """Register the words of the command line: if one contains a URL, no error shows a secret of
    it."""
    global _secret_sources
    _secret_sources = arguments


def hide_secret_also(text: str) -> None:
    """Do the same for a word from another source."""
    hide_secrets_of([*_secret_sources, text])


def _without_secrets(text: str) -> str:
    from streams.log.url import URL_VARIABLE, secrets_in

    variables = (os.environ.get(name, "") for name in (URL_VARIABLE, "STREAMS_PROMETHEUS"))
    return secrets_in([*_secret_sources, *variables]).hide(text)


def _write_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
    except OSError:
        return  # standard error is not read either


def is_debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("STREAMS_DEBUG", "") not in ("", "0")


def is_closed_pipe(error: BaseException) -> bool:
    """Whether the error means that our output is not read any more."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
    )
