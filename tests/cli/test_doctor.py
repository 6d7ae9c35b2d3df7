"""``streams doctor``: each item of the checklist is yes, no or unknown, and for a real reason."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import DeadLetters, Retry, Streams
from streams.engine.progress import encode_progress
from streams.errors import Unavailable
from streams.inspection.doctor.app_inspection import MAX_UNANSWERED, AppInspection
from streams.inspection.doctor.checklist import run_checks
from streams.inspection.doctor.monitoring_checks import REQUIRED_ALERTS
from streams.inspection.doctor.processor_checks import memory_limit
from streams.inspection.doctor.prometheus import PrometheusClient
from streams.log.appending import append_and_wait
from streams.log.protocol import Committed, Log, Retention
from streams.log.sqlite.durability import file_system_of
from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import Result, Run, Shell, eventually, fill, order

WELL = """
from streams import Retention, Streams

app = Streams("sqlite:///shop.db")
orders = app.topic("orders", dict, key="customer", partitions=2, retention=Retention())


@app.processor(orders, group="billing", concurrency=8)
async def bill(order):
    raise RuntimeError("the doctor runs nothing")
"""


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    return disk_path


def app(shell: Shell, text: str = WELL, **changes: str) -> None:
    """An app in ``clinic.py``; each change replaces text that is there."""
    for before, after in changes.items():
        there = {"processor": 'group="billing"', "log": "sqlite:///shop.db"}.get(before, before)
        assert there in text
        text = text.replace(there, after)
    shell.write("clinic.py", text)
    sys.modules.pop("clinic", None)  # it is imported in this process


def declared(shell: Shell, options: str) -> None:
    """The well app, its processor with more options."""
    app(shell, processor=f'group="billing", {options}')


def findings(result: Result, item: str) -> list[dict[str, str]]:
    return [each for each in json.loads(result.out)["findings"] if each["item"] == item]


def no(result: Result, item: str) -> dict[str, str]:
    """The one thing that is wrong, which is of this item."""
    assert result.status == 1, result.out + result.err
    wrong = [each for each in json.loads(result.out)["findings"] if each["verdict"] == "no"]
    assert [each["item"] for each in wrong] == [item], wrong
    assert wrong[0]["do"]
    found: dict[str, str] = wrong[0]
    return found


@pytest.fixture
def doctor(shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``streams doctor clinic:app --json``, on a log with some orders, monitored."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("STREAMS_HTTP", "0.0.0.0:9100")
    monkeypatch.delenv("STREAMS_PROMETHEUS", raising=False)
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(20)])

    def call(*words: str) -> Result:
        return run("doctor", "clinic:app", "--json", *words)

    return call


def test_an_app_that_is_well(shell: Shell, doctor: Any) -> None:
    app(shell)
    before = sorted(path.name for path in shell.folder.iterdir())
    with shell.log() as log:
        topics, groups = log.describe_topics(), log.list_groups()
    result = doctor()
    assert (result.status, result.err) == (0, "")
    said = json.loads(result.out)
    assert (said["app"], said["log"], said["ok"]) == ("clinic:app", "sqlite:///shop.db", True)
    verdicts = {(each["item"], each["of"]): each["verdict"] for each in said["findings"]}
    assert verdicts == {
        ("persisted", "topic orders"): "yes",
        ("idempotent", "processor bill"): "yes",
        ("idempotent", "topic orders"): "yes",
        ("dead letters", "processor bill"): "yes",
        ("backpressure", "processor bill"): "yes",
        ("backpressure", "the process"): "yes",
        ("monitoring", "metrics"): "yes",
        ("alerts", "Prometheus"): "unknown",
        ("retries", "processor bill"): "yes",
        ("order", "topic orders"): "yes",
        ("order", "processor bill"): "yes",
        ("retention", "topic orders"): "yes",
    }
    # It looked, and left everything as it was.
    with shell.log() as log:
        assert (log.describe_topics(), log.list_groups()) == (topics, groups)
    after = sorted(path.name for path in shell.folder.iterdir() if path.name != "__pycache__")
    assert [name for name in after if not name.startswith("shop.db-")] == [
        name for name in before if not name.startswith("shop.db-")
    ]


def test_what_cannot_be_known_is_wrong_only_if_one_says_so(shell: Shell, doctor: Any) -> None:
    app(shell)
    assert doctor().status == 0
    assert doctor("--strict").status == 1


def test_for_people(shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMS_HTTP", raising=False)
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    app(shell)
    result = run("doctor", "clinic:app")
    lines = result.out.splitlines()
    assert result.status == 1
    assert lines[0] == "clinic:app on sqlite:///shop.db (from the code)"
    assert lines[1].split() == ["ITEM", "OF", "WHY", "DO"]
    assert any(
        line.startswith("no") and "streams run --http 0.0.0.0:9100" in line for line in lines
    )
    assert lines[-1] == "10 yes, 1 no, 1 unknown"


# -- persisted


def test_a_power_cut(shell: Shell, doctor: Any) -> None:
    app(shell)
    found = no(doctor("--url", "sqlite:///shop.db?synchronous=normal"), "persisted")
    assert found["why"] == "synchronous normal"
    assert "power cut" in found["do"]


def test_memory_is_no_log(shell: Shell, doctor: Any) -> None:
    app(shell)
    found = no(doctor("--url", "memory://"), "persisted")
    assert found["why"] == "storage this process's memory"


def test_a_log_that_is_not_there(shell: Shell, doctor: Any) -> None:
    app(shell)
    found = no(doctor("--url", "redis://127.0.0.1:1"), "persisted")
    assert "refused" in found["why"]
    found = no(doctor("--url", "sqlite:///none.db"), "persisted")
    assert f"there is no file {shell.folder / 'none.db'}; beside it there is " in found["why"]
    assert "running the app once creates it" in found["why"]
    assert not (shell.folder / "none.db").exists()


def test_partitions_that_are_not_those_declared(shell: Shell, doctor: Any) -> None:
    app(shell, **{"partitions=2": "partitions=3"})
    assert no(doctor(), "persisted")["why"] == "it has 2 partitions, but is declared with 3"


def test_what_a_file_lies_on(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\nserver:/x /data\\040here nfs4 rw 0 0\n"
        "tmpfs /run/over tmpfs rw 0 0\n/dev/sdb /run/over xfs rw 0 0\nbad\n"
    )
    kinds = {
        "/shop.db": "ext4",
        "/running/shop.db": "ext4",
        "/run/shop.db": "tmpfs",
        "/run/over/shop.db": "xfs",
        "/data here/shop.db": "nfs4",
    }
    assert {path: file_system_of(path, mounts) for path in kinds} == kinds
    assert file_system_of("/shop.db", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("kind", "verdict"), [("tmpfs", "no"), ("nfs4", "no"), ("overlay", "unknown"), ("zfs", "yes")]
)
def test_a_file_on_what_does_not_last(
    shell: Shell, doctor: Any, monkeypatch: pytest.MonkeyPatch, kind: str, verdict: str
) -> None:
    monkeypatch.setattr("streams.log.sqlite.durability.file_system_of", lambda path: kind)
    app(shell)
    (found,) = findings(doctor(), "persisted")
    assert found["verdict"] == verdict
    assert f"file system {kind}" in found["why"]


# -- idempotent


def test_deduplication_that_is_off_or_too_small(shell: Shell, doctor: Any) -> None:
    declared(shell, "dedup=__import__('streams').Dedup(window=0)")
    assert "handled again" in no(doctor(), "idempotent")["why"]
    declared(shell, "dedup=__import__('streams').Dedup(window=1000, cap=1999)")
    found = no(doctor(), "idempotent")
    assert found["do"] == "Dedup(window=1000, cap=2000)"


def test_nothing_is_said_of_options_that_only_the_toolkit_has(shell: Shell, doctor: Any) -> None:
    app(
        shell,
        WELL
        + """

