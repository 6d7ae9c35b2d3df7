"""Handlers that type checkers refuse: ``# error`` for both, ``# error: pyright`` where only Pyright
can see it.

Read by ``test_types.py``, never run: each statement that is marked has an error, no other one has.
"""

from __future__ import annotations

import functools
from typing import TypeVar

from accepted import (
    Callee,
    Can,
    Dep,
    Item,
    Mail,
    Model,
    Service,
    app,
    cans,
    deps,
    either,
    events,
    flights,
    lates,
    mails,
    models,
    numbers,
    one,
    orders,
    queue,
    saga,
    send,
    send_number,
    texts,
)

from streams import (
    ConsumerConfig,
    DeadLetterManager,
    DeduplicatedConsumer,
    Message,
    MessageConsumer,
    QueueMessage,
    SagaStep,
    Streams,
)
from streams.replay import replay

# -- one value


@app.processor(flights, group="g")
async def narrower(event: Dep) -> None: ...  # error


@app.processor(deps, group="g")
async def subclass(event: Model) -> None: ...  # error


@app.processor(deps, group="g")
def another_type(event: str) -> None: ...  # error


@app.processor(orders, group="g")
def another_dataclass(event: Item) -> None: ...  # error


@app.processor(models, group="g")
def one_model(event: Model) -> None: ...  # error


@app.processor(deps, group="g")
def message_of_another_type(event: Dep, message: Message[Can]) -> None: ...  # error


@app.processor(deps, group="g")
def no_message(event: Dep, message: str) -> None: ...  # error


@app.processor(deps, group="g")
def nothing() -> None: ...  # error


@app.processor(deps, group="g")
def three_parameters(event: Dep, message: Message[Dep], more: int) -> None: ...  # error


@app.processor(deps, group="g")
def keyword_without_default(event: Dep, *, db: int) -> None: ...  # error


# -- batches


@app.processor(deps, group="g", batch=5)
def batch_of_one(event: Dep) -> None: ...  # error


@app.processor(deps, group="g")
def list_without_batch(events: list[Dep]) -> None: ...  # error


@app.processor(deps, group="g", batch=5)
def one_message(events: list[Dep], message: Message[Dep]) -> None: ...  # error


@app.processor(deps, group="g", batch=5)
def batch_of_another_type(events: list[Can]) -> None: ...  # error


# -- what is returned


@app.processor(deps, group="g", to=cans)
def returns_another_type(event: Dep) -> Dep:  # error
    return event


@app.processor(deps, group="g", to=cans)
async def returns_a_list_of_another_type(event: Dep) -> list[Dep]:  # error
    return [event]


@app.processor(deps, group="g", to=texts)
async def returns_an_int(event: Dep) -> int:  # error
    return 1


@app.processor(deps, group="g", to=cans, batch=2)
async def returns_one_for_a_batch(events: list[Dep]) -> Can:  # error
    return Can(1)


@app.processor(deps, group="g", to=cans, batch=2)
async def returns_a_batch_of_another_type(events: list[Dep]) -> list[Dep]:  # error
    return []


@app.processor(deps, group="g", to=cans)
async def takes_another_type_and_sends(event: Can) -> Can:  # error
    return event


# -- several topics


@app.processor(deps, cans, group="g")
async def one_of_two(event: Dep) -> None: ...  # error


@app.processor(texts, numbers, group="g")
async def message_of_one_of_two(event: str | int, message: Message[str]) -> None: ...  # error


@app.processor(deps, cans, texts, group="g")
async def two_of_three(event: Dep | Can) -> None: ...  # error


# -- options


def of_cans(event: Can) -> bool:
    return True


async def asynchronous(event: Dep) -> bool:
    return True


@app.processor(deps, group="g", filter=of_cans)  # error
async def filter_of_another_type(event: Dep) -> None: ...


@app.processor(deps, group="g", filter=asynchronous)  # error
async def asynchronous_filter(event: Dep) -> None: ...


@app.processor(deps, group="g", filter=lambda event: event.missing > 1)  # error
async def filter_of_a_missing_field(event: Dep) -> None: ...


@app.processor(deps, cans, group="g", filter=of_cans)  # error
async def filter_of_one_of_two(event: Dep | Can) -> None: ...


