"""``streams doctor`` of aggregates: their event topics, what stands there, and their snapshots."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams import Streams
from streams.eventsourcing import Aggregate, Snapshot
from streams.log.events import HistoryRequest, StoredSnapshot
from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import Result, Run, Shell, eventually
from tests.eventsourcing.bank import Account, AccountEvent, Deposited, Opened, Withdrawn, evolve

CLINIC = """
from streams import Streams
from streams.eventsourcing import Aggregate, Snapshot
from tests.eventsourcing.bank import Account, AccountEvent, Deposited, Opened, evolve

app = Streams("URL")
accounts = Aggregate(
    app, "NAME", AccountEvent, Account, evolve, partitions=2, snapshot=Snapshot(every=2)
)
"""


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    return disk_path


class Clinic:
    """An app with aggregates on one log, and the doctor beside it."""

    def __init__(self, url: str, folder: Path, run: Run) -> None:
        self.url = url
        self.name = f"accounts-{uuid4().hex[:8]}"
        self.topic = f"{self.name}.events"
        self._folder = folder
        self._run = run
        self.write()

    def write(self, change: Callable[[str], str] = lambda text: text) -> None:
        """The app, with something changed in its code; imported anew."""
        text = change(CLINIC).replace("NAME", self.name).replace("URL", self.url)
        self.module = f"clinic_{uuid4().hex[:8]}"
        (self._folder / f"{self.module}.py").write_text(text)

    def fill(self) -> None:
        async def enter() -> None:
            app = Streams(self.url)
            accounts: Aggregate[Any, Account] = Aggregate(
                app, self.name, AccountEvent, Account, evolve, partitions=2,
                snapshot=Snapshot(every=2),
            )  # fmt: skip
            async with app:
                await accounts.append("a", [Opened("ada"), Deposited(5)], expected="new")
                await accounts.append("a", Withdrawn(1), expected="any")

        asyncio.run(enter())

    def log(self) -> Any:
        return open_log(self.url)

    def __call__(self, item: str = "histories") -> list[tuple[str, str, str]]:
        """Verdict, reason and advice of each finding of this item."""
        result: Result = self._run("doctor", f"{self.module}:app", "--json")
        assert "Traceback" not in result.err
        found = json.loads(result.out)["findings"]
        return [
            (each["verdict"], each["why"], each["do"]) for each in found if each["item"] == item
        ]

    def no(self) -> tuple[str, str]:
        """The one thing that is wrong."""
        ((_, why, advice),) = [each for each in self() if each[0] == "no"]
        return why, advice


@pytest.fixture
def sqlite(run: Run, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return Clinic(f"sqlite:////{str(shell.folder / 'clinic.db').lstrip('/')}", shell.folder, run)


@pytest.fixture(params=["sqlite", "redis", "kafka"])
def clinic(
    request: pytest.FixtureRequest, run: Run, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> Clinic:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")  # type: ignore[no-any-return]
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return Clinic(request.getfixturevalue(f"{request.param}_url"), shell.folder, run)


def test_the_order_of_each_history_is_promised(sqlite: Clinic) -> None:
    """Though no topic declares a key."""
    assert sqlite("order") == [
        ("yes", "the events of each aggregate are one history, and come in its order", "")
    ]
    processor = """
