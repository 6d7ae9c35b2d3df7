"""Checks of a pattern's arguments: one that cannot work raises a ``ConfigError`` that says so,
never a ``TypeError`` from deeper inside."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streams.callables import call_error, callable_name
from streams.errors import ConfigError, InvalidValue
from streams.numbers import is_int, is_seconds

if TYPE_CHECKING:
    from streams.app import Streams

NOT_GIVEN: Any = object()
"""Stands for an argument that was left out, where None would be a mistake."""


def check_app(app: object, where: str) -> Streams:
    """The app; ``where`` names the pattern that it was passed to.

    :raises ConfigError: it is no app.
    """
    from streams.app import Streams  # not before: not every pattern needs an app

    if not isinstance(app, Streams):
        raise ConfigError(f"{where}({app!r}): a Streams app is needed")
    return app


def check_int(where: str, option: str, value: object, minimum: int = 1) -> None:
    """:raises ConfigError: an option of ``where`` is not a whole number from ``minimum``."""
    if not is_int(value, minimum):
        raise ConfigError(f"{where}({option}={value!r}): must be an integer of at least {minimum}")


def check_seconds(where: str, option: str, value: object, *, positive: bool = True) -> None:
    """:raises ConfigError: an option of ``where`` is no number of :func:`seconds <is_seconds>`."""
    if not is_seconds(value, positive=positive):
        sign = "positive" if positive else "non-negative"
        raise ConfigError(f"{where}({option}={value!r}): must be a {sign} number of seconds")


def check_mapping(where: str, option: str, value: object) -> None:
    """:raises ConfigError: an option of ``where`` is neither None nor a mapping."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}({option}=...): a mapping, not a {type(value).__name__}")


def check_timeout(where: str, value: Any) -> None:
    """:raises InvalidValue: the call ``where`` cannot wait for so long."""
    if not is_seconds(value, positive=False):
        raise InvalidValue(f"{where}(within={value!r}): must be a non-negative number of seconds")


def check_callable(function: Any, where: str, *arguments: str) -> None:
    """:raises ConfigError: it is no function that ``where`` can call with these arguments."""
    expected = f"a function of ({', '.join(arguments)})"
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{where}: {function!r} is not {expected}")
    error = call_error(function, *arguments)
    if error is not None:
        name = callable_name(function)
        raise ConfigError(f"{where}: {name}: {error}; it is called as {expected}") from error
