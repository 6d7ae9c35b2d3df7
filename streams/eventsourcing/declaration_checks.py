"""Checks of options that aggregates, views and process managers share."""

from __future__ import annotations

from typing import Any

from streams.app import Streams
from streams.callables import is_async
from streams.errors import ConfigError, StreamsError


def check_app(where: str, app: Any) -> None:
    """:raises ConfigError: ``app`` is not an app."""
    if not isinstance(app, Streams):
        raise ConfigError(f"{where}: the first argument is an app, Streams(...), not {app!r}")


def check_fold(where: str, function: Any) -> None:
    """:raises ConfigError: ``function`` is not a plain function of state and event."""
    if not callable(function):
        raise ConfigError(f"{where}: evolve={function!r}: a function of state and event")
    if is_async(function):
        raise ConfigError(
            f"{where}: evolve is an async function, and a state is folded at once: make it a plain "
            "function, which waits for nothing"
        )


def check_refusals(
    where: str, given: Any, error: type[StreamsError]
) -> tuple[type[Exception], ...]:
    """The exceptions by which a decision refuses: one type, or a tuple of them.

    :param error: the type of error to raise if it is neither.
    """
    found = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(each, type) and issubclass(each, Exception) for each in found):
        raise error(f"{where}: refusals={given!r}: a type of exception, or several")
    return found
