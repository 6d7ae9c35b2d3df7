"""The annotations of functions that patterns are given are compared with what these get, when they
are declared: handlers of queues and buses, steps of sagas of both kinds."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NewType, Protocol, TypedDict, TypeVar

import msgspec
import pydantic
import pytest

from streams import ConfigError, Message, Streams
from streams.patterns import (
    ConsumerConfig,
    Event,
    EventBus,
    EventFilter,
    FilteredSubscriber,
    MessageConsumer,
    MessageQueue,
    QueueMessage,
    SagaEvent,
    SagaOrchestrator,
    SagaStep,
    StepCall,
    create_handler,
)

T = TypeVar("T")


class Mail(msgspec.Struct, tag="mail"):
    to: str


class Urgent(Mail, tag="urgent"):
    hours: int = 1


class Other(msgspec.Struct, tag="other"):
    x: int


class Model(pydantic.BaseModel):
    to: str


@dataclass
class Order:
    customer: str


class Item(TypedDict):
    name: str


class HasData(Protocol):
    @property
    def data(self) -> Any: ...


class Wrapped(Generic[T]):
    """A class of the user's own."""


MailId = NewType("MailId", str)


def annotated(says: Any, second: Any = None) -> Callable[..., Any]:
    """A function of one parameter or two that is annotated so."""

    async def of_one(first: Any) -> None: ...

    async def of_two(first: Any, second: Any) -> None: ...

    function: Callable[..., Any] = of_one if second is None else of_two
    function.__name__ = function.__qualname__ = "handle"
    function.__annotations__ = {"first": says, "second": second}
    return function


def queue_of(type: Any) -> Any:
    return MessageQueue(Streams("memory://")).declare("mails", type)


# -- queues


QUEUE_FITS: list[tuple[Any, Any]] = [
    (Mail, QueueMessage[Mail]), (Mail, QueueMessage[Any]), (Mail, QueueMessage), (Mail, Any),
    (Mail, object), (Mail, HasData), (Mail, T), (Mail, QueueMessage[T]),  # type: ignore[valid-type]
    (Mail, QueueMessage[Mail | None]), (Mail, QueueMessage[Mail] | None),
    (Mail, QueueMessage[Mail | Other]), (Mail, QueueMessage[Mail] | QueueMessage[Other]),
    (Mail, Annotated[QueueMessage[Mail], "a note"]), (Mail, "QueueMessage[Unknown]"),
    (Urgent, QueueMessage[Mail]), (Mail | Other, QueueMessage[Mail | Other]),
    (Model, QueueMessage[Model]), (Order, QueueMessage[Order]), (Item, QueueMessage[Item]),
    (Item, QueueMessage[dict[str, Any]]), (Item, QueueMessage[Mapping[str, Any]]),
    (MailId, QueueMessage[str]), (list[int], QueueMessage[list[int]]), (int, QueueMessage[float]),
    (Any, QueueMessage[Mail]), (Any, QueueMessage[Any]), (bytes, QueueMessage[bytes]),
]  # fmt: skip


@pytest.mark.parametrize(("type", "says"), QUEUE_FITS, ids=str)
def test_a_queue_takes_a_handler_that_may_fit(type: Any, says: Any) -> None:
    mails = queue_of(type)
    mails.subscribe(annotated(says))


QUEUE_WRONG: list[tuple[Any, Any, str, str]] = [
    (Mail, QueueMessage[Other], "QueueMessage[Other]", "QueueMessage[Mail]"),
    (Mail, QueueMessage[Urgent], "QueueMessage[Urgent]", "QueueMessage[Mail]"),
    (Mail, Mail, "Mail", "QueueMessage[Mail]"),
    (Mail, Message[Mail], "Message[Mail]", "QueueMessage[Mail]"),
    (Mail, Message, "Message", "QueueMessage[Mail]"),
    (Mail, int, "int", "QueueMessage[Mail]"),
    (Mail, list[QueueMessage[Mail]], "list[QueueMessage[Mail]]", "QueueMessage[Mail]"),
    (Mail | Other, QueueMessage[Mail], "QueueMessage[Mail]", "QueueMessage[Mail | Other]"),
    (Model, QueueMessage[Mail], "QueueMessage[Mail]", "QueueMessage[Model]"),
    (Any, Mail, "Mail", "QueueMessage"),
]


