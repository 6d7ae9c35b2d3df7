"""Spans that will not be sampled are not built, and nobody can tell: what is decided, what a
handler finds in its context and what it passes on are what OpenTelemetry would have made of it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as contexts
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from stream_codecs import Bound
from streams import Message, Retry, Streams
from streams.patterns import instrument
from streams.patterns.monitoring.sampling import (
    LOW_BITS,
    DroppedContext,
    early_sampler,
    extract_context,
)
from tests.monitoring.conftest import come

SAMPLED = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
DROPPED = "00-" + "a" * 32 + "-" + "b" * 16 + "-00"
TRACE = int("a" * 32, 16)


class Counted(RandomIdGenerator):
    """Counts the spans that are built."""

    def __init__(self) -> None:
        self.spans = 0

    def generate_span_id(self) -> int:
        self.spans += 1
        return super().generate_span_id()


class Traces:
    """A provider and what it has exported."""

    def __init__(self, sampler: Sampler, ids: RandomIdGenerator | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, id_generator=ids or RandomIdGenerator())
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def by_ratio(rate: float) -> Sampler:
    return ParentBased(TraceIdRatioBased(rate))


def untraced(app: Streams) -> None:
    """Publish as a producer that is not traced."""
    app.publisher.observer = None


def here() -> SpanContext:
    return trace.get_current_span().get_span_context()


# -- the decision ----------------------------------------------------------------------------------

SAMPLERS: list[Sampler] = [
    ALWAYS_ON,
    ALWAYS_OFF,
    TraceIdRatioBased(0.5),
    TraceIdRatioBased(0.0),
    TraceIdRatioBased(1.0),
    by_ratio(0.5),
    ParentBased(ALWAYS_OFF),
    ParentBased(ALWAYS_ON, remote_parent_sampled=TraceIdRatioBased(0.5)),
    ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
]

traceparents = st.one_of(
    st.builds(
        "{}-{:032x}-{:016x}-{:02x}".format,
        st.sampled_from(["00", "00", "00", "01", "ff"]),
        st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 3)),
        st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3)),
        st.integers(0, 255),
    ),
    st.from_regex(r"\A[ \t]?00-[0-9a-fA-F]{32}-[0-9a-f]{16}-0[01][ \t\n]?(-x)?\Z"),
    st.text(max_size=60),
)


@given(st.sampled_from(SAMPLERS), traceparents)
def test_what_is_dropped_by_its_parent_opentelemetry_would_drop(sampler: Sampler, at: str) -> None:
    tracer = TracerProvider(sampler=sampler).get_tracer("t")
    decides = early_sampler(tracer, Context())
    assert decides is not None
    raw = at.encode("utf-8", "surrogatepass")
    headers = [("traceparent", raw)]
    assert decides.traceparent(headers) == raw
    origin = extract_context(headers, Context())
    recording = tracer.start_span("x", context=origin).is_recording()
    if decides.drops_remote_child(raw):
        assert not recording
    elif len(at) == 55 and trace.get_current_span(origin).get_span_context().is_valid:
        assert recording or at[:2] != "00"  # of versions to come it does not know


@given(st.sampled_from(SAMPLERS), st.integers(1, 2**128 - 1), st.booleans(), st.booleans())
def test_what_is_dropped_as_a_child_opentelemetry_would_drop(
    sampler: Sampler, trace_id: int, remote: bool, sampled: bool
) -> None:
    tracer = TracerProvider(sampler=sampler).get_tracer("t")
    decides = early_sampler(tracer, Context())
    assert decides is not None
    parent = SpanContext(trace_id, 7, remote, TraceFlags(int(sampled)))
    origin = trace.set_span_in_context(trace.NonRecordingSpan(parent), Context())
    assert decides.drops_child(parent) == (
        not tracer.start_span("x", context=origin).is_recording()
    )


@pytest.mark.parametrize("ids", [RandomIdGenerator(), Counted()], ids=["random", "another's"])
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_a_root_span_is_sampled_as_often_as_the_sampler_says(
    ids: RandomIdGenerator, rate: float
) -> None:
    sampler = by_ratio(rate)
    tracer = TracerProvider(sampler=sampler, id_generator=ids).get_tracer("t")
    decides = early_sampler(tracer, Context())
    assert decides is not None
    sampled, left = 0, decides.draw_gap()
    for _ in range(20_000):
        left -= 1
        if left < 0:
            left, trace_id = decides.draw_gap(), decides.sampled_id()
            if trace_id is not None:
                sampled += 1
                span = decides.tracer_with_id(trace_id).start_span("x", context=Context())
                assert span.is_recording()  # what was decided is what the sampler says
                assert span.get_span_context().trace_id == trace_id
    # Beyond eight standard deviations.
    assert abs(sampled - rate * 20_000) <= 8 * (20_000 * rate * (1 - rate)) ** 0.5
    if rate < 1:
        context = decides.build_context(())
        dropped = trace.get_current_span(context)
        assert not dropped.is_recording()
        assert dropped.get_span_context().trace_id & LOW_BITS >= round(rate * 2**64)


class Picky(TraceIdRatioBased):
    """Describes itself as the SDK's, and decides by the name."""

    def should_sample(self, *given: Any, **named: Any) -> SamplingResult:
        sampler = ALWAYS_ON if "process" in str([*given, *named.values()]) else ALWAYS_OFF
        return sampler.should_sample(*given, **named)


