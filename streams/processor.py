"""Processors: a handler, the topics it reads, and how.

A processor is declared with :meth:`streams.Streams.processor` and stays callable as the plain
function it wraps, so that a unit test calls it like one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from streams.annotations import (
    Typed,
    check_function,
    check_handler,
    check_result,
    name_of,
    signature,
)
from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.errors import ConfigError
from streams.log.names import check_group, check_topic
from streams.topic import Source, Topic

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.runners.base import Runner
    from streams.runners.job import Job, Kept, Ordered
    from streams.runners.pump import Pump

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Options:
    """Everything :meth:`streams.Streams.processor` was told but the handler."""

    topics: tuple[Source[Any], ...]
    group: str
    concurrency: int = 1
    batch: int | None = None
    filter: Callable[[Any], bool] | None = None
    to: Topic[Any] | None = None
    start: Start | datetime = "earliest"
    timeout: float | None = None
    retry: Retry = Retry()
    dedup: Dedup = Dedup()
    dead_letters: DeadLetters = DeadLetters()
    flow: Flow = Flow()

    def check(self, name: str) -> None:
        """:raises ConfigError: something here cannot work; one line that says what."""
        at = f"processor {name}"
        if not self.topics:
            raise ConfigError(f"{at}: give at least one topic to read")
        for topic in self.topics:
            if not (hasattr(topic, "name") and hasattr(topic, "decoding")):
                raise ConfigError(f"{at}: {topic!r} is not a topic; use app.topic(...)")
        names = [topic.name for topic in self.topics]
        if len(set(names)) != len(names):
            raise ConfigError(f"{at}: reads a topic twice: {', '.join(names)}")
        check_group(self.group)
        for option, least in (("concurrency", 1), ("batch", 1)):
            value = getattr(self, option)
            if value is None and option == "batch":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{at}: {option}={value!r}: a whole number from {least}")
        seconds = self.timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise ConfigError(f"{at}: timeout={seconds!r}: seconds, more than 0")
        if self.filter is not None and not callable(self.filter):
            raise ConfigError(f"{at}: filter={self.filter!r}: a function of the value")
        if self.filter is not None and inspect.iscoroutinefunction(self.filter):
            raise ConfigError(f"{at}: filter is an async function; use a plain one")
        if self.to is not None and not isinstance(self.to, Topic):
            raise ConfigError(f"{at}: to={self.to!r}: a topic from app.topic(...)")
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                raise ConfigError(f"{at}: start={self.start!r} has no time zone")
        elif self.start not in ("earliest", "latest"):
            raise ConfigError(
                f"{at}: start={self.start!r}: 'earliest', 'latest' or a datetime (log time)"
            )
        for option, kind in (
            ("retry", Retry),
            ("dedup", Dedup),
            ("dead_letters", DeadLetters),
            ("flow", Flow),
        ):
            if not isinstance(getattr(self, option), kind):
                raise ConfigError(
                    f"{at}: {option}={getattr(self, option)!r}: use {kind.__name__}(...)"
                )
        if self.dead_letters.sequenced and not self.retry.in_order:
            raise ConfigError(
                f"{at}: Retry(in_order=False) gives the order up that DeadLetters(sequenced=True) "
                "keeps; leave one of them out"
            )
        taken = {*names, *([self.to.name] if self.to is not None else [])}
        for topic_name in names:
            retry = check_topic(self.dead_letters.retry(topic_name, self.group))
            dead = check_topic(self.dead_letters.name(topic_name, self.group))
            if dead in taken or dead == retry:
                raise ConfigError(
                    f"{at}: dead letters would go to {dead!r}, which it reads or writes itself; "
                    "give DeadLetters(topic=...) another name"
                )

    def check_types(self, name: str, handler: Callable[..., Any], form: Shape) -> None:
        """:raises ConfigError: the handler's or the filter's annotations are of another type."""
        at = f"processor {name}"
        read = [typed(topic) for topic in self.topics]
        known = [each for each in read if each is not None]
        if len(known) == len(read):
            if self.filter is not None:
                check_function(
                    f"{at}: filter {name_of(self.filter)}", self.filter, known, tombstones=True
                )
            check_handler(
                at,
                handler,
                known,
                batch=self.batch is not None,
                wants_message=form.wants_message,
                filtered=self.filter is not None,
            )
        to = typed(self.to)
        if to is not None:
            check_result(at, handler, to, batch=self.batch is not None)


class Shape(NamedTuple):
    """How a handler wants to be called."""

    asynchronous: bool
    wants_message: bool


class Processor(Generic[P, R]):
    """A declared processor. Calling it calls the handler, nothing else."""

    shares = False
    """Another processor of the app may read its topic in the same group: two members of it."""

    def __init__(self, function: Callable[P, R], options: Options, name: str) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.options = options
        self.name = name
        self.group = options.group
        options.check(name)
        self.topics: tuple[str, ...] = tuple(topic.name for topic in options.topics)
        batch = options.batch is not None
        self.shape = shape(function, name, batch=batch, returns=options.to is not None)
        options.check_types(name, function, self.shape)
        self.late: Kept | None = None
        """Counts its attempts in the log, if its :class:`~streams.config.Retry` says so."""
        self.sequence: Ordered | None = None
        """Keeps keys closed behind dead messages, if its dead letters are sequenced."""
        self.companions: list[Processor[..., Any]] = []
        """Processors that work for this one: they start before it and stop after it."""
        self._runner: Runner | None = None
        self._pump: Pump | None = None
        self._died: str | None = None
        """Why it ended, if not because it was stopped; until it is started again."""
        self._paused = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the handler, as the plain function it is."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Processor {self.name!r} of {', '.join(self.topics)} in group {self.group!r}>"

    def pause(self) -> None:
        """Start no further handler until :meth:`resume`; the process stays in its group."""
        self._paused = True
        if self._pump is not None:
            self._pump.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`, with the very next message."""
        self._paused = False
        if self._pump is not None:
            self._pump.resume()

    # -- what the app asks when it starts it

    def prepare(self, app: Streams) -> None:
        """See to it that there is what it needs in the log (off the loop)."""
        app._prepare_processor(self)

    def job(self, app: Streams) -> Job:
        """What its runner runs."""
        return app._job(self)

    def source(self, app: Streams) -> Log:
        """The log that it subscribes to."""
        return app.log

    @property
    def paused(self) -> bool:
        """Whether :meth:`pause` was called last."""
        return self._paused