@app.processor(accounts.events, group="audit", retry=__import__("streams").Retry(in_order=False))
def audit(event: AccountEvent) -> None: ...
"""
    sqlite.write(lambda text: text + processor)
    _, (verdict, why, advice) = sqlite("order")
    assert (verdict, advice) == ("no", "Retry(in_order=True)")
    assert why.endswith(f"on {sqlite.topic}")


def test_histories_that_are_well(clinic: Clinic) -> None:
    clinic.fill()
    found = clinic()
    assert {verdict for verdict, _, _ in found} == {"yes"}
    reasons = [why for _, why, _ in found]
    assert reasons[:2] == [
        "its events are kept for ever, in 2 partitions",
        "this code decodes its last 3 events",
    ]
    # Whether acknowledged events can be lost is told of the topic, as of any.
    assert clinic("persisted")
    assert not clinic("retention")


def test_an_event_topic_that_is_not_there_yet_is_not_made(clinic: Clinic) -> None:
    clinic.log().close()
    assert [verdict for verdict, _, _ in clinic()] == ["unknown"]
    log = clinic.log()
    assert clinic.topic not in [info.name for info in log.describe_topics()]
    log.close()


def test_another_number_of_partitions(clinic: Clinic) -> None:
    clinic.fill()
    clinic.write(lambda text: text.replace("partitions=2", "partitions=3"))
    why, advice = clinic.no()
    assert "has 2 partitions, but is declared with 3" in why
    assert "declare partitions=2" in advice
    assert "no" not in [verdict for verdict, why, _ in clinic("persisted") if "partitions" in why]


def test_an_event_that_this_code_cannot_decode(clinic: Clinic) -> None:
    clinic.fill()
    clinic.write(lambda text: text.replace('"NAME", AccountEvent', '"NAME", Opened | Deposited'))
    why, advice = clinic.no()
    assert why.startswith(f"this code cannot decode the event of 'a' at {clinic.topic}/")
    assert f"aggregates ls {clinic.module}:app {clinic.name} --undecodable" in advice


def test_a_topic_that_holds_no_histories(clinic: Clinic) -> None:
    log = clinic.log()
    log.create_topic(clinic.topic, 2)
    answers: list[Any] = []
    log.append(clinic.topic, [Record(b"1", b"k", "id")], answers.extend)
    eventually(lambda: answers)
    log.close()
    why, _ = clinic.no()
    assert why == f"topic {clinic.topic} holds no histories"


def configure(url: str, topic: str, settings: dict[str, str]) -> None:
    """Change settings of a topic, as an administrator can."""
    admin = AdminClient({"bootstrap.servers": urlsplit(url).netloc})
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(30)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"retention.ms": "3600000"}, "deletes events: kept for 1h"),
        ({"cleanup.policy": "compact"}, "compacts events: kept only the last message of each key"),
    ],
)
def test_events_that_are_deleted_on_kafka(
    kafka_url: str, run: Run, shell: Shell, settings: dict[str, str], said: str
) -> None:
    clinic = Clinic(kafka_url, shell.folder, run)
    clinic.fill()
    configure(kafka_url, clinic.topic, settings)
    # The broker learns of it a moment after the controller has answered.
    eventually(lambda: "no" in [verdict for verdict, _, _ in clinic()])
    why, advice = clinic.no()
    assert said in why
    assert f"topics retain {clinic.topic} --for-ever" in advice


def test_records_that_no_aggregate_wrote_on_redis(redis_url: str, run: Run, shell: Shell) -> None:
    from redis import Redis

    clinic = Clinic(redis_url, shell.folder, run)
    clinic.fill()
    place = urlsplit(redis_url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        redis.xadd(f"{{{clinic.topic}:0}}", {b"value": b"1"})
    why, advice = clinic.no()
    assert why.startswith("1 of its last 4 records were not written by an aggregate")
    assert "(an ACL)" in advice


def test_snapshots_of_other_code(sqlite: Clinic) -> None:
    sqlite.fill()
    log = sqlite.log()
    (found,) = log.read_histories(sqlite.topic, [HistoryRequest(b"a")])
    kept = StoredSnapshot(b"a", "other", found.head.base, found.events[-1].offset, b"{}")
    log.write_snapshots(sqlite.topic, [kept])
    log.close()
    ((why, advice),) = [each[1:] for each in sqlite() if "snapshot" in each[1]]
    assert why == "1 snapshot of other code: other"
    assert f"aggregates drop-snapshots {sqlite.module}:app {sqlite.name} --unused" in advice


def test_a_weak_setting_of_the_file_is_told_of_the_event_topic(sqlite: Clinic) -> None:
    sqlite.fill()
    sqlite.write(lambda text: text.replace("URL", "URL?synchronous=normal"))
    assert ("no", "synchronous normal") in [each[:2] for each in sqlite("persisted")]
