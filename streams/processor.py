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
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from streams.annotation_checks import (
    TopicType,
    check_function,
    check_handler,
    check_result,
    function_name,
    signature,
)
from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.connection import Connection
from streams.decoding import Source
from streams.errors import ConfigError
from streams.log.names import check_group, check_topic
from streams.log.protocol import Log
from streams.processing.executor import Executor
from streams.processing.job import Job, ManagedAttemptLog, ManagedKeyParking
from streams.processing.poller import Poller
from streams.topic import Topic

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ProcessorOptions:
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

    def validate(self, name: str) -> None:
        """:raises ConfigError: something here cannot work; one line that says what."""
        where = f"processor {name}"
        if not self.topics:
            raise ConfigError(f"{where}: give at least one topic to read")
        for topic in self.topics:
            if not (hasattr(topic, "name") and hasattr(topic, "decoding")):
                raise ConfigError(f"{where}: {topic!r} is not a topic; use app.topic(...)")
        names = [topic.name for topic in self.topics]
        if len(set(names)) != len(names):
            raise ConfigError(f"{where}: reads a topic twice: {', '.join(names)}")
        check_group(self.group)
        for option, least in (("concurrency", 1), ("batch", 1)):
            value = getattr(self, option)
            if value is None and option == "batch":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{where}: {option}={value!r}: a whole number from {least}")
        seconds = self.timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise ConfigError(f"{where}: timeout={seconds!r}: seconds, more than 0")
        if self.filter is not None and not callable(self.filter):
            raise ConfigError(f"{where}: filter={self.filter!r}: a function of the value")
        if self.filter is not None and inspect.iscoroutinefunction(self.filter):
            raise ConfigError(f"{where}: filter is an async function; use a plain one")
        if self.to is not None and not isinstance(self.to, Topic):
            raise ConfigError(f"{where}: to={self.to!r}: a topic from app.topic(...)")
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                raise ConfigError(f"{where}: start={self.start!r} has no time zone")
        elif self.start not in ("earliest", "latest"):
            raise ConfigError(
                f"{where}: start={self.start!r}: 'earliest', 'latest' or a datetime (log time)"
            )
        for option, kind in (
            ("retry", Retry),
            ("dedup", Dedup),
            ("dead_letters", DeadLetters),
            ("flow", Flow),
        ):
            if not isinstance(getattr(self, option), kind):
                raise ConfigError(
                    f"{where}: {option}={getattr(self, option)!r}: use {kind.__name__}(...)"
                )
        if self.dead_letters.sequenced and not self.retry.in_order:
            raise ConfigError(
                f"{where}: Retry(in_order=False) gives the order up that "
                "DeadLetters(sequenced=True) "
                "keeps; leave one of them out"
            )
        used_names = {*names, *([self.to.name] if self.to is not None else [])}
        for topic_name in names:
            retry_topic = check_topic(self.dead_letters.retry(topic_name, self.group))
            dead_letter_topic = check_topic(self.dead_letters.name(topic_name, self.group))
            if dead_letter_topic in used_names or dead_letter_topic == retry_topic:
                raise ConfigError(
                    f"{where}: dead letters would go to {dead_letter_topic!r}, which it reads or "
                    "writes itself; "
                    "give DeadLetters(topic=...) another name"
                )

    def check_annotations(
        self, name: str, handler: Callable[..., Any], handler_signature: HandlerSignature
    ) -> None:
        """:raises ConfigError: the handler's or the filter's annotations are of another type."""
        where = f"processor {name}"
        topic_types = [topic_type_of(topic) for topic in self.topics]
        known = [each for each in topic_types if each is not None]
        if len(known) == len(topic_types):
            if self.filter is not None:
                check_function(
                    f"{where}: filter {function_name(self.filter)}",
                    self.filter,
                    known,
                    tombstones=True,
                )
            check_handler(
                where,
                handler,
                known,
                batch=self.batch is not None,
                wants_message=handler_signature.wants_message,
                has_filter=self.filter is not None,
            )
        target_type = topic_type_of(self.to)
        if target_type is not None:
            check_result(where, handler, target_type, batch=self.batch is not None)


class HandlerSignature(NamedTuple):
    """How a handler wants to be called."""

    asynchronous: bool
    wants_message: bool


