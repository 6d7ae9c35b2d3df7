"""Traces with OpenTelemetry, from ``publish`` to the handler. Only this module imports it.

Spans, attributes and headers are those of OpenTelemetry's conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/, status: development):

* ``publish TOPIC`` (producer, operation type ``send``) around each call that publishes, with the
  current span as its parent. Its context travels in the message's headers, as the global propagator
  writes it: W3C ``traceparent`` and ``tracestate`` by default.
* ``process TOPIC`` (consumer) around each call of a handler, one for each attempt. It links to the
  span that published the message and, for a single message, is its child, so that one trace shows
  a message's path. A batch handler's span links to each of its messages.
* A handler's result (``to=``) carries the context of the handler's span.
* The baggage of a message is current in its handler, and is passed on to the messages that the
  handler publishes and returns.

A span that will not be sampled is not built: see :mod:`streams.patterns.monitoring.sampling`.
Without the SDK, or if the publishing span is unknown, nothing is written and nothing breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from streams.app import Streams
from streams.callables import run_generator
from streams.derived_records import header_text
from streams.errors import ConfigError
from streams.log.protocol import Log
from streams.message import (
    CORRELATION,
    LEGACY_CORRELATION,
    Batch,
    Headers,
    Message,
    Position,
    Record,
    make_message,
)
from streams.patterns.arguments import check_app
from streams.processing import Job, Outgoing, ResultEncoder
from streams.text import error_text
from streams.version import __version__

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context, get_current
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

    from streams.patterns.monitoring.sampling import (
        EarlySampler,
        early_sampler,
        extract_context,
        get_context_switch,
        without_span,
    )
except ImportError as error:
    raise ConfigError(
        "tracing needs the package opentelemetry-api (the extra otel): "
        "pip install opentelemetry-api"
    ) from error

MAX_LINKS = 128
"""Links of one span at most: OpenTelemetry's own limit, beyond which it drops the oldest."""

Attributes = dict[str, str | int | bool]

Row = tuple[Batch, int, int, Any]
"""A message in the form in which its handler is called: batch, index, attempt and transaction."""

_handler_context: ContextVar[_ContextHeaders | None] = ContextVar("streams-handled", default=None)
"""The context of the handler that was called last in this task or thread, if its results are
published."""


def instrument(app: Streams, *, tracer_provider: TracerProvider | None = None) -> None:
    """Trace an app's publishing and its handlers from its next start on.

    :param tracer_provider: receives the spans; OpenTelemetry's global one if not given.
    :raises ConfigError: ``app`` is no app, runs already, or is instrumented already, or
        ``tracer_provider`` is no provider.
    """
    check_app(app, "instrument")
    if app.runtime.is_open:
        raise ConfigError("instrument(app): the app is running already; call it before")
    if app.publish_observer is not None:
        raise ConfigError("instrument(app): it is instrumented already")
    provider: object = tracer_provider
    is_provider = callable(getattr(provider, "get_tracer", None)) and not isinstance(provider, type)
    if provider is not None and not is_provider:
        raise ConfigError(
            f"instrument(app, tracer_provider={provider!r}): a TracerProvider of "
            "OpenTelemetry, or leave it out for the global one"
        )
    tracing = _AppTracing(app, lambda: trace.get_tracer("streams", __version__, tracer_provider))
    app.publish_observer = tracing.trace_publish
    app.job_wrappers.append(tracing.wrap_job)


