"""Handlers that both type checkers accept, and that can be declared.

Read by ``test_types.py``: Mypy and Pyright in their strict modes find nothing here, and neither do
the checks at declaration when the module is imported. ``refused.py`` is the other half.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from typing import Annotated, Any, Literal, TypedDict, TypeVar, assert_type

import msgspec
import pydantic

from streams import (
    ConsumerConfig,
    DeadLetterManager,
    DeadLetters,
    DeduplicatedConsumer,
    Event,
    EventBus,
    EventFilter,
    FilteredSubscriber,
    Message,
    MessageConsumer,
    MessageQueue,
    Processor,
    Queue,
    QueueMessage,
    Retry,
    SagaEvent,
    SagaOrchestrator,
    SagaStep,
    StepCall,
    Streams,
    Topic,
    Transaction,
    create_handler,
)
from streams.replay import replay
from streams.testing import Harness


class Dep(msgspec.Struct, tag="dep"):
    n: int


class Can(msgspec.Struct, tag="can"):
    n: int


class Late(Dep, tag="late"):
    minutes: int = 0


@dataclass
class Order:
    customer: str


class Item(TypedDict):
    name: str


class Model(pydantic.BaseModel):
    kind: Literal["model"] = "model"


class Other(pydantic.BaseModel):
    kind: Literal["other"] = "other"


app = Streams("memory://typing")
flights = app.topic("flights", Dep | Can, key=lambda event: str(event.n), id=lambda event: "1")
deps = app.topic("deps", Dep, key="n")
cans = app.topic("cans", Can)
lates = app.topic("lates", Late)
texts = app.topic("texts", str, key=len)
numbers = app.topic("numbers", int)
lists = app.topic("lists", list[int])
anything: Topic[Any] = app.topic("anything", Any)
nullable = app.topic("nullable", Dep | None)
orders = app.topic("orders", Order)
items = app.topic("items", Item)
models = app.topic("models", Annotated[Model | Other, pydantic.Field(discriminator="kind")])
raw = app.topic("raw")

groups = (f"group-{number}" for number in count())


def group() -> str:
    """No group reads a topic twice."""
    return next(groups)


# -- one value


@app.processor(flights, group=group())
async def union(event: Dep | Can) -> None: ...


@app.processor(flights, group=group())
def plain(event: Dep | Can) -> None: ...


@app.processor(flights, group=group())
async def with_message(event: Dep | Can, message: Message[Dep | Can]) -> None: ...


@app.processor(flights, group=group())
async def with_bare_message(event: Dep | Can, message: Message) -> None: ...


@app.processor(flights, group=group())
async def with_any_message(event: Dep | Can, message: Message[Any]) -> None: ...


@app.processor(deps, group=group())
def wider(event: Dep | Can, message: Message[Dep | Can]) -> None: ...


@app.processor(lates, group=group())
def base_class(event: Dep, message: Message[Dep]) -> None: ...


@app.processor(deps, group=group())
def of_an_object(event: object, message: object) -> None: ...


@app.processor(deps, group=group())
def keyword_with_default(event: Dep, *, db: int = 3) -> int:
    return 1


@app.processor(deps, group=group())
def more_with_default(event: Dep, retries: int = 3) -> int:
    return 1


@app.processor(deps, group=group())
def optional_message(event: Dep, message: Message[Dep] | None = None) -> None: ...


@app.processor(deps, group=group())
def variadic(*args: Any) -> None: ...


@app.processor(deps, group=group())
def positional_only(event: Dep, /) -> None: ...


@app.processor(deps, group=group())
async def both_positional_only(event: Dep, message: Message[Dep], /) -> None: ...


@app.processor(anything, group=group())
async def of_anything(event: dict[str, int]) -> None: ...


@app.processor(nullable, group=group())
async def of_none(event: Dep | None) -> None: ...


@app.processor(orders, group=group())
async def of_a_dataclass(order: Order) -> None: ...


@app.processor(items, group=group())
async def of_a_typed_dict(item: Item) -> None: ...


@app.processor(models, group=group())
async def of_models(model: Model | Other) -> None: ...


@app.processor(models, group=group())
async def of_a_base_model(model: pydantic.BaseModel) -> None: ...


@app.processor(raw, group=group())
async def of_bytes(value: bytes) -> None: ...


# -- batches


@app.processor(deps, group=group(), batch=5)
async def batch(events: list[Dep]) -> None: ...


@app.processor(deps, group=group(), batch=5)
def batch_sequence(events: Sequence[Dep | Can]) -> None: ...


@app.processor(deps, group=group(), batch=5)
def batch_with_messages(events: list[Dep], messages: list[Message[Dep]]) -> None: ...


@app.processor(deps, group=group(), batch=5)
def batch_wider(events: list[Dep], messages: Sequence[Message[Dep | Can]]) -> None: ...


def maybe_a_batch(size: int | None) -> None:
    app.processor(deps, group=group(), batch=size)


# -- what is returned


@app.processor(deps, group=group(), to=cans)
async def one(event: Dep) -> Can:
    return Can(1)


@app.processor(deps, group=group(), to=cans)
def one_or_none(event: Dep) -> Can | None:
    return Can(1)


@app.processor(deps, group=group(), to=cans)
def several(event: Dep) -> list[Can]:
    return [Can(1)]


@app.processor(deps, group=group(), to=cans)
def generated(event: Dep) -> Iterator[Can]:
    yield Can(1)


@app.processor(deps, group=group(), to=flights)
async def narrower(event: Dep, message: Message[Dep]) -> list[Dep]:
    return [Dep(1)]


@app.processor(deps, group=group(), to=flights)
async def a_tuple_or_none(event: Dep) -> tuple[Dep, Can] | None:
    return None


@app.processor(deps, group=group(), to=lists)
async def one_list(event: Dep) -> list[int]:
    return [1]


@app.processor(deps, group=group(), to=anything)
async def any_value(event: Dep) -> dict[str, int]:
    return {}


@app.processor(deps, group=group(), to=cans, batch=3)
async def one_each(events: list[Dep]) -> list[Can | None]:
    return []


@app.processor(deps, group=group(), to=cans, batch=3)
async def several_each(events: list[Dep], messages: list[Message[Dep]]) -> list[list[Can]]:
    return []


@app.processor(deps, group=group(), to=cans)
async def sent_positional_only(event: Dep, message: Message[Dep], /) -> Can:
    return Can(1)


def maybe_published(target: Topic[Can] | None) -> None:
    app.processor(deps, group=group(), to=target)


# -- several topics


@app.processor(deps, cans, group=group())
async def two(event: Dep | Can) -> None: ...


@app.processor(texts, numbers, group=group())
async def two_with_message(event: str | int, message: Message[str | int]) -> None: ...


@app.processor(texts, numbers, group=group(), batch=5)
async def two_batch(events: list[str | int]) -> None: ...


@app.processor(deps, cans, texts, group=group(), concurrency=4)
async def three(event: Dep | Can | str, message: Message[Dep | Can | str]) -> None: ...


@app.processor(deps, cans, texts, numbers, lates, group=group())
async def five(event: Dep | Can | str | int) -> None: ...


pair = [deps]


@app.processor(*pair, group=group())
async def unpacked(event: Dep) -> None: ...


# -- options


@app.processor(deps, group=group(), filter=lambda event: event.n > 1)
async def filtered(event: Dep) -> None: ...


@app.processor(
    deps,
    group=group(),
    start=datetime(2026, 1, 1, tzinfo=timezone.utc),
    timeout=5,
    retry=Retry(attempts=2),
    dead_letters=DeadLetters(sequenced=True),
)
async def with_options(event: Dep) -> None: ...


@app.processor(deps, group=group())
def with_transaction(event: Dep, message: Message[Dep, Transaction]) -> None:
    rows: list[tuple[Any, ...]] = message.transaction.execute("SELECT 1")
    assert rows


@app.processor(deps, group=group(), batch=4)
def batch_with_transaction(
    events: list[Dep], messages: list[Message[Dep, Transaction]]
) -> None: ...


# -- what else can be called


class Service:
    async def handle(self, event: Dep) -> None: ...

    def handle_with_message(self, event: Dep, message: Message[Dep]) -> None: ...

    @staticmethod
    @app.processor(deps, group=group())
    def static(event: Dep) -> None: ...


class Callee:
    async def __call__(self, event: Dep) -> None: ...


class CalleeWithMessage:
    def __call__(self, event: Dep, message: Message[Dep]) -> None: ...


def parametrised(db: int, event: Dep) -> None: ...


async def parametrised_by_name(event: Dep, message: Message[Dep], *, db: int) -> None: ...


app.processor(deps, group=group())(Service().handle)
app.processor(deps, group=group())(Service().handle_with_message)
app.processor(deps, group=group())(Callee())
app.processor(deps, group=group())(CalleeWithMessage())
app.processor(deps, group=group())(functools.partial(parametrised, 3))
app.processor(deps, group=group())(functools.partial(parametrised_by_name, db=3))
# Pyright infers no lambda's parameter from a protocol, which its strict mode does not like.
app.processor(deps, group=group())(lambda event: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
app.processor(deps, group=group())(print)
seen: list[Dep] = []
app.processor(deps, group=group())(seen.append)

G = TypeVar("G")


def generic(event: G) -> G:
    return event


def generic_with_message(event: G, message: Message[G]) -> G:
    return event


app.processor(deps, group=group())(generic)
app.processor(deps, group=group())(generic_with_message)


def of_any_topic(topic: Topic[G]) -> None:
    @app.processor(topic, group=group())
    async def inner(event: G, message: Message[G]) -> None: ...

    assert inner is not None


# -- what is declared is still the function


def called() -> None:
    keyword_with_default(Dep(1), db=5)
    number: int = keyword_with_default(event=Dep(1))
    more_with_default(Dep(1), number)
    Service.static(Dep(1))
    processor: Processor[..., Any] = filtered
    processor.pause()


async def awaited() -> Can:
    await filtered(Dep(1))
    await of_models(Model())
    return await one(Dep(1))


# -- patterns


async def step(order: Order) -> None: ...


async def step_with_call(order: Order, call: StepCall) -> Order:
    return order


saga = SagaOrchestrator(app, "saga", context=Order)
saga.add_step(SagaStep("one", step)).add_step("two", step_with_call, step)


async def unique(message: Message[Dep]) -> None:
    def take(message: Message[Dep | Can]) -> None: ...

    await DeduplicatedConsumer().process(message, take)
    await DeduplicatedConsumer().process(message, lambda same: seen.append(same.value))


async def letters() -> None:
    manager = DeadLetterManager(app, "deps.group.dead")
    await manager.reprocess(filter=lambda letter: letter.retry_count > 3)


events = EventBus()
events.subscribe("order.paid", lambda event: str(event.data))


def paid(event: Event) -> bool:
    return event.key is not None


FilteredSubscriber(events, EventFilter(attributes={"total": lambda total: total > 5})).subscribe(
    paid
)

# -- replay


async def replayed() -> None:
    await replay(app, deps, print)
    await replay(app, deps, filtered)
    await replay(app, deps, batch)
    await replay(app, deps, base_class)
    await replay(app, deps, parametrised_value)
    await replay(app, deps, Service().handle_with_message)
    await replay(app, deps, lambda event: seen.append(event))
    await replay(app, deps, "copy")
    await replay(app, deps, cans)
    await replay(app, "deps", parametrised_value)


async def parametrised_value(event: Dep, message: Message[Dep]) -> None: ...


# -- queues by their handles


class Mail(msgspec.Struct):
    to: str


queue = MessageQueue(app)
mails = queue.declare("mails", Mail, partitions=4)
either = queue.declare("either", Mail | int)
whatever = queue.declare("anything")
assert_type(mails, Queue[Mail])
assert_type(either, Queue[Mail | int])
assert_type(whatever, Queue[Any])


@mails.subscribe()
async def send(message: QueueMessage[Mail]) -> None:
    assert_type(message.data, Mail)


@mails.subscribe(config=ConsumerConfig(concurrency=3))
def send_plain(message: QueueMessage[Mail]) -> int:
    return len(message.data.to)


@either.subscribe()
async def wider_mail(message: QueueMessage[Mail | int | str]) -> None: ...


@whatever.subscribe()
async def mail_of_anything(message: QueueMessage[dict[str, Any]]) -> None: ...


@queue.subscribe("mails")
async def by_name(message: QueueMessage[Any]) -> None: ...


async def send_number(message: QueueMessage[int]) -> None: ...


async def send_with(message: QueueMessage[Mail], host: str) -> None: ...


one_mail = QueueMessage("1", datetime.now(timezone.utc), Mail("ada"), 0, "mails")


async def use_queues(consumer: MessageConsumer) -> None:
    assert_type(await mails.publish(Mail("ada"), key="ada", delay=3, id="1"), str)
    await either.publish(3)
    await whatever.publish(3)
    await queue.publish("mails", Mail("ada"))
    declared: MessageConsumer = mails.subscribe(send)
    started: MessageConsumer = await mails.subscribe(send, ConsumerConfig())
    assert declared is not started
    _ = await mails.subscribe(functools.partial(send_with, host="smtp"))
    await consumer.start(mails, send)
    await consumer.start("mails", send)
    assert_type(await send(one_mail), None)
    assert_type(send_plain(one_mail), int)
    assert_type(one_mail.headers["tenant"], str)
    assert_type(one_mail.correlation_id, str | None)


async def hear(event: SagaEvent) -> str:
    assert_type(event.event.key, str | None)
    assert_type(event.event.id, str)
    return event.id


create_handler(EventBus(app), "order.placed", hear, "order.paid", None)


# -- a harness looks at topics and at queues


async def look(h: Harness) -> None:
    assert_type(await h.messages(mails), list[Message[Mail]])
    assert_type(await h.messages(mails.topic), list[Message[Mail]])
    assert_type(await h.dead(mails), list[Message[bytes]])
    assert_type(await h.dead(mails, "mails", "lost-mails"), list[Message[bytes]])
