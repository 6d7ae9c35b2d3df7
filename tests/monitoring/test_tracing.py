"""One trace from publish to handler, in the words of OpenTelemetry's conventions, on every log."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streams import ConfigError, Message, Outbox, Retry, Sqlite, Streams
from streams.patterns import instrument
from streams.patterns.monitoring.tracing import _server_address
from streams.testing import harness
from tests.conformance.stage import Stage
from tests.monitoring.conftest import come

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class Traces:
    """Where spans go, in this test."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


@pytest.fixture
def traces() -> Iterator[Traces]:
    found = Traces()
    yield found
    found.provider.shutdown()


def context(span: ReadableSpan) -> trace.SpanContext:
    found: trace.SpanContext | None = span.context
    assert found is not None
    return found


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_message_has_one_trace(stage: Stage, traces: Traces, kind: str) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    instrument(app, tracer_provider=traces.provider)
    headers: list[str] = []
    current: list[trace.SpanContext] = []

    def see(message: Message[int]) -> None:
        headers.append(message.headers["traceparent"])
        current.append(trace.get_current_span().get_span_context())

    async def later(value: int, message: Message[int]) -> None:
        await asyncio.sleep(0)
        see(message)

    def now(value: int, message: Message[int]) -> None:
        see(message)

    app.processor(topic, group=stage.group)(later if kind == "async" else now)
    name = topic.name
    async with app:
        with traces.tracer.start_as_current_span("request") as request:
            position = await topic.publish(
                7, key="k7", id="m7", headers={"correlationid": "c7", "color": "red"}
            )
        await come(lambda: traces.spans(f"process {name}"))
        system = app.log.capabilities.name
    published, processed = traces.one(f"publish {name}"), traces.one(f"process {name}")
    # request > publish > process, in one trace; the header names the publishing span.
    assert published.parent == request.get_span_context()
    assert processed.parent is not None
    assert processed.parent.span_id == context(published).span_id
    assert context(processed).trace_id == request.get_span_context().trace_id
    assert [link.context.span_id for link in processed.links] == [context(published).span_id]
    found = TRACEPARENT.fullmatch(headers[0])
    assert found is not None
    assert int(found[2], 16) == context(published).span_id
    assert current == [context(processed)]
    assert published.kind is SpanKind.PRODUCER
    assert processed.kind is SpanKind.CONSUMER
    shared: dict[str, Any] = {
        "messaging.system": system,
        "messaging.destination.name": name,
        "messaging.destination.partition.id": "0",
        "messaging.message.id": "m7",
        "messaging.message.conversation_id": "c7",
        "messaging.message.body.size": 1,
    }
    if system in ("kafka", "redis"):
        host, port = facts(published)["server.address"], facts(published)["server.port"]
        assert f"{host}:{port}" in stage.url
        shared |= {"server.address": host, "server.port": port}
    if system == "kafka":
        shared |= {
            "messaging.kafka.message.key": "k7",
            "messaging.kafka.offset": position.offset,
        }
    assert facts(published) == shared | {
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    assert facts(processed) == shared | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": stage.group,
    }
    assert published.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_batch_links_to_each_of_its_messages(traces: Traces, kind: str) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[list[int]] = []

    async def later(values: list[int]) -> None:
        seen.append(values)

    processor: Any = app.processor(topic, group="g", batch=10)(
        later if kind == "async" else seen.append
    )
    processor.pause()
    async with app:
        for value in range(3):
            await topic.publish(value)
        await topic.publish_many([3, 4])
        processor.resume()
        await come(lambda: sum(map(len, seen)) == 5)
    spans = traces.spans("process orders")
    assert [facts(span)["messaging.batch.message_count"] for span in spans] == list(map(len, seen))
    published = traces.spans("publish orders")
    assert [facts(span).get("messaging.batch.message_count") for span in published] == [
        None, None, None, 2,
    ]  # fmt: skip
    linked = [link.context.span_id for span in spans for link in span.links]
    origins = [context(span).span_id for span in published]
    assert linked == [*origins, origins[-1]]
    assert all(span.parent is None for span in spans)


