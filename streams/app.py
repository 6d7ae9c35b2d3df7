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
from streams import letters
from streams.annotations import unpublished
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
    FENCED,
    ConfigError,
    GroupLive,
    MemberFenced,
    Mismatch,
    NotFound,
    NotRunning,
    ProcessorDied,
    StreamsError,
    Unavailable,
)
from streams.handlers import Declare, DeclareTo, HandlerOptions, Result
from streams.health import Health, ProcessorHealth, ProcessorStats, Stats
from streams.log.names import check_member
from streams.log.protocol import Log, Mode, Queryable, Static, TopicInfo, check_retention, ensure
from streams.log.url import Given, choose, open_log, redact
from streams.message import Headers, Message, Record, Transaction
from streams.processor import Options, Processor
from streams.publisher import Observer, Publisher
from streams.reading import resolve
from streams.runners.aio import LoopRunner
from streams.runners.base import Runner
from streams.runners.job import Job
from streams.runners.joint import Joint, Turns
from streams.runners.pump import Pump
from streams.runners.threads import ThreadRunner
from streams.runners.timing import NONE, Timing
from streams.shielding import in_thread, to_the_end
from streams.signals import Signals
from streams.text import get_logger, one_line
from streams.topic import Key, Source, Topic

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741 - what a topic given as to= takes

logger = get_logger("streams")

Lifespan = Callable[["Streams"], AbstractAsyncContextManager[Any]]

_LATE = "streams.patterns.delay.late"
"""What keeps failing messages and their attempts in the log, for ``Retry(in_order=False)`` and
``Retry(durable=True)``. It is made of topics and processors, so it stands above this module and is
looked up by name, like the names of :mod:`streams`."""

_SEQUENCE = "streams.patterns.deadletters.sequence"
"""What keeps keys closed behind a dead message, for ``DeadLetters(sequenced=True)``; looked up by
name for the same reason."""

_WORDS = re.compile(r"[^A-Za-z0-9._-]")
"""What a member's name cannot have in it."""

CLOSING = 10.0
"""Real seconds for what was published to be acknowledged when an app ends."""


