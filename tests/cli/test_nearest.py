"""Mistyped names on the command line: the nearest one that is there is named first."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from streams import ConfigError
from streams.log.appending import append_and_wait
from streams.log.kafka import settings
from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import Run, Shell, fill, order
from tests.conformance.logs import MAIN_LOGS, Case
from tests.hostile.commands import command


@pytest.mark.parametrize("case", MAIN_LOGS, ids=lambda case: case.name)
def test_topics_and_groups(case: Case, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(case.url)
    run = uuid4().hex[:8]
    topic, group, wrong_topic, wrong_group = (
        f"{run}-{name}" for name in ("mails", "mailers", "mial", "mialers")
    )
    commands: list[tuple[str, str, str, str]] = [
        (f"tail {wrong_topic}", "topic", wrong_topic, topic),
        (f"publish {wrong_topic}", "topic", wrong_topic, topic),
        (f"topics show {wrong_topic}", "topic", wrong_topic, topic),
        (f"topics retain {wrong_topic} --for-ever", "topic", wrong_topic, topic),
        (f"topics delete {wrong_topic} --yes", "topic", wrong_topic, topic),
        (f"replay {wrong_topic}", "topic", wrong_topic, topic),
        (f"reset {group} {wrong_topic} --to earliest", "topic", wrong_topic, topic),
        (f"reset {wrong_group} {topic} --to earliest", "group", wrong_group, group),
        (f"groups show {wrong_group}", "group", wrong_group, group),
        (f"groups delete {wrong_group} --yes", "group", wrong_group, group),
        (
            f"dead keys {wrong_group} {topic}",
            "topic",
            f"{topic}.{wrong_group}.parked",
            f"{topic}.{group}.parked",
        ),
    ]
    log = open_log(url)
    try:
        log.create_topic(topic, 1)
        append_and_wait(log, topic, [Record(b"1", None, "one")])
        log.create_topic(f"{topic}.{group}.parked", 1)
        log.initialize_offsets(group, topic, {0: log.watermarks(topic, 0)[0]})
        for words, kind, wrong, meant in commands:
            ended = command(url, *words.split())
            assert ended.status == 1
            said = f"streams: there is no {kind} {wrong!r}: did you mean {meant!r}?"
            assert ended.err.startswith(said)
            assert ended.err.count("\n") == 1
    finally:
        log.close()


def test_a_name_that_is_like_no_other_is_said_as_ever(run: Run, shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    assert run("tail", "zzz").err.startswith(
        "streams: there is no topic 'zzz': declare it with app.topic('zzz', partitions=8)"
    )


def test_sagas_and_their_ids(run: Run, shell: Shell) -> None:
    from streams import Streams

    async def start() -> None:
        app = Streams(f"sqlite:////{str(shell.folder / 'shop.db').lstrip('/')}")
        topic = app.topic("trips.saga", dict[str, Any], key="saga", partitions=2)
        async with app.connected():
            for id in ("o-17", "o-18", "customer-4711"):
                await topic.publish({"saga": id, "context": {}})

    asyncio.run(start())
    for words in (["status"], ["resume"], ["abandon", "--yes"]):
        first, *rest = words
        wrong = run("saga", first, "trips", "customer-4171", *rest)
        assert wrong.status == 1
        assert wrong.err.endswith("; did you mean 'customer-4711'?\n")
        wrong = run("saga", first, "trisp", "o-17", *rest)
        assert "there is no saga 'trisp' here" in wrong.err
        assert wrong.err.endswith("; did you mean 'trips'?\n")
    assert run("saga", "list", "trip").err.endswith("; did you mean 'trips'?\n")
    assert "did you mean" not in run("saga", "status", "trips", "zzzzz").err


def test_a_processor_of_an_app(run: Run, shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    wrong = run("replay", "shop:app", "orders", "--into", "totl")
    assert "--into totl: the app has no such processor; did you mean 'total'? it has: " in wrong.err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("redis://localhost:1?leese=3", "no setting 'leese'; did you mean 'lease'? There are "),
        ("redis://localhost:1?socket_timout=3", "did you mean 'socket_timeout'? There are "),
        ("sqlite:///x.db?leese=3", "no option 'leese'; did you mean 'lease'? a sqlite:// URL"),
        ("kafka://localhost:1?sesion.timeout.ms=3", "did you mean 'session.timeout.ms'?"),
        ("kafka://localhost:1?replicaton.factor=3", "did you mean 'replication.factor'?"),
        ("kafka://localhost:1?sasl.mechanisn=PLAIN", "did you mean 'sasl.mechanism'?"),
    ],
)
def test_settings_of_a_url(wrong: str, said: str, run: Run) -> None:
    ended = run("topics", "ls", "--url", wrong)
    assert ended.status == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "wrong",
    ["redis://localhost:1?password=s3cr&leese=3", "kafka://localhost:1?sasl.password=s3cr&leese=3"],
)
def test_of_what_may_be_a_part_of_a_secret_nothing_is_said(wrong: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_log(wrong)
    assert "did you mean" not in str(refused.value)
    assert "leese" not in str(refused.value)


def test_every_setting_that_is_advised_is_one() -> None:
    unknown: list[str] = []
    for kind, names in (
        (Producer, settings.PRODUCER_ONLY | settings.COMMON),
        (Consumer, settings.CONSUMER_ONLY),
    ):
        for name in sorted(names):
            with pytest.raises((KafkaException, TypeError, ValueError)) as refused:
                kind({name: "1", "no.such.setting": "1"})
            if f'No such configuration property: "{name}"' in str(refused.value):
                unknown.append(name)
    assert unknown == []