@app.processor("deps", group="g")  # error
async def topic_by_name(event: Dep) -> None: ...


@app.processor(deps, group="g", concurency=4)  # error
async def misspelt(event: Dep) -> None: ...


@app.processor(deps, group="g")
def another_transaction(event: Dep, message: Message[Dep, int]) -> None: ...  # error


app.topic("keyed", Dep, key=lambda event: event.missing)  # error
app.topic("keyed", Dep, key=of_cans)  # error
app.topic("identified", Dep, id=lambda event: event.n)  # error


# -- what else can be called


class CalleeOfCans:
    async def __call__(self, event: Can) -> None: ...


class InClass:
    @app.processor(deps, group="g")
    def method(self, event: Dep) -> None: ...  # error


# It returns something else than accepted.py's: Pyright 1.1.414 remembers of a partial[None] that it
# was a handler once, whatever function is in it.
def parametrised(db: int, event: Can) -> float:
    return 1.0


def parametrised_right(db: int, event: Dep) -> None: ...


G = TypeVar("G", bound=Can)


def generic(event: G) -> G:
    return event


app.processor(deps, group="g")(CalleeOfCans())  # error
app.processor(cans, group="g")(Service().handle)  # error
app.processor(deps, group="g")(functools.partial(parametrised, 3))  # error: pyright
app.processor(deps, group="g")(functools.partial(parametrised_right, db="x"))  # error
app.processor(deps, group="g")(generic)  # error
app.processor(deps, group="g")(3)  # error
app.processor(deps, group="g")(Callee)  # error


# -- what is declared is still the function


one(Can(1))  # error
one(Dep(1), 2)  # error


async def result() -> None:
    number: int = await one(Dep(1))  # error
    assert number


# -- patterns


async def step_of_cans(context: Can) -> None: ...


saga.add_step(SagaStep("one", step_of_cans))  # error
saga.add_step("two", step_of_cans)  # error
events.subscribe("order.paid", of_cans)  # error


async def unique(message: Message[Dep]) -> None:
    async def take(message: Message[Can]) -> None: ...

    await DeduplicatedConsumer().process(message, take)  # error


async def letters(manager: DeadLetterManager) -> None:
    await manager.reprocess(filter=of_cans)  # error


# -- replay


async def replayed(other: Streams) -> None:
    await replay(other, deps, of_cans)  # error


async def with_another_message(event: Dep, message: Message[Can]) -> None: ...


async def replayed_with_another_message(other: Streams) -> None:
    await replay(other, lates, with_another_message)  # error


# -- queues by their handles


@mails.subscribe()
async def mail_of_a_number(message: QueueMessage[int]) -> None: ...  # error


@mails.subscribe()
async def send_data(data: Mail) -> None: ...  # error


@either.subscribe()
async def narrower_mail(message: QueueMessage[Mail]) -> None: ...  # error


@mails.subscribe()
async def mail_and_a_number(message: QueueMessage[Mail], other: int) -> None: ...  # error


async def queue_use_a_number() -> None:
    await mails.publish(3)  # error


async def queue_use_text() -> None:
    await mails.publish("ada")  # error


async def queue_use_text_of_either() -> None:
    await either.publish("ada")  # error


async def queue_use_a_delay_in_words() -> None:
    await mails.publish(Mail("ada"), delay="3")  # error


async def queue_use_nothing() -> None:
    await mails.publish()  # error


async def queue_use_a_handler_of_numbers() -> None:
    _ = await mails.subscribe(send_number)  # error


async def queue_use_a_number_as_config() -> None:
    _ = await mails.subscribe(send, 3)  # error


async def queue_use_no_handler() -> None:
    await mails.subscribe(config=ConsumerConfig())  # error


async def queue_use_started_with_a_handler_of_numbers(consumer: MessageConsumer) -> None:
    await consumer.start(mails, send_number)  # error


async def queue_use_started_without_a_handler(consumer: MessageConsumer) -> None:
    await consumer.start(mails)  # error


async def queue_use_cancelled_by_a_number() -> None:
    await mails.cancel(3)  # error


async def queue_use_called_with_a_number() -> None:
    await send(3)  # error


def queue_use_declared_by_position() -> None:
    queue.declare("mails", Mail, 4)  # error
