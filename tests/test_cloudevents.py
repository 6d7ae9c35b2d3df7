"""CloudEvents over every log: the official SDK reads what is published, and what it writes, in both
modes, is handled as what it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import redis
from cloudevents.core.bindings import kafka as sdk
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import DecodeError, MessagePack
from streams import CloudEvents, ConfigError, DeadLetters, Message, Streams
from streams.cloudevents import unwrap_event
from streams.log.protocol import Log
from streams.message import Record
from streams.patterns import Event, EventBus, MessageQueue
from tests.conformance.stage import Stage
from tests.monitoring.conftest import come, pytest_generate_tests, stage

__all__ = ["pytest_generate_tests", "stage"]

SHOP = CloudEvents(source="/shop/orders")

ONE: Any = 1
TWO: Any = 2
"""Data that the SDK writes, though its types do not say so."""


class Placed(msgspec.Struct, tag="order.placed"):
    order: int


class Cancelled(msgspec.Struct, tag="order.cancelled"):
    order: int


@dataclass
class Plain:
    order: int


def read(message: Message[Any]) -> Any:
    """The event as the SDK reads the message from Kafka."""
    raw = message.raw
    headers = {name: value for name, value in raw.headers if value is not None}
    assert raw.value is not None
    return sdk.from_kafka_event(sdk.KafkaMessage(headers, raw.key, raw.value))


def write(log: Log, topic: str, message: sdk.KafkaMessage, url: str = "") -> None:
    """Write what the SDK made of an event, as another producer would: on Redis and Kafka without
    our help."""
    scheme, _, place = url.partition("://")
    key = message.key.encode() if isinstance(message.key, str) else message.key
    if scheme == "kafka":
        producer = Producer({"bootstrap.servers": place.partition("?")[0]})
        headers: Any = list(message.headers.items())
        producer.produce(topic, message.value, key, headers=headers)
        assert producer.flush(60) == 0
        return
    if scheme == "redis":
        with redis.Redis.from_url(url.partition("?")[0]) as client:
            fields: Any = {"value": message.value, **message.headers}
            client.xadd(topic, fields if key is None else {**fields, "key": key})
        return
    others = [pair for pair in message.headers.items() if pair[0] != "ce_id"]
    record = Record(message.value, key, message.headers.get("ce_id", b"").decode(), others)
    answers: list[Any] = []
    log.append(topic, [record], answers.extend)
    log.flush(30)
    assert [isinstance(answer, BaseException) for answer in answers] == [False], answers


# -- what is written -------------------------------------------------------------------------------


async def test_the_official_sdk_reads_what_is_published(stage: Stage) -> None:
    app = Streams(stage.url, cloudevents=SHOP)
    topic = app.topic(f"events-{uuid4().hex}", Placed | Cancelled, partitions=1)
    when = datetime(2013, 1, 1, 10, 17, tzinfo=timezone.utc)
    async with app.connected():
        await topic.publish(
            Placed(1), id="one", key="k", timestamp=when, headers={"ce_correlationid": "c"}
        )
        await topic.publish_many([Cancelled(2)])
        one, two = [read(message) async for message in topic.read()]
    assert one.get_attributes() == {
        "id": "one",
        "source": "/shop/orders",
        "type": "order.placed",
        "specversion": "1.0",
        "time": when,
        "datacontenttype": "application/json",
        "correlationid": "c",
        "partitionkey": "k",
    }
    assert one.get_data() == {"type": "order.placed", "order": 1}
    assert (two.get_type(), two.get_data()["order"]) == ("order.cancelled", 2)
    assert abs((two.get_time() - datetime.now(timezone.utc)).total_seconds()) < 3_600
    assert one.get_id() != two.get_id()


@pytest.mark.parametrize(
    ("type", "value", "settings", "named"),
    [
        (Plain, Plain(1), SHOP, "Plain"),
        (dict, {"order": 1}, SHOP, "orders"),
        (int, 1, SHOP, "orders"),
        (Placed, Placed(1), CloudEvents("/s", "com.example.placed"), "com.example.placed"),
        (Placed, Placed(7), CloudEvents("/s", lambda value: f"order.{value.order}"), "order.7"),
    ],
    ids=["class", "dict", "int", "name", "function"],
)
async def test_an_event_has_a_type(
    type: Any, value: Any, settings: CloudEvents, named: str
) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", type, cloudevents=settings)
    async with app.connected():
        await topic.publish(value)
        await topic.publish(value, headers={"ce_type": "given", "ce_source": "/given"})
        one, two = [read(message) async for message in topic.read()]
    assert one.get_type() == named
    assert (two.get_type(), two.get_source()) == ("given", "/given")


async def test_what_a_handler_returns_a_bus_and_a_queue_are_events_too() -> None:
    app = Streams("memory://", cloudevents=SHOP)
    orders = app.topic("orders", Placed)
    mails = app.topic("mails", Plain, cloudevents=CloudEvents("/mail"))
    logs = app.topic("logs", int, cloudevents=False)
    bus = EventBus(app, "events")
    queue = MessageQueue(app)
    queue.declare("jobs", Plain)

    @app.processor(orders, group="g", to=mails)
    async def mail(placed: Placed) -> Plain:
        return Plain(placed.order)

    async with app:
        await orders.publish(Placed(1), id="o1", headers={"correlationid": "c"})
        await logs.publish(1)
        await bus.publish("order.paid", {"order": 1})
        await queue.publish("jobs", Plain(1))

        await come(lambda: app.publisher.published >= 5)
        (found,) = [message async for message in mails.read()]
        (log,) = [message async for message in logs.read()]
        event = app.topics["events"]
        (paid,) = [message async for message in event.read()]
        (job,) = [message async for message in queue.topic("jobs").read()]
    assert (read(job).get_type(), read(job).get_source()) == ("Plain", "/shop/orders")
    sent = read(found)
    assert (sent.get_source(), sent.get_type()) == ("/mail", "Plain")
    assert sent.get_extension("causationid") == "o1"
    assert sent.get_extension("correlationid") == "c"
    assert (found.causation_id, found.correlation_id) == ("o1", "c")
    assert set(log.headers) == {"ce_id"}
    assert (read(paid).get_type(), read(paid).get_source()) == ("order.paid", "/shop/orders")


def test_what_cannot_be_a_source_or_a_type_is_refused() -> None:
    for source in ("", "with space", "tab\t", "ü", 5):
        with pytest.raises(ConfigError, match="a URI"):
            CloudEvents(source)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a name"):
        CloudEvents("/s", type="")
    with pytest.raises(ConfigError, match=r"use CloudEvents\(source=...\)"):
        Streams("memory://", cloudevents="/shop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"topic 'a': .* use CloudEvents"):
        Streams("memory://").topic("a", cloudevents="/shop")  # type: ignore[call-overload]


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_what_the_official_sdk_writes_is_handled(stage: Stage, kind: str) -> None:
    app = Streams(stage.url, cloudevents=SHOP)
    topic = app.topic(f"events-{uuid4().hex}", Placed, partitions=1)
    seen: list[tuple[Any, ...]] = []

    def look(value: Placed, message: Message[Placed]) -> None:
        seen.append(
            (
                message.id, value.order, message.key, message.headers["ce_source"],
                message.headers["ce_type"], message.timestamp, message.correlation_id,
                message.causation_id, message.headers["content-type"],
            )
        )  # fmt: skip

    async def later(value: Placed, message: Message[Placed]) -> None:
        look(value, message)

    def batch(values: list[Placed], messages: list[Message[Placed]]) -> None:
        for value, message in zip(values, messages, strict=True):
            look(value, message)

    if kind == "batch":
        app.processor(topic, group=stage.group, batch=10)(batch)
    elif kind == "async":
        app.processor(topic, group=stage.group)(later)
    else:
        app.processor(topic, group=stage.group)(look)
    when = datetime(2020, 2, 3, tzinfo=timezone.utc)

    def event(id: str, order: int, source: str = "/elsewhere") -> CloudEvent:
        attributes = {
            "id": id, "source": source, "type": "order.placed", "time": when,
            "datacontenttype": "application/json", "correlationid": "c", "causationid": "d",
            "partitionkey": "k",
        }  # fmt: skip
        return CloudEvent(attributes, {"type": "order.placed", "order": order})

    async with app:
        write(app.log, topic.name, sdk.to_binary_event(event("a", 1)), stage.url)
        write(app.log, topic.name, sdk.to_structured_event(event("b", 2)), stage.url)
        # Twice the same event, in either mode, is one; of another source it is another.
        write(app.log, topic.name, sdk.to_structured_event(event("a", 1)), stage.url)
        write(app.log, topic.name, sdk.to_binary_event(event("b", 2)), stage.url)
        write(app.log, topic.name, sdk.to_structured_event(event("a", 3, "/other")), stage.url)
        await come(lambda: len(seen) == 3)
        again = [(message.id, message.value.order) async for message in topic.read()]
    wanted = ("k", "/elsewhere", "order.placed", when, "c", "d", "application/json")
    assert seen == [
        ("a", 1, *wanted),
        ("b", 2, *wanted),
        ("a", 3, "k", "/other", *wanted[2:]),
    ]
    assert again == [("a", 1), ("b", 2), ("a", 1), ("b", 2), ("a", 3)]


async def test_an_event_handled_before_a_restart_is_known_in_either_mode(stage: Stage) -> None:
    name = f"events-{uuid4().hex}"
    event = CloudEvent({"id": "a", "source": "/s", "type": "t"}, ONE)
    seen: list[int] = []

    def app() -> Streams:
        made = Streams(stage.url, cloudevents=SHOP)
        topic = made.topic(name, int, partitions=1)
        made.processor(topic, group=stage.group)(seen.append)
        return made

    async with (first := app()):
        write(first.log, name, sdk.to_structured_event(event), stage.url)
        await come(lambda: seen == [1])
    async with (second := app()):
        write(second.log, name, sdk.to_structured_event(event), stage.url)
        write(second.log, name, sdk.to_binary_event(event), stage.url)
        last = CloudEvent({"id": "z", "source": "/s", "type": "t"}, TWO)
        write(second.log, name, sdk.to_structured_event(last), stage.url)
        await come(lambda: 2 in seen)
    assert seen == [1, 2]


async def test_data_that_is_not_json_goes_in_base64() -> None:
    app = Streams("memory://", cloudevents=SHOP)
    topic = app.topic("orders", Placed, codec=MessagePack())
    async with app.connected():
        await topic.publish(Placed(1), id="one")
        (written,) = [message async for message in topic.read()]
        headers = {name: value for name, value in written.raw.headers if value is not None}
        assert headers["content-type"] == b"application/vnd.msgpack"
        event = sdk.from_binary_event(sdk.KafkaMessage(headers, None, written.raw.value or b""))
        write(app.log, "orders", sdk.to_structured_event(event))
        both = [message.value async for message in topic.read()]
    assert both == [Placed(1), Placed(1)]


BROKEN: Mapping[str, tuple[Any, str]] = {
    "no JSON": (b"{", "no JSON object"),
    "no object": (b"[]", "no JSON object"),
    "no id": ({"source": "/s", "type": "t"}, "id is missing"),
    "no source": ({"id": "1", "type": "t"}, "source is missing"),
    "empty type": ({"id": "1", "source": "/s", "type": ""}, "type is missing"),
    "NUL": ({"id": "1\0", "source": "/s", "type": "t"}, "id is missing"),
    "version": ({"id": "1", "source": "/s", "type": "t", "specversion": "2"}, "specversion"),
    "nested": ({"id": "1", "source": "/s", "type": "t", "x": {}}, "x is no string"),
    "large": ({"id": "1", "source": "/s", "type": "t", "x": 2**31}, "x is no integer of 32 bits"),
    "name": ({"id": "1", "source": "/s", "type": "t", "X-y": "1"}, "lower-case letters"),
    "twice": ({"id": "1", "source": "/s", "type": "t", "data": 1, "data_base64": ""}, "both"),
    "base64": ({"id": "1", "source": "/s", "type": "t", "data_base64": "?"}, "not Base64"),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_what_cannot_be_opened_is_a_dead_letter_with_its_own_bytes(fault: str) -> None:
    envelope, why = BROKEN[fault]
    value = envelope
    if isinstance(envelope, dict):
        value = json.dumps({"specversion": "1.0", **envelope}).encode()
    app = Streams("memory://", cloudevents=SHOP)
    topic = app.topic("orders", Any, partitions=1)
    seen: list[Any] = []

    @app.processor(topic, group="g")
    async def handle(value: Any) -> None:
        seen.append(value)

    headers = {"content-type": b"application/cloudevents+json; charset=UTF-8"}
    async with app:
        write(app.log, "orders", sdk.KafkaMessage({"content-type": b"text/plain"}, None, b"1"))
        write(app.log, "orders", sdk.KafkaMessage(headers, None, value))
        await topic.publish(2)
        letters = app.topic(DeadLetters().name("orders", "g"), bytes, cloudevents=False)
        found: list[Message[bytes]] = []

        def dead_letter() -> bool:
            found[:] = letters.read()
            return bool(found)

        await come(dead_letter)
        await come(lambda: seen == [1, 2])
    (letter,) = found
    assert letter.value == value
    assert why in letter.headers["__streams.errors.message"]


async def test_another_format_is_not_taken_for_data() -> None:
    app = Streams("memory://", cloudevents=SHOP)
    topic = app.topic("orders", Any)
    async with app.connected():
        headers = {"content-type": b"application/cloudevents+avro"}
        write(app.log, "orders", sdk.KafkaMessage(headers, None, b"1"))
        with pytest.raises(DecodeError, match=r"application/cloudevents\+json can"):
            [message async for message in topic.read()]


async def test_a_topic_that_carries_no_events_leaves_values_as_they_are() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", dict)
    event = CloudEvent({"id": "a", "source": "/s", "type": "t"}, ONE)
    async with app.connected():
        write(app.log, "orders", sdk.to_structured_event(event))
        (found,) = [message.value async for message in topic.read()]
    assert found["id"] == "a"


@given(st.binary(max_size=200))
def test_whatever_comes_is_opened_or_refused(value: bytes) -> None:
    headers = [("content-type", b"application/cloudevents+json")]
    try:
        unwrap_event(value, headers)
    except DecodeError:
        return


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(
    st.fixed_dictionaries({"id": texts, "source": texts, "type": texts}),
    st.dictionaries(
        st.from_regex(r"\Ax[a-z0-9]{1,10}\Z"),
        st.one_of(texts, st.booleans(), st.integers(-(2**31), 2**31 - 1)),
    ),
    st.one_of(
        st.none(), st.integers(), texts, st.lists(st.integers()), st.binary(min_size=1, max_size=50)
    ),
)
def test_an_event_opened_is_the_event_in_binary_mode(
    attributes: dict[str, Any], extensions: dict[str, Any], data: Any
) -> None:
    envelope = {"specversion": "1.0", **attributes, **extensions}
    content_type, wanted = "application/json", b""
    if isinstance(data, bytes):
        content_type = envelope["datacontenttype"] = "application/octet-stream"
        envelope["data_base64"], wanted = base64.b64encode(data).decode(), data
    elif isinstance(data, str):
        content_type = envelope["datacontenttype"] = "text/plain"
        envelope["data"], wanted = data, data.encode()
    elif data is not None:
        envelope["data"], wanted = data, json.dumps(data).encode()
    found, headers = unwrap_event(
        json.dumps(envelope).encode(),
        [("Content-Type", b"APPLICATION/cloudevents+JSON"), ("ce_id", b"x"), ("mine", b"1")],
    )
    named = dict(headers)
    if data is None:
        assert found is None
        assert "content-type" not in named
    else:
        assert found == wanted
        assert named.pop("content-type") == content_type.encode()
    assert named.pop("mine") == b"1"
    texts = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in {**attributes, **extensions}.items()
    }
    assert named == {
        "ce_specversion": b"1.0",
        **{f"ce_{name}": text.encode() for name, text in texts.items()},
    }


# -- the names of the extension --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "ce_"])
async def test_the_old_names_are_still_read(prefix: str) -> None:
    app = Streams(f"memory://{uuid4().hex}")
    bus = EventBus(app, "events")
    seen: list[Any] = []

    async def paid(event: Event) -> None:
        seen.append((event.correlation_id, event.causation_id))
        await bus.publish("mailed", 1, cause=event)

    bus.subscribe("paid", paid, group="g")
    async with app:
        headers = {f"{prefix}correlationid": "c", f"{prefix}causationid": "d", "ce_type": "paid"}
        raw = app.topics["events"]
        await raw.publish(1, headers=headers, id="one")
        await come(lambda: app.publisher.published >= 2)
        first, second = [message async for message in raw.read()]
    assert seen == [("c", "d")]
    assert (first.correlation_id, first.causation_id) == ("c", "d")
    assert second.headers["ce_correlationid"] == "c"
    assert second.headers["ce_causationid"] == "one"
    assert not {"correlationid", "causationid"} & set(second.headers)
