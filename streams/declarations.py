"""The declarations of an app before it runs: its log, its topics, its processors.

Nothing here accesses the log. :class:`streams.app.Streams` adds the lifecycle to them.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from itertools import chain, count
from typing import Any, Literal, Never, ParamSpec, Protocol, Unpack, cast, overload

from typing_extensions import TypeForm, TypeVar

from stream_codecs import Codec
from streams.annotation_checks import unpublished_result
from streams.callables import call_error, is_async, is_async_generator
from streams.clock import SYSTEM, Clock
from streams.config import CloudEvents, DeadLetters, Dedup, Flow, OnUnknown, Retention, Retry, Start
from streams.databases.protocol import Database
from streams.decoding import Source
from streams.errors import ConfigError
from streams.handler_types import (
    Filter,
    HandlerOptions,
    HandlerResult,
    ProcessorDecorator,
    PublishingDecorator,
)
from streams.health import (
    ReportingAggregate,
    ReportingManager,
    ReportingOutbox,
    ReportingView,
)
from streams.inbox.inbox import Inbox
from streams.inbox.results import ResultOutbox
from streams.log.names import check_member
from streams.log.protocol import Log, OpenMode
from streams.log.url import ChosenUrl, choose_url, redact, why_no_outputs
from streams.message import Message, Transaction
from streams.parking import DurableKeyParking
from streams.processing.job import Job
from streams.processor import Processor, ProcessorClass, ProcessorOptions
from streams.projections.projection import Projection
from streams.publisher import Publisher, PublishObserver
from streams.retries import DurableAttemptLog
from streams.text import get_logger
from streams.topic import Key, Topic

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B", default=Never)
C = TypeVar("C", default=Never)
X = TypeVar("X", default=Any)  # what message.transaction is
O = TypeVar("O", default=Any)  # noqa: E741 - what a topic given as to= takes

NO_TOPIC: Source[Never] = cast(Any, None)
"""Stands for a second or third topic that ``processor`` is not given; for type checkers only."""

logger = get_logger("streams")

AnyLifespan = Callable[[Any], AbstractAsyncContextManager[Any]]

Service = Callable[[], Coroutine[Any, Any, None]]


class DeclaredOutbox(ReportingOutbox, ResultOutbox, Protocol):
    """The interface of an outbox that an app uses."""


def _check_cloudevents(where: str, value: object) -> CloudEvents:
    if not isinstance(value, CloudEvents):
        raise ConfigError(f"{where}cloudevents={value!r}: use CloudEvents(source=...)")
    return value


class Declarations(ABC):
    """The declarations of an app: its log, topics, processors and resources.

    One class, because ``topic`` and ``processor`` are what users call on an app: more than half of
    it are their docstrings, and the overloads by which type checkers compare handlers with topics.
    """

    def __init__(
        self,
        url: str | None,
        config: Mapping[str, Any] | None,
        member: str | None,
        lifespan: AnyLifespan | None,
        cloudevents: CloudEvents | None,
    ) -> None:
        self.given_url = url
        """The log's URL from the code."""
        self.cloudevents: CloudEvents | None = None
        """The default CloudEvents settings of its topics."""
        if cloudevents is not None:
            self.cloudevents = _check_cloudevents("", cloudevents)
        self.url_override: str | None = None
        """The URL from ``--url``, which takes precedence."""
        self.open_mode: OpenMode = "rwc"
        """How entering the app may change the log: ``ro`` changes nothing and creates no topic,
        ``rw`` creates no file."""
        self.url_logged = False
        """Whether the runner of the app has already logged which log it uses."""
        self.url_warning_logged = False
        """Whether the warning that ``STREAMS_URL`` is not used was logged; it is logged once."""
        self.member = "" if member is None else check_member(member)
        """The name under which its processors join their groups; empty: no static membership."""
        self.instance_id = secrets.token_hex(8)
        """Identifies this process, so that its groups can tell it from others of the same name."""
        if config is not None and not isinstance(config, Mapping):
            kind = type(config).__name__
            raise ConfigError(
                f"Streams(config=...) must be a mapping of driver settings, not a {kind}"
            )
        self.driver_config = dict(config or {})
        """Settings that are passed to the driver."""
        self.lifespan = None if lifespan is None else _check_lifespan(lifespan)
        """Entered once the log is open and before the first poll."""
        self.clock: Clock = SYSTEM
        self.topics: dict[str, Topic[Any]] = {}
        """Declared topics by name; the last declaration of each name."""
        self.declared_topics: list[Topic[Any]] = []
        """All declarations of topics, in order."""
        self.processors: list[Processor[..., Any]] = []
        """Declared processors, in order."""
        self.resources: list[AbstractAsyncContextManager[Any]] = []
        """Context managers that are entered and left with the app."""
        self.aggregates: dict[str, ReportingAggregate] = {}
        """Declared aggregates by name."""
        self.views: dict[str, ReportingView] = {}
        """Declared versions of views, by the names of their groups."""
        self.managers: dict[str, ReportingManager] = {}
        """Declared process managers by name."""
        self.outboxes: dict[str, DeclaredOutbox] = {}
        """Declared outboxes by the names of their tables."""
        self.projections: list[Projection] = []
        """Declared versions of projections, in order."""
        self.services: list[Service] = []
        """Services that run beside the processors."""
        self.declarations_closed = False
        """Whether the app is entered, so that no processor can be declared any more."""
        self.timing_enabled = False
        """Whether calls of handlers are timed."""
        self.job_wrappers: list[Callable[[Job], Job]] = []
        """Wrappers of each processor's job, applied when it starts (tracing)."""
        self.replay_wrappers: list[Callable[[Job], Job]] = []
        """Wrappers of the job of a replay into a function."""
        self.publish_observer: PublishObserver | None = None
        """Entered around each call that publishes (tracing)."""

    def __repr__(self) -> str:
        given = choose_url(self.url_override, self.given_url)
        return f"<Streams {redact(given.url) if given is not None and given.url else ''!r}>"

    # The interface for topics and processors (:class:`streams.connection.Connection`).

    @property
    @abstractmethod
    def log(self) -> Log:
        """The open log."""

    @property
    @abstractmethod
    def publisher(self) -> Publisher:
        """The app's publisher."""

    @property
    def url(self) -> str:
        """The log's URL: from ``--url``, else from the code, else from ``STREAMS_URL``.

        :raises ConfigError: none was given and the environment has none.
        """
        return self.url_source.url

    @property
    def url_source(self) -> ChosenUrl:
        """The log's URL and where it came from; as text both, without secrets.

        :raises ConfigError: none was given and the environment has none.
        """
        given = choose_url(self.url_override, self.given_url)
        if given is None or not given.url:
            advice = "give Streams('sqlite:///app.db'), or set STREAMS_URL in the environment"
            raise ConfigError(f"no log: {advice}")
        return given

    # -- declaring

    @overload
    def topic(
        self,
        name: str,
        *,
        key: str | Callable[[bytes], Key | None] | None = None,
        id: str | Callable[[bytes], str] | None = None,
        codec: Codec | None = None,
        partitions: int | None = None,
        unknown: OnUnknown = "dead",
        retention: Retention | None = None,
        cloudevents: CloudEvents | Literal[False] | None = None,
    ) -> Topic[bytes]: ...

    @overload
    def topic(
        self,
        name: str,
        type: TypeForm[T],
        *,
        key: str | Callable[[T], Key | None] | None = None,
        id: str | Callable[[T], str] | None = None,
        codec: Codec | None = None,
        partitions: int | None = None,
        unknown: OnUnknown = "dead",
        retention: Retention | None = None,
        cloudevents: CloudEvents | Literal[False] | None = None,
    ) -> Topic[T]: ...

    def topic(
        self,
        name: str,
        type: Any = bytes,
        *,
        key: Any = None,
        id: Any = None,
        codec: Codec | None = None,
        partitions: int | None = None,
        unknown: OnUnknown = "dead",
        retention: Retention | None = None,
        cloudevents: CloudEvents | Literal[False] | None = None,
    ) -> Topic[Any]:
        """Declare a topic; it may be declared again with another type.

        :param type: the type of its values: a msgspec Struct, dataclass, TypedDict, a tagged union
            of them, ``str``, ``bytes``, ``dict``, ``Any``...
        :param key: the field that is the key, or a function of the value.
        :param id: the field that is the message ID (instead of a header), or a function.
        :param codec: how values are encoded; by default JSON, text or bytes, depending on the type.
        :param partitions: number of partitions; a missing topic is created with it, and a topic
            with another number is an error. None: any number (a missing topic gets 1; on Kafka it
            is an error).
        :param unknown: what to do with a message whose tag ``type`` does not name: ``"dead"``,
            ``"skip"`` or ``"wait"`` (for newer code).
        :param retention: how long its messages are kept, if it is created here; forever by default.
            An existing topic keeps its retention: ``streams doctor`` reports a difference,
            ``streams topics retain`` changes it.
        :param cloudevents: settings to publish messages as CloudEvents; the app's by default.
            False: messages are no CloudEvents.
        :raises ConfigError: one of these cannot work.
        """
        events = self.cloudevents
        if cloudevents is not None:
            where = f"topic {name!r}: "
            events = None if cloudevents is False else _check_cloudevents(where, cloudevents)
        topic: Topic[Any] = Topic(
            self, name, type, key=key, id=id, codec=codec, partitions=partitions, unknown=unknown,
            retention=retention, cloudevents=events,
        )  # fmt: skip
        self.add_topic(topic)
        return topic

    def add_topic(self, topic: Topic[Any]) -> None:
        """Declare a topic that one of the toolkit's patterns has created.

        :raises ConfigError: it contradicts an earlier declaration.
        """
        name = topic.name
        for other in self.declared_topics:
            if other.name != name:
                continue
            if other.is_read_only or topic.is_read_only:
                raise ConfigError(
                    f"topic {name!r} holds events that the toolkit appends, and the app has "
                    "declared it already: read it as aggregate.events"
                )
            for option in ("partitions", "retention"):
                before, now = getattr(other, option), getattr(topic, option)
                if before is not None and now is not None and before != now:
                    raise ConfigError(
                        f"topic {name!r}: declared with {option}={before!r}, and again with "
                        f"{option}={now!r}"
                    )
        self.declared_topics.append(topic)
        self.topics[name] = topic

    def add_resource(self, resource: AbstractAsyncContextManager[Any]) -> None:
        """Add a context manager that lives as long as the app, for one of the toolkit's patterns.

        It is entered after the log is open and before the lifespan, and left after the lifespan and
        all processors have ended. A resource that is added to an entered app is only left.
        """
        self.resources.append(resource)

    def add_service(self, service: Service) -> None:
        """Run a service beside the processors, on their loop: from when they have started until the
        app stops, which cancels it. It must not raise: it logs errors, and tries again.
        """
        self.services.append(service)

    # With and without batch= and to=, for up to three topics and for more. A topic that is not
    # given adds nothing to the union: ``A | Never`` is A.
    # fmt: off
    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: None = None, filter: Filter[A | B | C] = None, to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[A | B | C, Message[A | B | C, Transaction]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: None = None, filter: Filter[A | B | C] = None, to: None = None,
        transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[A | B | C, Message[A | B | C, X]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: None = None, filter: Filter[A | B | C] = None, to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[A | B | C, Message[A | B | C, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: None = None, filter: Filter[A | B | C] = None, to: Topic[O],
        transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[A | B | C, Message[A | B | C, X], HandlerResult[O]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: int, filter: Filter[A | B | C] = None, to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[A | B | C], list[Message[A | B | C, Transaction]]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: int, filter: Filter[A | B | C] = None, to: None = None,
        transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[A | B | C], list[Message[A | B | C, X]]]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: int, filter: Filter[A | B | C] = None, to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[A | B | C], list[Message[A | B | C, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self, a: Source[A], b: Source[B] = NO_TOPIC, c: Source[C] = NO_TOPIC, /, *, group: str,
        batch: int, filter: Filter[A | B | C] = None, to: Topic[O],
        transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[A | B | C], list[Message[A | B | C, X]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: None = None,
        filter: Filter[Any] = None, to: None = None, **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[Any, Message[Any, Transaction]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: None = None,
        filter: Filter[Any] = None, to: None = None, transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[Any, Message[Any, X]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: None = None,
        filter: Filter[Any] = None, to: Topic[O], **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[Any, Message[Any, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: None = None,
        filter: Filter[Any] = None, to: Topic[O], transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[Any, Message[Any, X], HandlerResult[O]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: int,
        filter: Filter[Any] = None, to: None = None, **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[Any], list[Message[Any, Transaction]]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: int,
        filter: Filter[Any] = None, to: None = None, transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[Any], list[Message[Any, X]]]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: int,
        filter: Filter[Any] = None, to: Topic[O], **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[Any], list[Message[Any, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self, a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /,
        *more: Source[Any], group: str, batch: int,
        filter: Filter[Any] = None, to: Topic[O], transaction: Database[X],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[Any], list[Message[Any, X]], Sequence[HandlerResult[O]] | None
    ]: ...

    # fmt: on
    def processor(
        self,
        *topics: Source[Any],
        group: str,
        concurrency: int = 1,
        batch: int | None = None,
        filter: Callable[[Any], bool] | None = None,
        to: Topic[Any] | None = None,
        start: Start | datetime = "earliest",
        timeout: float | None = None,
        retry: Retry = Retry(),
        dedup: Dedup = Dedup(),
        dead_letters: DeadLetters = DeadLetters(),
        flow: Flow = Flow(),
        transaction: Database[Any] | None = None,
        exactly_once: bool = False,
        version: int | None = None,
        promote: bool = True,
        on_promote: Callable[[Any], object] | None = None,
    ) -> Any:
        """Declare a processor: a decorator for its handler.

        :param group: the consumer group; every group sees every message.
        :param concurrency: handlers running at once; messages of one key are always handled in
            order.
        :param batch: hand over lists of up to this many messages.
        :param filter: called with the value; messages for which it is false are skipped.
        :param to: the topic to which the handler's results are published before the source is
            settled; with ``transaction=``, through an :class:`~streams.Outbox` in that database, if
            the transaction commits.
        :param start: where a *new* group begins: ``"earliest"``, ``"latest"`` or a time of the log.
        :param timeout: seconds that one call of an async handler may take.
        :param transaction: a database of yours (``Psycopg(dsn)``, ...): the handler runs in one of
            its transactions, ``message.transaction``, which takes effect once for each message.
        :param exactly_once: store the handler's results, dead letters and positions in one
            transaction (docs/pipelines.md).
        :param version: with ``transaction=``: the handler writes the tables of a version of a
            projection, which is named like the group (docs/projections.md). It handles messages
            from the beginning, in the group ``GROUP.vVERSION``.
        :param promote: promote the version as soon as it has handled all messages that its
            predecessor has; False: only on command.
        :param on_promote: called with the connection of the transaction that promotes the version,
            such as to switch a view.
        :raises ConfigError: one of these, or the handler's signature, cannot work; or its
            annotations name another type than the topics'.

        Type checkers compare the handler with the topics, up to three of them, and its result with
        ``to``. The declared processor is still callable as the plain function.
        """
        options = ProcessorOptions(
            topics, group, concurrency, batch, filter, to, start, timeout, retry, dedup,
            dead_letters, flow, transaction, exactly_once, version, "", promote, on_promote,
        )  # fmt: skip
        if version is not None:
            options = replace(options, group=f"{group}.v{version}", projection=group)

        for topic in (*topics, to):
            if isinstance(topic, Topic) and topic.connection is not self:
                raise ConfigError(
                    f"processor in group {group!r}: topic {topic.name!r} belongs to another app; "
                    "declare it with this app's .topic(...)"
                )

        if exactly_once and self.given_url and (why := why_no_outputs(self.given_url)):
            problem = f"processor in group {group!r}: exactly_once=True is not possible here"
            raise ConfigError(f"{problem}: {why}")

        if self.declarations_closed:
            raise ConfigError(
                "the app's processors are running already: declare them before it is entered, or "
                "in its lifespan"
            )

        def declare(function: Callable[..., Any]) -> Processor[..., Any]:
            processor = self.declare(function, options)
            if to is None:
                types = [each.topic_type for each in self.declared_topics]
                known = [each for each in types if each is not None]
                if returned := unpublished_result(processor.function, known):
                    problem = f"returns {returned}, which is discarded without to="
                    logger.warning("processor %s %s", processor.name, problem)
            return processor

        return ProcessorDecorator(declare) if to is None else PublishingDecorator(declare)

    def declare(
        self,
        function: Callable[P, R],
        options: ProcessorOptions,
        processor_class: ProcessorClass[P, R] = Processor,
    ) -> Processor[P, R]:
        """Declare a processor; on a running app :meth:`streams.runtime.Runtime.start_processor`
        starts it."""
        if isinstance(function, Processor):  # the same handler, declared twice
            function = function.function
        name = getattr(function, "__name__", type(function).__name__)
        taken = {each.name for each in self.processors}
        names = chain((name,), (f"{name}-{number}" for number in count(2)))
        unique = next(each for each in names if each not in taken)
        processor = processor_class(function, options, unique)
        for other in self.processors:
            shared_topics = set(other.topics) & set(processor.topics)
            if other.group == options.group and shared_topics and not processor.shares_group:
                raise ConfigError(
                    f"processor {name}: group {options.group!r} already reads "
                    f"{min(shared_topics)!r} in processor {other.name}; give it a group of its own"
                )
        self._check_group_topics(name, processor)
        same = (options.projection, options.version)
        if any((each.name, each.version) == same for each in self.projections):
            raise ConfigError(
                f"processor {name}: version {options.version} of projection {options.projection!r} "
                "is declared twice; one processor may read several topics"
            )
        if options.retry.uses_attempt_log:
            processor.attempt_log = DurableAttemptLog(self, processor)
        if options.dead_letters.sequenced:
            processor.key_parking = DurableKeyParking(self, processor)
        if options.transaction is not None:
            inbox = Inbox(self, processor, options.transaction, self.outboxes)
            processor.inbox = inbox
            self.add_resource(inbox)
            if options.version is not None:
                self._declare_version(processor, inbox, options.transaction, options.version)
        self.processors.append(processor)
        return processor

    def _check_group_topics(self, name: str, processor: Processor[..., Any]) -> None:
        """Check the names of the retry and dead letter topics of each topic and group. They are
        made of both names, each of which may contain dots, so they can be ambiguous.

        :raises ConfigError: another processor's topics have the same names.
        """
        own = {f"{topic}.{processor.group}": topic for topic in processor.topics}
        for other in self.processors:
            for topic in other.topics:
                prefix = f"{topic}.{other.group}"
                if own.get(prefix, topic) != topic:
                    raise ConfigError(
                        f"processor {name}: retries and dead letters of topic {own[prefix]!r} in "
                        f"group {processor.group!r} would go to {prefix}.…, as those of topic "
                        f"{topic!r} in group {other.group!r} do (processor {other.name}); give one "
                        "of the groups another name"
                    )

    def _declare_version(
        self,
        processor: Processor[..., Any],
        inbox: Inbox,
        database: Database[Any],
        version: int,
    ) -> None:
        """Declare that a processor is a version of a projection."""
        options = processor.options
        projection = Projection(
            self,
            options.projection,
            version,
            processor.topics,
            database,
            promotes=options.promote,
            on_promote=options.on_promote,
        )
        inbox.companion = processor.projection = projection
        self.projections.append(projection)
        self.add_service(projection.keep_promoting)


def _check_lifespan(lifespan: AnyLifespan) -> AnyLifespan:
    advice = "write `@asynccontextmanager async def lifespan(app): ... yield ...`"
    if not callable(lifespan):
        raise ConfigError(f"Streams(lifespan={lifespan!r}): not a function; {advice}")
    name = getattr(lifespan, "__name__", repr(lifespan))
    if is_async_generator(lifespan) or is_async(lifespan):
        raise ConfigError(f"Streams(lifespan={name}): not a context manager; {advice}")
    error = call_error(lifespan, None)
    if error is not None:
        problem = f"Streams(lifespan={name}): it is called with the app"
        raise ConfigError(f"{problem}: {advice}") from error
    return lifespan
