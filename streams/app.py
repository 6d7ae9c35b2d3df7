"""The app: a log's URL, the topics and processors declared on it, and their life.

A life begins with ``async with app`` (or ``app.connected()``, ``app.background()``, ``app.run()``)
and ends with it: the log is opened, the ``lifespan`` entered, topics checked or created, groups
given their start, processors started; on the way out handlers finish, positions are committed,
and everything is closed in reverse. If a processor dies, the body of ``async with app`` is
cancelled and :class:`~streams.errors.ProcessorDied` raised at its end: nothing stops silently.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import re
import secrets
import sys
import threading
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from datetime import datetime
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Unpack, get_origin, overload

from typing_extensions import TypeForm

from stream_codecs import Codec
from streams import derived_records
from streams.annotation_checks import unpublished_result
from streams.cancellation import run_in_thread, run_to_completion
from streams.clock import SYSTEM, Clock
from streams.config import (
    RETRY_PARTITIONS,
    CloudEvents,
    DeadLetters,
    Dedup,
    Flow,
    OnUnknown,
    Retention,
    Retry,
    Start,
)
from streams.errors import (
    EXIT_FENCED,
    ConfigError,
    GroupNotEmpty,
    MemberFenced,
    NotFound,
    NotRunning,
    ProcessorDied,
    StreamsError,
    TopicMismatch,
    Unavailable,
)
from streams.handler_types import (
    HandlerOptions,
    HandlerResult,
    ProcessorDecorator,
    PublishingDecorator,
)
from streams.health import Health, ProcessorHealth, ProcessorStats, Stats
from streams.log.names import check_member
from streams.log.protocol import (
    Log,
    OpenMode,
    Queryable,
    StaticMember,
    TopicInfo,
    TopicPartition,
    check_retention,
    ensure_topic,
)
from streams.log.url import ChosenUrl, choose_url, open_log, redact
from streams.message import Headers, Message, Record, Transaction
from streams.processing.async_executor import AsyncExecutor
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction, TransactionLock
from streams.processing.job import Job
from streams.processing.poller import Poller
from streams.processing.thread_executor import ThreadExecutor
from streams.processing.timing import NO_DURATIONS, Timing
from streams.processor import Processor, ProcessorOptions
from streams.publisher import Publisher, PublishObserver
from streams.signals import StopSignals
from streams.text import get_logger, one_line
from streams.topic import Key, Source, Topic
from streams.topic_reader import resolve_offset

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741 - what a topic given as to= takes

logger = get_logger("streams")

Lifespan = Callable[["Streams"], AbstractAsyncContextManager[Any]]

_LATE = "streams.patterns.delay.attempt_log"
"""What keeps failing messages and their attempts in the log, for ``Retry(in_order=False)`` and
``Retry(durable=True)``. It is made of topics and processors, so it stands above this module and is
looked up by name, like the names of :mod:`streams`."""

_SEQUENCE = "streams.patterns.deadletters.key_parking"
"""What keeps keys closed behind a dead message, for ``DeadLetters(sequenced=True)``; looked up by
name for the same reason."""

_NOT_IN_MEMBER_NAME = re.compile(r"[^A-Za-z0-9._-]")
"""What a member's name cannot have in it."""

CLOSE_TIMEOUT = 10.0
"""Real seconds for what was published to be acknowledged when an app ends."""


def _check_cloudevents(where: str, value: object) -> CloudEvents:
    if not isinstance(value, CloudEvents):
        raise ConfigError(f"{where}cloudevents={value!r}: use CloudEvents(source=...)")
    return value