@pytest.mark.parametrize(("type", "says", "shown", "gets"), QUEUE_WRONG, ids=str)
def test_a_queue_refuses_a_handler_of_another_type(
    type: Any, says: Any, shown: str, gets: str
) -> None:
    mails = queue_of(type)
    with pytest.raises(ConfigError) as caught:
        mails.subscribe(annotated(says))
    assert str(caught.value) == (
        f"queue 'mails': handler handle: parameter 'first' is annotated {shown}, but it gets "
        f"{gets}; annotate it {gets}"
    )


async def test_every_way_to_a_queue_compares() -> None:
    app = Streams("memory://")
    queue: Any = MessageQueue(app)
    mails: Any = queue.declare("mails", Mail)
    wrong: Any = annotated(QueueMessage[Other])
    async with app:
        consumer = MessageConsumer(queue)
        ways: list[Callable[[], Any]] = [
            lambda: mails.subscribe(wrong),
            lambda: mails.subscribe(config=ConsumerConfig())(wrong),
            lambda: queue.subscribe("mails", wrong),
            lambda: queue.subscribe("mails")(wrong),
            lambda: mails.subscribe(functools.partial(annotated(int, str), second="x")),
        ]
        for way in ways:
            with pytest.raises(ConfigError, match="is annotated"):
                way()
        awaited: list[Callable[[], Awaitable[Any]]] = [
            lambda: consumer.start("mails", wrong),
            lambda: consumer.start(mails, wrong),
        ]
        for start in awaited:
            with pytest.raises(ConfigError, match="is annotated"):
                await start()
        assert not consumer.running
        await consumer.start(mails, annotated(QueueMessage[Mail]))
        await consumer.stop()


def test_a_queue_of_no_declared_type_takes_any_data() -> None:
    queue: Any = MessageQueue(Streams("memory://"))
    queue.subscribe("mails", annotated(QueueMessage[Mail]))
    with pytest.raises(ConfigError, match="annotated Mail, but it gets QueueMessage; annotate"):
        queue.subscribe("others", annotated(Mail))


class Service:
    async def handle(self, message: QueueMessage[Mail]) -> None: ...

    async def refused(self, message: Mail) -> None: ...

    async def __call__(self, message: QueueMessage[Other]) -> None: ...


def test_methods_and_callable_objects_are_compared_too() -> None:
    service: Any = Service()
    queue_of(Mail).subscribe(service.handle)
    for wrong in (service.refused, service):
        with pytest.raises(ConfigError, match="parameter 'message' is annotated"):
            queue_of(Mail).subscribe(wrong)


# -- buses


@pytest.mark.parametrize("says", [Event, Event | None, Any, object, HasData, T, "Unknown"], ids=str)
def test_a_bus_takes_what_may_fit(says: Any) -> None:
    for bus in (EventBus(), EventBus(Streams("memory://"), "b")):
        bus.subscribe("order.placed", annotated(says))
        FilteredSubscriber(bus, EventFilter("order.placed")).subscribe(annotated(says))


@pytest.mark.parametrize("says", [int, Mail, SagaEvent, Message[Mail], QueueMessage, dict], ids=str)
def test_a_bus_refuses_a_handler_of_another_type(says: Any) -> None:
    for bus in (EventBus(), EventBus(Streams("memory://"), "b")):
        wrong = annotated(says)
        ways: list[Callable[[], Any]] = [
            lambda: bus.subscribe("order.placed", wrong),  # noqa: B023
            lambda: bus.subscribe("order.placed")(wrong),  # noqa: B023
            lambda: bus.subscribe("order.placed", wrong, group="g"),  # noqa: B023
            lambda: FilteredSubscriber(bus, EventFilter()).subscribe(wrong),  # noqa: B023
        ]
        for way in ways:
            with pytest.raises(ConfigError) as caught:
                way()
            said = str(caught.value)
            assert said.startswith("handler handle: parameter 'first' is annotated ")
            assert said.endswith(", but it gets Event; annotate it Event")


