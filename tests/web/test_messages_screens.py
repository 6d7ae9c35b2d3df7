"""Messages: browsed, searched, watched as they arrive; and one message by itself."""

from __future__ import annotations

import asyncio
import json
import time
from html import unescape
from typing import Any

import httpx
import msgspec
import pytest

from stream_codecs import MessagePack, Zstd
from streams import Reject, Streams
from streams.errors import Unavailable
from streams.log.appending import append_and_wait
from streams.log.range_reader import read_batches
from streams.message import Batch, Record
from streams.web import Dashboard, Payload, live
from streams.web import search as search_module
from streams.web.arrivals import Arrivals, Arrived
from streams.web.sampler import Sampler
from streams.web.search import MessageQuery, at_path, path_parts
from streams.wire import iso_time
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.managers import purses
from tests.web.gates import Gate
from tests.web.serving import serving
from tests.web.visiting import eventually, seen_with, visit


class Order(msgspec.Struct):
    n: int
    customer: dict[str, Any] = {}


class Deep(msgspec.Struct):
    n: Any


async def filled(stage: Stage, count: int, partitions: int = 2) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, partitions=partitions)
    async with app.connected():
        orders = [Order(number, {"id": f"c{number % 7}"}) for number in range(count)]
        await stage.publish(topic, *orders, key=lambda order: f"key-{order.n}")


@pytest.mark.everywhere
async def test_messages_are_browsed_back_from_the_newest(stage: Stage) -> None:
    await filled(stage, 60)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        seen = await visitor.get(f"{address}?count=25")
        found = [number for number in range(60) if f"key-{number} " in f"{seen.text} "]
        pages = 1
        while any(text == "older" for text, _ in seen.links):
            seen = await visitor.get(address + seen.link("older"))
            more = [number for number in range(60) if f"key-{number} " in f"{seen.text} "]
            assert not set(more) & set(found)
            found += more
            pages += 1
        assert sorted(found) == list(range(60))
        assert pages == 3


@pytest.mark.everywhere
async def test_messages_are_browsed_from_a_place_on(stage: Stage) -> None:
    await filled(stage, 60)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        seen = await visitor.get(f"{address}?count=25&from=earliest")
        found = [number for number in range(60) if f"key-{number} " in f"{seen.text} "]
        while any(text == "later" for text, _ in seen.links):
            seen = await visitor.get(address + seen.link("later"))
            found += [number for number in range(60) if f"key-{number} " in f"{seen.text} "]
        assert sorted(found) == list(range(60))
        for place in ("yesterday", "0/", "99/1", "-0"):
            await visitor.get(f"{address}?from={place}", status=400 if place != "99/1" else 404)
        await visitor.get(f"{address}?partition=7", status=404)
        await visitor.get(f"{address}?until=x", status=400)


@pytest.mark.everywhere
@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_a_search_says_how_far_it_looked_and_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    await filled(stage, 300)
    monkeypatch.setattr(search_module, "MAX_MESSAGES", 100)
    monkeypatch.setattr(search_module, "CHUNK", 30)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        seen = await visitor.get(f"{address}?path=customer.id&path_value=c3&order={order}")
        looked, found = 0, set[str]()
        for step in range(10):
            words = seen.text.split()
            found |= {word for word in words if word.startswith("key-")}
            at = [i for i, word in enumerate(words) if word == "Searched"][-1]
            now, total = int(words[at + 1]), int(words[at + 3])
            looked += now
            assert now <= 100
            if "No more messages." in seen.text:
                break
            assert total == 300 if step == 0 else total < 300
            seen = await visitor.get(address + seen.link("Continue from there"))
        assert looked == 300
        assert found == {f"key-{number}" for number in range(300) if number % 7 == 3}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"key": "key-5"}, {5}),
        ({"path": "n", "path_value": "7"}, {7}),
        ({"path": "customer.id", "path_value": "c1"}, {1, 8}),
        ({"path": "customer.missing"}, set()),
        ({"text": '"n":9'}, {9}),
        ({"text": '"c2"', "key": "key-2"}, {2}),
        ({"header": "color", "header_value": "re"}, {4}),
        ({"header": "color"}, {4}),
        ({"header_value": "red"}, {4}),
        ({"id": "the-fourth"}, {4}),
    ],
)
async def test_what_can_be_searched_for(
    stage: Stage, fields: dict[str, str], expected: set[int]
) -> None:
    app = stage.app()
    topic = stage.topic(app, Order)
    async with app.connected():
        for n in range(10):
            headers = {"color": "red"} if n == 4 else None
            id = "the-fourth" if n == 4 else None
            order = Order(n, {"id": f"c{n % 7}"})
            await topic.publish(order, key=f"key-{n}", id=id, headers=headers)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        seen = await visitor.get(f"/topics/{stage.topic_name}/messages", params=fields)
        found = {n for n in range(10) if f"key-{n} {{" in seen.text}
        assert found == expected
        assert f"{len(expected)} found." in seen.text
        assert "Searched 10 of 10 messages" in seen.text


