"""Processors: a handler, the topics it reads, and how.

A processor is declared with :meth:`streams.Streams.processor` and stays callable as the plain
function it wraps, so that a unit test calls it like one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from streams.annotation_checks import (
    TopicType,
    check_function,
    check_handler,
    check_result,
)
from streams.callables import (
    is_async,
    is_async_generator,
    is_generator,
    parameters_of,
    qualified_name,
)
from streams.config import DeadLetters, Dedup, Flow, Retry, Start
from streams.connection import Connection
from streams.databases.protocol import Database
from streams.decoding import Source
from streams.errors import ConfigError
from streams.health import (
    InboxStats,
    ProcessorHealth,
    ProcessorStats,
    processor_health,
    processor_stats,
)
from streams.log.names import check_group, check_topic
from streams.log.protocol import Log
from streams.numbers import is_int
from streams.processing.executor import Executor
from streams.processing.job import Job, ManagedAttemptLog, ManagedKeyParking
from streams.processing.poller import Poller
from streams.topic import Topic

P = ParamSpec("P")
R = TypeVar("R")

MAX_VERSION = 2**31 - 1
"""The highest version of a projection: the maximum of an integer column."""

_CONFIG_CLASSES = {"retry": Retry, "dedup": Dedup, "dead_letters": DeadLetters, "flow": Flow}


@dataclass(frozen=True, slots=True)
class ProcessorOptions:
    """All arguments of :meth:`streams.Streams.processor` except the handler."""

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
    transaction: Database[Any] | None = None
    exactly_once: bool = False
    version: int | None = None
    """The version of the projection named ``projection``."""
    projection: str = ""
    promote: bool = True
    on_promote: Callable[[Any], object] | None = None

    def validate(self, name: str) -> None:
        """:raises ConfigError: an option cannot work; the text is one line that says which."""
        for problem in self._problems():
            raise ConfigError(f"processor {name}: {problem}")

    def _problems(self) -> Iterator[str]:
        if not self.topics:
            yield "give at least one topic to read"
        for topic in self.topics:
            if not (hasattr(topic, "name") and hasattr(topic, "decoding")):
                yield f"{topic!r} is not a topic; use app.topic(...)"
        names = [topic.name for topic in self.topics]
        if len(set(names)) != len(names):
            yield f"reads a topic twice: {', '.join(names)}"
        check_group(self.group)
        for option in ("concurrency", "batch"):
            count = getattr(self, option)
            if count is None and option == "batch":
                continue
            if not is_int(count, 1):
                yield f"{option}={count!r}: must be a positive integer"
        seconds = self.timeout
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            yield f"timeout={seconds!r}: must be a positive number of seconds"
        if self.filter is not None and not callable(self.filter):
            yield f"filter={self.filter!r}: a function of the value"
        if self.filter is not None and is_async(self.filter):
            yield "filter is an async function; use a plain one"
        if self.to is not None and not isinstance(self.to, Topic):
            yield f"to={self.to!r}: a topic from app.topic(...)"
        elif self.to is not None and self.to.is_read_only:
            yield (
                f"to={self.to.name!r}: holds the histories of an aggregate, and only its decide() "
                "and append() write to it: call them in the handler"
            )
        yield from self._exactly_once_problems()
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                yield f"start={self.start!r} has no time zone"
        elif self.start not in ("earliest", "latest"):
            yield f"start={self.start!r}: 'earliest', 'latest' or a datetime (log time)"
        for option, kind in _CONFIG_CLASSES.items():
            if not isinstance(getattr(self, option), kind):
                yield f"{option}={getattr(self, option)!r}: use {kind.__name__}(...)"
        if self.dead_letters.sequenced and not self.retry.in_order:
            yield (
                "Retry(in_order=False) gives up the order that DeadLetters(sequenced=True) keeps; "
                "leave one of them out"
            )
        yield from self._transaction_problems()
        yield from self._projection_problems()
        used_names = {*names, *([self.to.name] if self.to is not None else [])}
        for source in names:
            retry_topic = check_topic(self.dead_letters.retry(source, self.group))
            dead_letter_topic = check_topic(self.dead_letters.name(source, self.group))
            if dead_letter_topic in used_names or dead_letter_topic == retry_topic:
                yield (
                    f"dead letters would go to {dead_letter_topic!r}, which it reads or writes "
                    "itself; give DeadLetters(topic=...) another name"
                )

    def _transaction_problems(self) -> Iterator[str]:
        database = self.transaction
        if database is None:
            return
        if not isinstance(database, Database):
            yield (  # not shown: it may be an address, with a password
                f"transaction= is a Psycopg, AsyncPsycopg, Asyncpg, Sqlite, SQLAlchemy or Django, "
                f"such as transaction=Psycopg('postgresql://...'), not a {type(database).__name__}"
            )
            return
        if self.dead_letters.sequenced:
            yield (
                "DeadLetters(sequenced=True) with transaction=: parked messages are settled by "
                "records in the log, which the database does not see; leave one of them out"
            )

    def _projection_problems(self) -> Iterator[str]:
        if not isinstance(self.promote, bool):
            yield f"promote={self.promote!r}: must be True or False"
        if self.on_promote is not None and not callable(self.on_promote):
            yield f"on_promote={self.on_promote!r}: a function of the connection"
        if self.version is None:
            if self.on_promote is not None or not self.promote:
                yield "promote= and on_promote= are for a processor with version="
            return
        if not is_int(self.version, 1, MAX_VERSION):
            yield f"version={self.version!r}: must be a positive integer"
        if self.transaction is None:
            yield (
                f"version={self.version!r} without transaction=: a version is a set of tables in "
                "your own database; for documents in the log, declare a view"
            )
        if self.to is not None:
            yield (
                f"to={self.to.name!r} with version=: a new version handles all messages again, and "
                "would publish all results again; publish in a processor of its own"
            )
        if self.start != "earliest":
            yield f"start={self.start!r} with version=: each version is built from the beginning"

    def _exactly_once_problems(self) -> Iterator[str]:
        if not isinstance(self.exactly_once, bool):
            yield f"exactly_once={self.exactly_once!r}: must be True or False"
        if not self.exactly_once:
            return
        if self.to is None:
            yield (
                "exactly_once=True without to=: only what the handler returns is published exactly "
                "once; give the topic that it goes to as to="
            )
        if self.transaction is not None:
            yield (
                "exactly_once=True with transaction=: the log and the database cannot share a "
                "transaction; leave one of them out"
            )
        if self.dead_letters.sequenced:
            yield (
                "exactly_once=True with DeadLetters(sequenced=True): messages parked behind a dead "
                "one are written outside the transaction; leave one of them out"
            )

    def check_annotations(
        self, name: str, handler: Callable[..., Any], handler_signature: HandlerSignature
    ) -> None:
        """:raises ConfigError: the handler's or the filter's annotations name another type."""
        where = f"processor {name}"
        topic_types = [topic_type_of(topic) for topic in self.topics]
        known = [each for each in topic_types if each is not None]
        if len(known) == len(topic_types):
            if self.filter is not None:
                filter_name = f"{where}: filter {qualified_name(self.filter)}"
                check_function(filter_name, self.filter, known, tombstones=True)
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


def check_database(
    database: Database[Any] | None,
    name: str,
    *,
    asynchronous: bool,
    on_promote: Callable[..., Any] | None,
) -> None:
    """Check that a handler, and a projection's hook, can be called in transactions of a database.

    :raises ConfigError: the handler is async and the transactions are not, or the other way round.
    """
    if database is None:
        return
    if database.supports_handler(asynchronous=asynchronous):
        if on_promote is not None and is_async(on_promote) and not asynchronous:
            raise ConfigError(
                f"processor {name}: on_promote= is an async function, and "
                f"transaction={database.name}(...) is for plain ones; make it a plain `def`"
            )
        return
    if asynchronous:
        advice = {"Psycopg": "AsyncPsycopg", "SQLAlchemy": "SQLAlchemy(async_sessionmaker(...))"}
        other = advice.get(database.name)
        raise ConfigError(
            f"processor {name}: its handler is async, and transaction={database.name}(...) would "
            f"block the event loop; make it a plain `def`{f', or use {other}' if other else ''}"
        )
    advice = {"AsyncPsycopg": "Psycopg", "SQLAlchemy": "SQLAlchemy(sessionmaker(...))"}
    other = advice.get(database.name)
    raise ConfigError(
        f"processor {name}: its handler is a plain function, and transaction={database.name}(...) "
        f"is for async ones; make it `async def`{f', or use {other}' if other else ''}"
    )


class ProcessorInbox(Protocol):
    """Runs a processor's handler in transactions of a database."""

    stats: InboxStats

    def wrap(self, job: Job) -> Job:
        """The same job, with its handler in a transaction."""
        ...


