"""Traces with OpenTelemetry, from ``publish`` to the handler. Only this module imports it.

Spans, attributes and headers are those of OpenTelemetry's conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/, status: development):

* ``publish TOPIC`` (producer, operation type ``send``) around each call that publishes, with the
  current span as its parent. Its context travels in the message's headers, as the global propagator
  writes it: W3C ``traceparent`` and ``tracestate`` unless told otherwise.
* ``process TOPIC`` (consumer) around each call of a handler, one for each attempt. It links to the
  span that published the message and, for a single message, is its child, so that one trace shows
  the way of a message. A batch handler's span links to each of its messages.
* What a handler returned (``to=``) carries the context of its span.
* The baggage that a message carries is current in its handler, and goes on with what that publishes
  and returns.

A span that will not be sampled is not built: see :mod:`streams.patterns.monitoring.sampling`.
Without the SDK, or where the span that published is unknown, nothing is written and nothing breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

from streams.app import Streams
from streams.engine.dispatch import Work
from streams.errors import ConfigError
from streams.letters import header
from streams.log.protocol import Log
from streams.message import (
    CORRELATION,
    OLD_CORRELATION,
    Batch,
    Headers,
    Message,
    Position,
    Record,
    deliver,
)
from streams.runners.job import Job, Outgoing

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context, get_current
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

    from streams.patterns.monitoring.sampling import (
        Early,
        apart,
        early,
        extract,
        switches,
    )
except ImportError as error:
    raise ConfigError(
        "tracing needs the package opentelemetry-api (the extra otel): "
        "pip install opentelemetry-api"
    ) from error

MOST_LINKS = 128
"""Links of one span at most: OpenTelemetry's own limit, beyond which it drops the oldest."""

Attributes = dict[str, str | int | bool]

_handled: ContextVar[_Carrier | None] = ContextVar("streams-handled", default=None)
"""The context of the handler that was called last, in this task or thread, if it returns what is
to be published."""


def instrument(app: Streams, *, tracer_provider: TracerProvider | None = None) -> None:
    """Trace an app's publishing and its handlers from its next start on.

    :param tracer_provider: where spans go; OpenTelemetry's global one if not given.
    :raises ConfigError: the app is none, runs already, or is instrumented already, or the provider
        is none.
    """
    if not isinstance(app, Streams):
        raise ConfigError(f"instrument({app!r}): a Streams app is needed")
    if app._log is not None:
        raise ConfigError("instrument(app): the app is running already; call it before")
    if app._observer is not None:
        raise ConfigError("instrument(app): it is instrumented already")
    given: object = tracer_provider
    provides = callable(getattr(given, "get_tracer", None)) and not isinstance(given, type)
    if given is not None and not provides:
        raise ConfigError(
            f"instrument(app, tracer_provider={given!r}): a TracerProvider of "
            "OpenTelemetry, or leave it out for the global one"
        )
    from streams import __version__

    tracing = _Tracing(app, lambda: trace.get_tracer("streams", __version__, tracer_provider))
    app._observer = tracing.publishing
    app._wraps.append(tracing.wrap)