class Streams:
    """Topics and processors on one log.

    :param url: ``sqlite:///file.db``, ``memory://name``, ``redis://host:6379/0`` or
        ``kafka://host:9092``; from the environment's ``STREAMS_URL`` if not given. ``--url`` on the
        command line goes before both.
    :param config: driver settings, passed through.
    :param member: a name of this process's own, which is the same after each restart: its groups
        know it by the name (static membership), so that it has its partitions back as soon as it is
        started again, however it ended. It must be unique among the processes of a group: one that
        finds its name taken ends (:class:`~streams.errors.MemberFenced`).
    :param lifespan: ``lifespan(app)`` is entered (``async with``) once the log is open and before
        the first poll; it may open pools and register processors.
    :param cloudevents: what is published to its topics is a CloudEvent, unless a topic says
        otherwise.
    :raises ConfigError: when the app is entered, for a URL that cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        member: str | None = None,
        lifespan: Lifespan | None = None,
        cloudevents: CloudEvents | None = None,
    ) -> None:
        self._url = url
        self.cloudevents: CloudEvents | None = None
        """How its topics are written as CloudEvents, where they do not say otherwise."""
        if cloudevents is not None:
            self.cloudevents = _check_cloudevents("", cloudevents)
        self.url_override: str | None = None
        """What ``--url`` says instead."""
        self.open_mode: OpenMode = "rwc"
        """What may become of the log's file by opening it."""
        self.url_logged = False
        """Whoever runs the app has said already which log it is on."""
        self._member = "" if member is None else check_member(member)
        self._instance_id = secrets.token_hex(8)
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(
                f"Streams(config=...): a mapping of driver settings, not a {type(config).__name__}"
            )
        self._config = dict(config or {})
        self._lifespan = None if lifespan is None else _check_lifespan(lifespan)
        self.clock: Clock = SYSTEM
        self.topics: dict[str, Topic[Any]] = {}
        """Declared topics by name; of several declarations, the last."""
        self.declared_topics: list[Topic[Any]] = []
        self.processors: list[Processor[..., Any]] = []
        """Declared processors, in order."""
        self._resources: list[AbstractAsyncContextManager[Any]] = []
        """What is entered and left with it."""
        self._log: Log | None = None
        self._publisher: Publisher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack: AsyncExitStack | None = None
        self._body_task: asyncio.Task[Any] | None = None
        self._end_futures: dict[Processor[..., Any], asyncio.Future[None]] = {}
        self._failure: ProcessorDied | None = None
        """What the first processor to die died of; until the app is entered again."""
        self._failure_waiters: set[asyncio.Future[ProcessorDied]] = set()
        """Told when a processor has died; futures of any loops, guarded by :attr:`_state_lock`."""
        self._body_cancelled = False
        self._declarations_closed = False
        """Entered, past the point where processors can be declared."""
        self._runs_processors = False
        """Processors run, or are being started: one that is declared now starts by itself."""
        self._starting: set[Processor[..., Any]] = set()
        """Declared on the running app, and not begun yet."""
        self._stopping_processors: set[Processor[..., Any]] = set()
        """Told to stop while the app goes on."""
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._state_lock = threading.Lock()
        self._start_positions: defaultdict[str, dict[TopicPartition, int]] = defaultdict(dict)
        """By group, where to begin what could not be begun for it, as it is live."""
        self._stop_requested: asyncio.Event | None = None
        """Set by a signal, of an app that runs by itself; such a one waits for its server."""
        self._transaction_lock = TransactionLock()
        """Handlers with a transaction of their own take turns."""
        self._timing_enabled = False
        """Handlers' calls are timed."""
        self._job_wrappers: list[Callable[[Job], Job]] = []
        """What is put around each processor's job when it starts (tracing)."""
        self._publish_observer: PublishObserver | None = None
        """What is entered around each call that publishes (tracing)."""

    def __repr__(self) -> str:
        given = choose_url(self.url_override, self._url)
        return f"<Streams {redact(given.url) if given is not None and given.url else ''!r}>"

    @property
    def url(self) -> str:
        """The log's URL: what ``--url`` says, else what the code gave, else ``STREAMS_URL``.

        :raises ConfigError: none was given and the environment has none.
        """
        return self.url_source.url

    @property
    def url_source(self) -> ChosenUrl:
        """The log's URL and what gave it; as text both, without secrets.

        :raises ConfigError: none was given and the environment has none.
        """
        given = choose_url(self.url_override, self._url)
        if given is None or not given.url:
            raise ConfigError(
                "no log: give Streams('sqlite:///app.db'), or set STREAMS_URL in the environment"
            )
        return given

    @property
    def member(self) -> str:
        """The name under which its processors join their groups; empty: they are not static."""
        return self._member

    @property
    def instance_id(self) -> str:
        """A word for this process, by which its groups tell it from others of its name."""
        return self._instance_id

    def _static_member(
        self, processor: Processor[..., Any], member: str, instance_id: str
    ) -> StaticMember | None:
        """What a processor of a process with this name is in its group; None without a name.

        Of several processors in one group, those after the first have their own names added.
        """
        if not member:
            return None
        first_of_group = next(
            (each for each in self.processors if each.group == processor.group), processor
        )
        name = member if first_of_group is processor else f"{member}-{processor.name}"
        return StaticMember(_NOT_IN_MEMBER_NAME.sub(".", name)[:249], instance_id)

    def expel_member(self, member: str, instance_id: str) -> None:
        """Give up the memberships of another process of this app, which has certainly ended, so
        that the others have its partitions at once (blocks; any thread).

        :param member: its name, :attr:`member` there.
        :param instance_id: its :attr:`instance_id`.
        :raises NotRunning: the app is not entered.
        :raises LogError: it could not be done; its leases run out by themselves.
        """
        log = self.log
        for processor in list(self.processors):
            static = self._static_member(processor, member, instance_id)
            if static is not None:
                log.remove_member(processor.group, static)

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
        """Declare a topic; again with another type is allowed.

        :param type: what its values are: a msgspec Struct, dataclass, TypedDict, a tagged union of
            them, ``str``, ``bytes``, ``dict``, ``Any``...
        :param key: the field that is the key, or a function of the value.
        :param id: the field that is the message ID (instead of a header), or a function.
        :param codec: how values are encoded; JSON, text or bytes by type if not given.
        :param partitions: how many; created with it if missing, an error if it differs. None uses
            what exists (a missing topic gets 1; on Kafka it is an error).
        :param unknown: what becomes of a tag that ``type`` does not name: ``"dead"`` or ``"skip"``.
        :param retention: how long its messages are kept, if it is created here; for ever if not
            given. A topic that exists keeps what it has: ``streams doctor`` says where that is
            something else, ``streams topics retain`` changes it.
        :param cloudevents: what is published to it is a CloudEvent; the app's if not given. False:
            it is none.
        :raises ConfigError: any of these cannot work.
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
        """Declare a topic that was made by one of the toolkit's patterns.

        :raises ConfigError: it contradicts an earlier declaration.
        """
        name = topic.name
        for other in self.declared_topics:
            if other.name != name:
                continue
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
        """Have what one of the toolkit's patterns needs live as long as the app.

        It is entered after the log is open and before the lifespan, and left after the lifespan and
        all processors have ended. One that is added to an entered app is only left.
        """
        self._resources.append(resource)

    @overload
    def processor(
        self,
        a: Source[A],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[A, Message[A, Transaction]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[A, Message[A, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[A], list[Message[A, Transaction]]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[A], list[Message[A, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A | B], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[A | B, Message[A | B, Transaction]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A | B], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[A | B, Message[A | B, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A | B], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[A | B], list[Message[A | B, Transaction]]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A | B], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[A | B], list[Message[A | B, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A | B | C], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[A | B | C, Message[A | B | C, Transaction]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        /,
        *,
        group: str,
        batch: None = None,
        filter: Callable[[A | B | C], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[A | B | C, Message[A | B | C, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A | B | C], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[A | B | C], list[Message[A | B | C, Transaction]]]: ...

    @overload
    def processor(
        self,
        a: Source[A],
        b: Source[B],
        c: Source[C],
        /,
        *,
        group: str,
        batch: int,
        filter: Callable[[A | B | C], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[A | B | C], list[Message[A | B | C, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

    @overload
    def processor(
        self,
        a: Source[Any],
        b: Source[Any],
        c: Source[Any],
        d: Source[Any],
        /,
        *more: Source[Any],
        group: str,
        batch: None = None,
        filter: Callable[[Any], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[Any, Message[Any, Transaction]]: ...

    @overload
    def processor(
        self,
        a: Source[Any],
        b: Source[Any],
        c: Source[Any],
        d: Source[Any],
        /,
        *more: Source[Any],
        group: str,
        batch: None = None,
        filter: Callable[[Any], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[Any, Message[Any, Transaction], HandlerResult[O]]: ...

    @overload
    def processor(
        self,
        a: Source[Any],
        b: Source[Any],
        c: Source[Any],
        d: Source[Any],
        /,
        *more: Source[Any],
        group: str,
        batch: int,
        filter: Callable[[Any], bool] | None = None,
        to: None = None,
        **options: Unpack[HandlerOptions],
    ) -> ProcessorDecorator[list[Any], list[Message[Any, Transaction]]]: ...

    @overload
    def processor(
        self,
        a: Source[Any],
        b: Source[Any],
        c: Source[Any],
        d: Source[Any],
        /,
        *more: Source[Any],
        group: str,
        batch: int,
        filter: Callable[[Any], bool] | None = None,
        to: Topic[O],
        **options: Unpack[HandlerOptions],
    ) -> PublishingDecorator[
        list[Any], list[Message[Any, Transaction]], Sequence[HandlerResult[O]] | None
    ]: ...

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
    ) -> Any:
        """Declare a processor: a decorator for its handler.

        :param group: the consumer group; every group sees every message.
        :param concurrency: handlers running at once; one key is handled in order whatever it is.
        :param batch: hand over lists of up to this many messages.
        :param filter: called with the value; messages for which it is false are passed over.
        :param to: what the handler returns is published there before the source is settled.
        :param start: where a *new* group begins: ``"earliest"``, ``"latest"`` or a time of the log.
        :param timeout: seconds one call of an async handler may take.
        :raises ConfigError: any of these, or the handler's signature, cannot work; or its
            annotations say another type than the topics'.

        Type checkers compare the handler with the topics, up to three of them; what it returns with
        ``to``; and what is declared is still callable as the plain function.
        """
        options = ProcessorOptions(
            topics, group, concurrency, batch, filter, to, start, timeout, retry, dedup,
            dead_letters, flow,
        )  # fmt: skip

        for topic in (*topics, to):
            if isinstance(topic, Topic) and topic._app is not self:
                raise ConfigError(
                    f"processor in group {group!r}: topic {topic.name!r} belongs to another app; "
                    "declare it with this app's .topic(...)"
                )

        if self._declarations_closed:
            raise ConfigError(
                "the app's processors are running already: declare them before it is entered, or "
                "in its lifespan"
            )

        def declare(function: Callable[..., Any]) -> Processor[..., Any]:
            processor = self.declare(function, options)
            if to is None:
                topic_types = [
                    each.topic_type for each in self.declared_topics if each.topic_type is not None
                ]
                if returned := unpublished_result(processor.function, topic_types):
                    logger.warning(
                        "processor %s returns %s, and without to= nobody gets it",
                        processor.name, returned,
                    )  # fmt: skip
            return processor

        return ProcessorDecorator(declare) if to is None else PublishingDecorator(declare)

    def declare(
        self,
        function: Callable[P, R],
        options: ProcessorOptions,
        processor_class: Callable[
            [Callable[P, R], ProcessorOptions, str], Processor[P, R]
        ] = Processor,
    ) -> Processor[P, R]:
        """Declare a processor; on a running app it is :meth:`start_processor`'s to begin it."""
        if isinstance(function, Processor):  # one handler, declared twice
            function = function.function
        name = getattr(function, "__name__", type(function).__name__)
        taken = {each.name for each in self.processors}
        number = 2
        unique = name
        while unique in taken:
            unique = f"{name}-{number}"
            number += 1
        processor = processor_class(function, options, unique)
        for other in self.processors:
            shared_topics = set(other.topics) & set(processor.topics)
            if other.group == options.group and shared_topics and not processor.shares_group:
                raise ConfigError(
                    f"processor {name}: group {options.group!r} already reads "
                    f"{sorted(shared_topics)[0]!r} "
                    f"in processor {other.name}; give it a group of its own"
                )
        if options.retry.uses_attempt_log:
            processor.attempt_log = import_module(_LATE).attempt_log_of(self, processor)
        if options.dead_letters.sequenced:
            processor.key_parking = import_module(_SEQUENCE).key_parking_of(self, processor)
        self.processors.append(processor)
        if self._runs_processors:
            self._starting.add(processor)
        return processor

    # -- what is there while it lives

    @property
    def log(self) -> Log:
        """The open log.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        """
        if self._log is None:
            raise self.not_running_error("the app is not running: use it inside `async with app:`")
        return self._log

    @property
    def publisher(self) -> Publisher:
        """What publishes for this app.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        """
        if self._publisher is None:
            raise self.not_running_error("the app is not running: use it inside `async with app:`")
        return self._publisher

    def not_running_error(self, message: str) -> StreamsError:
        """The error of whoever uses the app and cannot: that it is not entered is not the point
        where a processor died and took it down."""
        failure = self._failure
        if failure is None:
            return NotRunning(message)
        error = ProcessorDied(f"the app has stopped: {failure}")
        error.__cause__ = failure.__cause__
        return error

    async def query(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Read the SQLite log's file with SQL: the rows of one statement, as of one moment.

        For what handlers have written there through ``message.transaction``. Reading holds up no
        writer, and no writer holds up reading. What a handler has not committed yet is not seen.

        :param parameters: a sequence for ``?``, a mapping for ``:name``.
        :raises NotRunning: the app is not entered.
        :raises ConfigError: the log is no SQLite file, or the statement does not only read.
        :raises LogError: SQLite refuses it, and its own exception is the cause.
        """
        log = self.log
        if not isinstance(log, Queryable):
            raise ConfigError(
                f"app.query reads the file of a sqlite:// log with SQL; this is a "
                f"{log.capabilities.name} log"
            )
        return await run_in_thread(log.query, sql, parameters)

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Run an awaitable on the app's loop and wait for it: the bridge for synchronous code.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        :raises ConfigError: this is its loop's own thread: await there.
        """
        loop = self._loop
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if loop is None or running is loop:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            if loop is None:
                raise self.not_running_error(
                    "the app is not running: use it inside `with app.background():`"
                )
            raise ConfigError("app.wait() on the app's own loop would wait for ever: use await")

        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), loop).result()

    def measure(self) -> None:
        """Take the time of handlers' calls from now on, for :meth:`stats`; now and then of quick
        ones, so that it is not felt."""
        self._timing_enabled = True
        for processor in self.processors:
            if processor.executor is not None:
                self._enable_timing(processor.executor)

    def _enable_timing(self, runner: Executor) -> None:
        if self._timing_enabled and runner.timing is None:
            runner.timing = Timing(asynchronous=runner.job.asynchronous)

    def stats(self) -> Stats:
        """Figures of this moment."""
        found = {}
        for processor in self.processors:
            executor, poller = processor.executor, processor.poller
            if executor is None or poller is None:
                continue
            counts, poller_stats = executor.dispatcher.counts, poller.stats()
            handled, filtered = executor.counters()
            found[processor.name] = ProcessorStats(
                handled=handled,
                duplicates=counts.duplicates,
                filtered=filtered,
                retries=counts.retries,
                dead_letters=counts.dead_lettered,
                in_flight=poller_stats.held,
                in_flight_bytes=poller_stats.held_bytes,
                running=executor.running,
                waiting=executor.dispatcher.waiting,
                partitions=poller_stats.partitions,
                commits=poller_stats.commits,
                rebalances=poller_stats.rebalances,
                losses=poller_stats.losses,
                rejected=poller_stats.rejected,
                commit_seconds=poller_stats.commit_seconds,
                handler_seconds=NO_DURATIONS if executor.timing is None else executor.timing.read(),
                progress=poller_stats.progress,
            )
        published = self._publisher.published if self._publisher is not None else 0
        return Stats(found, published)

    def health(self) -> Health:
        """How the app and its processors are."""
        found = {}
        for processor in self.processors:
            if processor in self._starting:
                continue
            executor, poller = processor.executor, processor.poller
            error = poller.fatal if poller is not None else None
            found[processor.name] = ProcessorHealth(
                running=poller is not None and not poller.ended.is_set(),
                paused=processor.paused,
                reachable=poller is not None and poller.reachable,
                overdue=executor.overdue() if executor is not None else 0,
                error=processor.end_reason if error is None else describe_error(error),
                losses=0 if poller is None else poller.losses,
                rejected=0 if poller is None else poller.rejected,
                contested=0 if poller is None else poller.contested,
            )
        return Health(self._log is not None, found, self._stopping)

    async def failed(self) -> ProcessorDied:
        """Wait until a processor dies, and return why: what ``async with app`` raises at its end.

        For whoever runs the app inside something that would go on without it, to end or restart
        that. Any number may wait, on any loop; who is cancelled does no harm. The answer stays
        until the app is entered again. An app that is left in order answers nobody.
        """
        with self._state_lock:
            if self._failure is not None:
                return self._failure
            waiter: asyncio.Future[ProcessorDied] = asyncio.get_running_loop().create_future()
            self._failure_waiters.add(waiter)
        try:
            return await waiter
        finally:
            with self._state_lock:
                self._failure_waiters.discard(waiter)

    def _report_failure(self, failure: ProcessorDied) -> None:
        """A processor has died (loop only)."""
        with self._state_lock:
            self._failure = failure
            waiting = list(self._failure_waiters)
        for waiter in waiting:
            with suppress(RuntimeError):  # that loop is closed: nobody waits any more
                waiter.get_loop().call_soon_threadsafe(_set_failure, waiter, failure)

    # -- its life

    async def __aenter__(self) -> Self:
        await self._enter(process=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        try:
            if self._stack is not None:
                await self._stack.__aexit__(kind, error, trace)
        finally:
            self._stack = None  # only now may it be entered again
            body_task, self._body_task = self._body_task, None
            failure = self._failure
            cancelled_by_us = self._body_cancelled and isinstance(error, asyncio.CancelledError)
            if self._body_cancelled and body_task is not None:
                body_task.uncancel()
            self._body_cancelled = False
        if failure is not None and (error is None or cancelled_by_us):
            raise failure from failure.__cause__

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Self]:
        """Publish and read only; no processor runs."""
        await self._enter(process=False)
        try:
            yield self
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        else:  # and not sys.exc_info(): there may be an error that is handled further out
            await self.__aexit__(None, None, None)

    @contextmanager
    def background(self) -> Iterator[Self]:
        """Run the app on a loop in a thread of its own, for a synchronous service.

        :raises ProcessorDied: at the end, if a processor died meanwhile.
        """
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        stop_callbacks: list[Callable[[], object]] = []

        async def run_until_stopped() -> None:
            stop_requested = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop_callbacks.append(lambda: loop.call_soon_threadsafe(stop_requested.set))
            async with self:
                ready.set_result(None)
                await stop_requested.wait()

        failure: list[BaseException] = []

        def main() -> None:
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(run_until_stopped())
            except BaseException as error:
                if ready.done():
                    failure.append(error)
                else:
                    ready.set_exception(error)

        thread = threading.Thread(target=main, name="streams-background", daemon=True)
        thread.start()
        try:
            ready.result()
            yield self
        finally:
            for stop in stop_callbacks:
                with suppress(RuntimeError):  # the loop is closed: it ended by itself
                    stop()
            thread.join()
        if failure:
            raise failure[0]

    def run(self) -> None:
        """Run until SIGINT or SIGTERM, then finish what is in flight; blocks.

        A server that cannot be reached yet is waited for, with a warning at each attempt. A fatal
        error is said in one line and ends the process with status 1 (``SystemExit``), or with 79
        where another process has taken this static member's name: that one should not be started
        again. A second signal ends it at once: SIGINT with status 130, SIGTERM as the system does.
        """
        try:
            self.run_or_raise()
        except StreamsError as error:
            print(f"streams: {one_line(str(error))}", file=sys.stderr)  # noqa: T201 - the process ends with this
            fenced = isinstance(error.__cause__, MemberFenced)
            raise SystemExit(EXIT_FENCED if fenced else 1) from error

    def run_or_raise(self) -> None:
        """The same, for a program that says itself why the app has ended.

        :raises StreamsError: a fatal error; its cause is :class:`~streams.errors.MemberFenced`
            where another process has taken this static member's name.
        """
        if not self.processors and self._lifespan is None:
            raise ConfigError("nothing to run: declare a processor with @app.processor(...)")
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stop_requested = self._stop_requested = asyncio.Event()

        def request_stop(name: str) -> None:
            logger.info("%s: finishing what is in flight", name)
            stop_requested.set()

        try:
            # Not the loop's own handlers: the second signal counts also while the loop is blocked.
            with StopSignals(lambda name: loop.call_soon_threadsafe(request_stop, name)):
                async with self:
                    await stop_requested.wait()
        finally:
            self._stop_requested = None

    async def _enter(self, *, process: bool, cancel_body: bool = True) -> None:
        """Enter the app.

        :param process: run its processors.
        :param cancel_body: cancel the current task when one of them dies.
        """
        with self._state_lock:
            if self._stack is not None:
                raise NotRunning("the app is running already: enter it once")
            stack = self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()
        self._body_task = asyncio.current_task() if cancel_body else None
        self._failure = None
        for processor in self.processors:
            processor.end_reason = None
        self._body_cancelled = self._stopping = False
        try:
            stack.callback(self._reset_state)
            stack.push_async_callback(self._close_log)
            if not self.url_logged:
                logger.info("the log is %s", self.url_source)
            await self._wait_until_available(self._open_log)
            self._publisher = Publisher(self.log, self.clock)
            self._publisher.observer = self._publish_observer
            self._publisher.closed_error = self.not_running_error
            self._publisher.start()
            closing = self._publisher.close
            stack.push_async_callback(lambda: run_in_thread(closing, CLOSE_TIMEOUT))
            stack.push_async_callback(self._leave_resources)
            for resource in list(self._resources):
                await resource.__aenter__()
            if self._lifespan is not None:
                # So that it may publish; what is still missing then is its own to create.
                await self._wait_until_available(partial(self.ensure_topics, missing_ok=True))
                await stack.enter_async_context(self._lifespan(self))
            await self._wait_until_available(self.ensure_topics)
            self._declarations_closed = True
            if process:
                stack.push_async_callback(self._stop)
                processors = list(self.processors)
                self._runs_processors = True
                for processor in processors:
                    # All before the first starts: Kafka gives no start to a group that is live.
                    await self._wait_until_available(partial(processor.ensure_topics, self))
                for processor in processors:
                    await self._start_poller(processor)
        except BaseException:
            self._stopping = True  # what ends from here on ends because of this error
            try:
                await stack.__aexit__(*sys.exc_info())
            finally:
                self._stack = None
            raise

    async def _wait_until_available(self, request: Callable[[], None]) -> None:
        """Ask the log something, off the loop; :meth:`run` asks until there is an answer."""
        pause = 0.5
        while True:
            try:
                await run_in_thread(request)
                return
            except Unavailable as error:
                if self._stop_requested is None or self._stop_requested.is_set():
                    raise
                logger.warning("%s; trying again in %g s", error, pause)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stop_requested.wait()
                if self._stop_requested.is_set():
                    raise
                pause = min(5.0, 2 * pause)

    def _open_log(self) -> None:
        self._log = open_log(self.url, self._config, self.clock, self._member, self.open_mode)

    async def _close_log(self) -> None:
        if self._log is not None:
            await run_in_thread(self._log.close)

    async def _leave_resources(self) -> None:
        async with AsyncExitStack() as stack:
            for resource in self._resources:
                stack.push_async_exit(resource)

    def _reset_state(self) -> None:
        self._declarations_closed = self._runs_processors = False
        self._starting.clear()
        self._log = self._publisher = self._loop = None
        self._start_positions.clear()
        for processor in (*self.processors, *self._end_futures):
            processor.executor = processor.poller = None
        self._end_futures.clear()
        self._stopping_processors.clear()

    def ensure_topics(self, *, missing_ok: bool = False) -> None:
        """Check declared topics against the log, and create what is missing."""
        declared: dict[str, list[Topic[Any]]] = {}
        for topic in self.declared_topics:
            declared.setdefault(topic.name, []).append(topic)
        capabilities = self.log.capabilities
        for name, topics in declared.items():
            for topic in topics:
                check_retention(name, topic.retention or Retention(), capabilities)
        dead_letter_topics = self._dead_letter_topics()
        for name, topics in declared.items():
            for_dead_letters = name in dead_letter_topics or any(
                each.for_dead_letters for each in topics
            )
            try:
                self._ensure_topic(
                    topics, capabilities.dead_letter_config if for_dead_letters else None
                )
            except NotFound:
                if not missing_ok:
                    raise

    def _dead_letter_topics(self) -> set[str]:
        """The topics for the processors' dead letters, and for those that are put back."""
        return {
            name_of(topic, processor.group)
            for processor in self.processors
            for topic in processor.topics
            for name_of in (
                processor.options.dead_letters.name,
                processor.options.dead_letters.retry,
            )
        }

    def _ensure_topic(self, topics: list[Topic[Any]], config: Mapping[str, str] | None) -> None:
        """Create a topic, or find it as it is declared.

        :param topics: its declarations, which do not contradict each other.
        :param config: settings that it is created with.
        """
        log, name = self.log, topics[0].name
        partitions = next((each.partitions for each in topics if each.partitions), None)
        retention = next((each.retention for each in topics if each.retention), Retention())
        internal = any(each.internal for each in topics)
        if partitions is None and not internal and not log.capabilities.creates_topics:
            log.topic(name)
            return
        default_partitions = partitions or max(each.default_partitions for each in topics)
        info = ensure_topic(log, name, default_partitions, retention, config)
        if partitions is not None and info.partitions != partitions:
            raise TopicMismatch(
                f"topic {name!r} has {info.partitions} partitions, but is declared with "
                f"{partitions}; declare {info.partitions}, or leave partitions out"
            )

    async def _start_poller(self, processor: Processor[..., Any]) -> None:
        loop = asyncio.get_running_loop()
        job = processor.make_job(self)
        for wrap in self._job_wrappers:
            job = wrap(job)

        def new_transaction() -> HandlerTransaction:
            return poller.handler_transaction(self._transaction_lock)

        executor: Executor = (
            AsyncExecutor(job, loop, new_transaction)
            if job.asynchronous
            else ThreadExecutor(job, new_transaction)
        )
        self._enable_timing(executor)
        poller = Poller(processor.subscribed_log(self), job, executor)
        processor.end_reason = None
        ended: asyncio.Future[None] = loop.create_future()
        self._end_futures[processor] = ended

        def on_end() -> None:
            try:
                loop.call_soon_threadsafe(self._poller_ended, processor, poller, ended)
            except RuntimeError:
                return  # the loop is closed already

        poller.on_end = on_end
        processor.executor, processor.poller = executor, poller
        if processor.paused:
            poller.pause()
        executor.start()
        poller.start()

    # -- one processor, while the app goes on

    async def start_processor(self, processor: Processor[..., Any]) -> None:
        """Begin with a processor that was declared on the running app: its topics, its group's
        start, then itself. Outages of the log are waited out.

        :raises NotRunning: no processors run here.
        :raises LogError: the log refuses; the processor stays declared and does not run.
        """
        if not self._runs_processors:
            raise self.not_running_error(
                "the app runs no processors: enter it with `async with app:`"
            )
        pause = 0.5
        while True:
            try:
                await run_in_thread(self.ensure_topics)
                await run_in_thread(processor.ensure_topics, self)
                break
            except Unavailable as error:
                if processor not in self._starting:
                    return  # it was stopped meanwhile
                logger.warning("%s: %s; trying again in %g s", processor.name, error, pause)
                await asyncio.sleep(pause)
                pause = min(5.0, 2 * pause)
            except BaseException:
                self._starting.discard(processor)  # so that its health is that it does not run
                raise
        for helper in processor.helpers:
            await self.start_processor(helper)
        if self._runs_processors and processor in self._starting:
            self._starting.discard(processor)
            await self._start_poller(processor)

    async def stop_processor(self, processor: Processor[..., Any]) -> None:
        """Stop a processor and take its declaration back; the others go on.

        What it handles is finished (for its ``Flow(drain=)`` seconds at most) and committed, and
        it leaves its group. Nothing of it runs once this has returned.
        """
        self._starting.discard(processor)
        if processor in self.processors:
            self.processors.remove(processor)
        executor, poller, ended = (
            processor.executor,
            processor.poller,
            self._end_futures.get(processor),
        )
        if executor is None or poller is None or ended is None:
            for helper in processor.helpers:
                await self.stop_processor(helper)
            return
        self._stopping_processors.add(processor)
        poller.stop()
        for timeout in (processor.options.flow.drain + CLOSE_TIMEOUT, CLOSE_TIMEOUT):
            await asyncio.wait({ended}, timeout=timeout)
            if ended.done():
                break
            executor.stop_waiting()
        else:
            logger.error("processor %s did not end in time and is left behind", processor.name)
        await executor.wait_closed()
        self._end_futures.pop(processor, None)
        self._stopping_processors.discard(processor)
        processor.executor = processor.poller = None
        for helper in processor.helpers:
            await self.stop_processor(helper)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside the app's body, until the app is left at the latest (loop only)."""
        task = asyncio.create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)
        return task

    def _ensure_processor_topics(self, processor: Processor[..., Any]) -> None:
        """Create its dead letter and retry topics, and give a new group its start."""
        log, options = self.log, processor.options
        dead_letter_config = log.capabilities.dead_letter_config
        if processor.attempt_log is not None:
            processor.attempt_log.prepare(log)
        if processor.key_parking is not None:
            processor.key_parking.prepare(log)
        for source in options.topics:
            info = log.topic(source.name)
            dead_letter_topic = options.dead_letters.name(source.name, processor.group)
            retry_topic = options.dead_letters.retry(source.name, processor.group)
            self._initialize_group(processor.group, info, options.start)
            for name, partitions in (
                (dead_letter_topic, info.partitions),
                (retry_topic, RETRY_PARTITIONS),
            ):
                created = ensure_topic(log, name, partitions, config=dead_letter_config)
                if name == retry_topic:
                    self._initialize_group(processor.group, created, "earliest")

    def _initialize_group(self, group: str, info: TopicInfo, start: Start | datetime) -> None:
        """Give a group that is new to this topic its positions there."""
        log = self.log
        if log.committed(group, info.name):
            return
        now = self.clock.time()
        offsets = {
            partition: resolve_offset(log, info.name, partition, start, option="start", now=now)
            for partition in range(info.partitions)
        }
        try:
            log.initialize_offsets(group, info.name, offsets)
        except GroupNotEmpty:
            # Members of the release before this one run, without this topic. Whoever of us gets a
            # partition begins it there.
            self._start_positions[group].update(
                ((info.name, partition), offset) for partition, offset in offsets.items()
            )

    def make_job(self, processor: Processor[..., Any]) -> Job:
        """What the executors run for this processor, bound to this app's log and publisher."""
        options, log = processor.options, self.log
        results = None
        if options.to is not None:
            target = options.to

            def make_record(value: Any, id: str, headers: Headers) -> Record:
                record = target.record(value, id=id)
                record.headers = [*record.headers, *headers]
                return record

            results = derived_records.result_encoder(
                processor.group,
                target.name,
                make_record,
                several=(get_origin(target.type) or target.type) not in (list, tuple),
            )
        group, dead_letters = processor.group, options.dead_letters
        sources: dict[str, Source[Any]] = {}
        for topic in options.topics:
            sources[topic.name] = sources[dead_letters.retry(topic.name, group)] = topic
        return Job(
            name=processor.name,
            group=group,
            topics=tuple(sources),
            function=processor.function,
            asynchronous=processor.signature.asynchronous,
            wants_message=processor.signature.wants_message,
            decodings={name: topic.decoding for name, topic in sources.items()},
            concurrency=options.concurrency,
            batch=options.batch,
            filter=options.filter,
            timeout=options.timeout,
            retry=options.retry,
            dedup=options.dedup,
            flow=options.flow,
            clock=self.clock,
            encode_results=results,
            dead_letter=derived_records.dead_letter_maker(
                group, lambda topic: dead_letters.name(sources[topic].name, group), self.clock
            ),
            write_derived=self.publisher.publish_durably,
            attempt_log=processor.attempt_log,
            observer=processor.attempt_log,
            key_parking=processor.key_parking,
            start_positions=self._start_positions[group],
            member=self._static_member(processor, self._member, self._instance_id),
            transactions=(
                log.capabilities.transactions and results is None and processor.key_parking is None
            ),
        )

    def _poller_ended(
        self, processor: Processor[..., Any], poller: Poller, ended: asyncio.Future[None]
    ) -> None:
        if not ended.done():
            ended.set_result(None)
        error = poller.fatal
        if error is None and (self._stopping or processor in self._stopping_processors):
            return
        if error is not None and not isinstance(error, StreamsError):
            logger.error("processor %s died", processor.name, exc_info=error)
        processor.end_reason = describe_error(error) if error is not None else "it ended by itself"
        if self._failure is not None:
            return
        failure = ProcessorDied(f"processor {processor.name} died: {processor.end_reason}")
        failure.__cause__ = error
        self._report_failure(failure)
        if self._body_task is not None and not self._stopping:
            self._body_cancelled = True
            self._body_task.cancel()

    async def _stop(self) -> None:
        """Stop all processors: handlers finish up to their drain deadlines, positions commit.

        Cancelled meanwhile it does the same, without patience for handlers.
        """
        self._stop_pollers()
        await run_to_completion(self._wait_stopped(), self._cancel_handlers)

    def _stop_pollers(self) -> None:
        for processor in self._end_futures:  # those that run, also if they are declared no more
            if processor.poller is not None:
                processor.poller.stop()

    def _cancel_handlers(self) -> None:
        for processor in self._end_futures:
            if processor.executor is not None:
                processor.executor.stop_waiting()

    async def _wait_stopped(self) -> None:
        self._runs_processors = False
        tasks = list(self._background_tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stop_pollers()  # one may have begun meanwhile
        still_running = {future for future in self._end_futures.values() if not future.done()}
        longest = max((each.options.flow.drain for each in self._end_futures), default=0.0)
        if still_running:
            _, still_running = await asyncio.wait(still_running, timeout=longest + CLOSE_TIMEOUT)
        if still_running:
            self._cancel_handlers()
            _, still_running = await asyncio.wait(still_running, timeout=CLOSE_TIMEOUT)
        if still_running:
            logger.error(
                "%d processors did not end in time and are left behind", len(still_running)
            )
        for processor in self._end_futures:
            if processor.executor is not None:
                await processor.executor.wait_closed()


def _check_lifespan(lifespan: Lifespan) -> Lifespan:
    advice = "write `@asynccontextmanager async def lifespan(app): ... yield ...`"
    if not callable(lifespan):
        raise ConfigError(f"Streams(lifespan={lifespan!r}): not a function; {advice}")
    name = getattr(lifespan, "__name__", repr(lifespan))
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        raise ConfigError(f"Streams(lifespan={name}): not a context manager; {advice}")
    try:
        inspect.signature(lifespan).bind(None)
    except TypeError as error:
        raise ConfigError(
            f"Streams(lifespan={name}): it is called with the app: {advice}"
        ) from error
    except ValueError:
        pass  # a builtin that does not tell its parameters
    return lifespan


def _set_failure(waiter: asyncio.Future[ProcessorDied], failure: ProcessorDied) -> None:
    if not waiter.done():
        waiter.set_result(failure)


def describe_error(error: BaseException) -> str:
    """An error in one line's words."""
    return f"{type(error).__name__}: {derived_records.error_text(error)}".removesuffix(": ")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Event loops of uvloop where it is installed, else the standard ones."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