@pytest.mark.parametrize("path", ["a..b", "[", "a[x]", ".", "a.b[", "a" * 20 + ".b" * 40])
async def test_a_path_that_is_none_is_said_so(stage: Stage, path: str) -> None:
    await filled(stage, 1)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        seen = await visitor.get(address, params={"path": path}, status=400)
        assert "is not a path such as" in seen.text


def test_paths() -> None:
    document = {"items": [{"sku": 7}, {"sku": None}], "a.b": 1, "0": "zero"}
    assert at_path(document, path_parts("items[0].sku")) == 7
    assert at_path(document, path_parts("items.1.sku")) is None
    assert at_path(document, path_parts("0")) == "zero"
    for missing in ("items[2].sku", "items.sku", "a.b", "items[0].sku.x"):
        assert at_path(document, path_parts(missing)) is search_module._MISSING


@pytest.mark.parametrize(
    ("bound", "most", "query", "looked", "found"),
    [
        ("MAX_SECONDS", -1.0, "path=n&path_value=-1", 1, 0),
        ("MAX_BYTES", 50, "path=n&path_value=-1", 2, 0),  # of 33 bytes each
        ("MAX_FOUND", 3, "text=customer", 3, 3),
    ],
)
async def test_a_search_ends_at_its_bound_and_goes_on_from_there(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    most: float,
    query: str,
    looked: int,
    found: int,
) -> None:
    await filled(stage, 10, partitions=1)
    address = f"/topics/{stage.topic_name}/messages"
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        with monkeypatch.context() as bounded:
            bounded.setattr(search_module, bound, most)
            seen = await visitor.get(f"{address}?{query}")
        assert f"{found} found. Searched {looked} of 10 messages" in seen.text
        assert "No more messages." not in seen.text
        following = await visitor.get(address + seen.link("Continue from there"))
        left = 10 - looked
        assert f"{left if found else 0} found. Searched {left} of {left}" in following.text
        assert "No more messages." in following.text
        keys = [word for word in (seen.text + following.text).split() if word.startswith("key-")]
        assert sorted(keys) == ([f"key-{number}" for number in range(10)] if found else [])


async def test_while_somebody_searches_others_are_answered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(stage, 3, partitions=1)
    gate = Gate(search_module.Search._check_message)
    monkeypatch.setattr(search_module.Search, "_check_message", gate.bound())
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        searching = asyncio.create_task(visitor.get(f"{address}?text=customer"))
        await asyncio.to_thread(gate.entered)
        assert "key-1" in (await visitor.get(address)).text
        assert not searching.done()
        gate.open()
        assert "3 found." in (await searching).text


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_a_search_keeps_to_its_range_of_times_and_places(stage: Stage, order: str) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, partitions=1)
    times: list[str] = []

    async def mark() -> None:
        """A time between what was published before and what is published afterwards."""
        before = time.time()
        await stage.until(lambda: time.time() > before + 0.002, "the time goes on")
        times.append(iso_time(time.time()))
        after = time.time()
        await stage.until(lambda: time.time() > after + 0.002, "the time goes on")

    async with app.connected():
        for number in range(9):
            if number in (3, 7):
                await mark()
            await stage.publish(topic, Order(number), key=lambda order: f"key-{order.n}")
        places = [
            app.log.format_offset(offset)
            for batch in read_batches(app.log, topic.name, 0, *app.log.watermarks(topic.name, 0))
            for offset in batch.offsets
        ]
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        for start, end, expected in (
            (times[0], times[1], range(3, 7)),
            (times[1], "", range(7, 9)),
            ("", times[0], range(3)),
            (places[2], places[5], range(2, 5)),
            ("1h", "-2", range(7)),
        ):
            fields = {"path": "n", "from": start, "to": end, "order": order}
            seen = await visitor.get(address, params=fields)
            assert f"Searched {len(expected)} of {len(expected)} messages" in seen.text
            keys = [word for word in seen.text.split() if word.startswith("key-")]
            shown = expected if order == "oldest" else reversed(expected)
            assert keys == [f"key-{number}" for number in shown]
        for field in ("from", "to"):
            await visitor.get(address, params={"text": "n", field: "yesterday"}, status=400)


