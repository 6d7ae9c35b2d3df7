"""How handlers are called, in terms that type checkers understand.

A handler is checked against the topics it reads, and what is declared stays callable as the plain
function it was. One type has to say both, so each protocol here has two overloads, and a function
must satisfy them all: the first is how the toolkit calls the handler, the second captures the
handler's own signature (``P`` and ``R``). A ``Callable`` cannot say the second beside the first
without losing parameters' names and defaults.

Parameters are contravariant: a handler of a base class or of a wider union is as good.

Nothing here is on a message's way: :meth:`streams.Streams.processor` returns a
:class:`ProcessorDecorator` or a :class:`PublishingDecorator`, which are called once, with the
handler.
"""

# pyright: reportInvalidTypeVarUse=false, reportOverlappingOverload=false
# P and R stand in one overload only, and the overloads overlap: that is how they say two things.

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar, overload

from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.processor import Processor

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
O = TypeVar("O")  # noqa: E741 - what a topic given as to= takes
V = TypeVar("V")
V_contra = TypeVar("V_contra", contravariant=True)
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
Q = TypeVar("Q")
Q_co = TypeVar("Q_co", covariant=True)

Filter: TypeAlias = Callable[[V], bool] | None
"""Says of a value whether it is to be handled; None: every one is."""

HandlerResult: TypeAlias = O | Sequence[O] | Iterator[O] | None
"""What a handler with ``to=`` returns for one message."""


class HandlerOptions(TypedDict, total=False):
    """What :meth:`streams.Streams.processor` takes beside what has to do with types."""

    start: Start | datetime
    concurrency: int
    timeout: float | None
    retry: Retry
    dedup: Dedup
    dead_letters: DeadLetters
    flow: Flow
    exactly_once: bool
    version: int | None
    promote: bool
    on_promote: Callable[[Any], object] | None


class Handler(Protocol[V_contra, P, R_co]):
    """Takes ``(value)``."""

    @overload
    def __call__(self, value: V_contra, /) -> object: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class MessageHandler(Protocol[V_contra, M_contra, P, R_co]):
    """Takes ``(value, message)``."""

    @overload
    def __call__(self, value: V_contra, message: M_contra, /) -> object: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class PublishingHandler(Protocol[V_contra, Q_co, P, R_co]):
    """Takes ``(value)``; what it returns is published."""

    @overload
    def __call__(self, value: V_contra, /) -> Q_co | Awaitable[Q_co]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class PublishingMessageHandler(Protocol[V_contra, M_contra, Q_co, P, R_co]):
    """Takes ``(value, message)``; what it returns is published."""

    @overload
    def __call__(self, value: V_contra, message: M_contra, /) -> Q_co | Awaitable[Q_co]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


# Mypy solves no ParamSpec for positional-only parameters and bound builtins, so each set of
# overloads ends with plain callables, which take what the protocols before them did not fit.


class ProcessorDecorator(Generic[V, M]):
    """The decorator for a handler of ``V``, or of ``V`` and ``M``."""

    def __init__(self, register: Callable[[Any], Any]) -> None:
        self._register = register

    @overload
    def __call__(self, handler: MessageHandler[V, M, P, R], /) -> Processor[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: Handler[V, P, R], /) -> Processor[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: Callable[[V, M], R], /) -> Processor[[V, M], R]: ...
    @overload
    def __call__(self, handler: Callable[[V], R], /) -> Processor[[V], R]: ...
    def __call__(self, handler: Any, /) -> Any:
        """Declare the handler.

        :raises ConfigError: it cannot be one.
        """
        return self._register(handler)


class PublishingDecorator(Generic[V, M, Q]):
    """The decorator for a handler whose result, a ``Q``, is published."""

    def __init__(self, register: Callable[[Any], Any]) -> None:
        self._register = register

    @overload
    def __call__(self, handler: PublishingMessageHandler[V, M, Q, P, R], /) -> Processor[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: PublishingHandler[V, Q, P, R], /) -> Processor[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, handler: Callable[[V, M], Q | Awaitable[Q]], /
    ) -> Processor[[V, M], Any]: ...
    @overload
    def __call__(self, handler: Callable[[V], Q | Awaitable[Q]], /) -> Processor[[V], Any]: ...
    def __call__(self, handler: Any, /) -> Any:
        """Declare the handler.

        :raises ConfigError: it cannot be one.
        """
        return self._register(handler)