def _check_cloudevents(where: str, given: object) -> CloudEvents:
    if not isinstance(given, CloudEvents):
        raise ConfigError(f"{where}cloudevents={given!r}: use CloudEvents(source=...)")
    return given


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
        self._option_url: str | None = None
        """What ``--url`` says instead."""
        self._mode: Mode = "rwc"
        """What may become of the log's file by opening it."""
        self._url_told = False
        """Whoever runs the app has said already which log it is on."""
        self._member = "" if member is None else check_member(member)
        self._life = secrets.token_hex(8)
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(
                f"Streams(config=...): a mapping of driver settings, not a {type(config).__name__}"
            )
        self._config = dict(config or {})
        self._lifespan = None if lifespan is None else _check_lifespan(lifespan)
        self.clock: Clock = SYSTEM
        self.topics: dict[str, Topic[Any]] = {}
        """Declared topics by name; of several declarations, the last."""
        self._declared: list[Topic[Any]] = []
        self.processors: list[Processor[..., Any]] = []
        """Declared processors, in order."""
        self._resources: list[AbstractAsyncContextManager[Any]] = []
        """What is entered and left with it."""
        self._log: Log | None = None
        self._publisher: Publisher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack: AsyncExitStack | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._ended: dict[Processor[..., Any], asyncio.Future[None]] = {}
        self._failure: ProcessorDied | None = None
        """What the first processor to die died of; until the app is entered again."""
        self._awaiting_failure: set[asyncio.Future[ProcessorDied]] = set()
        """Told when a processor has died; futures of any loops, guarded by :attr:`_entering`."""
        self._cancelled_body = False
        self._started = False
        """Entered, past the point where processors can be declared."""
        self._processing = False
        """Processors run, or are being started: one that is declared now starts by itself."""
        self._starting: set[Processor[..., Any]] = set()
        """Declared on the running app, and not begun yet."""
        self._retiring: set[Processor[..., Any]] = set()
        """Told to stop while the app goes on."""
        self._chores: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._entering = threading.Lock()
        self._starts: defaultdict[str, dict[tuple[str, int], int]] = defaultdict(dict)
        """By group, where to begin what could not be begun for it, as it is live."""
        self._over: asyncio.Event | None = None
        """Set by a signal, of an app that runs by itself; such a one waits for its server."""
        self._turns = Turns()
        """Handlers with a transaction of their own take turns."""
        self._measured = False
        """Handlers' calls are timed."""
        self._wraps: list[Callable[[Job], Job]] = []
        """What is put around each processor's job when it starts (tracing)."""
        self._observer: Observer | None = None
        """What is entered around each call that publishes (tracing)."""

    def __repr__(self) -> str:
        given = choose(self._option_url, self._url)
        return f"<Streams {redact(given.url) if given is not None and given.url else ''!r}>"

    @property
    def url(self) -> str:
        """The log's URL: what ``--url`` says, else what the code gave, else ``STREAMS_URL``.

        :raises ConfigError: none was given and the environment has none.
        """
        return self.given_url.url

    @property
    def given_url(self) -> Given:
        """The log's URL and what gave it; as text both, without secrets.

        :raises ConfigError: none was given and the environment has none.
        """
        given = choose(self._option_url, self._url)
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
    def life(self) -> str:
        """A word for this process, by which its groups tell it from others of its name."""
        return self._life

    def _static(self, processor: Processor[..., Any], member: str, life: str) -> Static | None:
        """What a processor of a process with this name is in its group; None without a name.

        Of several processors in one group, those after the first have their own names added.
        """
        if not member:
            return None
        first = next((each for each in self.processors if each.group == processor.group), processor)
        name = member if first is processor else f"{member}-{processor.name}"
        return Static(_WORDS.sub(".", name)[:249], life)

    def expel(self, member: str, life: str) -> None:
        """Give up the memberships of another process of this app, which has certainly ended, so
        that the others have its partitions at once (blocks; any thread).

        :param member: its name, :attr:`member` there.
        :param life: its :attr:`life`.
        :raises NotRunning: the app is not entered.
        :raises LogError: it could not be done; its leases run out by themselves.
        """
        log = self.log
        for processor in list(self.processors):
            static = self._static(processor, member, life)
            if static is not None:
                log.expel(processor.group, static)

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
        for other in self._declared:
            if other.name != name:
                continue
            for option in ("partitions", "retention"):
                before, now = getattr(other, option), getattr(topic, option)
                if before is not None and now is not None and before != now:
                    raise ConfigError(
                        f"topic {name!r}: declared with {option}={before!r}, and again with "
                        f"{option}={now!r}"
                    )
        self._declared.append(topic)
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
    ) -> Declare[A, Message[A, Transaction]]: ...

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
    ) -> DeclareTo[A, Message[A, Transaction], Result[O]]: ...

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
    ) -> Declare[list[A], list[Message[A, Transaction]]]: ...

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
    ) -> DeclareTo[list[A], list[Message[A, Transaction]], Sequence[Result[O]] | None]: ...

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
    ) -> Declare[A | B, Message[A | B, Transaction]]: ...

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
    ) -> DeclareTo[A | B, Message[A | B, Transaction], Result[O]]: ...

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
    ) -> Declare[list[A | B], list[Message[A | B, Transaction]]]: ...

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
    ) -> DeclareTo[list[A | B], list[Message[A | B, Transaction]], Sequence[Result[O]] | None]: ...

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
    ) -> Declare[A | B | C, Message[A | B | C, Transaction]]: ...

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
    ) -> DeclareTo[A | B | C, Message[A | B | C, Transaction], Result[O]]: ...

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
    ) -> Declare[list[A | B | C], list[Message[A | B | C, Transaction]]]: ...

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
    ) -> DeclareTo[
        list[A | B | C], list[Message[A | B | C, Transaction]], Sequence[Result[O]] | None
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
    ) -> Declare[Any, Message[Any, Transaction]]: ...

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
    ) -> DeclareTo[Any, Message[Any, Transaction], Result[O]]: ...

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
    ) -> Declare[list[Any], list[Message[Any, Transaction]]]: ...

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
    ) -> DeclareTo[list[Any], list[Message[Any, Transaction]], Sequence[Result[O]] | None]: ...

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
        options = Options(
            topics, group, concurrency, batch, filter, to, start, timeout, retry, dedup,
            dead_letters, flow,
        )  # fmt: skip

        for topic in (*topics, to):
            if isinstance(topic, Topic) and topic._app is not self:
                raise ConfigError(
                    f"processor in group {group!r}: topic {topic.name!r} belongs to another app; "
                    "declare it with this app's .topic(...)"
                )

        if self._started:
            raise ConfigError(
                "the app's processors are running already: declare them before it is entered, or "
                "in its lifespan"
            )

        def declare(function: Callable[..., Any]) -> Processor[..., Any]:
            processor = self._declare(function, options)
            if to is None:
                known = [each.typed for each in self._declared if each.typed is not None]
                if returned := unpublished(processor.function, known):
                    logger.warning(
                        "processor %s returns %s, and without to= nobody gets it",
                        processor.name, returned,
                    )  # fmt: skip
            return processor

        return Declare(declare) if to is None else DeclareTo(declare)

    def _declare(
        self,
        function: Callable[P, R],
        options: Options,
        kind: Callable[[Callable[P, R], Options, str], Processor[P, R]] = Processor,
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
        processor = kind(function, options, unique)
        for other in self.processors:
            both = set(other.topics) & set(processor.topics)
            if other.group == options.group and both and not processor.shares:
                raise ConfigError(
                    f"processor {name}: group {options.group!r} already reads {sorted(both)[0]!r} "
                    f"in processor {other.name}; give it a group of its own"
                )
        if options.retry.logged:
            processor.late = import_module(_LATE).keep(self, processor)
        if options.dead_letters.sequenced:
            processor.sequence = import_module(_SEQUENCE).keep(self, processor)
        self.processors.append(processor)
        if self._processing:
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
            raise self._not_running("the app is not running: use it inside `async with app:`")
        return self._log

    @property
    def publisher(self) -> Publisher:
        """What publishes for this app.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        """
        if self._publisher is None:
            raise self._not_running("the app is not running: use it inside `async with app:`")
        return self._publisher

    def _not_running(self, what: str) -> StreamsError:
        """The error of whoever uses the app and cannot: that it is not entered is not the point
        where a processor died and took it down."""
        failure = self._failure
        if failure is None:
            return NotRunning(what)
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
        return await in_thread(log.query, sql, parameters)

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
                raise self._not_running(
                    "the app is not running: use it inside `with app.background():`"
                )
            raise ConfigError("app.wait() on the app's own loop would wait for ever: use await")

        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), loop).result()

    def measure(self) -> None:
        """Take the time of handlers' calls from now on, for :meth:`stats`; now and then of quick
        ones, so that it is not felt."""
        self._measured = True
        for processor in self.processors:
            if processor._runner is not None:
                self._time(processor._runner)

    def _time(self, runner: Runner) -> None:
        if self._measured and runner.timing is None:
            runner.timing = Timing(asynchronous=runner.job.asynchronous)

    def stats(self) -> Stats:
        """Figures of this moment."""
        found = {}
        for processor in self.processors:
            runner, pump = processor._runner, processor._pump
            if runner is None or pump is None:
                continue
            counts, pumped = runner.dispatcher.counts, pump.stats()
            handled, filtered = runner.tally()
            found[processor.name] = ProcessorStats(
                handled=handled,
                duplicates=counts.duplicates,
                filtered=filtered,
                retries=counts.retries,
                dead_letters=counts.buried,
                in_flight=pumped.held,
                in_flight_bytes=pumped.held_bytes,
                running=runner.running,
                waiting=runner.dispatcher.waiting,
                partitions=pumped.partitions,
                commits=pumped.commits,
                rebalances=pumped.rebalances,
                losses=pumped.losses,
                rejected=pumped.rejected,
                commit_seconds=pumped.commit_seconds,
                handler_seconds=NONE if runner.timing is None else runner.timing.read(),
                places=pumped.places,
            )
        published = self._publisher.published if self._publisher is not None else 0
        return Stats(found, published)

    def health(self) -> Health:
        """How the app and its processors are."""
        found = {}
        for processor in self.processors:
            if processor in self._starting:
                continue
            runner, pump = processor._runner, processor._pump
            error = pump.fatal if pump is not None else None
            found[processor.name] = ProcessorHealth(
                running=pump is not None and not pump.ended.is_set(),
                paused=processor.paused,
                reachable=pump is not None and pump.reachable,
                overdue=runner.overdue() if runner is not None else 0,
                error=processor._died if error is None else describe(error),
                losses=0 if pump is None else pump.losses,
                rejected=0 if pump is None else pump.rejected,
                contested=0 if pump is None else pump.contested,
            )
        return Health(self._log is not None, found, self._stopping)

    async def failed(self) -> ProcessorDied:
        """Wait until a processor dies, and return why: what ``async with app`` raises at its end.

        For whoever runs the app inside something that would go on without it, to end or restart
        that. Any number may wait, on any loop; who is cancelled does no harm. The answer stays
        until the app is entered again. An app that is left in order answers nobody.
        """
        with self._entering:
            if self._failure is not None:
                return self._failure
            told: asyncio.Future[ProcessorDied] = asyncio.get_running_loop().create_future()
            self._awaiting_failure.add(told)
        try:
            return await told
        finally:
            with self._entering:
                self._awaiting_failure.discard(told)

    def _fail(self, failure: ProcessorDied) -> None:
        """A processor has died (loop only)."""
        with self._entering:
            self._failure = failure
            waiting = list(self._awaiting_failure)
        for told in waiting:
            with suppress(RuntimeError):  # that loop is closed: nobody waits any more
                told.get_loop().call_soon_threadsafe(_tell, told, failure)

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
            owner, self._owner = self._owner, None
            failure = self._failure
            ours = self._cancelled_body and isinstance(error, asyncio.CancelledError)
            if self._cancelled_body and owner is not None:
                owner.uncancel()
            self._cancelled_body = False
        if failure is not None and (error is None or ours):
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
        stopping: list[Callable[[], object]] = []

        async def live() -> None:
            over = asyncio.Event()
            loop = asyncio.get_running_loop()
            stopping.append(lambda: loop.call_soon_threadsafe(over.set))
            async with self:
                ready.set_result(None)
                await over.wait()

        failure: list[BaseException] = []

        def main() -> None:
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(live())
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
            for stop in stopping:
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
            raise SystemExit(FENCED if fenced else 1) from error

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
        over = self._over = asyncio.Event()

        def told(name: str) -> None:
            logger.info("%s: finishing what is in flight", name)
            over.set()

        try:
            # Not the loop's own handlers: the second signal counts also while the loop is blocked.
            with Signals(lambda name: loop.call_soon_threadsafe(told, name)):
                async with self:
                    await over.wait()
        finally:
            self._over = None

    async def _enter(self, *, process: bool, cancel_body: bool = True) -> None:
        """Enter the app.

        :param process: run its processors.
        :param cancel_body: cancel the current task when one of them dies.
        """
        with self._entering:
            if self._stack is not None:
                raise NotRunning("the app is running already: enter it once")
            stack = self._stack = AsyncExitStack()
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task() if cancel_body else None
        self._failure = None
        for processor in self.processors:
            processor._died = None
        self._cancelled_body = self._stopping = False
        try:
            stack.callback(self._forget)
            stack.push_async_callback(self._close_log)
            if not self._url_told:
                logger.info("the log is %s", self.given_url)
            await self._reach(self._open_log)
            self._publisher = Publisher(self.log, self.clock)
            self._publisher.observer = self._observer
            self._publisher.refusal = self._not_running
            self._publisher.start()
            closing = self._publisher.close
            stack.push_async_callback(lambda: in_thread(closing, CLOSING))
            stack.push_async_callback(self._leave_resources)
            for resource in list(self._resources):
                await resource.__aenter__()
            if self._lifespan is not None:
                # So that it may publish; what is still missing then is its own to create.
                await self._reach(partial(self._prepare_topics, missing_ok=True))
                await stack.enter_async_context(self._lifespan(self))
            await self._reach(self._prepare_topics)
            self._started = True
            if process:
                stack.push_async_callback(self._stop)
                processors = list(self.processors)
                self._processing = True
                for processor in processors:
                    # All before the first starts: Kafka gives no start to a group that is live.
                    await self._reach(partial(processor.prepare, self))
                for processor in processors:
                    await self._start(processor)
        except BaseException:
            self._stopping = True  # what ends from here on ends because of this error
            try:
                await stack.__aexit__(*sys.exc_info())
            finally:
                self._stack = None
            raise

    async def _reach(self, ask: Callable[[], None]) -> None:
        """Ask the log something, off the loop; :meth:`run` asks until there is an answer."""
        pause = 0.5
        while True:
            try:
                await in_thread(ask)
                return
            except Unavailable as error:
                if self._over is None or self._over.is_set():
                    raise
                logger.warning("%s; trying again in %g s", error, pause)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._over.wait()
                if self._over.is_set():
                    raise
                pause = min(5.0, 2 * pause)

    def _open_log(self) -> None:
        self._log = open_log(self.url, self._config, self.clock, self._member, self._mode)

    async def _close_log(self) -> None:
        if self._log is not None:
            await in_thread(self._log.close)

    async def _leave_resources(self) -> None:
        async with AsyncExitStack() as stack:
            for resource in self._resources:
                stack.push_async_exit(resource)

    def _forget(self) -> None:
        self._started = self._processing = False
        self._starting.clear()
        self._log = self._publisher = self._loop = None
        self._starts.clear()
        for processor in (*self.processors, *self._ended):
            processor._runner = processor._pump = None
        self._ended.clear()
        self._retiring.clear()

    def _prepare_topics(self, *, missing_ok: bool = False) -> None:
        """Check declared topics against the log, and create what is missing."""
        wanted: dict[str, list[Topic[Any]]] = {}
        for topic in self._declared:
            wanted.setdefault(topic.name, []).append(topic)
        capabilities = self.log.capabilities
        for name, topics in wanted.items():
            for topic in topics:
                check_retention(name, topic.retention or Retention(), capabilities)
        letter_topics = self._letter_topics()
        for name, topics in wanted.items():
            takes_letters = name in letter_topics or any(each.takes_letters for each in topics)
            try:
                self._prepare(topics, capabilities.letters if takes_letters else None)
            except NotFound:
                if not missing_ok:
                    raise

    def _letter_topics(self) -> set[str]:
        """The topics for the processors' dead letters, and for those that are put back."""
        return {
            name(topic, processor.group)
            for processor in self.processors
            for topic in processor.topics
            for name in (
                processor.options.dead_letters.name,
                processor.options.dead_letters.retry,
            )
        }

    def _prepare(self, topics: list[Topic[Any]], config: Mapping[str, str] | None) -> None:
        """Create a topic, or find it as it is declared.

        :param topics: its declarations, which do not contradict each other.
        :param config: settings that it is created with.
        """
        log, name = self.log, topics[0].name
        partitions = next((each.partitions for each in topics if each.partitions), None)
        retention = next((each.retention for each in topics if each.retention), Retention())
        owned = any(each.owned for each in topics)
        if partitions is None and not owned and not log.capabilities.creates_topics:
            log.topic(name)
            return
        spread = partitions or max(each.spread for each in topics)
        info = ensure(log, name, spread, retention, config)
        if partitions is not None and info.partitions != partitions:
            raise Mismatch(
                f"topic {name!r} has {info.partitions} partitions, but is declared with "
                f"{partitions}; declare {info.partitions}, or leave partitions out"
            )

    async def _start(self, processor: Processor[..., Any]) -> None:
        loop = asyncio.get_running_loop()
        job = processor.job(self)
        for wrap in self._wraps:
            job = wrap(job)

        def joint() -> Joint:
            return pump.joint(self._turns)

        runner: Runner = (
            LoopRunner(job, loop, joint) if job.asynchronous else ThreadRunner(job, joint)
        )
        self._time(runner)
        pump = Pump(processor.source(self), job, runner)
        processor._died = None
        ended: asyncio.Future[None] = loop.create_future()
        self._ended[processor] = ended

        def on_end() -> None:
            try:
                loop.call_soon_threadsafe(self._pump_ended, processor, pump, ended)
            except RuntimeError:
                return  # the loop is closed already

        pump.on_end = on_end
        processor._runner, processor._pump = runner, pump
        if processor.paused:
            pump.pause()
        runner.start()
        pump.start()

    # -- one processor, while the app goes on

    async def start_processor(self, processor: Processor[..., Any]) -> None:
        """Begin with a processor that was declared on the running app: its topics, its group's
        start, then itself. Outages of the log are waited out.

        :raises NotRunning: no processors run here.
        :raises LogError: the log refuses; the processor stays declared and does not run.
        """
        if not self._processing:
            raise self._not_running("the app runs no processors: enter it with `async with app:`")
        pause = 0.5
        while True:
            try:
                await in_thread(self._prepare_topics)
                await in_thread(processor.prepare, self)
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
        for companion in processor.companions:
            await self.start_processor(companion)
        if self._processing and processor in self._starting:
            self._starting.discard(processor)
            await self._start(processor)

    async def stop_processor(self, processor: Processor[..., Any]) -> None:
        """Stop a processor and take its declaration back; the others go on.

        What it handles is finished (for its ``Flow(drain=)`` seconds at most) and committed, and
        it leaves its group. Nothing of it runs once this has returned.
        """
        self._starting.discard(processor)
        if processor in self.processors:
            self.processors.remove(processor)
        runner, pump, ended = processor._runner, processor._pump, self._ended.get(processor)
        if runner is None or pump is None or ended is None:
            for companion in processor.companions:
                await self.stop_processor(companion)
            return
        self._retiring.add(processor)
        pump.stop()
        for patience in (processor.options.flow.drain + CLOSING, CLOSING):
            await asyncio.wait({ended}, timeout=patience)
            if ended.done():
                break
            runner.hurry()
        else:
            logger.error("processor %s did not end in time and is left behind", processor.name)
        await runner.gone()
        self._ended.pop(processor, None)
        self._retiring.discard(processor)
        processor._runner = processor._pump = None
        for companion in processor.companions:
            await self.stop_processor(companion)

    def _chore(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside the app's body, until the app is left at the latest (loop only)."""
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task

    def _prepare_processor(self, processor: Processor[..., Any]) -> None:
        """Create its dead letter and retry topics, and give a new group its start."""
        log, options = self.log, processor.options
        letters_config = log.capabilities.letters
        if processor.late is not None:
            processor.late.prepare(log)
        if processor.sequence is not None:
            processor.sequence.prepare(log)
        for source in options.topics:
            info = log.topic(source.name)
            dead = options.dead_letters.name(source.name, processor.group)
            retry = options.dead_letters.retry(source.name, processor.group)
            self._begin(processor.group, info, options.start)
            for name, partitions in ((dead, info.partitions), (retry, RETRY_PARTITIONS)):
                beside = ensure(log, name, partitions, config=letters_config)
                if name == retry:
                    self._begin(processor.group, beside, "earliest")

    def _begin(self, group: str, info: TopicInfo, start: Start | datetime) -> None:
        """Give a group that is new to this topic its positions there."""
        log = self.log
        if log.places(group, info.name):
            return
        now = self.clock.time()
        places = {
            partition: resolve(log, info.name, partition, start, option="start", now=now)
            for partition in range(info.partitions)
        }
        try:
            log.begin(group, info.name, places)
        except GroupLive:
            # Members of the release before this one run, without this topic. Whoever of us gets a
            # partition begins it there.
            self._starts[group].update(
                ((info.name, partition), place) for partition, place in places.items()
            )

    def _job(self, processor: Processor[..., Any]) -> Job:
        options, log = processor.options, self.log
        results = None
        if options.to is not None:
            target = options.to

            def record(value: Any, id: str, headers: Headers) -> Record:
                found = target.record(value, id=id)
                found.headers = [*found.headers, *headers]
                return found

            results = letters.results(
                processor.group,
                target.name,
                record,
                several=(get_origin(target.type) or target.type) not in (list, tuple),
            )
        group, letter = processor.group, options.dead_letters
        sources: dict[str, Source[Any]] = {}
        for topic in options.topics:
            sources[topic.name] = sources[letter.retry(topic.name, group)] = topic
        return Job(
            name=processor.name,
            group=group,
            topics=tuple(sources),
            function=processor.function,
            asynchronous=processor.shape.asynchronous,
            wants_message=processor.shape.wants_message,
            decodings={name: topic.decoding for name, topic in sources.items()},
            concurrency=options.concurrency,
            batch=options.batch,
            filter=options.filter,
            timeout=options.timeout,
            retry=options.retry,
            dedup=options.dedup,
            flow=options.flow,
            clock=self.clock,
            results=results,
            letter=letters.letter(
                group, lambda topic: letter.name(sources[topic].name, group), self.clock
            ),
            send=self.publisher.derive,
            late=processor.late,
            watch=processor.late,
            sequence=processor.sequence,
            starts=self._starts[group],
            member=self._static(processor, self._member, self._life),
            transactions=(
                log.capabilities.transactions and results is None and processor.sequence is None
            ),
        )

    def _pump_ended(
        self, processor: Processor[..., Any], pump: Pump, ended: asyncio.Future[None]
    ) -> None:
        if not ended.done():
            ended.set_result(None)
        error = pump.fatal
        if error is None and (self._stopping or processor in self._retiring):
            return
        if error is not None and not isinstance(error, StreamsError):
            logger.error("processor %s died", processor.name, exc_info=error)
        processor._died = describe(error) if error is not None else "it ended by itself"
        if self._failure is not None:
            return
        failure = ProcessorDied(f"processor {processor.name} died: {processor._died}")
        failure.__cause__ = error
        self._fail(failure)
        if self._owner is not None and not self._stopping:
            self._cancelled_body = True
            self._owner.cancel()

    async def _stop(self) -> None:
        """Stop all processors: handlers finish up to their drain deadlines, positions commit.

        Cancelled meanwhile it does the same, without patience for handlers.
        """
        self._stop_pumps()
        await to_the_end(self._stopped(), self._hurry)

    def _stop_pumps(self) -> None:
        for processor in self._ended:  # those that run, also if they are declared no more
            if processor._pump is not None:
                processor._pump.stop()

    def _hurry(self) -> None:
        for processor in self._ended:
            if processor._runner is not None:
                processor._runner.hurry()

    async def _stopped(self) -> None:
        self._processing = False
        chores = list(self._chores)
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        self._stop_pumps()  # one may have begun meanwhile
        late = {future for future in self._ended.values() if not future.done()}
        longest = max((each.options.flow.drain for each in self._ended), default=0.0)
        if late:
            _, late = await asyncio.wait(late, timeout=longest + CLOSING)
        if late:
            self._hurry()
            _, late = await asyncio.wait(late, timeout=CLOSING)
        if late:
            logger.error("%d processors did not end in time and are left behind", len(late))
        for processor in self._ended:
            if processor._runner is not None:
                await processor._runner.gone()


def _check_lifespan(lifespan: Lifespan) -> Lifespan:
    how = "write `@asynccontextmanager async def lifespan(app): ... yield ...`"
    if not callable(lifespan):
        raise ConfigError(f"Streams(lifespan={lifespan!r}): not a function; {how}")
    name = getattr(lifespan, "__name__", repr(lifespan))
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        raise ConfigError(f"Streams(lifespan={name}): not a context manager; {how}")
    try:
        inspect.signature(lifespan).bind(None)
    except TypeError as error:
        raise ConfigError(f"Streams(lifespan={name}): it is called with the app: {how}") from error
    except ValueError:
        pass  # a builtin that does not tell its parameters
    return lifespan


def _tell(told: asyncio.Future[ProcessorDied], failure: ProcessorDied) -> None:
    if not told.done():
        told.set_result(failure)


def describe(error: BaseException) -> str:
    """An error in one line's words."""
    return f"{type(error).__name__}: {letters.words(error)}".removesuffix(": ")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Event loops of uvloop where it is installed, else the standard ones."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