class Elsewhere(TraceContextTextMapPropagator):
    """Says that it writes what W3C's does, and reads another header."""

    def extract(self, carrier: Any, *given: Any, **named: Any) -> Context:
        return super().extract({"traceparent": carrier.get("x-trace", "")}, *given, **named)


@pytest.mark.parametrize("sampler", [Picky(0.0), ParentBased(Picky(0.0))], ids=["alone", "root"])
async def test_another_sampler_is_asked_about_each_span(sampler: Sampler) -> None:
    traces = Traces(sampler)
    assert early_sampler(traces.tracer, Context()) is None
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)

    @app.processor(topic, group="g")
    async def handle(value: int) -> None: ...

    async with app:
        untraced(app)
        await topic.publish(1)
        await come(lambda: traces.spans("process orders"))


@pytest.mark.parametrize(
    ("propagator", "known"),
    [
        (TraceContextTextMapPropagator(), True),
        (CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]), True),
        (CompositePropagator([W3CBaggagePropagator()]), True),
        (CompositePropagator([]), True),
        (Elsewhere(), False),
        (CompositePropagator([W3CBaggagePropagator(), Elsewhere()]), False),
    ],
    ids=["w3c", "both", "baggage", "none", "another", "another among them"],
)
async def test_the_header_counts_where_the_propagator_reads_it(
    propagator: Any, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", propagator)
    traces = Traces(ParentBased(ALWAYS_OFF))
    assert (early_sampler(traces.tracer, Context()) is not None) == known
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[int] = []

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        seen.append(here().trace_id)

    async with app:
        untraced(app)
        await topic.publish(1, headers={"traceparent": SAMPLED, "x-trace": SAMPLED})
        await come(lambda: seen)
    reads = known is False or "traceparent" in propagator.fields
    assert len(traces.spans("process orders")) == reads
    assert (seen == [int("1" * 32, 16)]) == reads


def test_dropped_spans_are_built_where_opentelemetry_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    tracer = TracerProvider(sampler=by_ratio(0.0)).get_tracer("counted")
    if type(getattr(tracer, "_tracer_metrics", None)).__name__ != "TracerMetrics":
        pytest.skip("this SDK counts no spans")
    assert early_sampler(tracer, Context()) is None


# -- what a handler finds --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain", "async batch", "plain batch"])
async def test_nothing_is_built_that_nobody_reads(kind: str) -> None:
    ids = Counted()
    traces = Traces(by_ratio(0.0), ids)
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[int] = []

    async def later(value: int) -> None:
        seen.append(value)

    async def later_batch(values: list[int], messages: list[Message[int]]) -> None:
        assert [message.value for message in messages] == values
        seen.extend(values)

    ways: dict[str, Callable[..., Any]] = {
        "async": later,
        "plain": seen.append,
        "async batch": later_batch,
        "plain batch": seen.extend,
    }
    batch: dict[str, Any] = {"batch": 10} if "batch" in kind else {}
    app.processor(topic, group="g", **batch)(ways[kind])
    async with app:
        untraced(app)
        for value in range(30):
            headers = {"traceparent": DROPPED} if value % 2 else {}
            await topic.publish(value, headers=headers)
        await come(lambda: len(seen) == 30)
    assert sorted(seen) == list(range(30))
    assert ids.spans == 0


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["dropped", "sampled"])
async def test_a_handler_is_in_its_messages_trace_with_its_baggage(kind: str, rate: float) -> None:
    traces = Traces(by_ratio(rate))
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[tuple[SpanContext, str, Mapping[str, object], int]] = []

    def see(message: Message[int]) -> None:
        if message.attempt == 1:
            raise ValueError("again")
        with traces.tracer.start_as_current_span("child") as child:
            assert child.is_recording() == (
                message.value == 1 or (rate == 1.0 and not message.value)
            )
            assert child.get_span_context().trace_id == here().trace_id
        span = trace.get_current_span()
        state = span.get_span_context().trace_state.to_header()
        seen.append((span.get_span_context(), state, baggage.get_all(), message.value))

    async def later(value: int, message: Message[int]) -> None:
        await asyncio.sleep(0)
        see(message)

    def now(value: int, message: Message[int]) -> None:
        see(message)

    app.processor(topic, group="g", retry=Retry(delay=0.001))(later if kind == "async" else now)
    with traces.tracer.start_as_current_span("start-up"):  # nothing to do with any message
        token = contexts.attach(baggage.set_baggage("app", "not the message's"))
        await app.__aenter__()
        contexts.detach(token)
    untraced(app)
    more = {"tracestate": "vendor=1", "baggage": "tenant=7,user=ada"}
    await topic.publish(0, id="root")
    await topic.publish(1, id="sampled", headers={"traceparent": SAMPLED, **more})
    await topic.publish(2, id="dropped", headers={"traceparent": DROPPED, **more})
    await come(lambda: len(seen) == 3)
    await app.__aexit__(None, None, None)
    root, sampled, dropped = sorted(seen, key=lambda each: each[3])
    assert root[0].trace_id not in (0, TRACE, int("1" * 32, 16))
    assert root[0].trace_flags.sampled == (rate == 1.0)
    assert root[1:3] == ("", {})
    for found, parent in ((sampled, SAMPLED), (dropped, DROPPED)):
        assert f"{found[0].trace_id:032x}" == parent[3:35]
        assert f"{found[0].span_id:016x}" != parent[36:52]  # a span of its own
        assert found[0].is_valid
        assert not found[0].is_remote
        assert found[0].trace_flags.sampled == (parent is SAMPLED)
        assert found[1:3] == ("vendor=1", {"tenant": "7", "user": "ada"})


