"""Log lines: for a person with colours, for everybody else plain, always on standard error."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.text import Escaping, escape

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable
    from rich.traceback import Trace, Traceback

PLAIN = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def set_up(level: int | None) -> None:
    """For a process that runs: what the app set up by itself is left alone.

    :param level: the least level shown; INFO, or what the app set up, if None.
    """
    root = logging.getLogger()
    if not root.handlers:
        handler = _handler()
        handler.addFilter(Escaping())  # what other packages log, too
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    if level is not None:
        root.setLevel(level)


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        class Handler(RichHandler):
            """Escapes what exceptions say in the tracebacks that it draws itself."""

            @override
            def render(self, *, traceback: Traceback | None, **more: Any) -> ConsoleRenderable:
                if traceback is not None:
                    _escape_drawn(traceback.trace)
                return super().render(traceback=traceback, **more)

        return Handler(console=Console(stderr=True), show_path=False, rich_tracebacks=True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(PLAIN))
    return handler


def _escape_drawn(trace: Trace) -> None:
    for stack in trace.stacks:
        stack.exc_type, stack.exc_value = escape(stack.exc_type), escape(stack.exc_value)
        stack.notes = [escape(note) for note in stack.notes]
        if stack.syntax_error is not None:
            stack.syntax_error.msg = escape(stack.syntax_error.msg)
        for each in stack.exceptions:
            _escape_drawn(each)


class _Once(logging.Filter):
    """Lets the same line through once: an outage is told again and again below."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        fresh = text not in self._seen
        self._seen.add(text)
        return fresh


def warnings() -> None:
    """For a command that ends: only what is wrong, once, in the form of its errors."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("streams: %(message)s"))
        handler.setLevel(logging.WARNING)
        handler.addFilter(Escaping())
        handler.addFilter(_Once())
        root.addHandler(handler)
