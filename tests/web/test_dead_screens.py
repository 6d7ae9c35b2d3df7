"""The screens of dead letters: by error, one by one, one whole; retried, edited, dropped."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from msgspec import structs

from streams import DeadLetterManager, Delays, Message, Streams
from streams.config import DeadLetters
from streams.derived_records import dead_letter_record
from streams.engine import progress
from streams.errors import Reject
from streams.inspection import letter_pages
from streams.inspection.letter_survey import kind_of
from streams.log.appending import append_and_wait
from streams.message import Record
from streams.parking.records import PREFIX
from streams.patterns.deadletters import DeadLetterTopic, redriving
from streams.web import Dashboard, Payload
from streams.web.screens import dead_actions
from tests.conformance.stage import QUICK, Stage
from tests.web.test_security import HOSTILE, assert_inert
from tests.web.visiting import Visitor, eventually, visit


def write_letters(
    stage: Stage, app: Streams, errors: Sequence[BaseException], *, value: bytes = b""
) -> str:
    """A letter for each of these errors, and the name of the topic that they stand in."""
    name = DeadLetters().name(stage.topic_name, stage.group)
    app.log.create_topic(stage.topic_name, 2)
    app.log.create_topic(name, 2)
    append_and_wait(
        app.log,
        name,
        [
            dead_letter_record(
                Record(value or b"%d" % number, b"key-%d" % number, f"m-{number}", []),
                error,
                3,
                stage.group,
                (stage.topic_name, 0, str(number)),
                1_700_000_000.0 + number,
            )
            for number, error in enumerate(errors)
        ],
    )
    return name


def waiting(app: Streams, name: str) -> int:
    return DeadLetterTopic(app.log, name).count_waiting()


async def all_counted(visitor: Visitor, name: str) -> Any:
    """The page of a topic once all its letters are counted by error."""
    seen: list[Any] = []

    async def counted() -> bool:
        seen.append(await visitor.get(f"/dead/show?name={name}"))
        return "Still counting" not in seen[-1].text

    await eventually(counted)
    return seen[-1]


@pytest.mark.everywhere
async def test_a_letter_is_found_read_and_retried(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    broken = True

    def act(value: int, message: Message[int]) -> None:
        if broken and value % 2:
            raise Reject(f"no stock for {value}")

    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(act))
    async with app, visit(Dashboard(app, access="all")) as visitor:
        await stage.publish(topic, *range(6), key=lambda value: f"key-{value}")
        await stage.committed(app)
        name = DeadLetters().name(stage.topic_name, stage.group)
        await stage.until(lambda: waiting(app, name) == 3, "three letters")

        async def is_listed() -> bool:
            listed = await visitor.get("/dead")
            return f"{name} {stage.group} {stage.topic_name} 3 3" in listed.text

        await eventually(is_listed)
        seen = await all_counted(visitor, name)
        assert "3 Reject: no stock for" in seen.text  # one kind: they differ in a number

        async def is_told() -> bool:
            return f"3 dead letters are waiting in {name}." in (await visitor.get("/")).text

        await eventually(is_told)
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        letter = await visitor.get(seen.link(places[0]))
        assert "Reject: no stock for" in letter.text
        assert "Traceback" in letter.text
        assert stage.topic_name in letter.text
        broken = False
        question = await visitor.submit(letter, "Retry")
        assert f"{stage.group} {stage.topic_name} {stage.topic_name}.{stage.group}.retry 1" in (
            question.text
        )
        assert waiting(app, name) == 3
        done = await visitor.submit(question, "Retry")
        assert "1 dead letter was put back." in done.text
        await stage.handled(4)
        again = await visitor.get(seen.link(places[0]))
        assert "dealt with" in again.text
        for at in (places[0], "0/99999999999999", "99/0", "x", ""):
            fields = {"name": name, "letter": [places[1], at], "confirm": "2"}
            await visitor.post("/dead/retry", fields, status=404)
        assert not [form for form in again.forms if form.method == "post"]

        rest = await visitor.get(f"/dead/show?topic={stage.topic_name}&group={stage.group}")
        question = await visitor.submit(rest, "Count and retry")
        assert f"Put 2 dead letters of {name} back?" in question.text
        refused = await visitor.submit(question, "Retry", status=400, confirm="3")
        assert "You typed 3, but there are 2 now" in refused.text
        await visitor.submit(question, "Retry", confirm="2")
        await stage.handled(6)
        assert sorted(stage.seen.values) == list(range(6))
        assert waiting(app, name) == 0


async def test_what_a_delay_topic_could_not_deliver_goes_back_into_it(stage: Stage) -> None:
    """Whoever keeps a delay topic reads no other."""
    teller, app, again = stage.app(), stage.app(), stage.app()
    name = f"delays-{stage.topic_name}"
    told, delays = Delays(teller, name), Delays(app, name)
    async with teller.connected():
        await told.publish(stage.topic(teller), 7, delay=0, id="m7")
    async with app:
        await stage.until(lambda: delays.stats().dead == 1, "a dead letter")
    topic, delays = stage.topic(again), Delays(again, name)
    again.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with again, visit(Dashboard(again, access="all")) as visitor:
        letters = f"{name}.dead"
        seen = await all_counted(visitor, letters)
        place = next(text for text, href in seen.links if "/dead/letter?" in href)
        letter = await visitor.get(seen.link(place))
        question = await visitor.submit(letter, "Retry")
        assert f"{name} {name} {name} 1" in question.text  # group, topic, where it goes
        done = await visitor.submit(question, "Retry")
        assert "1 dead letter was put back." in done.text
        await stage.handled(1)
        assert waiting(again, letters) == 0
        assert f"{name}.{name}.retry" not in again.log.list_topics()
    assert stage.seen.values == [7]


async def test_letters_by_error_of_one_kind_alone(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        errors = [ValueError(f"order {n}") if n % 3 else TimeoutError("bank") for n in range(9)]
        name = write_letters(stage, app, errors)
        seen = await all_counted(visitor, name)
        assert "6 ValueError: order" in seen.text
        assert "3 TimeoutError: bank" in seen.text
        kinds = [href for text, href in seen.links if text == "show these"]
        assert len(kinds) == 2
        only = await visitor.get(kinds[1])
        assert only.text.count("TimeoutError: bank") == 4  # three letters, and the kind's own row
        assert "ValueError: order 1" not in only.text.rpartition("Dead letters")[2]
        question = await visitor.submit(only, "Count and retry")
        assert "Put 3 dead letters" in question.text
        await visitor.submit(question, "Retry", confirm="3")
        left = await all_counted(visitor, name)
        assert "6 ValueError: order" in left.text
        assert "TimeoutError" not in left.text


async def test_filters_by_error_key_and_time(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError(f"order {n}") for n in range(6)])
        for query, expected in (
            ("error=ORDER 3", [3]),
            ("error=valueerror", range(6)),
            ("key=key-2", [2]),
            ("since=2023-11-14T22:13:22Z", range(2, 6)),
            ("until=2023-11-14T22:13:22Z", [0, 1]),
            ("since=2023-11-14T22:13:21Z&until=2023-11-14T22:13:23Z", [1, 2]),
            ("error=nothing", []),
        ):
            seen = await visitor.get(f"/dead/show?name={name}&{query}")
            listed = seen.text.rpartition("Dead letters")[2]
            found = [number for number in range(6) if f"key-{number} ValueError" in listed]
            assert found == list(expected), query
        await visitor.get(f"/dead/show?name={name}&since=yesterday", status=400)
        await visitor.get("/dead/show?name=none.such.dead", status=404)


async def test_ticked_letters_are_dropped(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 4)
        seen = await visitor.get(f"/dead/show?name={name}")
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        await visitor.post("/dead/drop", {"name": name}, status=400)
        question = await visitor.post("/dead/drop", {"name": name, "letter": places[:2]})
        assert f"Drop 2 dead letters of {name}?" in question.text
        fields = {"name": name, "letter": places[:2], "confirm": "2"}
        with caplog.at_level(logging.INFO, "streams.web"):
            await visitor.post("/dead/drop", fields)
        assert f"web: drop by somebody (127.0.0.1) done: {name}, 2 concerned" in caplog.text
        assert waiting(app, name) == 2
        gone = await visitor.post("/dead/drop", fields, status=404)
        assert "put back or set aside already" in gone.text
        everything = await visitor.get(f"/dead/show?name={name}&handled=1")
        assert everything.text.count("dealt with") == 3  # and the filter's own label


async def test_a_letter_is_edited_and_put_back(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app, visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("no number")], value=b"seven")
        seen = await visitor.get(f"/dead/show?name={name}")
        letter = await visitor.get(seen.link(next(t for t, h in seen.links if "/letter?" in h)))
        assert letter.form("New value").fields["value"].strip() == "seven"
        refused = await visitor.submit(letter, "New value", value="eight", status=400)
        assert f"cannot be decoded for the topic {stage.topic_name}" in refused.text
        assert waiting(app, name) == 1
        await visitor.submit(letter, "New value", value="7")
        await stage.handled(1)
        assert stage.seen.values == [7]
        late = await visitor.submit(letter, "New value", value="7", status=404)
        assert "already" in late.text


@pytest.mark.parametrize("value", [b"a\r\nb", b"\xff\x00", "zero\u200bwidth".encode(), b"\x1b[31m"])
async def test_a_value_that_a_form_would_change_is_edited_as_base64(
    stage: Stage, value: bytes
) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")], value=value)
        seen = await visitor.get(f"/dead/show?name={name}")
        letter = await visitor.get(seen.link(next(t for t, h in seen.links if "/letter?" in h)))
        written = letter.form("New value").fields["base64"]
        await visitor.submit(letter, "New value", base64="!", status=400)
        await visitor.submit(letter, "New value", base64=written)
        retry = app.topic(f"{stage.topic_name}.{stage.group}.retry", bytes)
        [message] = retry.read()
        assert message.raw.value == value
        assert ("streams_edited", b"1") in message.raw.headers


async def test_more_than_a_page_is_gone_through(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="read")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 120)
        seen = await visitor.get(f"/dead/show?name={name}")
        found: list[str] = []
        while True:
            found += [text for text, href in seen.links if "/dead/letter?" in href]
            if "next" not in [text for text, _ in seen.links]:
                break
            seen = await visitor.get(f"/dead/show{seen.link('next')}")
        assert len(found) == len(set(found)) == 120
        await visitor.get(f"/dead/show?name={name}&from=x", status=400)


async def test_a_page_that_finds_nothing_in_time_says_how_far_it_looked(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.web.screens import dead

    monkeypatch.setattr(dead, "READ_SECONDS", 0.0)
    monkeypatch.setattr(letter_pages, "LOOKS", 10)
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 30 + [ValueError("needle")])
        address, looked = f"/dead/show?name={name}&error=needle", 0
        while True:
            seen = await visitor.get(address)
            looked += 1
            if "No matching dead letters on this page." not in seen.text:
                break
            assert "9 dead letters were read for this page." in seen.text
            address = f"/dead/show{seen.link('next')}"
        assert looked >= 2
        assert "ValueError: needle" in seen.text.rpartition("attempts")[2]


async def test_without_the_permission_nothing_of_a_letter_is_shown(stage: Stage) -> None:
    app = stage.app()
    async with app.connected():
        name = write_letters(stage, app, [ValueError("secret error")], value=b"secret value")
        may = {"read", "retry", "drop", "edit"}
        async with visit(Dashboard(app, access=may)) as visitor:
            seen = await all_counted(visitor, name)
            place = next(text for text, href in seen.links if "/dead/letter?" in href)
            letter = await visitor.get(seen.link(place))
            for page in (seen, letter):
                assert "secret" not in page.html
                assert "key-0" not in page.html
            assert "You may not see its value, so you cannot edit it." in letter.text
            await visitor.get(f"/dead/show?name={name}&error=secret", status=400)
            await visitor.get(f"/dead/show?name={name}&key=key-0", status=400)
            fields = {"name": name, "letter": place, "value": "x"}
            await visitor.post("/dead/edit", fields, status=400)
            await visitor.post("/dead/drop", {"name": name, "all": "1", "error": "s"}, status=400)
            assert waiting(app, name) == 1
            await visitor.post("/dead/retry", {"name": name, "letter": place, "confirm": "1"})
            assert waiting(app, name) == 0


async def test_redact_stands_before_letters_and_their_filters(stage: Stage) -> None:
    def redact(payload: Payload) -> bytes | None:
        return payload.data.replace(b"41zz", b"****")

    app = stage.app()
    async with app.connected():
        name = write_letters(stage, app, [ValueError("card 41zz")], value=b'{"card": "41zz"}')
        async with visit(Dashboard(app, access="all", redact=redact)) as visitor:
            seen = await all_counted(visitor, name)
            place = next(text for text, href in seen.links if "/dead/letter?" in href)
            letter = await visitor.get(seen.link(place))
            assert "41zz" not in seen.html + letter.html
            assert "****" in letter.text
            assert "you cannot edit it" in letter.text
            found = await visitor.get(f"/dead/show?name={name}&error=41zz")
            assert "No matching dead letters." in found.text


async def test_a_letter_makes_no_topic_that_nobody_reads(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [])
        forged = dead_letter_record(
            Record(b"1", None, "m", []), ValueError("x"), 1, "g", ("not.there", 0, "1"), 0.0
        )
        append_and_wait(app.log, name, [forged, Record(b"2", None, "bare", [])])
        seen = await visitor.get(f"/dead/show?name={name}")
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        texts = [
            (await visitor.post("/dead/retry", {"name": name, "letter": each}, status=400)).text
            for each in places
        ]
        assert any("not.there, which does not exist" in text for text in texts)
        assert any("do not say which topic and group" in text for text in texts)
        assert "not.there.g.retry" not in app.log.list_topics()


async def test_many_are_retried_in_the_background_and_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_actions, "AT_ONCE", 10)
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 40)
        seen = await visitor.get(f"/dead/show?name={name}")
        question = await visitor.submit(seen, "Count and retry", most="30")
        assert f"Put 30 dead letters of {name} back?" in question.text
        assert "More dead letters match; only these will be changed." in question.text
        begun = await visitor.submit(question, "Retry", status=303, confirm="30")

        async def all_are_back() -> bool:
            job = await visitor.get(begun.response.headers["location"])
            return "30 dead letters were put back." in job.text

        await eventually(all_are_back)
        assert waiting(app, name) == 10
        letters = await DeadLetterManager(app, name).get_dead_letters(100, everything=True)
        assert sum(not each.waiting for each in letters) == 30


@pytest.mark.parametrize("text", HOSTILE)
async def test_whatever_stands_in_a_letter_is_shown_as_text(stage: Stage, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape") + b"\xff\x1b[2J"
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [])
        letter = dead_letter_record(
            Record(data, data, text, [("h", data), (text, data)]),
            ValueError(text), 1, text, (text, 0, text), 0.0,
        )  # fmt: skip
        letter.headers = [*letter.headers, ("streams_origin", data), ("streams_redrive", b"2")]
        append_and_wait(app.log, name, [letter])
        seen = await all_counted(visitor, name)
        place = next(href for _, href in seen.links if "/dead/letter?" in href)
        shown = await visitor.get(place)
        question = await visitor.submit(shown, "Drop", status=400)  # its first button is Retry
        listed = await visitor.get("/dead")
        for page in (seen, shown, question, listed):
            assert_inert(page.html)
        params = dict.fromkeys(
            ("q", "error", "kind", "key", "since", "until", "from", "at", "handled"), text
        )
        for path in ("/dead", "/dead/show", "/dead/kinds", "/dead/letter", "/keys", "/keys/show"):
            for more in ({"name": name}, {"topic": stage.topic_name, "group": stage.group}, {}):
                answer = await visitor.client.get(path, params={**params, **more})
                assert answer.status_code in (200, 400, 404), (path, answer.text)
                assert_inert(answer.text)


async def test_a_value_is_shown_digit_for_digit(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        value = b'{"amount": 12.10, "rate": 0.10000000000000000555, "of": "a", "of": "b"}'
        name = write_letters(stage, app, [ValueError("x")], value=value)
        seen = await visitor.get(f"/dead/show?name={name}")
        letter = await visitor.get(seen.link(next(t for t, h in seen.links if "/letter?" in h)))
        shown = letter.text.partition("New value")[0]
        for part in ('"amount": 12.10,', "0.10000000000000000555", '"of": "a"', '"of": "b"'):
            assert part in shown


async def test_a_large_value_is_shown_by_its_beginning(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        value = b'{"x": "' + b"y" * (3 << 20) + b'"}'
        name = write_letters(stage, app, [ValueError("x")], value=value)
        seen = await visitor.get(f"/dead/show?name={name}")
        letter = await visitor.get(seen.link(next(t for t, h in seen.links if "/letter?" in h)))
        assert "Only its beginning is shown." in letter.text
        assert "It is too large to be edited here" in letter.text
        assert len(letter.html) < 200_000


async def test_a_topic_of_another_kind_is_left_alone(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    # A group that has the name of its topic, as many have.
    app.processor(topic, group=stage.topic_name, flow=QUICK)(stage.recorder())
    async with app, visit(Dashboard(app, access="all")) as visitor:
        await stage.publish(topic, 1, 2)
        await stage.handled(2)
        fields = {"name": stage.topic_name, "all": "1", "confirm": "2"}
        for path in ("/dead/drop", "/dead/retry"):
            refused = await visitor.post(path, fields, status=404)
            assert f"{stage.topic_name} holds no dead letters." in refused.text
        await visitor.get(f"/dead/show?name={stage.topic_name}", status=404)
        await visitor.get(f"/dead/letter?name={stage.topic_name}&at=0/0", status=404)


async def test_letters_in_a_topic_whose_group_runs_are_only_shown(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.topic_name, flow=QUICK)(stage.recorder())
    async with app, visit(Dashboard(app, access="all")) as visitor:
        dead = dead_letter_record(
            Record(b"1", None, "m", []), ValueError("x"), 1, "g", (stage.topic_name, 0, "0"), 0.0
        )
        append_and_wait(app.log, stage.topic_name, [dead])
        await stage.handled(1)
        await stage.until(lambda: app.log.describe_group(stage.topic_name).members, "it runs")
        seen = await visitor.get(f"/dead/show?name={stage.topic_name}&handled=1")
        assert "ValueError: x" in seen.text
        fields = {"name": stage.topic_name, "all": "1"}
        refused = await visitor.post("/dead/retry", fields, status=400)
        assert "cannot record which dead letters were dealt with" in refused.text


async def test_more_single_ones_than_can_be_noted_end_with_what_was_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "encode_progress", partial(progress.encode_progress, limit=60))
    monkeypatch.setattr(redriving, "REDRIVE_CHUNK", 10)
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        # Two of one error, one of the other, so that neither stands in a row.
        name = write_letters(stage, app, [KeyError() if n % 3 else OSError() for n in range(900)])
        fields = {"name": name, "all": "1", "error": "OSError", "confirm": "300"}
        stopped = await visitor.post("/dead/retry", fields, status=400)
        assert "more dead letters are picked out one here, one there than can be noted" in (
            stopped.text
        )
        assert 600 < waiting(app, name) < 900
        everything = {"name": name, "all": "1", "most": "500"}
        question = await visitor.post("/dead/retry", everything)
        assert "Put 500 dead letters" in question.text
        await visitor.post("/dead/retry", {**everything, "confirm": "500"})


async def test_letters_that_came_since_the_question_are_left(stage: Stage) -> None:
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 1_200)
        await all_counted(visitor, name)
        seen = await visitor.get(f"/dead/show?name={name}")
        question = await visitor.submit(seen, "Count and retry")
        assert f"Put 1,200 dead letters of {name} back?" in question.text
        late = dead_letter_record(
            Record(b"late", b"late", "late", []), ValueError("x"), 1, stage.group,
            (stage.topic_name, 0, "late"), 1_700_009_000.0,
        )  # fmt: skip
        append_and_wait(app.log, name, [late])
        begun = await visitor.submit(question, "Retry", status=303, confirm="1 200")

        async def all_are_back() -> bool:
            job = await visitor.get(begun.response.headers["location"])
            return "1,200 dead letters were put back." in job.text

        await eventually(all_are_back)
        assert waiting(app, name) == 1


async def test_a_record_of_parked_keys_among_letters_is_asked_about(stage: Stage) -> None:
    """It says no topic and group that a letter can be put back to."""
    app = stage.app()
    async with app.connected(), visit(Dashboard(app, access="all")) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 3)
        odd = dead_letter_record(
            Record(b"odd", b"odd", "odd", []), ValueError("x"), 1, stage.group,
            (stage.topic_name, 0, "odd"), 1_700_009_000.0,
        )  # fmt: skip
        headers = [*odd.headers, (f"{PREFIX}anything", b"1")]
        append_and_wait(app.log, name, [structs.replace(odd, headers=headers)])
        seen = await all_counted(visitor, name)
        refused = await visitor.submit(seen, "Count and retry", status=400)
        assert "do not say which topic and group" in refused.text


def test_errors_that_name_a_uuid_are_of_one_kind() -> None:
    def kind(order: uuid.UUID) -> str:
        record = dead_letter_record(
            Record(b"", None, "m", []), ValueError(f"order {order} not found"), 1, "g",
            ("t", 0, "1"), 0.0,
        )  # fmt: skip
        return kind_of(record.headers)

    assert len({kind(uuid.UUID(int=number << 60)) for number in range(20)}) == 1