from streams import Delays, EventBus

delays = Delays(app, "later")
bus = EventBus(app, "news")


async def tell(event):
    pass


bus.subscribe("flights", tell)
""",
    )
    result = doctor()
    found = [each for each in json.loads(result.out)["findings"] if each["verdict"] == "no"]
    assert not found
    subjects = {
        item: [each["of"] for each in findings(result, item)] for item in ("idempotent", "retries")
    }
    for item, of in subjects.items():
        assert [each for each in of if each.startswith("processor ")] == ["processor bill"], item
    # Where what cannot be delivered goes is somebody's business; an ephemeral subscriber has none.
    letters = [each["of"] for each in findings(result, "dead letters")]
    assert sorted(letters) == ["processor bill", "processor later"]


def test_messages_without_an_id(shell: Shell, doctor: Any) -> None:
    with shell.log() as log:
        log.append("orders", [Record(order(3), b"c3", "")], lambda answers: None)
    app(shell)
    found = no(doctor(), "idempotent")
    assert found["of"] == "topic orders"
    assert found["why"] == "1 of its last 21 messages have no ID"
    app(shell, **{'key="customer"': 'key="customer", id="id"'})
    assert [each["why"] for each in findings(doctor(), "idempotent")][1] == (
        "IDs are read from the value"
    )


# -- dead letters


def test_dead_letters_that_are_gone_before_anybody_looks(shell: Shell, doctor: Any) -> None:
    app(shell)
    name = "orders.billing.dead"
    (found,) = findings(doctor(), "dead letters")
    assert found["why"] == f"they go to {name}, created at its first start"
    with shell.log() as log:
        log.create_topic(name, 2)
        letters = [Record(b"x", None, f"{n}", partition=0) for n in range(3)]
        log.append(name, letters, lambda answers: None)
    (found,) = findings(doctor(), "dead letters")
    assert (found["verdict"], found["why"]) == ("yes", f"3 dead letters in {name}")
    assert found["do"] == "streams dead ls billing orders"
    with shell.log() as log:  # the first and the last were dealt with
        log.reset_offsets(name, name, {0: Committed(1, encode_progress(1, 0, [(2, 3)]).progress)})
    assert findings(doctor(), "dead letters")[0]["why"] == f"1 dead letter in {name}"
    with shell.log() as log:
        log.create_topic(name, 2, Retention(seconds=3600))
    assert no(doctor(), "dead letters")["why"] == f"{name} keeps them 60m, and then deletes them"
    with shell.log() as log:
        log.create_topic(name, 2, Retention(messages=100))
    assert "keeps 100 of them" in no(doctor(), "dead letters")["why"]


# -- backpressure


def test_handlers_that_never_get_their_messages(shell: Shell, doctor: Any) -> None:
    declared(shell, "flow=__import__('streams').Flow(messages=4)")
    found = no(doctor(), "backpressure")
    assert found["why"] == "its handlers can have 8 messages, but Flow holds 4"


def test_more_than_the_memory_there_is(
    shell: Shell, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app(shell)
    monkeypatch.setattr(
        "streams.inspection.doctor.processor_checks.memory_limit", lambda: 100 << 20
    )
    found = no(doctor(), "backpressure")
    assert found["why"] == "processors hold 64 MiB at most, of 100"


def test_memory_is_the_control_groups_or_the_machines(tmp_path: Path) -> None:
    machine = memory_limit(tmp_path)
    assert machine is not None
    assert machine > 1 << 20
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == machine
    (tmp_path / "memory.max").write_text("1048576\n")
    assert memory_limit(tmp_path) == 1 << 20


# -- monitoring and alerts


@contextmanager
def prometheus(answers: Mapping[str, Any]) -> Iterator[str]:
    """What answers as Prometheus' HTTP API does, at this URL."""

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.removeprefix("/prom/api/v1/").partition("?")[0])
            data = found if isinstance(found, bytes) else json.dumps({"data": found}).encode()
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/prom/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answers(
    processors: tuple[str, ...] = ("bill", "other"),
    alerts: tuple[str, ...] = REQUIRED_ALERTS,
    managers: int = 1,
) -> dict[str, Any]:
    return {
        "query": {"result": [{"metric": {"processor": name}} for name in processors]},
        "rules": {"groups": [{"rules": [{"name": name}]} for name in alerts]},
        "alertmanagers": {"activeAlertmanagers": [{"url": "x"}] * managers},
    }


