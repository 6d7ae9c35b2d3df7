"""Calling an operation of the user's once: ``async def``, a lambda around a call, or a plain
function.

A plain function runs in a worker thread, as plain handlers do, so that it never blocks the loop.
No thread can be interrupted: a cancelled caller waits for its end, and is cancelled then
(:mod:`streams.cancellation`), so that no resource is released that is still in use.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streams.callables import is_async, unwrap_partial
from streams.cancellation import run_to_completion
from streams.errors import ConfigError
from streams.patterns.arguments import check_callable

T = TypeVar("T")


def check_operation(operation: object, where: str, *arguments: str) -> None:
    """Refuse an operation that cannot be called.

    :param where: the call as users should write it.
    :param arguments: the names of its arguments.
    :raises ConfigError: it is, most likely, the result of a call; or it takes other arguments.
    """
    if callable(operation) and not (arguments and inspect.isclass(operation)):
        # For a function this is cheap; for other callables it takes longer than the call may.
        code = getattr(operation, "__code__", None)
        bound_self = getattr(operation, "__self__", None) is not None
        if code is not None and (
            code.co_argcount != len(arguments) + bound_self or code.co_kwonlyargcount
        ):
            check_callable(operation, where, *arguments)
        return
    if inspect.iscoroutine(operation):
        operation.close()  # it is never awaited, of which Python would warn
    raise ConfigError(
        f"{where}: give the function itself, or a lambda around the call, not a "
        f"{type(operation).__name__}"
    )


def runs_in_thread(operation: Callable[..., Any]) -> bool:
    """Whether it would block its caller. A lambda does not: it binds arguments to a call."""
    if is_async(operation):
        return False
    return getattr(unwrap_partial(operation), "__name__", "") != "<lambda>"


async def call_operation(operation: Callable[..., Any], *args: Any) -> Any:
    """Call it on the loop or in a thread, and await its result if that is awaitable."""
    if runs_in_thread(operation):
        result = await asyncio.to_thread(operation, *args)
    else:
        result = operation(*args)
    return await result if inspect.isawaitable(result) else result


async def await_call(operation: Callable[..., Any], call: Awaitable[T]) -> T:
    """Await a call of an operation; to its end if it runs in a thread."""
    return await (run_to_completion(call) if runs_in_thread(operation) else call)
