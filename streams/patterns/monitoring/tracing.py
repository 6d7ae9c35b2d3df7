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

Without the SDK, or where the span that published is unknown, nothing is written and nothing breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from streams.app import Streams
from streams.engine.dispatch import Work
from streams.errors import ConfigError
from streams.message import CORRELATION, Message, Position, Record, text
from streams.runners.job import Job, Outgoing

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Tracer, TracerProvider
except ImportError as error:
    raise ConfigError(
        "tracing needs the package opentelemetry-api (the extra otel): "
        "pip install opentelemetry-api"
    ) from error

MOST_LINKS = 128
"""Links of one span at most: OpenTelemetry's own limit, beyond which it drops the oldest."""

Attributes = dict[str, str | int | bool]

_context: ContextVar[Mapping[str, str] | None] = ContextVar("streams-handled", default=None)
"""The headers of the span of the handler that was called last, in this task or thread."""


def instrument(app: Streams, *, tracer_provider: TracerProvider | None = None) -> None:
    """Trace an app's publishing and its handlers from its next start on.

    :param tracer_provider: where spans go; OpenTelemetry's global one if not given.
    :raises ConfigError: the app is none, runs already, or is instrumented already.
    """
    if not isinstance(app, Streams):
        raise ConfigError(f"instrument({app!r}): a Streams app is needed")
    if app._log is not None:
        raise ConfigError("instrument(app): the app is running already; call it before")
    if app._observer is not None:
        raise ConfigError("instrument(app): it is instrumented already")
    from streams import __version__

    tracing = _Tracing(app, trace.get_tracer("streams", __version__, tracer_provider))
    app._observer = tracing.publishing
    app._wraps.append(tracing.wrap)


class _Tracing:
    def __init__(self, app: Streams, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    def _facts(self, operation: str, kind: str, topic: str) -> Attributes:
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
        return found

    # -- publishing

    @contextmanager
    def publishing(
        self, topic: str, records: Sequence[Record]
    ) -> Iterator[Callable[[Sequence[Position]], None]]:
        """Around a call that publishes: see :data:`streams.publisher.Observer`."""
        facts = self._facts("publish", "send", topic)
        kafka = facts["messaging.system"] == "kafka"
        if len(records) == 1:
            record = records[0]
            facts["messaging.message.id"] = record.id
            if record.value is not None:
                facts["messaging.message.body.size"] = len(record.value)
            if kafka:
                facts |= _kafka(record.key, record.value)
            for name, value in record.headers:
                if name == CORRELATION and value is not None:
                    facts["messaging.message.conversation_id"] = text(value)
        else:
            facts["messaging.batch.message_count"] = len(records)
        with self._span(f"publish {topic}", SpanKind.PRODUCER, facts) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            for record in records:
                _carry(record, carrier, instead=False)

            def landed(positions: Sequence[Position]) -> None:
                if len(positions) == 1:
                    span.set_attribute(
                        "messaging.destination.partition.id", str(positions[0].partition)
                    )
                    if kafka:
                        span.set_attribute("messaging.kafka.offset", positions[0].offset)

            yield landed

    # -- handling

    def wrap(self, job: Job) -> Job:
        """The same job with a span around each call of its handler."""
        around = self._one if job.batch is None else self._several
        function, wants = job.function, job.wants_message
        lists = job.results is not None

        async def traced_async(value: Any, message: Any) -> Any:
            with around(job, message):
                return await (function(value, message) if wants else function(value))

        def traced(value: Any, message: Any) -> Any:
            with around(job, message):
                result = function(value, message) if wants else function(value)
                # A generator's code is the handler's: it belongs into the handler's span.
                return list(result) if lists and hasattr(result, "__next__") else result

        return replace(
            job,
            function=traced_async if job.asynchronous else traced,
            wants_message=True,
            results=None if job.results is None else _carrying(job.results),
            transactions=job.transactions and wants,
        )

    @contextmanager
    def _one(self, job: Job, message: Message[Any]) -> Iterator[None]:
        headers = message.headers
        facts = self._facts("process", "process", message.topic) | {
            "messaging.consumer.group.name": job.group,
            "messaging.destination.partition.id": str(message.partition),
            "messaging.message.id": message.id,
        }
        if CORRELATION in headers:
            facts["messaging.message.conversation_id"] = headers[CORRELATION]
        raw = message.raw
        if raw.value is not None:
            facts["messaging.message.body.size"] = len(raw.value)
        if facts["messaging.system"] == "kafka":
            facts |= _kafka(raw.key, raw.value)
            facts["messaging.kafka.offset"] = message.offset
        if message.attempt > 1:
            facts["streams.attempt"] = message.attempt
        # Not the context in which the app was entered: that has nothing to do with the message.
        origin = propagate.extract(headers, Context())
        links = _links([origin])
        name = f"process {message.topic}"
        with self._span(name, SpanKind.CONSUMER, facts, links, origin):
            yield

    @contextmanager
    def _several(self, job: Job, messages: Sequence[Message[Any]]) -> Iterator[None]:
        topics = sorted({message.topic for message in messages})
        facts = self._facts("process", "process", ",".join(topics)) | {
            "messaging.consumer.group.name": job.group,
            "messaging.batch.message_count": len(messages),
        }
        links = _links(
            propagate.extract(message.headers, Context()) for message in messages[:MOST_LINKS]
        )
        name = f"process {','.join(topics)}"
        with self._span(name, SpanKind.CONSUMER, facts, links, Context()):
            yield

    @contextmanager
    def _span(
        self,
        name: str,
        kind: SpanKind,
        facts: Attributes,
        links: Sequence[Link] = (),
        parent: Context | None = None,
    ) -> Iterator[Span]:
        start = self._tracer.start_as_current_span
        with start(name, context=parent, kind=kind, attributes=facts, links=links) as span:
            if kind is SpanKind.CONSUMER:
                carrier: dict[str, str] = {}
                propagate.inject(carrier)
                _context.set(carrier)
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", _name(type(error)))
                raise


def _carrying(
    results: Callable[[Any, Work], Sequence[Outgoing]],
) -> Callable[[Any, Work], Sequence[Outgoing]]:
    """What a handler returned goes with the context of the handler's span, not its source's."""

    def make(result: Any, work: Work) -> Sequence[Outgoing]:
        outgoing = results(result, work)
        carrier = _context.get()
        if carrier:
            for _, record in outgoing:
                _carry(record, carrier, instead=True)
        return outgoing

    return make


def _carry(record: Record, carrier: Mapping[str, str], *, instead: bool) -> None:
    """Write the context into a record's headers; what stands there already stays, or goes."""
    there = {name for name, _ in record.headers}
    if not carrier or (not instead and not there.isdisjoint(carrier)):
        return
    kept = [pair for pair in record.headers if pair[0] not in carrier]
    record.headers = [*kept, *((name, value.encode()) for name, value in carrier.items())]


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