def test_an_error_hook_is_compared_where_the_event_comes() -> None:
    def narrow(error: ConnectionError, event: Event, handler: object) -> None: ...

    def wrong(error: Exception, handler: str, event: object) -> None: ...

    EventBus(on_error=narrow)  # type: ignore[arg-type]  # it may know what its handlers raise
    with pytest.raises(ConfigError, match="on_error=wrong: parameter 'handler' is annotated str"):
        EventBus(on_error=wrong)  # type: ignore[arg-type]


# -- sagas


@pytest.mark.parametrize("says", [SagaEvent, Any, object, HasData, SagaEvent | None], ids=str)
def test_a_choreographed_step_takes_what_may_fit(says: Any) -> None:
    create_handler(EventBus(), "order.placed", annotated(says), "order.paid", None)


@pytest.mark.parametrize("says", [int, Event, dict[str, Any], Mail], ids=str)
def test_a_choreographed_step_of_another_type_is_refused(says: Any) -> None:
    bus = EventBus()
    with pytest.raises(ConfigError) as caught:
        create_handler(bus, "order.placed", annotated(says), "order.paid", None)
    assert str(caught.value).endswith(", but it gets SagaEvent; annotate it SagaEvent")
    assert "handler handle: parameter 'first' is annotated" in str(caught.value)


def orders(context: Any) -> SagaOrchestrator[Any]:
    return SagaOrchestrator(Streams("memory://"), "orders", context=context)


SAGA_FITS: list[tuple[Any, Any]] = [
    (Order, Order), (Order, Order | None), (Order, Any), (Order, object), (Order, T),
    (Urgent, Mail), (Model, Model), (Item, Item), (Item, dict[str, Any]), (dict[str, Any], dict),
    (dict[str, Any], Mapping[str, Any]), (Mail | Other, Mail | Other), (Order, "Unknown"),
    (Mail | Other, Mail),  # the step before it may have returned that one
]  # fmt: skip


@pytest.mark.parametrize(("context", "says"), SAGA_FITS, ids=str)
def test_a_saga_takes_a_step_that_may_fit(context: Any, says: Any) -> None:
    orders(context).add_step(SagaStep("a", annotated(says), annotated(says, StepCall)))
    SagaOrchestrator().add_step(SagaStep("a", annotated(says), annotated(says, StepCall)))


@pytest.mark.parametrize(
    ("context", "says"),
    [(Order, Mail), (Order, dict), (Mail | Other, Order), (Model, Mail), (dict[str, Any], Order)],
    ids=str,
)
def test_a_saga_refuses_a_step_of_another_context(context: Any, says: Any) -> None:
    ways: list[Callable[[Any], Any]] = [
        lambda saga: saga.add_step(SagaStep("a", annotated(says))),
        lambda saga: saga.add_step("a", annotated(says, StepCall)),
        lambda saga: saga.add_step(SagaStep("a", annotated(context), annotated(says))),
        lambda saga: saga.add_parallel(
            SagaStep("b", annotated(context)), SagaStep("a", annotated(says))
        ),
    ]
    for way in ways:
        saga = orders(context)
        with pytest.raises(ConfigError, match=r"saga 'orders': step 'a': \w+: parameter 'first'"):
            way(saga)
        assert saga.steps == ()


def test_a_second_parameter_is_the_call() -> None:
    SagaStep("a", annotated(Order, object))
    with pytest.raises(ConfigError) as caught:
        SagaStep("a", annotated(Order, str))
    assert str(caught.value) == (
        "saga step 'a': execute: parameter 'second' is annotated str, but it gets StepCall; "
        "annotate it StepCall"
    )