async def test_only_so_many_search_at_once(stage: Stage) -> None:
    await filled(stage, 5)
    held = [search_module._at_once.acquire(blocking=False) for _ in range(2)]
    assert all(held)
    try:
        async with visit(Dashboard(stage.app(), access="all")) as visitor:
            address = f"/topics/{stage.topic_name}/messages?text=n"
            assert "Other searches are running" in (await visitor.get(address)).text
            search_module._at_once.release()
            held.pop()
            assert "5 found." in (await visitor.get(address)).text
    finally:
        for _ in held:
            search_module._at_once.release()


async def test_a_message_says_where_it_has_been(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, partitions=1)
    bills = app.topic(f"{stage.topic_name}-bills", Order, partitions=1)

    @app.processor(topic, group=stage.group, to=bills, flow=QUICK)
    async def bill(order: Order) -> Order:
        if order.n == 1:
            raise Reject("no \x1b[31m money")
        return order

    async with app:
        await stage.publish(topic, Order(0), Order(1), key=lambda order: f"key-{order.n}")
        await stage.committed(app)
        async with visit(Dashboard(app, access="all")) as visitor:
            address = f"/topics/{stage.topic_name}/messages/0/"
            places = [
                app.log.format_offset(offset)
                for batch in [app.log.reader(stage.topic_name, 0, 0, 1 << 62).read(10)]
                if batch is not None
                for offset in batch.offsets
            ]
            handled = await seen_with(
                visitor, f"{address}{places[0]}/trail", f"{stage.group} : settled it", "it caused"
            )
            caused = await visitor.get(handled.link(f"{stage.topic_name}-bills/0/{places[0]}"))
            assert "Caused by" in caused.text
            assert "/trail" in (await visitor.get(address + places[1])).html
            dead = await seen_with(visitor, f"{address}{places[1]}/trail", "became a dead letter")
            letter = await visitor.get(dead.link(f"{stage.topic_name}.{stage.group}.dead/0/0"))
            assert "no \\x1b[31m money" in letter.text
            await visitor.get(address + "999", status=404)
            await visitor.get(address + "x", status=400)
            await visitor.get(f"/topics/{stage.topic_name}/messages/5/0", status=404)


HOSTILE_VALUES = [
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"&lt;b&gt; &#x3c;",
    b"\x1b]0;owned\x07\x1b[2J\x9b",
    "\u202etxt.exe\u2066\u200b".encode(),
    b"\xff\xfe\x00\x80 not UTF-8",
    b"\x00" * 100,
    b'{"a": "\\u001b[31m", "b": "</pre><script>"}',
    b"[" * 5_000,
    b"{" + b'"a":{' * 3_000,
    b"x" * (10 << 20),
    b"",
    None,
]


@pytest.mark.parametrize("number", range(len(HOSTILE_VALUES)))
async def test_hostile_messages_are_inert_in_every_field(stage: Stage, number: int) -> None:
    value = HOSTILE_VALUES[number]
    short = (value or b"")[:2_000]
    headers = [("<b>\x1b[31m" + short[:50].decode("latin-1"), short), ("plain", None)]
    record = Record(value, short, "<i>\x1b" + short[:80].hex(), headers)
    stage.anchor.create_topic(stage.topic_name, 1)
    from streams.log.appending import append_and_wait

    [position] = append_and_wait(stage.anchor, stage.topic_name, [record])
    assert not isinstance(position, Exception), position
    stage.anchor.initialize_offsets(stage.group, stage.topic_name, {0: 0})
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        for path in (
            address,
            f"{address}?text=script",
            f"{address}/{position.partition}/{position.offset}",
            f"/groups/show?group={stage.group}",
        ):
            seen = await visitor.get(path)
            assert not {char for char in seen.html if ord(char) < 32 and char not in "\n\t"}
            assert not set(seen.html) & set("\x7f\x9b\u202e\u2066\u200b")
            assert len(seen.html) < 2_000_000
        saved = await visitor.client.get(f"{address}/0/{position.offset}/value")
        if value is None:
            assert saved.status_code == 404
        else:
            assert saved.content == value
            assert saved.headers["content-type"] == "application/octet-stream"
            assert saved.headers["content-disposition"].startswith("attachment")
            assert "sandbox" in saved.headers["content-security-policy"]


