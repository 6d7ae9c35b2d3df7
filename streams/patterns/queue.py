"""A message queue on topics and processors: shared work that is retried and never lost.

A queue is a topic, its consumers are the members of one group (named like the queue), and the
guarantees are a processor's:

* a message is handled at least once; a consumer that is killed while it handles loses nothing;
* several consumers share a queue by its partitions; each runs exactly as many handlers at once as
  configured;
* messages of one key are handled in order; a message that fails blocks its key, one without a
  key blocks nothing; the number of attempts survives restarts;
* after its last retry a message goes to the dead letters with its error. There is always a dead
  letter topic: without a ``dead_letter_queue`` it is ``{queue}.{queue}.dead``.

There are no priorities: a log cannot guarantee them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from typing_extensions import TypeForm

from streams.annotation_checks import ArgumentType, check_arguments
from streams.callables import callable_name
from streams.cancellation import run_in_thread, run_to_completion
from streams.config import DeadLetters, Flow, Retention, Retry
from streams.errors import ConfigError, InvalidValue
from streams.log.names import check_group, check_topic
from streams.log.protocol import Log
from streams.message import (
    CAUSATION,
    CORRELATION,
    LEGACY_CAUSATION,
    LEGACY_CORRELATION,
    Message,
    header_or_legacy,
)
from streams.patterns.arguments import NOT_GIVEN, check_app, check_int, check_seconds
from streams.patterns.delay import Delay, DelayClient, due_at
from streams.processor import Processor, ProcessorOptions, inspect_handler
from streams.retries import Outcome, delay_topic
from streams.text import get_logger, is_misspelling, suggestion
from streams.topic import InternalTopic, Topic

if TYPE_CHECKING:
    from stream_codecs import Codec
    from streams.app import Streams
    from streams.topic import Key

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])

logger = get_logger("streams")

DEFAULT_PARTITIONS = 8
"""Partitions of a queue that is created without a number: as many consumers as this can share
it."""


class _LazyHeaders(Mapping[str, str]):
    """A message's headers, decoded when one is first read."""

    __slots__ = ("_source",)

    def __init__(self, message: Message[Any]) -> None:
        self._source: Message[Any] | Mapping[str, str] = message

    def _decode_headers(self) -> Mapping[str, str]:
        found = self._source
        if isinstance(found, Message):
            found = self._source = found.headers
        return found

    def __getitem__(self, name: str) -> str:
        return self._decode_headers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decode_headers())

    def __len__(self) -> int:
        return len(self._decode_headers())

    def __repr__(self) -> str:
        return repr(self._decode_headers())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self._decode_headers()),)


