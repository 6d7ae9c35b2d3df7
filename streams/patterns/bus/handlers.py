"""Calling handlers, and reporting their errors.

An async handler is awaited on the loop; a plain one runs in a worker thread, so that it cannot
block the loop, or on a local bus in place while it is fast
(:mod:`streams.patterns.bus.inline_policy`). An error of one handler is reported to the bus's error
hook only.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from streams.annotation_checks import ArgumentType, check_arguments
from streams.callables import call_error, callable_name, is_async, is_generator
from streams.errors import ConfigError
from streams.patterns.bus.event import Event
from streams.text import get_logger

logger = get_logger("streams.bus")

Handler = Callable[[Event], Any]
"""Called with an :class:`Event`; ``async def`` or plain. Its result is not used."""

PlainCaller = Callable[[Handler, Event], Awaitable[Any]]

ErrorHook = Callable[[Exception, Event, "Handler | None"], Any]
"""Called on the loop with the exception, the event, and the handler that raised it (None: the
event's data cannot be decoded); ``async def``, or plain and fast."""


def check_handler(handler: Callable[..., Any], event: type = Event) -> bool:
    """Whether a handler is async.

    :param event: the class of the handler's argument.
    :raises ConfigError: it cannot be called with an event, or is annotated with another type.
    """
    expected = "give a function of one event, `async def handle(event): ...` or plain"
    if not callable(handler) or inspect.isclass(handler):
        raise ConfigError(f"handler {handler!r}: {expected}")
    where = f"handler {callable_name(handler)}"
    if is_generator(handler):
        raise ConfigError(f"{where}: a generator would not be run; {expected}")
    error = call_error(handler, None)
    if error is not None:
        raise ConfigError(f"{where}: {error}; {expected}") from error
    check_arguments(where, handler, ArgumentType(event))
    return is_async(handler)


def check_error_hook(hook: ErrorHook | None) -> ErrorHook:
    """The hook; without one, errors are logged.

    :raises ConfigError: it cannot be called as one.
    """
    if hook is None:
        return log_error
    if not callable(hook):
        raise ConfigError(f"on_error={hook!r}: a function of (error, event, handler)")
    where, error = f"on_error={callable_name(hook)}", call_error(hook, None, None, None)
    if error is not None:
        raise ConfigError(f"{where}: {error}; it is called as (error, event, handler)") from error
    check_arguments(where, hook, ArgumentType(Any), ArgumentType(Event))
    return hook


def log_error(error: Exception, event: Event, handler: Handler | None) -> None:
    """The default error hook."""
    description = "cannot be decoded" if handler is None else f"failed in {callable_name(handler)}"
    logger.error("%r %s: %r", event, description, error, exc_info=error)


async def call_handler(
    handler: Handler, event: Event, *, asynchronous: bool, in_thread: PlainCaller | None = None
) -> None:
    """Run a handler.

    :param in_thread: calls a plain one in a worker thread; None: directly.
    :raises Exception: the handler's error. A cancellation that is not ours but came out of
        something it awaited is a failure like others, and is raised as ``RuntimeError``.
    """
    try:
        if asynchronous:
            await handler(event)
            return
        if in_thread is None:
            result = await asyncio.to_thread(call_plain, handler, event)
        else:
            result = await in_thread(handler, event)
        if inspect.isawaitable(result):  # a lambda around a coroutine function
            await result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise inner_cancellation_error(handler) from error


def call_plain(handler: Handler, event: Event) -> Any:
    """Call a plain handler, in whatever thread.

    :raises Exception: the handler's error; ``RuntimeError`` for ``StopIteration``, which no future
        can hold, so that its caller would wait forever.
    """
    try:
        return handler(event)
    except StopIteration as error:
        raise without_stop_iteration(handler, error) from error


def without_stop_iteration(handler: Handler, error: Exception) -> Exception:
    """The error of a plain handler as it is reported, whether it ran in a thread or in place."""
    if not isinstance(error, StopIteration):
        return error
    replacement = RuntimeError(f"{callable_name(handler)} raised StopIteration")
    replacement.__cause__ = error
    return replacement


def inner_cancellation_error(handler: Handler) -> RuntimeError:
    """The error for a cancellation that is not ours."""
    return RuntimeError(f"{callable_name(handler)} was cancelled from within")


async def report_error(
    hook: ErrorHook, error: Exception, event: Event, handler: Handler | None
) -> None:
    """Call the hook. If the hook fails, that is logged beside the error and not raised."""
    try:
        result = hook(error, event, handler)
        if inspect.isawaitable(result):
            await result
    except Exception as failure:
        logger.error("the error hook %s failed: %r", callable_name(hook), failure, exc_info=failure)
        log_error(error, event, handler)
