"""Whether a span will be sampled, decided before anything is built for it.

OpenTelemetry makes a span, its parent and its attributes first and asks the sampler then, which
costs some 20 µs for a span that is dropped. Its own samplers decide by two things alone: the
trace ID, and whether the parent is sampled. Both are known from the header ``traceparent``, or from
a trace ID that is drawn here. So a span that they will drop is not built. A :class:`DroppedContext`
replaces it, which makes OpenTelemetry build the span when it is read: by a log record that needs
the trace ID, a child span, a message that is published.

The decision is always OpenTelemetry's: a span that is not dropped here is decided by its sampler
again, with the same trace ID. If the sampler is not one of its own, or the context travels in
headers other than W3C's, :func:`early_sampler` is None and every span is built.
"""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable
from contextvars import Token
from typing import Any, ClassVar, NamedTuple

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Tracer

from streams.message import Headers, text

LOW_BITS = (1 << 64) - 1
"""The bits of a trace ID that the samplers compare."""

SAMPLE_ALL = LOW_BITS + 1
"""The bound for which all spans are sampled."""

NEVER_SAMPLED = 1 << 62
"""More spans than any process creates."""

TRACEPARENT = "traceparent"

_W3C = re.compile(
    rb"00-(?!0{32})[0-9a-f]{16}([0-9a-f]{16})-(?!0{16})[0-9a-f]{16}-[0-9a-f]([0-9a-f])"
)
_SAMPLED_FLAGS = frozenset(b"13579bdf")
_build_lock = threading.Lock()


class SamplerBounds(NamedTuple):
    """A sampler's bounds: a span is sampled if the low bits of its trace ID are below the bound for
    its parent: none at 0, all at :data:`SAMPLE_ALL`."""

    root: int
    remote_sampled: int
    remote_dropped: int
    local_sampled: int
    local_dropped: int


class EarlySampler:
    """Decides for one tracer and one outer context."""

    def __init__(
        self, tracer: Any, bounds: SamplerBounds, outer: Context, *, reads_parent: bool
    ) -> None:
        self._tracer = tracer
        self._bounds = bounds
        self._reads_parent = reads_parent
        self._generate_trace_id: Callable[[], int] = tracer.id_generator.generate_trace_id
        self.outer = outer
        """The context current around every message: it has neither a span nor baggage."""
        self._has_random_ids = _has_random_ids(tracer.id_generator)
        self._log_drop_rate = (
            math.log1p(-bounds.root / SAMPLE_ALL) if 0 < bounds.root < SAMPLE_ALL else 0.0
        )

    def draw_gap(self) -> int:
        """The number of spans without a parent to drop from now on, before :meth:`sampled_id` is
        called for the next one.

        If trace IDs are random this is equivalent to drawing one for each, and cheaper.
        """
        if self._bounds.root == 0:
            return NEVER_SAMPLED
        if not self._has_random_ids or not self._log_drop_rate:
            return 0
        return int(math.log(1.0 - random.random()) / self._log_drop_rate)

    def sampled_id(self) -> int | None:
        """The trace ID of a span without a parent. None: it is dropped, too."""
        if self._has_random_ids and self._log_drop_rate:
            # An ID among those that are sampled; drawing any ID would take a hundred tries.
            return (random.getrandbits(64) << 64 | random.randrange(self._bounds.root)) or 1
        return self.draw_trace_id()

    def draw_trace_id(self) -> int | None:
        """The trace ID of the next span without a parent, independently of the last. None: dropped,
        and its trace ID is drawn when it is needed."""
        trace_id = self._generate_trace_id()
        return trace_id if trace_id & LOW_BITS < self._bounds.root else None

    def dropped_id(self) -> int:
        """The trace ID of a root span that is dropped."""
        while True:
            trace_id = self._generate_trace_id()
            if trace_id & LOW_BITS >= self._bounds.root:
                return trace_id

    def dropped_class(self) -> type[DroppedContext]:
        """The class of contexts of messages whose span this drops."""
        return type("Dropped", (DroppedContext,), {"__slots__": (), "early": self})

    def traceparent(self, headers: Headers) -> bytes | None:
        """The header that names a message's parent; None if there is none or it is not read."""
        found = None
        if self._reads_parent:
            for name, value in headers:
                if name == TRACEPARENT:
                    found = value
        return found

    def drops_remote_child(self, traceparent: bytes) -> bool:
        """Whether the span of a message with this header is certainly dropped."""
        match = _W3C.fullmatch(traceparent)
        if match is None:
            return False
        low, flags = match.groups()
        sampled = flags[0] in _SAMPLED_FLAGS
        bound = self._bounds.remote_sampled if sampled else self._bounds.remote_dropped
        return bound == 0 or (bound < SAMPLE_ALL and int(low, 16) >= bound)

    def drops_child(self, parent: SpanContext) -> bool:
        """Whether a child of this span is certainly dropped."""
        bounds = self._bounds
        if parent.is_remote:
            choice = bounds.remote_dropped, bounds.remote_sampled
        else:
            choice = bounds.local_dropped, bounds.local_sampled
        return parent.trace_id & LOW_BITS >= choice[parent.trace_flags.sampled]

    def tracer_with_id(self, trace_id: int) -> Tracer:
        """The tracer, for a span without a parent that gets this trace ID."""
        # A copy, as the tracer is its provider's; a new one each time, as the provider may change
        # its tracers' settings at any time.
        copy: Any = object.__new__(type(self._tracer))
        copy.__dict__.update(self._tracer.__dict__)
        copy.id_generator = _FixedTraceId(copy.id_generator, trace_id)
        copied: Tracer = copy
        return copied

    def build_context(self, headers: Headers) -> Context:
        """The context of a message with these headers, whose span is dropped."""
        origin = extract_context(headers, self.outer)
        tracer: Tracer = self._tracer
        if not trace.get_current_span(origin).get_span_context().is_valid:
            tracer = self.tracer_with_id(self.dropped_id())
        span = tracer.start_span("process", context=origin, kind=SpanKind.CONSUMER)
        return trace.set_span_in_context(span, origin)


