"""What there is to know of a user's function before it is called: whether its calls are awaited,
what it can be called with, and what errors call it.

A function is anything that can be called: of a ``partial`` what it calls is looked at, of an object
its ``__call__``. (A class's own ``__call__`` is not what a call of the class runs.)
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


def unwrap_partial(function: Any) -> Any:
    """The function itself, of a ``partial`` of one."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def run_generator(result: Any) -> Any:
    """What a function returned; of a generator all of its values, as a list. Its code is the
    function's, so it runs where that was called."""
    return list(result) if hasattr(result, "__next__") else result


def _is_kind(function: Any, is_kind: Callable[[Any], bool]) -> bool:
    """Whether the function, or the ``__call__`` of the object, is of this kind."""
    target = unwrap_partial(function)
    if is_kind(target):
        return True
    # Of a function its __call__ says nothing more; most are asked about before each call.
    return (
        not inspect.isfunction(target)
        and not inspect.isclass(target)
        and is_kind(getattr(target, "__call__", None))  # noqa: B004 - it is looked into
    )


def is_async(function: Any) -> bool:
    """Whether calls are to be awaited."""
    return _is_kind(function, inspect.iscoroutinefunction)


def is_async_generator(function: Any) -> bool:
    """Whether a call runs nothing by itself and makes an asynchronous generator."""
    return _is_kind(function, inspect.isasyncgenfunction)


def is_generator(function: Any) -> bool:
    """Whether a call runs nothing by itself and makes a generator, asynchronous or not."""
    return _is_kind(function, inspect.isgeneratorfunction) or is_async_generator(function)


def is_plain(function: Any) -> bool:
    """Whether a call runs all of it and returns its result."""
    return not is_async(function) and not is_generator(function)


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature, also where an annotation names what does not exist (yet).

    :raises ValueError, TypeError: a builtin that does not tell its parameters.
    """
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def call_error(function: Callable[..., Any], *arguments: object) -> TypeError | None:
    """Why a function cannot be called with these arguments; None if it can, or does not tell."""
    try:
        signature(function).bind(*arguments)
    except TypeError as error:
        return error
    except ValueError:  # a builtin that does not tell its parameters
        return None
    return None


class Parameters(NamedTuple):
    """How many arguments a function takes by position.

    :param required: parameters without a default.
    :param optional: those with one.
    :param has_rest: it takes any number behind these.
    :param keywords: parameters that can only be given by name, and have to be.
    :param first: the name of its first parameter; empty: it has none.
    """

    required: int
    optional: int
    has_rest: bool
    keywords: tuple[str, ...]
    first: str

    def can_take(self, count: int) -> bool:
        """Whether it can be called with so many."""
        return self.required <= count and (self.has_rest or count <= self.required + self.optional)


def parameters_of(function: Callable[..., Any]) -> Parameters | None:
    """A function's parameters; None for a builtin that does not tell them."""
    try:
        found = list(signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    by_position = [
        each for each in found if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    required = sum(each.default is each.empty for each in by_position)
    return Parameters(
        required,
        len(by_position) - required,
        any(each.kind is each.VAR_POSITIONAL for each in found),
        tuple(
            each.name
            for each in found
            if each.kind is each.KEYWORD_ONLY and each.default is each.empty
        ),
        found[0].name if found else "",
    )


def callable_name(function: Callable[..., Any]) -> str:
    """A function as log lines and errors name it; an object by its class."""
    return getattr(function, "__name__", None) or type(function).__name__


def qualified_name(function: Callable[..., Any]) -> str:
    """The same with the classes and functions around it."""
    return getattr(function, "__qualname__", type(function).__name__)


def shown_function(function: Any) -> str:
    """The same where an object is shown as ``repr`` has it, as it may be no function at all."""
    return getattr(function, "__qualname__", None) or repr(function)