class ProcessorProjection(Protocol):
    """A version of a projection."""

    name: str
    version: int
    serving: int | None
    """The version whose tables are to be read, as last seen; None: none can be read yet."""


class HandlerSignature(NamedTuple):
    """How a handler is to be called."""

    asynchronous: bool
    wants_message: bool


class Processor(Generic[P, R]):
    """A declared processor. Calling it only calls the handler."""

    shares_group = False
    """Whether another processor of the app may read its topic in the same group, as a member."""
    has_group_topics = True
    """Whether it reads as a member of a group, with a start, a dead letter and a retry topic."""
    has_own_options = True
    """Whether the app chooses its retries and its deduplication; some of the toolkit's own
    processors need fixed ones."""

    def __init__(self, function: Callable[P, R], options: ProcessorOptions, name: str) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function = function
        self.options = options
        self.name = name
        self.group = options.group
        options.validate(name)
        self.topics: tuple[str, ...] = tuple(topic.name for topic in options.topics)
        batch, publishes = options.batch is not None, options.to is not None
        self.signature = inspect_handler(function, name, batch=batch, publishes_result=publishes)
        check_database(
            options.transaction,
            name,
            asynchronous=self.signature.asynchronous,
            on_promote=options.on_promote,
        )
        options.check_annotations(name, function, self.signature)
        self.attempt_log: ManagedAttemptLog | None = None
        """Counts its attempts in the log, if its :class:`~streams.config.Retry` requires it."""
        self.key_parking: ManagedKeyParking | None = None
        """Closes keys behind dead messages, if its dead letters are sequenced."""
        self.inbox: ProcessorInbox | None = None
        """Runs its handler in transactions of a database, if it has ``transaction=``."""
        self.projection: ProcessorProjection | None = None
        """The version of a projection that it is, if it has ``version=``."""
        self.helpers: list[Processor[..., Any]] = []
        """Processors that work for this one: they start before it and stop after it."""
        self.executor: Executor | None = None
        """Runs its handler, while it runs."""
        self.poller: Poller | None = None
        """Reads its topics, while it runs."""
        self.end_reason: str | None = None
        """Why it ended, if it was not stopped; reset when it is started again."""
        self.paused = False
        """Whether it is paused (:meth:`pause`)."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the handler, as the plain function it is."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Processor {self.name!r} of {', '.join(self.topics)} in group {self.group!r}>"

    def pause(self) -> None:
        """Start no further handler until :meth:`resume`; the process stays in its group."""
        self.paused = True
        if self.poller is not None:
            self.poller.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`, with the very next message."""
        self.paused = False
        if self.poller is not None:
            self.poller.resume()

    def stats(self) -> ProcessorStats | None:
        """Its current statistics; None: it does not run."""
        if self.executor is None or self.poller is None:
            return None
        return processor_stats(self.executor, self.poller, self._inbox_stats())

    def health(self) -> ProcessorHealth:
        """Its health."""
        return processor_health(
            self.executor,
            self.poller,
            paused=self.paused,
            end_reason=self.end_reason,
            inbox=self._inbox_stats(),
        )

    def _inbox_stats(self) -> InboxStats | None:
        return None if self.inbox is None else self.inbox.stats

    # -- hooks for special processors

    def ensure_topics(self, connection: Connection) -> None:
        """Create further topics that it needs beside its group's (off the loop)."""

    def adapt_job(self, job: Job) -> Job:
        """The job that its executor runs instead of ``job``."""
        return job

    def subscribed_log(self, connection: Connection) -> Log:
        """The log that it subscribes to."""
        return connection.log


