"""Log lines as JSON: one object a line, whatever was logged."""

from __future__ import annotations

import logging
from typing import Any

from typing_extensions import override

from streams.text import escape_json, format_traceback, without_surrogates
from streams.wire import iso_time

_STANDARD_ATTRIBUTES = {
    *vars(logging.makeLogRecord({})),
    "message",
    "asctime",
    "taskName",
    # Uvicorn gives its message once more, with a terminal's colours.
    "color_message",
}
"""What is no part of ``extra``."""


class JsonFormatter(logging.Formatter):
    """A log line that is one JSON object, as ``streams run --log-format json`` writes it; for a
    service that sets up :mod:`logging` by itself::

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(level=logging.INFO, handlers=[handler])

    ``time`` (UTC), ``level``, ``logger``, ``message``, ``worker``, and where there is one,
    ``exception`` and ``stack``; what a program gave its record by ``extra=`` stands under
    ``extra``.

    :param worker: the number of the worker whose lines these are, where there are several.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    @override
    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        import orjson

        found: dict[str, Any] = {
            "time": iso_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "worker": self._worker,
        }
        if record.exc_info and record.exc_info[1] is not None:
            found["exception"] = format_traceback(record.exc_info[1])
        elif record.exc_text:
            found["exception"] = record.exc_text
        if record.stack_info:
            found["stack"] = record.stack_info
        extra = {key: each for key, each in vars(record).items() if key not in _STANDARD_ATTRIBUTES}
        if extra:
            found["extra"] = extra
        try:
            line = orjson.dumps(
                without_surrogates(found), default=_safe_repr, option=orjson.OPT_NON_STR_KEYS
            )
        except TypeError:  # a number that JSON has none of, a mapping in a circle
            found["extra"] = {name: _safe_repr(each) for name, each in extra.items()}
            line = orjson.dumps(without_surrogates(found))
        return escape_json(line).decode()


def _safe_repr(found: Any) -> str:
    """What JSON has no form for, as text."""
    try:
        return repr(found)
    except Exception as failure:
        return f"(its repr() raised {type(failure).__name__})"