async def test_without_the_permission_nothing_of_messages_is_shown(stage: Stage) -> None:
    await filled(stage, 3, partitions=1)
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        live = f"/live?arriving=topic%3D{stage.topic_name}"
        for path in (*(address + each for each in ("", "?text=n", "/0/0", "/0/0/value")), live):
            seen = await visitor.get(path, status=403)
            assert "key-" not in seen.html
        assert "/messages" not in (await visitor.get(f"/topics/{stage.topic_name}")).html


async def test_what_is_redacted_cannot_be_searched_for(stage: Stage) -> None:
    await filled(stage, 8, partitions=1)

    def redact(payload: Payload) -> bytes | None:
        return payload.data.replace(b"c3", b"**") if payload.kind == "value" else None

    async with visit(Dashboard(stage.app(), access="all", redact=redact)) as visitor:
        address = f"/topics/{stage.topic_name}/messages"
        assert "0 found." in (await visitor.get(f"{address}?text=c3")).text
        assert "0 found." in (await visitor.get(f"{address}?key=key-3")).text
        assert "1 found." in (await visitor.get(f"{address}?text=**")).text
        seen = await visitor.get(address)
        assert "**" in seen.text
        assert '"c3"' not in seen.text
        assert "key-3" not in seen.html
        saved = await visitor.client.get(f"{address}/0/3/value")
        assert b"c3" not in saved.content


def test_a_query_that_asks_for_nothing_is_empty() -> None:
    assert MessageQuery().is_empty
    assert not MessageQuery(text="x").is_empty


async def test_headers_that_a_page_names_apart_are_redacted_too(stage: Stage) -> None:
    def redact(payload: Payload) -> bytes | None:
        return payload.data.replace(b"41zz", b"****") if payload.kind == "header" else payload.data

    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        headers = {"ce_correlationid": "card-41zz", "ce_causationid": "of-41zz"}
        await topic.publish(1, headers=headers)
        path = f"/topics/{stage.topic_name}/messages/0/0"
        async with visit(Dashboard(app, access="all", redact=redact)) as visitor:
            seen = await visitor.get(path)
            assert "41zz" not in seen.html
            assert "Correlation card-****" in seen.text
            found = await visitor.get(seen.link("card-****"))  # it finds what is shown so
            assert "1 found" in found.text
        async with visit(Dashboard(app, access="all", redact=lambda payload: None)) as visitor:
            assert "41zz" not in (await visitor.get(path)).html


async def test_a_path_of_many_digits_is_no_place_in_a_list(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, dict[str, list[int]], partitions=1)
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        await topic.publish({"a": [1]})
        address = f"/topics/{stage.topic_name}/messages"
        for digits, found in (("0", "1 found"), ("9" * 5_000, "0 found")):
            seen = await visitor.get(f"{address}?path=a.{digits}")
            assert found in seen.text


async def test_streams_to_browsers_are_bounded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await topic.publish(1)
        path = f"/live?arriving=topic%3D{stage.topic_name}"
        async with visit(Dashboard(app, access="all")) as visitor:
            monkeypatch.setattr(live, "MAX_STREAMS", 0)
            for each in (path, "/live"):
                refused = await visitor.get(each, status=503)
                assert refused.response.headers["retry-after"]