class _AppTracing:
    def __init__(self, app: Streams, tracer: Callable[[], Tracer]) -> None:
        self._app = app
        self._get_tracer = tracer
        self._tracer = tracer()
        self._early: EarlySampler | None = None
        self._log: Log | None = None
        self._topic_attributes_cache: dict[tuple[str, str, str], Attributes] = {}
        self._context_switch = get_context_switch()

    def _refresh_settings(self) -> None:
        """Read OpenTelemetry's settings, once each time that the app is entered."""
        if self._log is not self._app.log:
            self._tracer = self._get_tracer()  # the global provider may have been set meanwhile
            self._early = early_sampler(self._tracer, Context())
            self._topic_attributes_cache = {}
            self._log = self._app.log

    def _topic_attributes(self, operation: str, kind: str, topic: str) -> Attributes:
        """The attributes that all messages of a topic have; not to be changed."""
        known = self._topic_attributes_cache.get((operation, kind, topic))
        if known is not None:
            return known
        system = self._app.log.capabilities.name
        found: Attributes = {
            "messaging.system": system,
            "messaging.operation.name": operation,
            "messaging.operation.type": kind,
            "messaging.destination.name": topic,
        }
        server = None if system in ("memory", "sqlite") else _server_address(self._app.url)
        if server is not None:
            found["server.address"] = server[0]
            if server[1] is not None:
                found["server.port"] = server[1]
        self._topic_attributes_cache[operation, kind, topic] = found
        return found

    # -- publishing

    @contextmanager
    def trace_publish(
        self, topic: str, records: Sequence[Record]
    ) -> Iterator[Callable[[Sequence[Position]], None]]:
        """Around a call that publishes: see :data:`streams.publisher.PublishObserver`."""
        self._refresh_settings()
        tracer, attributes, dropped = self._tracer, None, False
        if self._early is not None:
            parent = trace.get_current_span().get_span_context()
            if parent.is_valid:
                dropped = self._early.drops_child(parent)
            else:
                trace_id = self._early.draw_trace_id()
                dropped = trace_id is None
                tracer = self._early.tracer_with_id(trace_id or self._early.dropped_id())
        if not dropped:
            attributes = self._publish_attributes(topic, records)
        span = tracer.start_span(f"publish {topic}", kind=SpanKind.PRODUCER, attributes=attributes)

        def on_positions(positions: Sequence[Position]) -> None:
            if attributes is not None and len(positions) == 1:
                partition = str(positions[0].partition)
                span.set_attribute("messaging.destination.partition.id", partition)
                if attributes["messaging.system"] == "kafka":
                    span.set_attribute("messaging.kafka.offset", positions[0].offset)

        with _SpanContext(span, trace.set_span_in_context(span), self._context_switch):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            for record in records:
                _inject_headers(record, carrier, overwrite=False)
            yield on_positions

    def _publish_attributes(self, topic: str, records: Sequence[Record]) -> Attributes:
        attributes = self._topic_attributes("publish", "send", topic).copy()
        if len(records) > 1:
            return attributes | {"messaging.batch.message_count": len(records)}
        record = records[0]
        _add_message(attributes, record.id, record.key, record.value, record.headers)
        return attributes

    # -- handling

    def wrap_job(self, job: Job) -> Job:
        """The same job with a span around each call of its handler."""
        self._refresh_settings()
        # Plain handlers run in threads of their own, which begin with an empty context.
        outer = without_span(get_current()) if job.asynchronous else Context()
        attach, current = self._context_switch[0], get_current()
        make_function = self._message_function if job.batch is None else self._batch_function
        return replace(
            job,
            function=make_function(job, outer),
            wants_message=True,
            builds_messages=True,
            reset_context=partial(attach, current)
            if job.asynchronous and job.batch is None
            else None,
            encode_results=None
            if job.encode_results is None
            else _with_handler_context(job.encode_results),
            transactions=job.transactions and job.wants_message,
        )

    def _message_function(self, job: Job, outer: Context) -> Callable[..., Any]:
        """Calls a handler of single messages."""
        function, wants_message = job.function, job.wants_message
        asynchronous, has_results = job.asynchronous, job.encode_results is not None
        attach, detach = self._context_switch
        sampler = early_sampler(self._tracer, outer)

        def call(value: Any, row: Row) -> Any:
            return function(value, make_message(value, *row)) if wants_message else function(value)

        async def call_spanned_async(value: Any, trace_id: int | None, row: Row) -> Any:
            with self._message_span(job, outer, trace_id, row):
                return await call(value, row)

        def call_spanned(value: Any, trace_id: int | None, row: Row) -> Any:
            with self._message_span(job, outer, trace_id, row):
                found = call(value, row)
                return run_generator(found) if has_results else found

        call_in_span = call_spanned_async if asynchronous else call_spanned
        if sampler is None:
            return lambda value, *row: call_in_span(value, None, row)
        draw_gap, sampled_id = sampler.draw_gap, sampler.sampled_id
        make_dropped = sampler.dropped_class()
        # Threads of handlers that race for this number may count one message for two: no harm.
        until_sampled = draw_gap()

        def call_any(value: Any, headers: Headers, row: Row) -> Any:
            nonlocal until_sampled
            parent = sampler.traceparent(headers) if headers else None
            if parent is None:
                until_sampled -= 1
                if until_sampled < 0:
                    until_sampled, trace_id = draw_gap(), sampled_id()
                    if trace_id is not None:
                        return call_in_span(value, trace_id, row)
            elif not sampler.drops_remote_child(parent):
                return call_in_span(value, None, row)
            context = make_dropped()
            if headers:
                context.headers = headers
            if has_results:
                _handler_context.set(_ContextHeaders(context))
            token = attach(context)
            if asynchronous:  # the executor detaches it: see Job.reset_context
                return call(value, row)
            try:
                found = call(value, row)
                return run_generator(found) if has_results else found
            finally:
                detach(token)

        if has_results:
            return lambda value, *row: call_any(value, row[0].extra_headers(row[1]), row)

        # Most messages have no headers and are dropped. They get one function each that does the
        # same as `call_any`: a further call would be noticeable with every message.

        def call_async(value: Any, batch: Batch, index: int, attempt: int, transaction: Any) -> Any:
            nonlocal until_sampled
            headers = batch.extra_headers(index)
            if headers or until_sampled <= 0:
                return call_any(value, headers, (batch, index, attempt, transaction))
            until_sampled -= 1
            attach(make_dropped())
            if wants_message:
                return function(value, make_message(value, batch, index, attempt, transaction))
            return function(value)

        def call_plain(value: Any, batch: Batch, index: int, attempt: int, transaction: Any) -> Any:
            nonlocal until_sampled
            headers = batch.extra_headers(index)
            if headers or until_sampled <= 0:
                return call_any(value, headers, (batch, index, attempt, transaction))
            until_sampled -= 1
            token = attach(make_dropped())
            try:
                if wants_message:
                    return function(value, make_message(value, batch, index, attempt, transaction))
                return function(value)
            finally:
                detach(token)

        return call_async if asynchronous else call_plain

    def _batch_function(self, job: Job, outer: Context) -> Callable[..., Any]:
        """Calls a handler of batches."""
        function, wants_message = job.function, job.wants_message
        has_results = job.encode_results is not None
        sampler = early_sampler(self._tracer, outer)
        make_dropped: type[Context] = Context if sampler is None else sampler.dropped_class()

        def batch_context(make: Callable[[], list[Message[Any]]]) -> AbstractContextManager[Any]:
            trace_id = None if sampler is None else sampler.draw_trace_id()
            if sampler is None or trace_id is not None:
                return self._batch_span(job, outer, make(), trace_id)
            context = make_dropped()
            if has_results:
                _handler_context.set(_ContextHeaders(context))
            return _SpanContext(None, context, self._context_switch)

        def call(values: Any, make: Any) -> Any:
            return function(values, make()) if wants_message else function(values)

        async def call_async(values: Any, make: Any) -> Any:
            with batch_context(make):
                return await call(values, make)

        def call_plain(values: Any, make: Any) -> Any:
            with batch_context(make):
                found = call(values, make)
                return run_generator(found) if has_results else found

        return call_async if job.asynchronous else call_plain

    def _message_span(
        self, job: Job, outer: Context, trace_id: int | None, row: Row
    ) -> AbstractContextManager[Any]:
        """The span of a message; a root span if a trace ID is given."""
        batch, index, attempt, _ = row
        topic, headers = batch.topic, batch.extra_headers(index)
        attributes = self._topic_attributes("process", "process", topic) | {
            "messaging.consumer.group.name": job.group,
            "messaging.destination.partition.id": str(batch.partition),
        }
        key, value = batch.keys[index], batch.values[index]
        _add_message(attributes, batch.id(index), key, value, headers)
        if attributes["messaging.system"] == "kafka":
            attributes["messaging.kafka.offset"] = batch.offset(index)
        if attempt > 1:
            attributes["streams.attempt"] = attempt
        origin = extract_context(headers, outer)
        links = _links([origin]) if trace_id is None else ()
        return self._start_span(job, f"process {topic}", attributes, links, origin, trace_id)

    def _batch_span(
        self, job: Job, outer: Context, messages: Sequence[Message[Any]], trace_id: int | None
    ) -> AbstractContextManager[Any]:
        """The span of a batch, which links to the spans that published its messages."""
        topics = ",".join(sorted({message.topic for message in messages}))
        attributes = self._topic_attributes("process", "process", topics) | {
            "messaging.consumer.group.name": job.group,
            "messaging.batch.message_count": len(messages),
        }
        links = _links(extract_context(each.raw.headers, outer) for each in messages[:MAX_LINKS])
        return self._start_span(job, f"process {topics}", attributes, links, outer, trace_id)

    def _start_span(
        self,
        job: Job,
        name: str,
        attributes: Attributes,
        links: Sequence[Link],
        origin: Context,
        trace_id: int | None,
    ) -> AbstractContextManager[Any]:
        """Start a handler's span, current beside the baggage of ``origin``, which has its
        parent."""
        tracer = self._tracer
        if trace_id is not None and self._early is not None:
            tracer = self._early.tracer_with_id(trace_id)
        span = tracer.start_span(name, origin, SpanKind.CONSUMER, attributes, links)
        context = trace.set_span_in_context(span, origin)
        if job.encode_results is not None:
            _handler_context.set(_ContextHeaders(context))
        return _SpanContext(span, context, self._context_switch)


