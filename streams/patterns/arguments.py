"""Arguments of the patterns, looked at where they are given: what cannot work is a ``ConfigError``
that says so, and never a ``TypeError`` from somewhere inside."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streams.errors import ConfigError, InvalidValue

if TYPE_CHECKING:
    from streams.app import Streams

NOT_GIVEN: Any = object()
"""Stands for an argument that was left out, where None would be a mistake."""


def check_app(app: object, where: str) -> Streams:
    """The app, if it is one.

    :param where: which pattern it was given to.
    :raises ConfigError: otherwise.
    """
    from streams.app import Streams  # not before: not every pattern needs an app

    if not isinstance(app, Streams):
        raise ConfigError(f"{where}({app!r}): an app is needed, Streams(...)")
    return app


def check_int(where: str, option: str, value: object, minimum: int = 1) -> None:
    """
    :param where: whose option it is.
    :raises ConfigError: it is not a whole number from ``minimum``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{where}({option}={value!r}): a whole number from {minimum}")


def check_mapping(where: str, option: str, value: object) -> None:
    """
    :param where: whose option it is.
    :raises ConfigError: it is neither None nor a mapping.
    """
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}({option}=...): a mapping, not a {type(value).__name__}")


def check_timeout(where: str, value: Any) -> None:
    """
    :param where: the call that waits.
    :raises InvalidValue: it is no number of seconds.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value >= 0):  # not `value < 0`, which is false for NaN
        raise InvalidValue(f"{where}(within={value!r}): seconds, not negative")


def check_callable(function: Any, where: str, *arguments: str) -> None:
    """
    :param where: the call that it is given to.
    :param arguments: what it is called with.
    :raises ConfigError: it is no function that can be called so.
    """
    expected = f"a function of ({', '.join(arguments)})"
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{where}: {function!r} is not {expected}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        name = getattr(function, "__name__", None) or type(function).__name__
        raise ConfigError(f"{where}: {name}: {error}; it is called as {expected}") from error
    except ValueError:
        return  # a builtin that does not tell its parameters
