"""What can go wrong, as one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from streams.errors import ConfigError, InvalidValue, StreamsError
from streams.text import error_text, escape, one_line

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""
PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output has enough (``| head``)."""


class CommandFailed(Exception):
    """A command could not do what it was asked to; its text is the line for the user."""

    status = FAILED


class UsageError(CommandFailed):
    """The command line itself cannot be: a value that means nothing, a URL that is missing."""

    status = USAGE


class PipeClosed(Exception):
    """Standard output is closed at its other end."""


class ErrorLine(NamedTuple):
    """The line to show for an error, and the status to end with."""

    text: str
    status: int


def error_line(error: BaseException) -> ErrorLine:
    """What to show for an error, and the status to end with."""
    if isinstance(error, CommandFailed):
        return ErrorLine(one_line(str(error)), error.status)
    text = "; ".join([error_text(error), *map(str, getattr(error, "__notes__", ()))])
    if isinstance(error, StreamsError):
        usage = isinstance(error, (ConfigError, InvalidValue))
        return ErrorLine(one_line(text), USAGE if usage else FAILED)
    if isinstance(error, OSError) and error.strerror:
        file_prefix = f"{error.filename}: " if error.filename else ""
        return ErrorLine(one_line(f"{file_prefix}{error.strerror}"), FAILED)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return ErrorLine(one_line(f"{text} (STREAMS_DEBUG=1 shows where)"), FAILED)


def print_error(text: str) -> None:
    """Say on standard error what went wrong, without any secret of the command line's."""
    _write_stderr(f"{_format_error(_without_secrets(one_line(text)))}\n")


def print_traceback(error: BaseException) -> None:
    """Show where an error comes from, for whoever asked for it (:func:`is_debugging`)."""
    text = "".join(traceback.format_exception(error))
    _write_stderr(_without_secrets(escape(text, keep_lines=True)))


def _format_plain(text: str) -> str:
    return f"streams: {text}"


_format_error: Callable[[str], str] = _format_plain


def set_error_format(format_error: Callable[[str], str] = _format_plain) -> None:
    """From now on :func:`print_error` writes its lines in this form."""
    global _format_error
    _format_error = format_error


_secret_sources: Sequence[str] = ()


def hide_secrets_of(arguments: Sequence[str]) -> None:
    """The words of the command line: of a URL among them, wherever it stands, no error shows a
    secret."""
    global _secret_sources
    _secret_sources = arguments


def hide_secret_also(text: str) -> None:
    """The same of a word that came another way."""
    hide_secrets_of([*_secret_sources, text])


def _without_secrets(text: str) -> str:
    from streams.log.url import URL_VARIABLE, secrets_in

    variables = (os.environ.get(name, "") for name in (URL_VARIABLE, "STREAMS_PROMETHEUS"))
    return secrets_in([*_secret_sources, *variables]).hide(text)


def _write_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
    except OSError:
        return  # nobody listens there either


def is_debugging() -> bool:
    """Tracebacks are wanted."""
    return os.environ.get("STREAMS_DEBUG", "") not in ("", "0")


def is_closed_pipe(error: BaseException) -> bool:
    """The error says that nobody reads what we write."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ESHUTDOWN)
    )