ProcessorClass: TypeAlias = Callable[[Callable[P, R], ProcessorOptions, str], Processor[P, R]]
"""A class of processors, or a factory: called with a function, its options and a name."""


def topic_type_of(topic: Source[Any] | None) -> TopicType | None:
    """A topic and its type; None: nothing is known about its values."""
    return topic.topic_type if isinstance(topic, Topic) else None


def _in_class_body(function: Callable[..., Any]) -> bool:
    """Whether it is a plain function of a class body that is not bound to an instance."""
    within = getattr(function, "__qualname__", "").rpartition(".")[0]
    return inspect.isfunction(function) and bool(within) and not within.endswith("<locals>")


def inspect_handler(
    function: Callable[..., Any], name: str, *, batch: bool, publishes_result: bool = False
) -> HandlerSignature:
    """How this handler is to be called, from the number of its parameters without a default.

    :param publishes_result: its result is published (``to=``).
    :raises ConfigError: the function cannot be a handler.
    """
    expected = "(values) or (values, messages)" if batch else "(value) or (value, message)"

    def refuse(problem: str) -> ConfigError:
        return ConfigError(f"processor {name}: {problem}")

    if isinstance(function, classmethod):
        raise refuse(
            f"{function.__qualname__} is a class method, and has no class yet; declare it after "
            "the class body, as app.processor(...)(Service.handle)"
        )
    if not callable(function):
        raise refuse(f"{function!r} is not a function")
    if inspect.isclass(function):
        raise refuse(f"{name} is a class; give a function {expected}")
    if is_async_generator(function):
        raise refuse("the handler is an async generator; return a list for to= instead")
    if not publishes_result and is_generator(function):
        raise refuse(
            "the handler is a generator, and without to= nothing would run it; remove the "
            "yield, or give to= the topic for what it yields"
        )
    asynchronous, parameters = is_async(function), parameters_of(function)
    if parameters is None:
        return HandlerSignature(asynchronous, False)  # a builtin such as print or list.append
    if parameters.first in ("self", "cls") and _in_class_body(function):
        raise refuse(
            f"{function.__qualname__} is declared in a class body, where its "
            f"{parameters.first!r} would get the value; declare the method of an instance instead, "
            "as app.processor(...)(service.handle), or a @staticmethod"
        )
    if parameters.keywords:
        raise refuse(
            f"parameter {parameters.keywords[0]!r} is keyword-only without a default; a handler is "
            f"called as {expected}"
        )
    required = parameters.required
    if not (parameters.can_take(1) or parameters.can_take(2)):
        raise refuse(f"the handler takes {required} parameters; it is called as {expected}")
    return HandlerSignature(asynchronous, required == 2)