def typed(topic: Source[Any] | None) -> Typed | None:
    """A topic and its type; None where nothing is known about its values."""
    return topic.typed if isinstance(topic, Topic) else None


def _in_class_body(function: Callable[..., Any]) -> bool:
    """Whether it is a plain function that stands in a class: nobody has bound it to an instance."""
    within = getattr(function, "__qualname__", "").rpartition(".")[0]
    return inspect.isfunction(function) and bool(within) and not within.endswith("<locals>")


def shape(function: Callable[..., Any], name: str, *, batch: bool, returns: bool = False) -> Shape:
    """How this handler wants to be called: parameters without a default are counted.

    :param returns: what it returns is published (``to=``).
    :raises ConfigError: it cannot be a handler.
    """
    what = "(values) or (values, messages)" if batch else "(value) or (value, message)"
    if isinstance(function, classmethod):
        raise ConfigError(
            f"processor {name}: {function.__qualname__} is a class method, and has no class yet; "
            "declare it after the class body, as app.processor(...)(Service.handle)"
        )
    if not callable(function):
        raise ConfigError(f"processor {name}: {function!r} is not a function")
    if inspect.isclass(function):
        raise ConfigError(f"processor {name}: {name} is a class; give a function {what}")
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    call = getattr(target, "__call__", None)  # noqa: B004 - an object may be called as well
    if inspect.isasyncgenfunction(target) or inspect.isasyncgenfunction(call):
        raise ConfigError(
            f"processor {name}: the handler is an async generator; return a list for to= instead"
        )
    if not returns and (inspect.isgeneratorfunction(target) or inspect.isgeneratorfunction(call)):
        raise ConfigError(
            f"processor {name}: the handler is a generator, and without to= nothing would run it; "
            "take out the yield, or say where to=... what it yields goes"
        )
    asynchronous = inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(call)
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return Shape(asynchronous, False)  # a builtin such as print or list.append
    first = next(iter(parameters), None)
    if first is not None and first.name in ("self", "cls") and _in_class_body(function):
        raise ConfigError(
            f"processor {name}: {function.__qualname__} is declared in a class body, where its "
            f"{first.name!r} would get the value; declare the method of an instance instead, as "
            "app.processor(...)(service.handle), or a @staticmethod"
        )
    required = 0
    for parameter in parameters:
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise ConfigError(
                f"processor {name}: parameter {parameter.name!r} is keyword-only without a "
                f"default; a handler is called as {what}"
            )
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            required += 1
    variadic = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    optional = any(
        each.default is not each.empty and each.kind is not each.KEYWORD_ONLY for each in parameters
    )
    if required > 2 or (required == 0 and not (variadic or optional)):
        raise ConfigError(
            f"processor {name}: the handler takes {required} parameters; it is called as {what}"
        )
    return Shape(asynchronous, required == 2)