@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_what_outlives_its_handler_goes_on_in_the_trace_of_its_message(kind: str) -> None:
    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    go = asyncio.Event()
    started: list[Any] = []
    seen: dict[int, int] = {}

    async def look(value: int) -> None:
        await go.wait()
        seen[value] = here().trace_id

    def look_from_a_thread(value: int, captured: Context) -> None:
        contexts.attach(captured)
        seen[value] = here().trace_id

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        if kind == "task":
            started.append(asyncio.create_task(look(value)))
        else:
            started.append((value, contexts.get_current()))

    async with app:
        untraced(app)
        for value in range(5):
            traceparent = f"00-{value + 1:032x}-{'2' * 16}-00"
            await topic.publish(value, headers={"traceparent": traceparent})
        await come(lambda: len(started) == 5)
    go.set()
    if kind == "task":
        await asyncio.gather(*started)
    else:
        threads = [threading.Thread(target=look_from_a_thread, args=each) for each in started]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {value: value + 1 for value in range(5)}


async def test_two_messages_without_a_trace_are_in_two() -> None:
    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    seen: list[int] = []
    both = asyncio.Event()

    @app.processor(topic, group="g", concurrency=2)
    async def handle(value: int) -> None:
        seen.append(value)
        if len(seen) == 2:
            both.set()
        await both.wait()
        first = here().trace_id
        await asyncio.sleep(0)
        assert here().trace_id == first
        seen.append(first)

    async with app:
        untraced(app)
        await topic.publish(0, key="a")
        await topic.publish(1, key="b")
        await come(lambda: len(seen) == 4)
    assert len(set(seen[2:])) == 2


