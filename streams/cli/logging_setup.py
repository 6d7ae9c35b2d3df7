"""Log lines: with colours for people, else plain or as JSON, always on standard error.

If several processes write to the same place (``--workers``), each line names its process.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.json_logs import JsonFormatter
from streams.text import EscapingFilter, escape, get_logger

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable
    from rich.traceback import Trace, Traceback


class LogFormat(StrEnum):
    """The form of log lines."""

    text = "text"
    json = "json"


class PrefixFormatter(logging.Formatter):
    """Formats lines for people. A traceback has several lines, between which other processes may
    write theirs, so each names its process.

    :param prefix: the text before each further line of a record.
    """

    def __init__(self, form: str, prefix: str) -> None:
        super().__init__(form)
        self._prefix = prefix

    @override
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", f"\n{self._prefix}")


def configure_logging(
    level: int | None, log_format: LogFormat | None = None, worker: int | None = None
) -> None:
    """Configure the logging of a process that runs: the app's own handlers are kept, unless a
    format was asked for; then that replaces the handlers that write to the terminal.

    :param level: the lowest level shown; if None, the app's own, or INFO.
    :param worker: the number of this worker, from 1; 0: it is the supervisor of workers.
    """
    root = logging.getLogger()
    unconfigured = not root.handlers
    if log_format is not None:
        for each in list(root.handlers):
            if _writes_to_terminal(each):
                root.removeHandler(each)
    if log_format is not None or unconfigured:
        handler = _make_handler(log_format or LogFormat.text, worker)
        handler.addFilter(EscapingFilter())  # also for lines of other packages
        root.addHandler(handler)
    if unconfigured:
        root.setLevel(logging.INFO)
    if log_format is LogFormat.json or worker is not None:
        logging.captureWarnings(True)  # Python would write them unformatted
    if level is not None:
        root.setLevel(level)


def format_errors_as_logs(log_format: LogFormat | None, worker: int | None) -> None:
    """Write the errors that end a command in the form of its log lines."""
    from streams.cli import command_errors

    if log_format is LogFormat.json:
        line, logger = JsonFormatter(worker or None), get_logger("streams")

        def format_error(text: str) -> str:
            record = logger.makeRecord("streams", logging.ERROR, "", 0, text, (), None)
            return line.format(record)

        command_errors.set_error_format(format_error)
    elif worker:
        command_errors.set_error_format(lambda text: f"streams: worker {worker}: {text}")


def _writes_to_terminal(handler: logging.Handler) -> bool:
    """Whether it writes to standard error or standard output."""
    console = getattr(handler, "console", None)  # rich's
    stream = getattr(handler, "stream", None) or getattr(console, "file", None)
    return stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)


def _make_handler(log_format: LogFormat, worker: int | None) -> logging.Handler:
    prefix = "" if worker is None else f"[worker {worker}] " if worker else "[supervisor] "
    if log_format is LogFormat.text and sys.stderr.isatty():
        return _make_rich_handler(prefix)
    handler = logging.StreamHandler(sys.stderr)
    if log_format is LogFormat.json:
        handler.setFormatter(JsonFormatter(worker or None))
    else:
        form = f"%(asctime)s %(levelname)-7s {prefix}%(name)s: %(message)s"
        handler.setFormatter(PrefixFormatter(form, prefix))
    return handler


def _make_rich_handler(prefix: str) -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    class Handler(RichHandler):
        """Escapes the texts of exceptions in the tracebacks that it draws itself."""

        @override
        def render(self, *, traceback: Traceback | None, **more: Any) -> ConsoleRenderable:
            if traceback is not None:
                _escape_rich_trace(traceback.trace)
            return super().render(traceback=traceback, **more)

    # Lines of several processes get mixed, so that a frame around a traceback would fall apart.
    handler = Handler(console=Console(stderr=True), show_path=False, rich_tracebacks=not prefix)
    handler.setFormatter(PrefixFormatter(f"{prefix}%(message)s", prefix))
    return handler


def _escape_rich_trace(trace: Trace) -> None:
    for stack in trace.stacks:
        stack.exc_type, stack.exc_value = escape(stack.exc_type), escape(stack.exc_value)
        stack.notes = [escape(note) for note in stack.notes]
        if stack.syntax_error is not None:
            stack.syntax_error.msg = escape(stack.syntax_error.msg)
        for each in stack.exceptions:
            _escape_rich_trace(each)


class _OnceFilter(logging.Filter):
    """Passes the same line once: during an outage the drivers repeat theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        fresh = text not in self._seen
        self._seen.add(text)
        return fresh


def configure_warnings() -> None:
    """Configure a command that ends: warnings and errors only, each once, formatted as its
    errors."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("streams: %(message)s"))
        handler.setLevel(logging.WARNING)
        handler.addFilter(EscapingFilter())
        handler.addFilter(_OnceFilter())
        root.addHandler(handler)