class _FixedTraceId:
    """An ID generator whose trace ID is drawn already; the rest is delegated."""

    def __init__(self, generator: Any, trace_id: int) -> None:
        self._generator = generator
        self._trace_id = trace_id

    def generate_trace_id(self) -> int:
        return self._trace_id

    def generate_span_id(self) -> int:
        span_id: int = self._generator.generate_span_id()
        return span_id

    def is_trace_id_random(self) -> bool:  # newer SDKs ask for it
        found: bool = self._generator.is_trace_id_random()
        return found


def _has_random_ids(generator: Any) -> bool:
    """Whether it is the SDK's own generator, in whose IDs all bits are known to be random."""
    kind = type(generator)
    module = "opentelemetry.sdk.trace.id_generator"
    return (kind.__module__, kind.__name__) == (module, "RandomIdGenerator")


def _building_first(name: str) -> Any:
    """A method of dict that builds the context's contents before it reads them."""
    read = getattr(dict, name)

    def build_and_read(self: DroppedContext, *given: Any) -> Any:
        if not dict.__len__(self):  # once it is built, a span is in it
            self.build()
        return read(self, *given)

    build_and_read.__name__ = name
    return build_and_read


class DroppedContext(Context):
    """The context of a message whose span is dropped: the message's baggage and a span that records
    nothing, in the message's trace. Built when it is first read.

    There is one for each message, so that work that outlives the handler (a task, a thread, a
    callback that kept the context) stays in the trace of its own message. To be cheap, everything
    that all messages share is in the class, which :meth:`EarlySampler.dropped_class` makes.
    """

    early: ClassVar[EarlySampler]
    headers: Headers = ()
    """The message's headers, if it has any beside its ID."""

    def build(self) -> None:
        """Build it."""
        built = self.early.build_context(self.headers)
        with _build_lock:
            if not dict.__len__(self):  # two threads may have built it; both read the first
                dict.update(self, built)

    __hash__ = None  # type: ignore[assignment]