class _Tracing:
    def __init__(self, app: Streams, tracer: Callable[[], Tracer]) -> None:
        self._app = app
        self._get_tracer = tracer
        self._tracer = tracer()
        self._early: Early | None = None
        self._log: Log | None = None
        self._constant: dict[tuple[str, str, str], Attributes] = {}
        self._switches = switches()

    def _begin(self) -> None:
        """Look at OpenTelemetry's settings, once each time that the app is entered."""
        if self._log is not self._app.log:
            self._tracer = self._get_tracer()  # the global provider may have been set meanwhile
            self._early = early(self._tracer, Context())
            self._constant = {}
            self._log = self._app.log

    def _facts(self, operation: str, kind: str, topic: str) -> Attributes:
        """The attributes that all messages of a topic have; not to be changed."""
        known = self._constant.get((operation, kind, topic))
        if known is not None:
            return known
        system = self._app.log.capabilities.name
        found: Attributes = {
            "messaging.system": system,
            "messaging.operation.name": operation,
            "messaging.operation.type": kind,
            "messaging.destination.name": topic,
        }
        server = None if system in ("memory", "sqlite") else _server(self._app.url)
        if server is not None:
            found["server.address"] = server[0]
            if server[1] is not None:
                found["server.port"] = server[1]
        self._constant[operation, kind, topic] = found
        return found

    # -- publishing

    @contextmanager
    def publishing(
        self, topic: str, records: Sequence[Record]
    ) -> Iterator[Callable[[Sequence[Position]], None]]:
        """Around a call that publishes: see :data:`streams.publisher.Observer`."""
        self._begin()
        tracer, facts, dropped = self._tracer, None, False
        if self._early is not None:
            parent = trace.get_current_span().get_span_context()
            if parent.is_valid:
                dropped = self._early.drops_child(parent)
            else:
                trace_id = self._early.draw()
                dropped = trace_id is None
                tracer = self._early.tracer(trace_id or self._early.dropped_id())
        if not dropped:
            facts = self._published(topic, records)
        span = tracer.start_span(f"publish {topic}", kind=SpanKind.PRODUCER, attributes=facts)

        def landed(positions: Sequence[Position]) -> None:
            if facts is not None and len(positions) == 1:
                partition = str(positions[0].partition)
                span.set_attribute("messaging.destination.partition.id", partition)
                if facts["messaging.system"] == "kafka":
                    span.set_attribute("messaging.kafka.offset", positions[0].offset)

        with _Current(span, trace.set_span_in_context(span), self._switches):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            for record in records:
                _carry(record, carrier, instead=False)
            yield landed

    def _published(self, topic: str, records: Sequence[Record]) -> Attributes:
        facts = self._facts("publish", "send", topic).copy()
        if len(records) > 1:
            return facts | {"messaging.batch.message_count": len(records)}
        record = records[0]
        facts["messaging.message.id"] = record.id
        if record.value is not None:
            facts["messaging.message.body.size"] = len(record.value)
        if facts["messaging.system"] == "kafka":
            facts |= _kafka(record.key, record.value)
        correlation = _correlation(record.headers)
        if correlation:
            facts["messaging.message.conversation_id"] = correlation
        return facts

    # -- handling

    def wrap(self, job: Job) -> Job:
        """The same job with a span around each call of its handler."""
        self._begin()
        # Plain handlers run in threads of their own, which begin with an empty context.
        outer = apart(get_current()) if job.asynchronous else Context()
        attach, here = self._switches[0], get_current()
        make = self._messages if job.batch is None else self._batches
        return replace(
            job,
            function=make(job, outer),
            wants_message=True,
            builds_messages=True,
            leave=partial(attach, here) if job.asynchronous and job.batch is None else None,
            results=None if job.results is None else _carrying(job.results),
            transactions=job.transactions and job.wants_message,
        )

    def _messages(self, job: Job, outer: Context) -> Callable[..., Any]:
        """Calls a handler of single messages."""
        function, wants, carries = job.function, job.wants_message, job.results is not None
        attach, detach = self._switches
        decides = early(self._tracer, outer)

        async def spanned_async(value: Any, trace_id: int | None, *row: Any) -> Any:
            with self._one(job, outer, trace_id, *row):
                return await (function(value, deliver(value, *row)) if wants else function(value))

        def spanned(value: Any, trace_id: int | None, *row: Any) -> Any:
            with self._one(job, outer, trace_id, *row):
                result = function(value, deliver(value, *row)) if wants else function(value)
                return _listed(result, carries)

        around = spanned_async if job.asynchronous else spanned
        if decides is None:
            return lambda value, *row: around(value, None, *row)
        gap, sampled_id = decides.gap, decides.sampled_id
        find, drops, dropped = decides.traceparent, decides.drops, decides.dropped()
        # Handlers' threads that meet at this number may count one message for two: no harm.
        left = gap()

        # Both do the same, in one function each: a call more would be felt with every message.

        def traced_async(
            value: Any, batch: Batch, index: int, attempt: int, transaction: Any
        ) -> Any:
            nonlocal left
            headers = batch.extra_headers(index)
            parent = find(headers) if headers else None
            if parent is None:
                left -= 1
                if left < 0:
                    left, trace_id = gap(), sampled_id()
                    if trace_id is not None:
                        return spanned_async(value, trace_id, batch, index, attempt, transaction)
            elif not drops(parent):
                return spanned_async(value, None, batch, index, attempt, transaction)
            context = dropped()
            if headers:
                context.headers = headers
            if carries:
                _handled.set(_Carrier(context))
            attach(context)  # the runner detaches it: see Job.leave
            if wants:
                return function(value, deliver(value, batch, index, attempt, transaction))
            return function(value)

        def traced(value: Any, batch: Batch, index: int, attempt: int, transaction: Any) -> Any:
            nonlocal left
            headers = batch.extra_headers(index)
            parent = find(headers) if headers else None
            if parent is None:
                left -= 1
                if left < 0:
                    left, trace_id = gap(), sampled_id()
                    if trace_id is not None:
                        return spanned(value, trace_id, batch, index, attempt, transaction)
            elif not drops(parent):
                return spanned(value, None, batch, index, attempt, transaction)
            context = dropped()
            if headers:
                context.headers = headers
            if carries:
                _handled.set(_Carrier(context))
            token = attach(context)
            try:
                if wants:
                    message = deliver(value, batch, index, attempt, transaction)
                    return _listed(function(value, message), carries)
                return _listed(function(value), carries)
            finally:
                detach(token)

        return traced_async if job.asynchronous else traced

    def _batches(self, job: Job, outer: Context) -> Callable[..., Any]:
        """Calls a handler of batches."""
        function, wants, carries = job.function, job.wants_message, job.results is not None
        decides = early(self._tracer, outer)
        dropped: type[Context] = Context if decides is None else decides.dropped()

        def around(make: Callable[[], list[Message[Any]]]) -> AbstractContextManager[Any]:
            trace_id = None if decides is None else decides.draw()
            if decides is None or trace_id is not None:
                return self._several(job, outer, make(), trace_id)
            context = dropped()
            if carries:
                _handled.set(_Carrier(context))
            return _Current(None, context, self._switches)

        async def traced_async(values: Any, make: Any) -> Any:
            with around(make):
                return await (function(values, make()) if wants else function(values))

        def traced(values: Any, make: Any) -> Any:
            with around(make):
                return _listed(function(values, make()) if wants else function(values), carries)

        return traced_async if job.asynchronous else traced

    def _one(
        self,
        job: Job,
        outer: Context,
        trace_id: int | None,
        batch: Batch,
        index: int,
        attempt: int,
        transaction: Any,
    ) -> AbstractContextManager[Any]:
        """The span of a message, which is a root span if its trace ID is given."""
        topic, headers = batch.topic, batch.extra_headers(index)
        facts = self._facts("process", "process", topic) | {
            "messaging.consumer.group.name": job.group,
            "messaging.destination.partition.id": str(batch.partition),
            "messaging.message.id": batch.id(index),
        }
        correlation = _correlation(headers)
        if correlation:
            facts["messaging.message.conversation_id"] = correlation
        value = batch.values[index]
        if value is not None:
            facts["messaging.message.body.size"] = len(value)
        if facts["messaging.system"] == "kafka":
            facts |= _kafka(batch.keys[index], value)
            facts["messaging.kafka.offset"] = batch.offset(index)
        if attempt > 1:
            facts["streams.attempt"] = attempt
        origin = extract(headers, outer)
        links = _links([origin]) if trace_id is None else ()
        return self._span(job, f"process {topic}", facts, links, origin, trace_id)

    def _several(
        self, job: Job, outer: Context, messages: Sequence[Message[Any]], trace_id: int | None
    ) -> AbstractContextManager[Any]:
        """The span of a batch, which links to the spans that published its messages."""
        topics = ",".join(sorted({message.topic for message in messages}))
        facts = self._facts("process", "process", topics) | {
            "messaging.consumer.group.name": job.group,
            "messaging.batch.message_count": len(messages),
        }
        links = _links(extract(each.raw.headers, outer) for each in messages[:MOST_LINKS])
        return self._span(job, f"process {topics}", facts, links, outer, trace_id)

    def _span(
        self,
        job: Job,
        name: str,
        facts: Attributes,
        links: Sequence[Link],
        origin: Context,
        trace_id: int | None,
    ) -> AbstractContextManager[Any]:
        """A handler's span, current beside the baggage of ``origin``, which has its parent."""
        tracer = self._tracer
        if trace_id is not None and self._early is not None:
            tracer = self._early.tracer(trace_id)
        kind = SpanKind.CONSUMER
        span = tracer.start_span(name, context=origin, kind=kind, attributes=facts, links=links)
        context = trace.set_span_in_context(span, origin)
        if job.results is not None:
            _handled.set(_Carrier(context))
        return _Current(span, context, self._switches)