@dataclass(frozen=True, slots=True)
class QueueMessage(Generic[T_co]):
    """The message that a queue's handler gets."""

    id: str
    """The message ID: the same at each attempt."""
    timestamp: datetime
    """When it was published, UTC."""
    data: T_co
    retries: int
    """How often it failed before; 0 at first."""
    queue: str
    key: str | None = None
    """The key as text; messages of one key are handled in order."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """All its headers as text, as on a :class:`streams.Message`; where a name repeats, the last
    one. Read them while the handler runs."""

    @property
    def correlation_id(self) -> str | None:
        """The ID of the saga or request that this message belongs to (``ce_correlationid``)."""
        return header_or_legacy(self.headers, CORRELATION, LEGACY_CORRELATION)

    @property
    def causation_id(self) -> str | None:
        """The ID of the message that caused this one (``ce_causationid``)."""
        return header_or_legacy(self.headers, CAUSATION, LEGACY_CAUSATION)


Handler = Callable[[QueueMessage[Any]], Awaitable[None]] | Callable[[QueueMessage[Any]], None]
"""``async def`` (on the app's loop) or plain ``def`` (in worker threads)."""


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """The configuration of a consumer.

    :param concurrency: handlers running at once: exactly so many, if there are enough messages
        whose key is free.
    :param max_retries: how often a failing message is retried.
    :param retry_delay: seconds: before retry n, counted from 0, a message waits a random time up
        to ``retry_delay * 2**n``.
    :param dead_letter_queue: the topic of messages after their last retry; None:
        ``{queue}.{queue}.dead``.
    :param retry_cap: the longest wait before a retry, in seconds.
    :param never: exception types that are not retried.
    :param timeout: seconds one call of an async handler may take.
    :param drain: seconds that :meth:`MessageConsumer.stop` allows for messages in flight.
    :param commit: seconds between two commits, at most: see :class:`streams.Flow`.
    :raises ConfigError: any of these cannot work.
    """

    concurrency: int = 1
    max_retries: int = 4
    retry_delay: float = 0.1
    dead_letter_queue: str | None = None
    retry_cap: float = 30.0
    never: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    drain: float = 30.0
    commit: float = 1.0
    retry: Retry = field(init=False, repr=False)
    dead_letters: DeadLetters = field(init=False, repr=False)
    flow: Flow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        where, dead_letter_queue = "ConsumerConfig", self.dead_letter_queue
        check_int(where, "concurrency", self.concurrency)
        check_int(where, "max_retries", self.max_retries, 0)
        for option in ("retry_delay", "retry_cap", "drain"):
            check_seconds(where, option, getattr(self, option), positive=False)
        check_seconds(where, "commit", self.commit)
        if self.timeout is not None:
            check_seconds(where, "timeout", self.timeout)
        dead_letters = DeadLetters()
        if dead_letter_queue is not None:
            dead_letters = DeadLetters(topic=check_topic(dead_letter_queue))
        retry = Retry(
            attempts=self.max_retries + 1, delay=self.retry_delay, cap=self.retry_cap,
            never=self.never, durable=True,
        )  # fmt: skip
        object.__setattr__(self, "retry", retry)
        object.__setattr__(self, "dead_letters", dead_letters)
        object.__setattr__(self, "flow", Flow(commit=self.commit, drain=self.drain))


def check_config(config: object) -> None:
    """:raises ConfigError: it is not a consumer's configuration."""
    if not isinstance(config, ConsumerConfig):
        raise ConfigError(f"config={config!r}: use ConsumerConfig(...)")


class _QueueTopic(InternalTopic[Any]):
    default_partitions = DEFAULT_PARTITIONS


class _QueueProcessor(Processor[..., Any]):
    shares_group = True


class Queue(Generic[T]):
    """A declared queue, which knows the type of its data; :meth:`MessageQueue.declare` returns it.
    A type checker compares handlers and published values with it.
    """

    def __init__(self, queues: MessageQueue, topic: Topic[T]) -> None:
        self._queues = queues
        self.topic = topic
        """The queue's topic."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.topic.name

    def __repr__(self) -> str:
        return f"<Queue {self.name!r}>"

    async def publish(
        self,
        data: T,
        *,
        key: Key | None = None,
        delay: Delay | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """:meth:`MessageQueue.publish` to this queue."""
        return await self._queues.publish(
            self.name, data, key=key, delay=delay, id=id, headers=headers
        )

    async def cancel(self, id: str, *, within: float = 30.0) -> Outcome:
        """:meth:`MessageQueue.cancel` of this queue."""
        return await self._queues.cancel(self.name, id, within=within)

    @overload
    def subscribe(
        self, handler: Callable[[QueueMessage[T]], object], config: ConsumerConfig = ...
    ) -> MessageConsumer: ...

    @overload
    def subscribe(
        self, *, config: ConsumerConfig = ...
    ) -> Callable[[Callable[[QueueMessage[T]], R]], Callable[[QueueMessage[T]], R]]: ...

    def subscribe(self, handler: Any = NOT_GIVEN, config: ConsumerConfig = ConsumerConfig()) -> Any:
        """:meth:`MessageQueue.subscribe` to this queue; without a handler a decorator for one."""
        return self._queues.subscribe(self.name, handler, config)


class MessageQueue:
    """Queues of an app, by name.

    Once one is declared, all that are used must be: the name of another one is an error.

    :param app: the app whose log they are on.
    :param partitions: how many each has. Not given: a queue that exists is used as it is, and a
        new one gets 8.
    :param retention: how long each keeps its messages, if it is created here: see
        :meth:`streams.Streams.topic`.
    """

    def __init__(
        self, app: Streams, *, partitions: int | None = None, retention: Retention | None = None
    ) -> None:
        check_app(app, "MessageQueue")
        if partitions is not None:
            check_int("MessageQueue", "partitions", partitions)
        if retention is not None and not isinstance(retention, Retention):
            raise ConfigError(f"MessageQueue(retention={retention!r}): use Retention(...)")
        self.app = app
        self._partitions = partitions
        self._retention = retention
        self._declared: set[str] = set()
        """Queues that were declared, and not only used."""
        self._topics: dict[str, Topic[Any]] = {}
        self._dead_letter_queues: dict[str, str | None] = {}
        """Its consumers' dead letter queues, and a queue that each is for, where that is known."""
        self._ensured: WeakKeyDictionary[Log, set[str]] = WeakKeyDictionary()
        self._delays = DelayClient(app)

    def __repr__(self) -> str:
        return f"<MessageQueue on {self.app!r}>"

    @overload
    def declare(
        self,
        queue: str,
        *,
        codec: Codec | None = None,
        partitions: int | None = None,
        retention: Retention | None = None,
    ) -> Queue[Any]: ...

    @overload
    def declare(
        self,
        queue: str,
        type: TypeForm[T],
        *,
        codec: Codec | None = None,
        partitions: int | None = None,
        retention: Retention | None = None,
    ) -> Queue[T]: ...

    def declare(
        self,
        queue: str,
        type: Any = Any,
        *,
        codec: Codec | None = None,
        partitions: int | None = None,
        retention: Retention | None = None,
    ) -> Queue[Any]:
        """Declare the type of a queue's data, and get a handle that knows it. An undeclared queue
        takes any JSON value, and can be used as long as no other one is declared.

        :param type: the type of its data, as for :meth:`streams.Streams.topic`.
        :param partitions: how many it has, if not this object's number.
        :param retention: how long it keeps its messages, if not this object's.
        :raises ConfigError: any of these cannot work, or the queue is in use already.
        """
        self._check_dead_letter_queues(queue)
        topic = self._declare_topic(queue, type, codec, partitions, retention)
        self._declared.add(topic.name)
        return Queue(self, topic)

    def topic(self, queue: str) -> Topic[Any]:
        """The topic of a queue.

        :raises ConfigError: others are declared, and this one is not.
        """
        if not isinstance(queue, str) or queue not in self._topics:
            check_group(queue)
            if self._declared:
                raise ConfigError(
                    f"queue {queue!r} is not declared: {suggestion(queue, self._topics)} Declare a "
                    f"new one before it is used: .declare({queue!r}, ...)"
                )
            self._declare_topic(queue, Any, None, None, None)
        return self._topics[queue]

    def _declare_topic(
        self,
        queue: str,
        type: Any,
        codec: Codec | None,
        partitions: int | None,
        retention: Retention | None,
    ) -> Topic[Any]:
        if check_group(queue) in self._topics:
            raise ConfigError(f"queue {queue!r}: declare it once, before it is used")
        topic = _QueueTopic(
            self.app, queue, type, codec=codec, cloudevents=self.app.cloudevents,
            partitions=self._partitions if partitions is None else partitions,
            retention=self._retention if retention is None else retention,
        )  # fmt: skip
        topic.for_dead_letters = queue in self._dead_letter_queues
        self.app.add_topic(topic)
        self._topics[queue] = topic
        return topic

    def add_dead_letter_queue(self, dead_letter_queue: str, queue: str | None) -> None:
        """Note that a consumer has this dead letter queue, declared or not.

        :param queue: the queue that it belongs to, if known.
        :raises ConfigError: its name seems to be a typo.
        """
        if queue is not None and dead_letter_queue not in self._declared:
            for each in sorted(self._declared - {queue}):
                self._check_spelling(queue, dead_letter_queue, each, "?")
        known = self._dead_letter_queues.get(dead_letter_queue)
        self._dead_letter_queues[dead_letter_queue] = queue or known
        if dead_letter_queue in self._topics:
            self._topics[dead_letter_queue].for_dead_letters = True

    def _check_dead_letter_queues(self, declared: str) -> None:
        """Check that no consumer meant the queue that is declared now by its dead letter queue.

        :raises ConfigError: the name of a dead letter queue seems to be a typo.
        """
        for name, queue in self._dead_letter_queues.items():
            if name not in self._declared and queue is not None and queue != declared:
                self._check_spelling(queue, name, declared, ", which is declared now?")

    @staticmethod
    def _check_spelling(queue: str, dead_letter_queue: str, other: str, end: str) -> None:
        if is_misspelling(dead_letter_queue, other):
            raise ConfigError(
                f"queue {queue!r}: dead_letter_queue={dead_letter_queue!r} is not declared: did "
                f"you mean {other!r}{end} Declare it before if it is another one: "
                f".declare({dead_letter_queue!r}, ...)"
            )

    async def publish(
        self,
        queue: str,
        data: Any,
        *,
        key: Key | None = None,
        delay: Delay | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Put a message into a queue; returns its ID once it is durable.

        :param key: messages of one key are handled one at a time, in order. A delayed one
            joins that order when it is due.
        :param delay: it is not handled before this many seconds (or a timedelta) have passed.
        :param id: the message ID, made if not given; the same twice is handled once.
        :raises InvalidValue: no queue has this name, or can have it, or the delay is invalid.
        :raises EncodeError: the data do not fit the queue's type; nothing was written.
        :raises LogError: as :meth:`streams.Topic.publish`.
        """
        topic = self._topic_or_invalid(queue)
        await self._ensure_queue(queue)
        now = self.app.clock.time()
        due = None if delay is None else due_at(now, delay, None)
        timestamp = datetime.fromtimestamp(now, timezone.utc)
        record = topic.record(data, key=key, id=id, headers=headers, timestamp=timestamp)
        if due is None:
            await self.app.publisher.publish(queue, record)
        else:
            waiting_topic = delay_topic(queue, queue)
            await self._delays.schedule(waiting_topic, _partitions(queue), queue, record, due)
        return record.id

    async def cancel(self, queue: str, id: str, *, within: float = 30.0) -> Outcome:
        """Ask that a delayed message be not delivered: see :meth:`streams.Delays.cancel`.

        A running consumer of the queue answers.
        """
        self._topic_or_invalid(queue)
        await self._ensure_queue(queue)
        return await self._delays.cancel(delay_topic(queue, queue), _partitions(queue), id, within)

    @overload
    def subscribe(
        self, queue: str, handler: Handler, config: ConsumerConfig = ...
    ) -> MessageConsumer: ...

    @overload
    def subscribe(self, queue: str, *, config: ConsumerConfig = ...) -> Callable[[F], F]: ...

    def subscribe(
        self, queue: str, handler: Any = NOT_GIVEN, config: ConsumerConfig = ConsumerConfig()
    ) -> Any:
        """A consumer that starts with the app; on a running app, at once.

        Await the returned object to know that it runs. Without a handler this returns a decorator,
        ``@queue.subscribe("mails")``, which returns the handler unchanged.

        :raises ConfigError: any of these cannot work, the handler is annotated with another type,
            others are declared and this queue is not, or the name of its dead letter queue is a
            typo of one that is declared.
        """
        self.topic(queue)
        if handler is NOT_GIVEN:

            def decorate(function: F) -> F:
                _ = self._subscribe(queue, function, config)
                return function

            check_config(config)
            return decorate
        if isinstance(handler, ConsumerConfig):
            raise ConfigError(f"subscribe({queue!r}, {handler!r}): give it as config=")
        return self._subscribe(queue, handler, config)

    def _subscribe(self, queue: str, handler: Any, config: ConsumerConfig) -> MessageConsumer:
        consumer = MessageConsumer(self, config)
        consumer.start_with_app(queue, handler)
        return consumer

    def _topic_or_invalid(self, queue: str) -> Topic[Any]:
        """The topic of a queue; its name may have come with a message, so an error is no
        ConfigError."""
        try:
            return self.topic(queue)
        except ConfigError as error:
            raise InvalidValue(str(error)) from None

    async def _ensure_queue(self, queue: str) -> None:
        """Make sure that the queue exists, with its partitions."""
        ensured = self._ensured.setdefault(self.app.log, set())
        if queue not in ensured:
            await run_in_thread(self.app.runtime.ensure_topics)
            ensured.add(queue)


class MessageConsumer:
    """A consumer of one queue at a time, to be started and stopped while the app runs."""

    def __init__(self, queue: MessageQueue, config: ConsumerConfig = ConsumerConfig()) -> None:
        if not isinstance(queue, MessageQueue):
            raise ConfigError(f"MessageConsumer({queue!r}): give a MessageQueue")
        check_config(config)
        if config.dead_letter_queue is not None:
            queue.add_dead_letter_queue(config.dead_letter_queue, None)
        self._queue = queue
        self._app = queue.app
        self._config = config
        self._processor: Processor[..., Any] | None = None
        self._start_task: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        """Done once everything that was stopped has ended."""
        self._handler_tasks: set[asyncio.Task[Any] | None] = set()
        """The tasks that run a handler."""

    def __repr__(self) -> str:
        suffix = "" if self._processor is None else f" of {self._processor.topics[0]!r}"
        return f"<MessageConsumer{suffix}>"

    def __await__(self) -> Generator[Any, None, Self]:
        if self._start_task is not None:
            yield from asyncio.shield(self._start_task).__await__()
        return self

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped."""
        return self._processor is not None

    @overload
    async def start(self, queue_name: str, handler: Handler) -> None: ...

    @overload
    async def start(
        self, queue_name: Queue[T], handler: Callable[[QueueMessage[T]], object]
    ) -> None: ...

    async def start(self, queue_name: str | Queue[Any], handler: Any) -> None:
        """Begin to handle a queue's messages; returns once that has begun.

        :param queue_name: the queue, or its name.
        :param handler: called with a :class:`QueueMessage`; ``async def`` or plain ``def``.
        :raises NotRunning: the app is not entered, or publishes only.
        :raises ConfigError: it runs already, or the handler cannot be called.
        :raises LogError: the log refuses.
        """
        if not self._app.runtime.runs_processors:
            raise self._app.runtime.not_running_error(
                "the app does not run: start a consumer inside `async with app:`, or declare it "
                "before with queue.subscribe(...)"
            )
        self._declare_processor(
            queue_name.name if isinstance(queue_name, Queue) else queue_name, handler
        )
        await self._start_processor()

    async def stop(self) -> None:
        """Take no more messages, finish those in flight, commit, and leave the group.

        None of its handlers runs once this has returned. A handler that is not finished after
        ``ConsumerConfig(drain=)`` seconds is cancelled, and its message is handled again by others.

        :raises ConfigError: called by one of its own handlers, which it would wait for.
        """
        if asyncio.current_task() in self._handler_tasks:
            raise ConfigError(
                "a handler cannot wait for the end of its own consumer: use "
                "asyncio.create_task(consumer.stop())"
            )
        if self._processor is not None:
            self._processor.pause()  # from this moment on no handler begins
        stopping = self._stopping
        if stopping is not None and stopping.done():
            stopping = None
        self._stopping = asyncio.ensure_future(
            self._stop_processor(self._processor, self._start_task, stopping)
        )
        self._processor = self._start_task = None
        await run_to_completion(self._stopping)

    # -- inside

    async def _stop_processor(
        self,
        processor: Processor[..., Any] | None,
        start_task: asyncio.Task[None] | None,
        stopping: asyncio.Future[None] | None,
    ) -> None:
        """:param stopping: an earlier stop, which may still wait for handlers."""
        if start_task is not None and not start_task.done():
            start_task.cancel()
            await asyncio.wait({start_task})
        if processor is not None:
            await self._app.runtime.stop_processor(processor)
        if stopping is not None:
            await asyncio.wait({stopping})

    def start_with_app(self, queue: str, handler: Handler) -> None:
        """Start when the app does; on a running app, at once."""
        self._declare_processor(queue, handler)
        runtime = self._app.runtime
        if runtime.runs_processors:
            self._start_task = runtime.spawn(self._start_processor())
            self._start_task.add_done_callback(self._log_start_failure)

    def _declare_processor(self, queue: str, handler: Handler) -> None:
        if self._processor is not None:
            raise ConfigError(f"{self!r} runs already: stop it first, or make another consumer")
        topic, config = self._queue.topic(queue), self._config
        if config.dead_letter_queue is not None:
            self._queue.add_dead_letter_queue(config.dead_letter_queue, queue)
        options = ProcessorOptions(
            (topic,), queue, concurrency=config.concurrency, timeout=config.timeout,
            retry=config.retry, dead_letters=config.dead_letters, flow=config.flow,
        )  # fmt: skip
        self._processor = self._app.declare(
            self._wrap_handler(queue, handler), options, _QueueProcessor
        )

    async def _start_processor(self) -> None:
        processor = self._processor
        if processor is None:
            return
        try:
            await self._app.runtime.start_processor(processor)
        except BaseException:
            if self._processor is processor:
                self._processor = None
            await self._app.runtime.stop_processor(processor)
            raise

    def _log_start_failure(self, task: asyncio.Task[None]) -> None:
        """Log why it did not start: it was started in the background, where no task may await
        it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%r could not be started: %s", self, error)

    def _wrap_handler(self, queue: str, handler: Any) -> Callable[..., Any]:
        """The processor's handler around the consumer's."""
        name = callable_name(handler)
        signature = inspect_handler(handler, name, batch=False)
        if signature.wants_message:
            raise ConfigError(f"queue {queue!r}: handler {name} takes one parameter, the message")
        topic_type = self._queue.topic(queue).topic_type
        expected = ArgumentType(Any if topic_type is None else topic_type.type, (QueueMessage,))
        check_arguments(f"queue {queue!r}: handler {name}", handler, expected)
        tasks = self._handler_tasks

        async def handle_async(data: Any, source: Message[Any]) -> None:
            task = asyncio.current_task()
            tasks.add(task)
            try:
                await handler(_queue_message(queue, data, source))
            finally:
                tasks.discard(task)

        def handle_plain(data: Any, source: Message[Any]) -> Any:
            # The executor checks its result: returning a coroutine would be a mistake.
            return handler(_queue_message(queue, data, source))

        wrapped = handle_async if signature.asynchronous else handle_plain
        wrapped.__name__ = name
        return wrapped


def _queue_message(queue: str, data: Any, source: Message[Any]) -> QueueMessage[Any]:
    headers = _LazyHeaders(source)
    return QueueMessage(
        source.id, source.timestamp, data, source.attempt - 1, queue, source.key, headers
    )


def _partitions(queue: str) -> Callable[[Log], int]:
    return lambda log: log.describe_topic(queue).partitions