async def test_messages_are_seen_as_they_arrive(stage: Stage) -> None:
    """Over a real server: the client of the other tests waits for the end of a response."""
    app = stage.app()
    topic = stage.topic(app, Order, partitions=1)
    async with app.connected():
        await stage.publish(topic, Order(1))
        dashboard = Dashboard(app, access="all")
        with serving(dashboard) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                tails = f"topic={stage.topic_name}", "topic=nowhere", "topic=%2F"
                fields = {"arriving": tails, "watch": Sampler.token([f"topic:{topic.name}"])}
                arrived = await told(client, fields, "positions")
                assert arrived["html"] == ""
                async with client.stream("GET", "/live", params=fields) as answer:
                    assert answer.headers["content-type"].startswith("text/event-stream")
                    names, found = set[str](), list[dict[str, Any]]()
                    async for line in answer.aiter_lines():
                        kind, _, data = line.partition(": ")
                        if kind == "event":
                            names.add(data)
                        elif kind == "data" and '"of"' in data:
                            found.append(json.loads(data))
                            if found[-1]["of"] == tails[0] and not found[-1]["html"]:
                                assert dashboard.streams_open == 1
                                await stage.publish(topic, Order(2), key=lambda order: "<b>new")
                        if names >= {"figures", "arriving"} and found and found[-1].get("html"):
                            break
                problems = {each["of"]: each["problem"] for each in found if "problem" in each}
                assert set(problems) == set(tails[1:])
                assert "nowhere" in problems["topic=nowhere"]
                html = found[-1]["html"]
                assert "&lt;b&gt;new" in html
                assert "<b>" not in html
                # A stream that is opened anew goes on where an earlier one was.
                fields["arriving"] = (f"{tails[0]}&positions={arrived['positions']}",)
                again = await told(client, fields, "html")
                assert again["of"] == tails[0]
                assert "&lt;b&gt;new" in again["html"]


async def test_a_stream_goes_on_when_the_log_was_out_of_reach(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, partitions=1)
    look, failures = Arrivals.look, [Unavailable("for a while"), Unavailable("still")]

    def failing(arrivals: Arrivals) -> Arrived | None:
        if failures:
            raise failures.pop()
        return look(arrivals)

    monkeypatch.setattr(Arrivals, "look", failing)
    async with app.connected():
        await stage.publish(topic, Order(1))
        with serving(Dashboard(app, access="all")) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                tail = f"topic={stage.topic_name}&positions=0/{app.log.format_offset(0)}"
                arrived = await told(client, {"arriving": [tail]}, "html")
                assert '"n":1' in unescape(arrived["html"])
                assert not failures


async def told(client: httpx.AsyncClient, fields: dict[str, Any], field: str) -> dict[str, Any]:
    """What a stream tells first that has this field."""
    async with asyncio.timeout(PATIENCE), client.stream("GET", "/live", params=fields) as answer:
        async for line in answer.aiter_lines():
            kind, _, data = line.partition(": ")
            if kind == "data" and (found := json.loads(data)).get(field) is not None:
                assert isinstance(found, dict)
                return found
    raise AssertionError("the stream ended")


class Deposited(msgspec.Struct, tag="deposited", frozen=True):
    cents: int


@pytest.mark.everywhere
async def test_histories_are_browsed_and_searched(stage: Stage) -> None:
    from streams import Aggregate

    app = stage.app()
    accounts = Aggregate(app, stage.topic_name, Deposited, int, lambda cents, e: cents + e.cents)
    async with app:
        for number in range(5):
            await accounts.append(f"account-{number}", [Deposited(number)], expected=0)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        topic = f"/topics/{stage.topic_name}.events"
        assert "the events of an aggregate" in (await visitor.get(topic)).text
        seen = await visitor.get(f"{topic}/messages")
        assert all(f"account-{number}" in seen.text for number in range(5))
        seen = await visitor.get(f"{topic}/messages?path=cents&path_value=3")
        assert "account-3" in seen.text
        assert "1 found." in seen.text
        # One cannot publish there.
        event = next(href for _, href in seen.links if f"{topic}/messages/" in href)
        assert "copy into a new message" not in (await visitor.get(event)).text


async def test_one_goes_back_from_message_to_message(stage: Stage) -> None:
    """Though what stands between them may be none: a manager's commands leave such places."""
    world = purses.World(stage.app(), f"w-{stage.group}")
    async with world.app:
        await world.open(lovelace=90, menabrea=0)
        await world.orders.publish(purses.Order("t-1", "lovelace", "menabrea", 77))
        await eventually(lambda: world.has_ended("t-1"))
        topic = f"/topics/{world.name}-purses.events/messages"
        async with visit(Dashboard(world.app, access="all")) as visitor:
            listed = await visitor.get(topic)
            places = [href for _, href in listed.links if f"{topic}/" in href]
            seen = await visitor.get(places[0])
            for place in places[1:]:
                assert seen.link("message before") == place
                seen = await visitor.get(place)
            assert "message before" not in seen.text


