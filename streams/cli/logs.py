"""Log lines: for a person with colours, for everybody else plain or as JSON, always on standard
error.

Where several processes write to the same place (``--workers``), each line says whose it is. In JSON
a line is one object: ``time`` (UTC), ``level``, ``logger``, ``message``, ``worker`` (its number, or
null), and where there is one, ``exception``; what a program gave its record by ``extra=`` stands
under ``extra``.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.text import Escaping, escape, escape_json, get_logger, trace

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable
    from rich.traceback import Trace, Traceback

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest came by ``extra=``."""


class Format(StrEnum):
    """How log lines are written."""

    text = "text"
    json = "json"


class Plain(logging.Formatter):
    """A line for people.

    :param who: whose lines these are, if several processes write to the same place.
    """

    def __init__(self, who: str = "") -> None:
        self._who = f"[{who}] " if who else ""
        super().__init__(f"%(asctime)s %(levelname)-7s {self._who}%(name)s: %(message)s")

    @override
    def format(self, record: logging.LogRecord) -> str:
        # A traceback has lines of its own, between which other processes may write theirs.
        return super().format(record).replace("\n", f"\n{self._who}")


class Json(logging.Formatter):
    """A line that is one JSON object.

    :param worker: the number of the worker whose lines these are.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    @override
    def format(self, record: logging.LogRecord) -> str:
        import orjson

        from streams.cli.show import iso, whole

        found: dict[str, Any] = {
            "time": iso(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "worker": self._worker,
        }
        if record.exc_info and record.exc_info[1] is not None:
            found["exception"] = trace(record.exc_info[1])
        elif record.exc_text:
            found["exception"] = record.exc_text
        if record.stack_info:
            found["stack"] = record.stack_info
        if extra := {name: each for name, each in vars(record).items() if name not in _USUAL}:
            found["extra"] = extra
        try:
            line = orjson.dumps(whole(found), default=_told, option=orjson.OPT_NON_STR_KEYS)
        except TypeError:  # a number that JSON has none of, a mapping in a circle
            found["extra"] = {name: _told(each) for name, each in extra.items()}
            line = orjson.dumps(whole(found))
        return escape_json(line).decode()


def _told(found: Any) -> str:
    """What JSON has no form for, as text."""
    try:
        return repr(found)
    except Exception as failure:
        return f"(its repr() raised {type(failure).__name__})"


def set_up(level: int | None, form: Format | None = None, worker: int | None = None) -> None:
    """For a process that runs: what the app set up by itself is left alone, unless a format was
    asked for; then that takes the place of what writes to the terminal.

    :param level: the least level shown; INFO, or what the app set up, if None.
    :param worker: which worker this process is, from 1; 0: it is the supervisor of workers.
    """
    root = logging.getLogger()
    fresh = not root.handlers
    if form is not None:
        for each in list(root.handlers):
            if _is_terminal(each):
                root.removeHandler(each)
    if form is not None or fresh:
        handler = _handler(form or Format.text, worker)
        handler.addFilter(Escaping())  # what other packages log, too
        root.addHandler(handler)
    if fresh:
        root.setLevel(logging.INFO)
    if form is Format.json or worker is not None:
        logging.captureWarnings(True)  # Python writes them without any form
    if level is not None:
        root.setLevel(level)


def speak(form: Format | None, worker: int | None) -> None:
    """Let what a command says of its own end be in the form of its log lines."""
    from streams.cli import failures

    if form is Format.json:
        line, logger = Json(worker or None), get_logger("streams")

        def formed(text: str) -> str:
            record = logger.makeRecord("streams", logging.ERROR, "", 0, text, (), None)
            return line.format(record)

        failures.speak(formed)
    elif worker:
        failures.speak(lambda text: f"streams: worker {worker}: {text}")


def _is_terminal(handler: logging.Handler) -> bool:
    """It writes to standard error or standard output."""
    stream = getattr(handler, "stream", None) or getattr(
        getattr(handler, "console", None), "file", None
    )
    return stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)


def _handler(form: Format, worker: int | None) -> logging.Handler:
    who = "" if worker is None else f"worker {worker}" if worker else "supervisor"
    if form is Format.text and sys.stderr.isatty():
        return _coloured(who)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json(worker or None) if form is Format.json else Plain(who))
    return handler


def _coloured(who: str) -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    class Handler(RichHandler):
        """Escapes what exceptions say in the tracebacks that it draws itself."""

        @override
        def render(self, *, traceback: Traceback | None, **more: Any) -> ConsoleRenderable:
            if traceback is not None:
                _escape_drawn(traceback.trace)
            return super().render(traceback=traceback, **more)

    # Lines of several processes get mixed, so that a frame around a traceback would fall apart.
    handler = Handler(console=Console(stderr=True), show_path=False, rich_tracebacks=not who)
    handler.setFormatter(Prefixed(who))
    return handler


class Prefixed(logging.Formatter):
    """The message alone, each line of it behind whose it is."""

    def __init__(self, who: str) -> None:
        super().__init__("%(message)s")
        self._who = f"[{who}] " if who else ""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return self._who + super().format(record).replace("\n", f"\n{self._who}")


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