async def test_the_next_message_is_not_decoded_in_the_context_of_the_last() -> None:
    decoded: list[SpanContext] = []

    class Peeking:
        def bind(self, type: Any, *, topic: str = "", role: str = "value") -> Bound[Any]:
            def decode(data: bytes) -> Any:
                decoded.append(here())
                return json.loads(data)

            return Bound(lambda value: json.dumps(value).encode(), decode)

    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    topic = app.topic("orders", int, codec=Peeking(), partitions=1)
    instrument(app, tracer_provider=traces.provider)
    seen: list[int] = []

    @app.processor(topic, group="g", filter=lambda value: not here().is_valid)
    async def filtered(value: int) -> None:
        assert here().is_valid
        seen.append(value)

    @app.processor(topic, group="h")
    async def bare(value: int) -> None:
        assert here().is_valid
        seen.append(value)

    async with app:
        untraced(app)
        await topic.publish_many(list(range(20)))
        await come(lambda: len(seen) == 40)
    assert len(decoded) >= 40
    assert not any(context.is_valid for context in decoded)


# -- what goes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain", "async batch", "plain batch"])
@pytest.mark.parametrize("parent", [SAMPLED, DROPPED], ids=["sampled", "dropped"])
async def test_what_a_handler_publishes_and_returns_goes_on_in_its_trace(
    kind: str, parent: str
) -> None:
    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    orders, bills, mails = (app.topic(name, int) for name in ("orders", "bills", "mails"))
    instrument(app, tracer_provider=traces.provider)
    current: list[SpanContext] = []

    async def later(value: int) -> int:
        current.append(here())
        await mails.publish(value)
        return value

    def now(value: int) -> int:
        current.append(here())
        app.wait(mails.publish(value))
        return value

    async def later_batch(values: list[int]) -> list[int]:
        return [await later(value) for value in values]

    def now_batch(values: list[int]) -> list[int]:
        return [now(value) for value in values]

    ways: dict[str, Callable[..., Any]] = {
        "async": later, "plain": now, "async batch": later_batch, "plain batch": now_batch,
    }  # fmt: skip
    batch: dict[str, Any] = {"batch": 10} if "batch" in kind else {}
    arrived: dict[str, Mapping[str, str]] = {}

    @app.processor(bills, mails, group="h")
    async def arrive(value: int, message: Message[int]) -> None:
        arrived[message.topic] = dict(message.headers)

    app.processor(orders, group="g", to=bills, **batch)(ways[kind])
    async with app:
        headers = {"traceparent": parent, "tracestate": "vendor=1", "baggage": "tenant=7"}
        await orders.publish(1, headers=headers)
        await come(lambda: len(arrived) == 2)
    mail, bill = arrived["mails"], arrived["bills"]
    sent = [headers["traceparent"].split("-") for headers in (mail, bill)]
    (handled,) = current
    assert [each[1] for each in sent] == [f"{handled.trace_id:032x}"] * 2
    if "batch" in kind:  # the span of a batch is a root: it is dropped, whatever its messages are
        assert f"{handled.trace_id:032x}" not in parent
        assert all(int(each[3], 16) & 1 == 0 for each in sent)
        return
    assert f"{handled.trace_id:032x}" == parent[3:35]
    assert [int(each[3], 16) & 1 for each in sent] == [int(parent is SAMPLED)] * 2
    assert sent[1][2] == f"{handled.span_id:016x}"  # what was returned is the handler's own
    for carried in (mail, bill):
        assert carried["tracestate"] == "vendor=1"
        assert carried["baggage"] == "tenant=7"
    names = {span.name for span in traces.exporter.get_finished_spans()}
    assert ("process orders" in names) == (parent is SAMPLED)
    assert ("publish mails" in names) == (parent is SAMPLED)


async def test_what_is_published_in_a_dropped_trace_is_not_recorded() -> None:
    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    async with app.connected():
        with traces.tracer.start_as_current_span("request") as request:
            await topic.publish(1)
        await topic.publish(2)
        first, second = [message.headers["traceparent"] async for message in topic.read()]
    assert first[3:35] == f"{request.get_span_context().trace_id:032x}"
    assert first[3:35] != second[3:35]
    assert int(first[-1], 16) & 1 == int(second[-1], 16) & 1 == 0
    assert not traces.exporter.get_finished_spans()