def test_prometheus_that_watches(shell: Shell, doctor: Any) -> None:
    app(shell)
    with prometheus(answers()) as url:
        result = doctor("--prometheus", url, "--strict")
    assert result.status == 0, result.out
    assert findings(result, "monitoring")[0]["why"] == "Prometheus has metrics of every processor"
    assert findings(result, "alerts")[0]["verdict"] == "yes"


@pytest.mark.parametrize(
    ("item", "there", "why"),
    [
        ("monitoring", answers(processors=("other",)), "Prometheus has no metrics of bill"),
        ("alerts", answers(alerts=REQUIRED_ALERTS[1:]), f"it lacks the rules {REQUIRED_ALERTS[0]}"),
        ("alerts", answers(managers=0), "it has the rules, but no Alertmanager to notify"),
    ],
)
def test_prometheus_that_does_not(
    shell: Shell, doctor: Any, item: str, there: dict[str, Any], why: str
) -> None:
    app(shell)
    with prometheus(there) as url:
        assert no(doctor("--prometheus", url), item)["why"] == why


@pytest.mark.parametrize("there", [{}, {"query": b"<html>", "rules": b"[]"}])
def test_what_is_no_prometheus(shell: Shell, doctor: Any, there: dict[str, Any]) -> None:
    app(shell)
    with prometheus(there) as url:
        result = doctor("--prometheus", url)
    found = findings(result, "monitoring") + findings(result, "alerts")
    assert [each["verdict"] for each in found] == ["unknown", "unknown"]
    assert all("Prometheus" in each["why"] for each in found)
    result = doctor("--prometheus", "http://127.0.0.1:1")
    assert "cannot be reached" in findings(result, "alerts")[0]["why"]