@pytest.mark.parametrize("kind", ["async", "plain", "generator"])
async def test_what_a_handler_returns_goes_on_in_its_trace(traces: Traces, kind: str) -> None:
    app = Streams("memory://")
    orders, bills = app.topic("orders", int), app.topic("bills", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[str] = []

    async def later(value: int) -> int:
        return value

    def now(value: int) -> int:
        return value

    def several(value: int) -> Iterator[int]:
        yield value

    ways: dict[str, Callable[[int], Any]] = {"async": later, "plain": now, "generator": several}
    app.processor(orders, group="billing", to=bills)(ways[kind])

    @app.processor(bills, group="mail")
    async def mail(value: int, message: Message[int]) -> None:
        seen.append(message.headers["traceparent"])

    async with app:
        await orders.publish(1)
        await come(lambda: traces.spans("process bills"))
    first, second = traces.one("process orders"), traces.one("process bills")
    assert second.parent is not None
    assert second.parent.span_id == context(first).span_id
    assert context(second).trace_id == context(traces.one("publish orders")).trace_id
    assert seen[0].split("-")[2] == f"{context(first).span_id:016x}"


async def test_what_goes_through_an_outbox_goes_on_in_the_handlers_trace(
    traces: Traces, tmp_path: Path
) -> None:
    app = Streams("memory://")
    orders, bills = app.topic("orders", int), app.topic("bills", int)
    instrument(app, tracer_provider=traces.provider)
    database = Sqlite(tmp_path / "bills.db")
    Outbox(app, database)

    @app.processor(orders, group="billing", to=bills, transaction=database)
    def bill(value: int) -> int:
        return value

    @app.processor(bills, group="mail")
    async def mail(value: int) -> None: ...

    async with app:
        await orders.publish(1)
        await come(lambda: traces.spans("process bills"))
    first, publish = traces.one("process orders"), traces.one("publish bills")
    second = traces.one("process bills")
    assert publish.parent is not None
    assert publish.parent.span_id == context(first).span_id
    assert second.parent is not None
    assert second.parent.span_id == context(publish).span_id


async def test_publishing_from_a_handler_is_its_child(traces: Traces) -> None:
    app = Streams("memory://")
    orders, mails = app.topic("orders", int), app.topic("mails", int)
    instrument(app, tracer_provider=traces.provider)

    @app.processor(orders, group="later")
    async def later(value: int) -> None:
        await mails.publish(value)

    @app.processor(orders, group="now")
    def now(value: int) -> None:
        app.wait(mails.publish(value))

    async with app:
        await orders.publish(1)
        await come(lambda: len(traces.spans("process orders")) == 2)
    handlers = {context(span).span_id for span in traces.spans("process orders")}
    parents = [span.parent.span_id for span in traces.spans("publish mails") if span.parent]
    assert set(parents) == handlers
    assert len(parents) == 2


async def test_each_attempt_is_a_span_and_failures_say_why(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)

    class Busy(Exception): ...

    @app.processor(topic, group="g", retry=Retry(attempts=3, delay=0.001))
    async def fail(value: int, message: Message[int]) -> None:
        if message.attempt < 3:
            raise Busy("come back")

    async with app:
        await topic.publish(1)
        await come(lambda: len(traces.spans("process orders")) == 3)
    spans = traces.spans("process orders")
    assert [facts(span).get("streams.attempt") for span in spans] == [None, 2, 3]
    errors = [facts(span).get("error.type") for span in spans]
    assert errors == [f"{__name__}.{Busy.__qualname__}"] * 2 + [None]
    statuses = [span.status.status_code for span in spans]
    assert statuses == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    origin = context(traces.one("publish orders")).span_id
    assert [span.parent.span_id for span in spans if span.parent] == [origin] * 3


async def test_an_error_that_cannot_be_printed_stays_the_error(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @app.processor(topic, group="g", retry=Retry(attempts=9, delay=0.001, never=(Mute,)))
    async def fail(value: int) -> None:
        raise Mute

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        (letter,) = await h.dead(topic, group="g")
    assert letter.headers["__streams.errors.exception"].endswith("Mute")
    (span,) = traces.spans("process orders")
    assert span.status.description == "Mute: (its str() raised RuntimeError)"


async def test_a_publish_that_fails_says_so(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    async with app.connected():
        app.log.delete_topic("orders")
        with pytest.raises(Exception, match="orders"):
            await topic.publish(1)
    span = traces.one("publish orders")
    assert span.status.status_code is StatusCode.ERROR
    assert facts(span)["error.type"] == "streams.errors.NotFound"


async def test_the_callers_own_header_and_foreign_messages_are_respected(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    own = "00-11111111111111111111111111111111-2222222222222222-01"
    sent: list[str | None] = []

    @app.processor(topic, group="g")
    async def see(value: int, message: Message[int]) -> None:
        sent.append(message.headers.get("traceparent"))

    instrument(app, tracer_provider=traces.provider)
    with traces.tracer.start_as_current_span("start-up"):  # nothing to do with any message
        await app.__aenter__()
    await topic.publish(1, headers={"traceparent": own})
    await come(lambda: len(sent) == 1)
    app.publisher.observer = None  # as a producer that is not traced
    await topic.publish(2)
    await topic.publish(3, headers={"traceparent": "nonsense"})
    await come(lambda: len(traces.spans("process orders")) == 3)
    await app.__aexit__(None, None, None)
    assert sent == [own, None, "nonsense"]
    first, *others = traces.spans("process orders")
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == "2" * 16
    for span in others:
        assert span.parent is None
        assert not span.links


async def test_a_handler_of_the_value_alone_gets_nothing_else(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[Any] = []

    @app.processor(topic, group="g")
    def handle(value: int, more: Any = "default") -> None:
        seen.append((value, more))

    async with app:
        await topic.publish(1)
        await come(lambda: seen)
    assert seen == [(1, "default")]


async def test_off_unless_asked(traces: Traces) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    seen: list[Any] = []

    @app.processor(topic, group="g")
    async def see(value: int, message: Message[int]) -> None:
        seen.append(dict(message.headers))

    async with app:
        with traces.tracer.start_as_current_span("request"):
            await topic.publish(1, id="1")
        await come(lambda: seen)
    assert seen == [{"ce_id": "1"}]
    assert [span.name for span in traces.exporter.get_finished_spans()] == ["request"]


async def test_what_cannot_be_instrumented(traces: Traces) -> None:
    app = Streams("memory://")
    with pytest.raises(ConfigError, match="a Streams app is needed"):
        instrument("shop:app")  # type: ignore[arg-type]
    async with app.connected():
        with pytest.raises(ConfigError, match="running already"):
            instrument(app)
    wrong: Any
    for wrong in ("x", 5, TracerProvider, trace.get_tracer("t")):
        with pytest.raises(ConfigError, match=r"^instrument\(app, tracer_provider=.*: a Tracer"):
            instrument(app, tracer_provider=wrong)
    instrument(app, tracer_provider=TracerProvider())
    with pytest.raises(ConfigError, match="instrumented already"):
        instrument(app)


def test_without_the_package_it_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from streams import Streams; from streams.patterns import instrument\n"
        "instrument(Streams('memory://'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.stderr.splitlines()[-1] == (
        "streams.errors.ConfigError: tracing needs the package opentelemetry-api (the extra otel): "
        "pip install opentelemetry-api"
    )


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://host", ("host", None)),
        ("redis://user:p@ss@host:6379/0?wait=1", ("host", 6379)),
        ("kafka+ssl://host:9092?x=y", ("host", 9092)),
        ("redis://[::1]:6379", ("::1", 6379)),
        ("kafka://one:9092,two:9092", None),
    ],
)
def test_the_server_is_named_where_there_is_one(
    url: str, found: tuple[str, int | None] | None
) -> None:
    assert _server_address(url) == found
