"""A saga's steps: their names, their actions and compensations, and their retries."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from streams.annotation_checks import ArgumentType, check_arguments
from streams.callables import is_async, is_generator, parameters_of
from streams.config import Retry
from streams.errors import ConfigError
from streams.numbers import is_seconds

C = TypeVar("C")

Action = (
    Callable[[C], Awaitable[C | None] | C | None]
    | Callable[[C, "StepCall"], Awaitable[C | None] | C | None]
)
"""A step's action: it takes the context, or the context and the call, and returns None (it changed
the context in place) or a new context."""

NO_RETRY = Retry(attempts=1)
"""The default: a step that fails is not retried."""


@dataclass(frozen=True, slots=True)
class StepCall:
    """One call of a step, passed to functions that have a second parameter.

    :param saga: the orchestrator's name.
    :param saga_id: which saga.
    :param step: the step's name.
    :param attempt: the number of the call of this step, from 1. After a crash a call may be
        repeated with the same number.
    :param compensating: whether the compensation is called.
    """

    saga: str
    saga_id: str
    step: str
    attempt: int = 1
    compensating: bool = False

    @property
    def idempotency_key(self) -> str:
        """The same for every call of this step in this saga, and for no other; the compensation
        has one of its own. A service that acts once per key acts once per saga."""
        key = f"{self.saga}/{self.saga_id}/{self.step}"
        return f"{key}/undo" if self.compensating else key


@dataclass(frozen=True)
class SagaStep(Generic[C]):
    """One step of a saga.

    :param name: unique among the steps of the saga. A durable saga finds its steps by name,
        so it must survive changes of the code.
    :param execute: ``(context)`` or ``(context, call)``, async or plain (a plain one runs in a
        worker thread). It changes the context, or returns a new one.
    :param compensate: undoes it, called the same way; None if there is nothing to undo.
    :param retry: how a failing ``execute`` is retried; by default it is not. ``Reject`` and
        ``RetryAfter`` have the same meaning as in a handler.
    :param compensation_retry: the same for ``compensate``.
    :param timeout: seconds for one call of either, which must then be async.
    :param compensate_failed: when ``execute`` has failed for good, call its own ``compensate``
        too: it may have had a part of its effect, or all of it with the answer lost.
    :raises ConfigError: any of these cannot work.
    """

    name: str
    execute: Action[C]
    compensate: Action[C] | None = None
    retry: Retry = NO_RETRY
    compensation_retry: Retry = Retry()
    timeout: float | None = None
    compensate_failed: bool = False

    def __post_init__(self) -> None:
        where = f"saga step {self.name!r}"
        if not isinstance(self.name, str) or not self.name or len(self.name) > 200:
            raise ConfigError(f"{where}: a step's name is a str of 1 to 200 characters")
        if not self.name.isprintable():
            raise ConfigError(f"{where}: a step's name is printable text on one line")
        for option in ("retry", "compensation_retry"):
            found: object = getattr(self, option)
            if not isinstance(found, Retry):
                raise ConfigError(f"{where}: {option}={found!r}: use Retry(...)")
            if not found.in_order:
                raise ConfigError(f"{where}: {option}: in_order=False means nothing within a saga")
        seconds: object = self.timeout
        if seconds is not None and not is_seconds(seconds):
            raise ConfigError(f"{where}: timeout={seconds!r}: must be a positive number of seconds")
        if self.compensate_failed and self.compensate is None:
            raise ConfigError(f"{where}: compensate_failed=True without a compensate")
        object.__setattr__(
            self, "_execute", _inspect_action(where, "execute", self.execute, seconds)
        )
        if self.compensate is not None:
            found = _inspect_action(where, "compensate", self.compensate, seconds)
            object.__setattr__(self, "_compensate", found)

    def check_context(self, saga: str, type: Any) -> None:
        """
        :param type: the type of the contexts that this saga's steps get.
        :raises ConfigError: one of its functions is annotated with another type.
        """
        for option, function in (("execute", self.execute), ("compensate", self.compensate)):
            if function is not None:
                where = f"saga {saga!r}: step {self.name!r}: {option}"
                # In a union a step may be known to get only the type that the step before it
                # returned.
                check_arguments(where, function, ArgumentType(type), any_part=True)

    def action(self, call: StepCall) -> StepAction:
        """The action of a call, as a function of the context."""
        found: StepAction = getattr(self, "_compensate" if call.compensating else "_execute")
        return StepAction(partial(found.function, call=call), found.asynchronous)


class StepAction(NamedTuple):
    """A step's function or its compensation, however many parameters it has."""

    function: Callable[..., Any]
    """Called as ``function(context, call=...)``."""
    asynchronous: bool


def _inspect_action(where: str, option: str, function: Any, timeout: object) -> StepAction:
    """:raises ConfigError: it cannot be called as an action."""
    expected = "(context) or (context, call)"
    if not callable(function) or inspect.isclass(function):
        raise ConfigError(f"{where}: {option}={function!r}: give a function {expected}")
    if is_generator(function):
        raise ConfigError(f"{where}: {option} is a generator, and nothing would run it")
    asynchronous = is_async(function)
    if timeout is not None and not asynchronous:
        raise ConfigError(
            f"{where}: timeout={timeout:g} and a plain {option}, which cannot be interrupted: make "
            "it async def, or leave timeout out"
        )
    return StepAction(_adapt_action(where, option, function, expected), asynchronous)


def _adapt_action(where: str, option: str, function: Any, expected: str) -> Callable[..., Any]:
    parameters = parameters_of(function)
    if parameters is None:
        return lambda context, call: function(context)
    if parameters.keywords:
        raise ConfigError(
            f"{where}: {option} needs {parameters.keywords[0]!r} by keyword; it is called "
            f"{expected}"
        )
    required = parameters.required
    if not (parameters.can_take(1) or parameters.can_take(2)):
        raise ConfigError(f"{where}: {option} takes {required} parameters; it is called {expected}")
    if required == 2:
        check_arguments(f"{where}: {option}", function, ArgumentType(Any), ArgumentType(StepCall))
        return lambda context, call: function(context, call)
    return lambda context, call: function(context)