def test_metrics_that_nobody_serves(
    shell: Shell, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAMS_HTTP")
    app(shell)
    assert no(doctor(), "monitoring")["why"] == "nothing serves this app's metrics"
    app(shell, f"{WELL}\nfrom streams.patterns import MetricsCollector\nMetricsCollector(app)\n")
    assert doctor().status == 0


# -- retries


def test_retries_that_hammer_or_outlive_what_they_rest_on(shell: Shell, doctor: Any) -> None:
    declared(shell, "retry=__import__('streams').Retry(delay=0)")
    assert no(doctor(), "retries")["why"] == "5 attempts with no time in between"
    declared(shell, "retry=__import__('streams').Retry(attempts=1, delay=0)")
    assert findings(doctor(), "retries")[0]["verdict"] == "yes"
    hours = "retry=__import__('streams').Retry(attempts=60, delay=60, cap=600)"
    declared(shell, hours)
    assert doctor().status == 0
    with shell.log() as log:
        log.create_topic("orders", 2, Retention(seconds=3600))
    app(shell, **{"processor": f'group="billing", {hours}', ", retention=Retention()": ""})
    assert no(doctor(), "retries")["why"] == (
        "60 attempts within 9h, but orders keeps messages only for 60m"
    )


WAITING: dict[str, tuple[str, dict[str, Any]]] = {
    "delay": (
        "retry=Retry(delay=3600, cap=3600, in_order=False)",
        {"retry": Retry(delay=3600, cap=3600, in_order=False)},
    ),
    "parked": (
        "dead_letters=DeadLetters(sequenced=True)",
        {"retry": Retry(attempts=1), "dead_letters": DeadLetters(sequenced=True)},
    ),
}
"""By where messages wait: the option that puts them there, as text and as it is."""


@pytest.mark.parametrize("where", WAITING)
def test_what_waits_by_an_option_that_is_gone(shell: Shell, doctor: Any, where: str) -> None:
    text, options = WAITING[where]

    async def fail_all() -> None:
        connection: Any = Streams(f"sqlite:///{shell.folder / 'shop.db'}")
        orders = connection.topic("orders", dict, partitions=2)

        async def bill(order: Any) -> None:
            raise ConnectionError("no")

        connection.processor(orders, group="billing", **options)(bill)
        async with connection as running:

            def is_settled(partition: int) -> bool:
                place = running.log.committed("billing", "orders").get(partition)
                _, end = running.log.watermarks("orders", partition)
                return place is not None and place.position == end

            while not (is_settled(0) and is_settled(1)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(fail_all())
    app(shell)
    words = f"20 messages wait in orders.billing.{where}, where "
    (found,) = [each for each in findings(doctor(), "retries") if words in each["why"]]
    assert found["verdict"] == "no"
    assert "declare" in found["do"]
    whole = WELL.replace("import Retention", "import DeadLetters, Retention, Retry")
    app(shell, whole, processor=f'group="billing", {text}')
    said = doctor()
    assert not [each for each in findings(said, "retries") if words in each["why"]]
    if where == "parked":
        whys = {each["why"]: each["do"] for each in findings(said, "dead letters")}
        (counted,) = [each for each in whys if "closed key" in each]
        closed, behind = [int(each) for each in counted.split() if each.isdecimal()]
        assert closed + behind == 20
        assert "in orders.billing.parked, " in counted
        assert whys[counted] == "streams dead keys billing orders"
        assert any(each.startswith("those without a key go to orders.") for each in whys)


def test_retries_that_outlive_the_dedup_window(shell: Shell, doctor: Any) -> None:
    quick = "dedup=__import__('streams').Dedup(window=3)"
    declared(shell, f"{quick}, retry=__import__('streams').Retry(attempts=9, delay=600, cap=600)")
    found = no(doctor(), "retries")
    assert "the last 3 messages of a partition of orders came within" in found["why"]
    declared(shell, "retry=__import__('streams').Retry(attempts=9, delay=600, cap=600)")
    assert doctor().status == 0


# -- order


def test_order_that_is_given_up(shell: Shell, doctor: Any) -> None:
    declared(shell, "retry=__import__('streams').Retry(in_order=False)")
    found = no(doctor(), "order")
    assert found["of"] == "processor bill"
    app(
        shell,
        processor="group='billing', retry=__import__('streams').Retry(in_order=False)",
        **{'key="customer", ': ""},
    )
    result = doctor()
    assert result.status == 0
    assert findings(result, "order")[0]["why"] == "no topic declares a key: no order is promised"


def test_keys_that_are_torn_or_missing(shell: Shell, doctor: Any) -> None:
    app(shell)
    with shell.log() as log:
        for partition in (0, 1):
            record = Record(order(1), b"c\x1b[31m", f"torn-{partition}", partition=partition)
            log.append("orders", [record], lambda answers: None)
    found = no(doctor(), "order")
    assert found["why"] == "key c\x1b[31m is in partitions 0, 1"
    assert "murmur2" in found["do"]
    with shell.log() as log:
        log.delete_topic("orders")
        fill(log, "orders", [order(1)])
        log.append("orders", [Record(order(2), None, "bare")], lambda answers: None)
    assert no(doctor(), "order")["why"] == "1 of its last 2 messages have no key"


# -- the command itself


def test_what_cannot_be_looked_at(shell: Shell, run: Run) -> None:
    app(shell)
    for words, status, said in (
        (("nothing:app",), 1, "there is no module 'nothing'"),
        (("clinic",), 2, "an app is written as MODULE:APP"),
        (("clinic:app", "--prometheus", "localhost:9090"), 2, "an http URL is needed"),
        (("clinic:app", "--url", "nosql://x"), 2, "no log is called 'nosql'"),
    ):
        result = run("doctor", *words)
        assert result.status == status, words
        assert said in result.err
        assert result.err.count("\n") == 1
        assert not result.out


def test_secrets_stay_where_they_are(shell: Shell, run: Run) -> None:
    app(shell)
    for words in ((), ("--json",)):
        result = run("doctor", "clinic:app", "--url", "redis://me:hunter2@127.0.0.1:1", *words)
        assert result.status == 1
        assert "hunter2" not in result.out + result.err


# -- retention


def kept(shell: Shell, text: str) -> None:
    """The well app, its topic declared with more."""
    app(shell, **{"retention=Retention()": f"retention={text}"})


def test_what_nobody_said_of_retention(shell: Shell, doctor: Any) -> None:
    app(shell, **{", retention=Retention()": ""})
    (found,) = findings(doctor(), "retention")
    assert (found["of"], found["verdict"]) == ("topic orders", "unknown")
    assert found["why"] == "kept for ever, as no retention is declared"
    assert "retention=Retention()" in found["do"]
    kept(shell, "Retention()")
    (found,) = findings(doctor(), "retention")
    assert (found["verdict"], found["why"]) == ("yes", "kept for ever, as declared")


def test_a_topic_that_keeps_its_messages_otherwise_than_declared(
    shell: Shell, doctor: Any, run: Run
) -> None:
    kept(shell, "Retention(seconds=7 * 86400, messages=1000)")
    found = no(doctor(), "retention")
    assert found["why"] == (
        "kept for ever, but declared to be kept for 7d, about 1,000 a partition"
    )
    assert found["do"] == (
        "streams topics retain orders --keep-for 7d --keep 1000, or declare retention=Retention()"
    )
    command = found["do"].partition(", or")[0].split()
    assert run(*command[1:], "--yes").out == "orders: kept for 7d, about 1,000 a partition\n"
    (found,) = findings(doctor(), "retention")
    assert found["why"] == "kept for 7d, about 1,000 a partition, as declared"
    kept(shell, "Retention()")
    found = no(doctor(), "retention")
    assert found["do"].startswith("streams topics retain orders --for-ever, or declare retention=")
    assert "Retention(seconds=604800.0, messages=1000)" in found["do"]
    assert run("topics", "retain", "orders", "--for-ever").out == "orders: kept for ever\n"
    assert findings(doctor(), "retention")[0]["verdict"] == "yes"


def test_dead_letters_that_are_kept_for_ever(shell: Shell, doctor: Any) -> None:
    kept(shell, "Retention()")
    assert [each["of"] for each in findings(doctor(), "retention")] == ["topic orders"]
    with shell.log() as log:
        log.create_topic("orders.billing.dead", 2)
        log.create_topic("orders.billing.retry", 1)
    found = findings(doctor(), "retention")[1]
    assert (found["of"], found["verdict"]) == ("processor bill", "yes")
    assert found["why"] == (
        "dead letters and their retries are kept for ever: orders.billing.dead, "
        "orders.billing.retry"
    )
    assert "streams topics retain orders.billing.dead" in found["do"]


def test_a_queue_that_is_not_there_yet(shell: Shell, doctor: Any) -> None:
    shell.write(
        "clinic.py",
        "from streams import MessageQueue, Retention, Streams\n"
        "app = Streams('sqlite:///shop.db')\n"
        "MessageQueue(app, retention=Retention(seconds=3600)).declare('mails')\n"
        "MessageQueue(app).declare('others')\n",
    )
    sys.modules.pop("clinic", None)
    first, second = findings(doctor(), "retention")
    assert (first["verdict"], first["why"]) == (
        "yes",
        "it does not exist yet, and is to be kept for 1h",
    )
    assert (second["verdict"], second["of"]) == ("unknown", "topic others")


def test_the_advice_about_dead_letters_works_word_for_word(shell: Shell) -> None:
    shell.write(
        "mailer.py",
        """
from streams import Streams
from streams.patterns import ConsumerConfig, MessageQueue

app = Streams("sqlite:///mails.db")
mails = MessageQueue(app).declare("mails", dict)


@mails.subscribe(config=ConsumerConfig(max_retries=0, dead_letter_queue="lost-mails"))
async def send(message) -> None:
    raise ValueError("no good")
""",
    )
    at = "sqlite:///mails.db"
    shell("topics", "create", "mails", "--partitions", "8", "--url", at)
    with shell.start("run", "mailer:app", "-l", "error"):
        shell("publish", "mails", "--url", at, stdin=b'{"to": "ada"}\n')
        eventually(lambda: '"waiting":1' in shell("dead", "ls", "--json", "--url", at).out)
    for environment in ({}, {"STREAMS_URL": at}):
        said = shell("doctor", "mailer:app", "--json", env=environment)
        (found,) = findings(said, "dead letters")
        assert found["why"] == "1 dead letter in lost-mails"
        program, *words = shlex.split(found["do"])
        assert program == "streams"
        assert ("--url" in words) == (not environment)
        listed = shell(*words, "--json", env=environment).json
        assert [each["error"] for each in listed] == ["ValueError: no good"]


# -- a log that does not answer about one thing


class Unled:
    """A log of which some partitions cannot be read."""

    def __init__(self, log: Log, *partitions: tuple[str, int]) -> None:
        self._log, self._unled = log, set(partitions)
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        if (topic, partition) in self._unled:
            self.asked += 1
            raise Unavailable(f"nobody leads {topic}/{partition}")
        return self._log.watermarks(topic, partition)


def inspect_unled(log: Log, app: Streams, *partitions: tuple[str, int]) -> tuple[Any, int]:
    unled: Any = Unled(log, *partitions)
    inspection = AppInspection(app, unled, "", PrometheusClient(None))
    return list(run_checks(inspection)), unled.asked


@pytest.mark.parametrize("topic", ["a", "b", "c"])
def test_a_topic_that_cannot_be_read_hides_nothing_of_the_others(topic: str) -> None:
    url = f"memory://{uuid4().hex}"
    shop: Any = Streams(url)
    log = open_log(url)
    for name in ("a", "b", "c"):
        declared = shop.topic(name, int, key=str)
        log.create_topic(name, 2)
        append_and_wait(log, name, [Record(b"1", None, "m", partition=0)])
        retry = Retry(attempts=1)
        shop.processor(declared, group=f"group-{name}", retry=retry)(lambda value: None)
    whole, _ = inspect_unled(log, shop)
    found, _ = inspect_unled(log, shop, (topic, 1))
    assert {(each.item, each.subject) for each in found} == {
        (each.item, each.subject) for each in whole
    }
    assert len(found) == len(whole)
    changed = [each for each in found if each not in whole]
    assert {each.subject for each in changed} == {f"topic {topic}"}
    assert {each.item for each in changed} == {"idempotent", "order"}
    assert {each.reason for each in changed} == {f"nobody leads {topic}/1"}
    log.close()


def test_a_log_that_answers_nothing_is_not_asked_about_each_topic() -> None:
    url = f"memory://{uuid4().hex}"
    shop: Any = Streams(url)
    log = open_log(url)
    names = [f"t{number}" for number in range(50)]
    for name in names:
        shop.topic(name, int, key=str)
        log.create_topic(name, 1)
    found, asked = inspect_unled(log, shop, *((name, 0) for name in names))
    assert asked == MAX_UNANSWERED + 2
    assert [each.item for each in found if each.subject == "the log"] == ["idempotent", "order"]
    log.close()