# -- what else reads the context -------------------------------------------------------------------


@pytest.mark.parametrize("parent", [SAMPLED, DROPPED], ids=["sampled", "dropped"])
async def test_log_records_and_exemplars_name_the_trace(parent: str) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], exemplar_filter=AlwaysOnExemplarFilter())
    counter = meters.get_meter("shop").create_counter("orders")
    traces = Traces(by_ratio(0.0))
    app = Streams("memory://")
    topic = app.topic("orders", int)
    instrument(app, tracer_provider=traces.provider)
    logged: list[int] = []
    log = logging.getLogger("shop")

    def correlate(record: logging.LogRecord) -> bool:  # as OpenTelemetry's own filter does it
        logged.append(here().trace_id)
        return True

    log.addFilter(correlate)

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        counter.add(1)
        log.warning("an order")

    try:
        async with app:
            untraced(app)
            await topic.publish(1, headers={"traceparent": parent})
            await come(lambda: logged)
    finally:
        log.removeFilter(correlate)
    assert [f"{each:032x}" for each in logged] == [parent[3:35]]
    data: Any = reader.get_metrics_data()
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [f"{each.trace_id:032x}" for each in point.exemplars] == [parent[3:35]]
    meters.shutdown()


READERS: dict[str, Callable[[Context], Any]] = {
    "dict": dict,
    "unpacked": lambda context: {**context},
    "copy": lambda context: context.copy(),
    "items": lambda context: dict(context.items()),
    "iterated": lambda context: {key: context[key] for key in context},
    "get": lambda context: {key: context.get(key) for key in list(context)},
    "values": lambda context: dict(zip(context.keys(), context.values(), strict=True)),
    "or": lambda context: context | {},
    "or from the right": lambda context: {} | context,
    "reversed": lambda context: {key: context[key] for key in reversed(context)},
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_however_it_is_read_a_context_is_whole(read: Callable[[Context], Any]) -> None:
    decides = early_sampler(TracerProvider(sampler=by_ratio(0.0)).get_tracer("t"), Context())
    assert decides is not None

    def make() -> DroppedContext:
        context = decides.dropped_class()()
        context.headers = [("traceparent", DROPPED.encode()), ("baggage", b"tenant=7")]
        return context

    found = Context(read(make()))
    assert trace.get_current_span(found).get_span_context().trace_id == TRACE
    assert baggage.get_all(found) == {"tenant": "7"}
    assert len(make()) == len(found)
    assert make() != Context()
    assert not make().__eq__(Context())
    assert make()
    assert "Span" in repr(make())
    with pytest.raises(ValueError):
        make()["new"] = 1
    child = contexts.set_value("mine", 1, make())
    assert trace.get_current_span(child).get_span_context().trace_id == TRACE


def test_threads_that_read_a_context_at_once_find_one_span() -> None:
    decides = early_sampler(TracerProvider(sampler=by_ratio(0.0)).get_tracer("t"), Context())
    assert decides is not None
    make = decides.dropped_class()
    for _ in range(50):
        context = make()
        gate = threading.Barrier(4)
        found: list[int] = []

        def look(context: Context = context, gate: threading.Barrier = gate) -> None:
            gate.wait()
            span = trace.get_current_span(context).get_span_context()
            found.append(span.span_id)  # noqa: B023

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1


def test_a_provider_that_is_set_after_the_app_was_instrumented_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = Streams("memory://")
    instrument(app)
    traces = Traces(by_ratio(0.0))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", traces.provider)
    seen: list[Any] = []
    topic = app.topic("orders", int)

    @app.processor(topic, group="g")
    async def handle(value: int) -> None:
        seen.append(type(contexts.get_current()).__mro__)

    async def main() -> None:
        async with app:
            await topic.publish(1)
            await come(lambda: seen)

    asyncio.run(main())
    assert DroppedContext in seen[0]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    token = contexts.attach(Context())
    yield
    contexts.detach(token)