async def test_what_is_no_json_is_decoded_by_the_app(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, partitions=1, codec=Zstd(MessagePack()))
    async with app.connected():
        await stage.publish(topic, *(Order(n, {"id": f"c{n}"}) for n in range(5)))
        async with visit(Dashboard(app, access="all")) as visitor:
            address = f"/topics/{stage.topic_name}/messages"
            seen = await visitor.get(f"{address}?path=customer.id&path_value=c3")
            assert "1 found." in seen.text
            shown = await visitor.get(f"{address}/0/3")
            assert '"id": "c3"' in shown.text
            assert "As the app decodes it:" in shown.text

        def hide(payload: Payload) -> bytes:
            return payload.data + b"?"  # anything else than what is there

        async with visit(Dashboard(app, access="all", redact=hide)) as visitor:
            assert '"c3"' not in (await visitor.get(f"{address}/0/3")).text
            assert "0 found." in (await visitor.get(f"{address}?path=customer.id")).text

        def mask(payload: Payload) -> bytes:
            return payload.data.replace(b'"c3"', b'"**"')  # as it is in JSON alone

        async with visit(Dashboard(app, access="all", redact=mask)) as visitor:
            shown = await visitor.get(f"{address}/0/3")
            assert '"id": "**"' in shown.text
            query = f"{address}?path=customer.id&path_value="
            assert "0 found." in (await visitor.get(f"{query}c3")).text
            assert "1 found." in (await visitor.get(f"{query}**")).text
        async with visit(Dashboard(stage.app(), access="all")) as visitor:
            assert "0 found." in (await visitor.get(f"{address}?path=n")).text


async def test_what_is_decoded_and_deep_is_shown() -> None:
    app = Streams("memory://")
    topic = app.topic("deep", Any, partitions=1, codec=MessagePack())
    tree: list[Any] = []
    for _ in range(300):
        tree = [tree]
    async with app.connected():
        await topic.publish(tree)
        async with visit(Dashboard(app, access="all")) as visitor:
            shown = await visitor.get("/topics/deep/messages/0/0")
    assert "As the app decodes it:" in shown.text


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_a_search_keeps_few_bytes_and_looks_at_each_message_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Backwards it reads forwards, and keeps what it reads until it is looked at."""
    await filled(stage, 40, partitions=2)
    monkeypatch.setattr(search_module, "CHUNK", 12)
    monkeypatch.setattr(search_module, "READ", 3)
    monkeypatch.setattr(search_module, "CHUNK_BYTES", 150)  # of 33 each
    looked: list[tuple[int, int]] = []
    look = search_module.Search._check_message

    def note(search: Any, batch: Batch, index: int) -> None:
        looked.append((batch.partition, batch.offsets[index]))
        look(search, batch, index)

    monkeypatch.setattr(search_module.Search, "_check_message", note)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        path = f"/topics/{stage.topic_name}/messages?text=nothing-like-it&order={order}"
        seen = await visitor.get(path)
    assert "Searched 40 of 40" in seen.text
    assert "No more messages." in seen.text
    assert len(set(looked)) == len(looked) == 40
    for partition in (0, 1):
        offsets = [offset for number, offset in looked if number == partition]
        assert offsets == sorted(offsets, reverse=order == "newest")


async def test_a_deep_value_ends_no_search_and_no_form(stage: Stage) -> None:
    deep = b'{"n": ' + b"[" * 300 + b"]" * 300 + b"}"
    stage.anchor.create_topic(stage.topic_name, 1)
    append_and_wait(stage.anchor, stage.topic_name, [Record(deep, b"k", "1", [])])
    app = stage.app()
    topic = stage.topic(app, Deep, partitions=1)
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        seen = await visitor.get(f"/topics/{topic.name}/messages?path=n&path_value=x")
        assert "0 found. Searched 1 of 1" in seen.text
        assert "No more messages." in seen.text
        place = f"0/{app.log.format_offset(0)}"
        await visitor.get(f"/publish?topic={topic.name}&copy={place}")
        form = {"topic": topic.name, "value.n": (b"[" * 300 + b"]" * 300).decode()}
        await visitor.post("/publish", form, status=400)