class _Current:
    """While it is entered, a context is the current one; its span ends with it, and says why if
    that was an exception. As OpenTelemetry's ``use_span`` does it, with ``error.type``."""

    __slots__ = ("_attach", "_context", "_detach", "_span", "_token")

    def __init__(
        self,
        span: Span | None,
        context: Context,
        switches: tuple[Callable[[Context], Any], Callable[[Any], None]],
    ) -> None:
        self._span = span
        self._context = context
        self._attach, self._detach = switches
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = self._attach(self._context)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._detach(self._token)
        span = self._span
        if span is None:
            return
        if isinstance(error, Exception) and span.is_recording():
            span.set_attribute("error.type", _name(type(error)))
            span.record_exception(error)
            said = f"{type(error).__name__}: {error}"
            span.set_status(Status(StatusCode.ERROR, said))
        span.end()


class _Carrier:
    """The headers of a context, made when they are asked for."""

    __slots__ = ("_context", "_headers")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._headers: dict[str, str] | None = None

    def headers(self) -> Mapping[str, str]:
        """What the propagator writes."""
        if self._headers is None:
            self._headers = {}
            propagate.inject(self._headers, self._context)
        return self._headers


def _carrying(
    results: Callable[[Any, Work], Sequence[Outgoing]],
) -> Callable[[Any, Work], Sequence[Outgoing]]:
    """What a handler returned goes with the context of the handler's span, not its source's."""

    def make(result: Any, work: Work) -> Sequence[Outgoing]:
        outgoing = results(result, work)
        handled = _handled.get()
        if handled is not None and outgoing:
            for _, record in outgoing:
                _carry(record, handled.headers(), instead=True)
        return outgoing

    return make