class _SpanContext:
    """Makes a context the current one; its span ends with the block, and records an exception. The
    same as OpenTelemetry's ``use_span``, with ``error.type``."""

    __slots__ = ("_attach", "_context", "_detach", "_span", "_token")

    def __init__(
        self,
        span: Span | None,
        context: Context,
        context_switch: tuple[Callable[[Context], Any], Callable[[Any], None]],
    ) -> None:
        self._span = span
        self._context = context
        self._attach, self._detach = context_switch
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = self._attach(self._context)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._detach(self._token)
        span = self._span
        if span is None:
            return
        if isinstance(error, Exception) and span.is_recording():
            span.set_attribute("error.type", _type_name(type(error)))
            with suppress(Exception):  # it cannot be printed: then its type has to suffice
                span.record_exception(error)
            description = f"{type(error).__name__}: {error_text(error)}"
            span.set_status(Status(StatusCode.ERROR, description))
        span.end()


class _ContextHeaders:
    """The headers of a context, created on first use."""

    __slots__ = ("_context", "_headers")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._headers: dict[str, str] | None = None

    def headers(self) -> Mapping[str, str]:
        """The headers that the propagator writes."""
        if self._headers is None:
            self._headers = {}
            propagate.inject(self._headers, self._context)
        return self._headers