class Processor(Generic[P, R]):
    """A declared processor. Calling it calls the handler, nothing else."""

    shares_group = False
    """Another processor of the app may read its topic in the same group: two members of it."""
    has_group_topics = True
    """It reads as a member of a group, which has a start, a dead letter and a retry topic."""

    def __init__(self, function: Callable[P, R], options: ProcessorOptions, name: str) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.options = options
        self.name = name
        self.group = options.group
        options.validate(name)
        self.topics: tuple[str, ...] = tuple(topic.name for topic in options.topics)
        batch = options.batch is not None
        self.signature = inspect_handler(
            function, name, batch=batch, publishes_result=options.to is not None
        )
        options.check_annotations(name, function, self.signature)
        self.attempt_log: ManagedAttemptLog | None = None
        """Counts its attempts in the log, if its :class:`~streams.config.Retry` says so."""
        self.key_parking: ManagedKeyParking | None = None
        """Keeps keys closed behind dead messages, if its dead letters are sequenced."""
        self.helpers: list[Processor[..., Any]] = []
        """Processors that work for this one: they start before it and stop after it."""
        self.executor: Executor | None = None
        """Runs its handler, while it runs."""
        self.poller: Poller | None = None
        """Reads its topics, while it runs."""
        self.end_reason: str | None = None
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
        if self.poller is not None:
            self.poller.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`, with the very next message."""
        self._paused = False
        if self.poller is not None:
            self.poller.resume()

    # -- what a processor of a special kind changes

    def ensure_topics(self, connection: Connection) -> None:
        """Create what it needs in the log beside its group's topics (off the loop)."""

    def adapt_job(self, job: Job) -> Job:
        """What its executor runs instead of ``job``."""
        return job

    def subscribed_log(self, connection: Connection) -> Log:
        """The log that it subscribes to."""
        return connection.log

    @property
    def paused(self) -> bool:
        """Whether :meth:`pause` was called last."""
        return self._paused


def topic_type_of(topic: Source[Any] | None) -> TopicType | None:
    """A topic and its type; None where nothing is known about its values."""
    return topic.topic_type if isinstance(topic, Topic) else None


def _in_class_body(function: Callable[..., Any]) -> bool:
    """Whether it is a plain function that stands in a class: nobody has bound it to an instance."""
    within = getattr(function, "__qualname__", "").rpartition(".")[0]
    return inspect.isfunction(function) and bool(within) and not within.endswith("<locals>")


def inspect_handler(
    function: Callable[..., Any], name: str, *, batch: bool, publishes_result: bool = False
) -> HandlerSignature:
    """How this handler wants to be called: parameters without a default are counted.

    :param publishes_result: what it returns is published (``to=``).
    :raises ConfigError: it cannot be a handler.
    """
    expected = "(values) or (values, messages)" if batch else "(value) or (value, message)"
    if isinstance(function, classmethod):
        raise ConfigError(
            f"processor {name}: {function.__qualname__} is a class method, and has no class yet; "
            "declare it after the class body, as app.processor(...)(Service.handle)"
        )
    if not callable(function):
        raise ConfigError(f"processor {name}: {function!r} is not a function")
    if inspect.isclass(function):
        raise ConfigError(f"processor {name}: {name} is a class; give a function {expected}")
    target = function
    while isinstance(target, functools.partial):
        target = target.func
    call_method = getattr(target, "__call__", None)  # noqa: B004 - an object may be called as well
    if inspect.isasyncgenfunction(target) or inspect.isasyncgenfunction(call_method):
        raise ConfigError(
            f"processor {name}: the handler is an async generator; return a list for to= instead"
        )
    if not publishes_result and (
        inspect.isgeneratorfunction(target) or inspect.isgeneratorfunction(call_method)
    ):
        raise ConfigError(
            f"processor {name}: the handler is a generator, and without to= nothing would run it; "
            "take out the yield, or say where to=... what it yields goes"
        )
    asynchronous = inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(call_method)
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return HandlerSignature(asynchronous, False)  # a builtin such as print or list.append
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
                f"default; a handler is called as {expected}"
            )
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            required += 1
    variadic = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    optional = any(
        each.default is not each.empty and each.kind is not each.KEYWORD_ONLY for each in parameters
    )
    if required > 2 or (required == 0 and not (variadic or optional)):
        raise ConfigError(
            f"processor {name}: the handler takes {required} parameters; it is called as {expected}"
        )
    return HandlerSignature(asynchronous, required == 2)