def _listed(result: Any, carries: bool) -> Any:
    """A generator's values: its code is the handler's, so it runs inside the handler's span."""
    return list(result) if carries and hasattr(result, "__next__") else result


def _carry(record: Record, carrier: Mapping[str, str], *, instead: bool) -> None:
    """Write the context into a record's headers; what stands there already stays, or goes."""
    there = {name for name, _ in record.headers}
    if not carrier or (not instead and not there.isdisjoint(carrier)):
        return
    kept = [pair for pair in record.headers if pair[0] not in carrier]
    record.headers = [*kept, *((name, value.encode()) for name, value in carrier.items())]


def _correlation(headers: Headers) -> str | None:
    if not headers:
        return None
    return header(headers, CORRELATION) or header(headers, OLD_CORRELATION)


def _links(origins: Iterable[Context]) -> list[Link]:
    spans = (trace.get_current_span(origin).get_span_context() for origin in origins)
    return [Link(context) for context in spans if context.is_valid]


def _kafka(key: bytes | None, value: bytes | None) -> Attributes:
    found: Attributes = {}
    if key is not None:
        found["messaging.kafka.message.key"] = key.decode("utf-8", "backslashreplace")
    if value is None:
        found["messaging.kafka.message.tombstone"] = True
    return found


def _name(kind: type[BaseException]) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


_PLACE = re.compile(
    r"[a-z+0-9]+://(?:[^/?]*@)?(\[[^\]]+\]|[^/?:,\[\]]+)(?::(\d+))?(?=[/?]|$)", re.I
)


def _server(url: str) -> tuple[str, int | None] | None:
    """Host and port of a URL that names one server."""
    found = _PLACE.match(url)
    if found is None:
        return None
    return found[1].strip("[]"), int(found[2]) if found[2] else None