for _name in (
    *("get", "copy", "keys", "items", "values", "__getitem__", "__contains__", "__iter__"),
    *("__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__repr__"),
):
    setattr(DroppedContext, _name, _building_first(_name))


def early_sampler(tracer: Tracer, outer: Context) -> EarlySampler | None:
    """An early sampler for this tracer; None if only OpenTelemetry can decide."""
    if type(tracer).__module__ != "opentelemetry.sdk.trace" or type(tracer).__name__ != "Tracer":
        return None
    # With the environment's OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED, dropped spans are counted.
    metrics = getattr(tracer, "_tracer_metrics", None)
    if metrics is not None and type(metrics).__name__ != "NoOpTracerMetrics":
        return None
    fields = _propagated_headers(propagate.get_global_textmap())
    bounds = _sampler_bounds(getattr(tracer, "sampler", None))
    if fields is None or bounds is None or not hasattr(tracer, "id_generator"):
        return None
    return EarlySampler(tracer, bounds, outer, reads_parent=TRACEPARENT in fields)


def _propagated_headers(propagator: Any) -> set[str] | None:
    """The headers that OpenTelemetry's own propagators read; None if others take part."""
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.propagators.composite import CompositePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if type(propagator) in (TraceContextTextMapPropagator, W3CBaggagePropagator):
        return set(propagator.fields)
    parts = getattr(propagator, "_propagators", None)
    if type(propagator) is not CompositePropagator or parts is None:
        return None
    found: set[str] = set()
    for part in parts:
        fields = _propagated_headers(part)
        if fields is None:
            return None
        found |= fields
    return found


def _sampler_bounds(sampler: Any) -> SamplerBounds | None:
    """The bounds of one of the SDK's samplers; None for any other."""
    from opentelemetry.sdk.trace import sampling

    kind: Any = type(sampler)
    if kind.__module__ != sampling.__name__:
        return None  # a subclass may decide in any way
    if not isinstance(sampler, sampling.ParentBased):
        bound = _sampler_bound(sampler)
        return None if bound is None else SamplerBounds(*[bound] * 5)
    names = (
        "_root",
        "_remote_parent_sampled",
        "_remote_parent_not_sampled",
        "_local_parent_sampled",
        "_local_parent_not_sampled",
    )
    bounds = [_sampler_bound(getattr(sampler, name, None)) for name in names]
    found = [bound for bound in bounds if bound is not None]
    return SamplerBounds(*found) if len(found) == len(names) else None


def _sampler_bound(sampler: Any) -> int | None:
    from opentelemetry.sdk.trace import sampling

    if type(sampler) is sampling.TraceIdRatioBased:
        return sampler.bound
    is_sdk_sampler = type(sampler).__module__ == sampling.__name__
    if is_sdk_sampler and isinstance(sampler, sampling.StaticSampler):
        return 0 if sampler.get_description() == "AlwaysOffSampler" else SAMPLE_ALL
    return None


def extract_context(headers: Headers, outer: Context) -> Context:
    """The context of a message's headers, within an outer one without a span of its own."""
    carrier = {name: "" if value is None else text(value) for name, value in headers}
    return propagate.extract(carrier, outer) if carrier else outer


def without_span(outer: Context) -> Context:
    """A context without its span and its baggage, which are not those of any message."""
    if not outer:
        return Context()
    return trace.set_span_in_context(trace.INVALID_SPAN, baggage.clear(outer))


def get_context_switch() -> tuple[Callable[[Context], Any], Callable[[Any], None]]:
    """A function that makes a context the current one, and one that undoes that.

    OpenTelemetry keeps the current context in a context variable, unless configured otherwise;
    setting that costs half as much as its own functions.
    """
    token: Any = context.attach(Context())
    context.detach(token)
    if not isinstance(token, Token):
        return context.attach, context.detach
    variable: Any = token.var
    return variable.set, variable.reset