def _with_handler_context(results: ResultEncoder) -> ResultEncoder:
    """A handler's results carry the context of the handler's span, not that of its message."""

    def make(result: Any, batch: Batch, index: int, identity: str | None) -> Sequence[Outgoing]:
        outgoing = results(result, batch, index, identity)
        handled = _handler_context.get()
        if handled is not None and outgoing:
            for _, record in outgoing:
                _inject_headers(record, handled.headers(), overwrite=True)
        return outgoing

    return make


def _inject_headers(record: Record, carrier: Mapping[str, str], *, overwrite: bool) -> None:
    """Write the context into a record's headers, which may contain one already."""
    existing = {name for name, _ in record.headers}
    if not carrier or (not overwrite and not existing.isdisjoint(carrier)):
        return
    other_headers = [pair for pair in record.headers if pair[0] not in carrier]
    record.headers = [*other_headers, *((name, value.encode()) for name, value in carrier.items())]


def _add_message(
    attributes: Attributes, id: str, key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    """Add the attributes of a single message."""
    attributes["messaging.message.id"] = id
    correlation = header_text(headers, CORRELATION) or header_text(headers, LEGACY_CORRELATION)
    if correlation:
        attributes["messaging.message.conversation_id"] = correlation
    if value is not None:
        attributes["messaging.message.body.size"] = len(value)
    if attributes["messaging.system"] == "kafka":
        if key is not None:
            attributes["messaging.kafka.message.key"] = key.decode("utf-8", "backslashreplace")
        if value is None:
            attributes["messaging.kafka.message.tombstone"] = True


def _links(origins: Iterable[Context]) -> list[Link]:
    spans = (trace.get_current_span(origin).get_span_context() for origin in origins)
    return [Link(context) for context in spans if context.is_valid]


def _type_name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


_SERVER_URL = re.compile(
    r"[a-z+0-9]+://(?:[^/?]*@)?(\[[^\]]+\]|[^/?:,\[\]]+)(?::(\d+))?(?=[/?]|$)", re.I
)


def _server_address(url: str) -> tuple[str, int | None] | None:
    """Host and port of a URL that names one server."""
    found = _SERVER_URL.match(url)
    if found is None:
        return None
    return found[1].strip("[]"), int(found[2]) if found[2] else None
