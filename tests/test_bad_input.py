"""What cannot work is said in one line, where it is written: what was wrong, where, what to do."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_codecs import EncodeError, Json
from streams import (
    ConfigError,
    DeadLetters,
    Dedup,
    Fatal,
    Flow,
    InvalidValue,
    Message,
    NotFound,
    NotRunning,
    Position,
    Retry,
    Streams,
    TopicMismatch,
    Unavailable,
)
from streams.log.url import open_log

pytestmark = pytest.mark.anyio

NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001 - that is what is wrong with it


class Placed(msgspec.Struct, tag="placed", frozen=True):
    id: str
    amount: int


class Paid(msgspec.Struct, tag="paid", frozen=True):
    id: str


class Foreign:
    """A class that no codec knows."""


def said(error: BaseException, *words: str) -> None:
    """It is one line, not too long, and says this."""
    line = str(error)
    assert "\n" not in line
    assert 10 < len(line) < 400, line
    for each in words:
        assert each in line


def ids(table: Sequence[Sequence[Any]]) -> list[str]:
    """Names of cases that are the same in every process, which addresses are not."""
    return [
        f"{at}-{case[-1] if isinstance(case[-1], str) else case[-1][0]}"
        for at, case in enumerate(table)
    ]


# -- handlers


async def good(value: Any) -> None: ...


def nothing() -> None: ...


def three(value: Any, message: Any, more: Any) -> None: ...


def by_keyword(value: Any, *, message: Any) -> None: ...


def only_keywords(**options: Any) -> None: ...


def yields(value: Any) -> Iterator[int]:
    yield 1


async def yields_async(value: Any) -> AsyncIterator[int]:
    yield 1


class Methods:
    def bound(self, value: Any, message: Any, more: Any) -> None: ...

    async def __call__(self) -> None: ...


class Yielding:
    def __call__(self, value: Any) -> Iterator[int]:
        yield 1


HANDLERS: list[tuple[Any, tuple[str, ...]]] = [
    (nothing, ("nothing", "takes 0 parameters", "(value) or (value, message)")),
    (three, ("three", "takes 3 parameters", "(value) or (value, message)")),
    (by_keyword, ("'message' is keyword-only", "(value, message)")),
    (only_keywords, ("takes 0 parameters",)),
    (Methods().bound, ("bound", "takes 3 parameters")),
    (Methods(), ("Methods", "takes 0 parameters")),
    (functools.partial(three), ("takes 3 parameters",)),
    (functools.partial(nothing), ("takes 0 parameters",)),
    (Placed, ("Placed is a class", "give a function")),
    (yields, ("generator", "remove the yield")),
    (Yielding(), ("generator", "remove the yield")),
    (yields_async, ("async generator", "return a list")),
    (3, ("3 is not a function",)),
    (None, ("None is not a function",)),
]


@pytest.mark.parametrize(("handler", "words"), HANDLERS, ids=ids(HANDLERS))
def test_a_handler_that_cannot_be_called(handler: Any, words: tuple[str, ...]) -> None:
    app = Streams("memory://")
    with pytest.raises(ConfigError) as caught:
        app.processor(app.topic("orders", Placed), group="billing")(handler)
    said(caught.value, *words)
    assert app.processors == []


@pytest.mark.parametrize("handler", [nothing, three])
def test_a_batch_handler_is_told_of_batches(handler: Any) -> None:
    app = Streams("memory://")
    with pytest.raises(ConfigError) as caught:
        app.processor(app.topic("orders", Placed), group="billing", batch=10)(handler)
    said(caught.value, "(values) or (values, messages)")


GOOD: list[Any] = [
    good,
    print,  # a builtin that takes anything
    [].append,
    lambda value, message: None,
    lambda value, factor=2: None,
    lambda *arguments: None,
    functools.partial(three, 1),
    functools.partial(by_keyword, message=None),
]


@pytest.mark.parametrize("handler", GOOD, ids=range(len(GOOD)))
def test_what_can_be_called_is_taken(handler: Any) -> None:
    app = Streams("memory://")
    processor = app.processor(app.topic("orders", Placed), group="billing")(handler)
    assert app.processors == [processor]


# -- options

OPTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"concurrency": 0}, ("good", "concurrency=0", "must be a positive integer")),
    ({"concurrency": 1.5}, ("concurrency=1.5",)),
    ({"concurrency": True}, ("concurrency=True",)),
    ({"batch": 0}, ("batch=0", "must be a positive integer")),
    ({"timeout": 0}, ("timeout=0", "positive number of seconds")),
    ({"timeout": "5"}, ("timeout='5'", "seconds")),
    ({"timeout": float("nan")}, ("timeout=nan",)),
    ({"filter": "amount > 1"}, ("filter=", "a function of the value")),
    ({"filter": good}, ("async function", "plain one")),
    ({"to": "results"}, ("to='results'", "app.topic(...)")),
    ({"to": Streams("memory://").topic("x", int)}, ("'x' belongs to another app", ".topic(...)")),
    ({"start": "now"}, ("start='now'", "'earliest', 'latest' or a datetime")),
    ({"start": 5}, ("start=5", "'earliest'")),
    ({"start": NAIVE}, ("no time zone",)),
    ({"retry": 5}, ("retry=5", "use Retry(...)")),
    ({"dedup": False}, ("dedup=False", "use Dedup(...)")),
    ({"dead_letters": "dead"}, ("use DeadLetters(...)",)),
    ({"flow": 100}, ("flow=100", "use Flow(...)")),
    ({"dead_letters": DeadLetters(topic="{topic}")}, ("'orders'", "another name")),
    ({"dead_letters": DeadLetters(topic="{topic} dead")}, ("topic name 'orders dead'",)),
    ({"group": ""}, ("group name ''", "letters")),
    ({"group": "a b"}, ("group name 'a b'",)),
    ({"group": "g" * 240}, ("topic name", "249")),  # its dead letter topic's name
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=ids(OPTIONS))
def test_a_processor_that_cannot_be(options: dict[str, Any], words: tuple[str, ...]) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", Placed)
    with pytest.raises(ConfigError) as caught:
        declare: Any = app.processor
        declare(topic, **{"group": "billing", **options})(good)
    error = str(caught.value)
    assert all(each in error for each in words), error
    assert "\n" not in error
    assert app.processors == []


CONFIG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (Retry, {"attempts": 0}, "Retry(attempts=0): must be a positive integer"),
    (Retry, {"attempts": "5"}, "Retry(attempts='5')"),
    (Retry, {"attempts": 2.5}, "Retry(attempts=2.5)"),
    (Retry, {"delay": -1}, "Retry(delay=-1): must be a non-negative number of seconds"),
    (Retry, {"delay": float("nan")}, "Retry(delay=nan)"),
    (Retry, {"cap": "30s"}, "Retry(cap='30s'): must be"),
    (Retry, {"never": ("ValueError",)}, "exception types, not 'ValueError'"),
    (Dedup, {"window": -1}, "0 turns it off"),
    (Dedup, {"window": 0.5}, "Dedup(window=0.5)"),
    (Dedup, {"cap": 0}, "Dedup(cap=0): must be a positive integer"),
    (DeadLetters, {"topic": ""}, "a topic's name is needed"),
    (DeadLetters, {"topic": 3}, "DeadLetters(topic=3)"),
    (DeadLetters, {"topic": "{source}.dead"}, "only {topic} and {group} are filled in"),
    (Flow, {"messages": 0}, "Flow(messages=0): must be a positive integer"),
    (Flow, {"bytes": 1e6}, "Flow(bytes=1000000.0): must be a positive integer"),
    (Flow, {"commit": 0}, "Flow(commit=0): must be a positive number of seconds"),
    (Flow, {"commit": "1"}, "Flow(commit='1')"),
    (Flow, {"drain": -1}, "Flow(drain=-1): must be a non-negative number of seconds"),
]


@pytest.mark.parametrize(("kind", "options", "words"), CONFIG, ids=ids(CONFIG))
def test_an_option_that_is_impossible(
    kind: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**options)
    said(caught.value, words)


def test_a_list_of_exceptions_is_as_good_as_a_tuple() -> None:
    never: Any = [ValueError, KeyError]
    assert Retry(never=never).never == (ValueError, KeyError)
    one: Any = ValueError
    assert Retry(never=one).never == (ValueError,)


# -- topics

TOPICS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"name": ""}, ("topic name ''", "1 to 249 letters")),
    ({"name": "a b"}, ("topic name 'a b'",)),
    ({"name": 3}, ("topic name 3",)),
    ({"partitions": 0}, ("'orders'", "partitions=0", "must be a positive integer")),
    ({"partitions": 2.0}, ("partitions=2.0",)),
    ({"partitions": True}, ("partitions=True",)),
    ({"unknown": "drop"}, ("unknown='drop'", "'dead', 'skip' or 'wait'")),
    ({"unknown": "skip", "type": int}, ("for tagged types", "int has no tags")),
    ({"key": "customer"}, ("key='customer'", "Placed has no such field", "amount, id")),
    ({"key": "amount", "type": Placed | Paid}, ("key='amount'", "Paid has no such field")),
    ({"key": "x", "type": int}, ("key='x'", "int", "give a function")),
    ({"key": 3}, ("key=3", "a field's name or a function")),
    ({"id": "number"}, ("id='number'", "no such field")),
    ({"type": Foreign}, ("Foreign", "use a Struct")),
    ({"type": "Placed"}, ("'Placed'",)),
    ({"codec": "json"}, ("codec='json'", "stream_codecs.Json()")),
    ({"codec": Json}, ("codec=", "stream_codecs.Json()")),
]


@pytest.mark.parametrize(("options", "words"), TOPICS, ids=ids(TOPICS))
def test_a_topic_that_cannot_be(options: dict[str, Any], words: tuple[str, ...]) -> None:
    app = Streams("memory://")
    with pytest.raises(ConfigError) as caught:
        declare: Any = app.topic
        declare(**{"name": "orders", "type": Placed, **options})
    said(caught.value, *words)
    assert app.topics == {}


def test_two_declarations_that_contradict_each_other() -> None:
    app = Streams("memory://")
    orders = app.topic("orders", Placed, partitions=2)
    with pytest.raises(ConfigError) as caught:
        app.topic("orders", Paid, partitions=3)
    said(caught.value, "'orders'", "partitions=2", "again with partitions=3")
    assert app.topic("orders", Paid | Placed).partitions is None  # that is allowed

    app.processor(orders, group="billing")(good)
    with pytest.raises(ConfigError) as caught:
        app.processor(app.topic("orders", Paid), group="billing")(yields_nothing)
    said(caught.value, "yields_nothing", "'billing' already reads 'orders'", "processor good")


async def yields_nothing(value: Any) -> None: ...


def test_topics_that_a_processor_cannot_read() -> None:
    app = Streams("memory://")
    orders = app.topic("orders", Placed)
    name: Any = "orders"
    for topics, words in [
        ((), "at least one topic"),
        ((name,), "'orders' is not a topic; use app.topic(...)"),
        ((orders, orders), "reads a topic twice"),
        ((Streams("memory://").topic("orders", Placed),), "belongs to another app"),
    ]:
        with pytest.raises(ConfigError) as caught:
            app.processor(*topics, group="billing")(good)
        said(caught.value, words)


# -- the app


@asynccontextmanager
async def without_app() -> AsyncIterator[None]:
    yield


APPS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"lifespan": 3}, ("lifespan=3", "@asynccontextmanager")),
    ({"lifespan": yields_async}, ("yields_async", "not a context manager", "@asynccontextmanager")),
    ({"lifespan": without_app}, ("without_app", "called with the app")),
    ({"config": ["sasl.password=hunter2"]}, ("a mapping of driver settings, not a list",)),
]


@pytest.mark.parametrize(("options", "words"), APPS, ids=ids(APPS))
def test_an_app_that_cannot_be(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        Streams("memory://", **options)
    said(caught.value, *words)
    assert "hunter2" not in str(caught.value)


URLS: list[tuple[Any, tuple[str, ...]]] = [
    (None, ("STREAMS_URL", "Streams('sqlite:///app.db')")),
    ("", ("STREAMS_URL",)),
    (3, ("of type int", "sqlite:///")),
    ("flights.db", ("without a scheme", "sqlite:///", "kafka://")),
    ("postgres://host/db", ("'postgres'", "sqlite:///", "redis://")),
    ("sqlite://flights.db", ("three slashes", "four")),
    ("sqlite:///", ("file's name is missing",)),
    ("sqlite:///no/such/folder/flights.db", ("there is no directory", "create it")),
    ("sqlite:///.", ("is a directory", "name a file in it")),
    ("sqlite:///:memory:", ("use memory://",)),
    ("sqlite:///a.db?journal=wal", ("no option 'journal'", "synchronous")),
    ("sqlite:///a.db?lease=long", ("lease='long'", "greater than 0")),
    ("sqlite:///a.db?lease=1&lease=2", ("'lease' is set twice",)),
    ("memory://a/b", ("memory://name",)),
    ("redis://host:port/0", ("no host:port", "redis://localhost:6379/0")),
    ("kafka://", ("kafka://localhost:9092",)),
]


@pytest.mark.parametrize(("url", "words"), URLS, ids=ids(URLS))
async def test_a_wrong_url(
    url: Any, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMS_URL", raising=False)
    app = Streams(url)
    with pytest.raises(ConfigError) as caught:
        async with app.connected():
            pass
    said(caught.value, *words)
    assert os.listdir(tmp_path) == []  # and nothing was made on the way


async def test_a_password_shows_nowhere() -> None:
    app = Streams("redis://user:hunter2@host:port/0")
    assert "hunter2" not in repr(app)
    with pytest.raises(ConfigError) as caught:
        await app.__aenter__()
    assert "hunter2" not in "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a database, whatever its name says\n" * 100)
    with pytest.raises(Fatal) as caught:
        await Streams(f"sqlite:///{path}").__aenter__()
    said(caught.value, str(path), "not a SQLite database", "name another file")
    assert path.read_text().startswith("not a database")


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.executescript("BEGIN EXCLUSIVE; CREATE TABLE t (x);")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_file_that_somebody_else_has_locked(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    app = Streams(f"sqlite:///{path}?timeout=0.1")
    app.topic("orders", Placed)

    async def enter() -> None:
        async with app.connected():
            pass

    command = [sys.executable, "-c", LOCK, str(path)]
    # Another process: locks of one process never stand in its own way.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(Unavailable) as caught:
            asyncio.run(enter())
        said(caught.value, str(path), "another process is writing", "?timeout=")
        other.communicate()
    asyncio.run(enter())  # the same app, once it is free


async def test_a_server_that_is_not_there() -> None:
    app = Streams("redis://127.0.0.1:1/0")  # nobody listens on port 1
    app.topic("orders", Placed)
    with pytest.raises(Unavailable) as caught:
        await app.__aenter__()
    said(caught.value, "127.0.0.1:1")


async def test_partitions_that_the_log_does_not_have(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    first = Streams(url)
    first.topic("orders", Placed, partitions=2)
    async with first.connected():
        pass
    second = Streams(url)
    second.topic("orders", Placed, partitions=3)
    with pytest.raises(TopicMismatch) as caught:
        await second.__aenter__()
    said(caught.value, "'orders'", "has 2 partitions", "declared with 3", "declare 2")


def test_nothing_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Streams("memory://").run()
    assert ended.value.code == 1
    assert ended.value.__cause__ is not None
    said(ended.value.__cause__, "nothing to run", "@app.processor(...)")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_order_cannot_be_kept_and_given_up_at_once() -> None:
    app = Streams("memory://")
    orders = app.topic("orders", Placed)
    with pytest.raises(ConfigError) as caught:
        app.processor(
            orders, group="g", retry=Retry(in_order=False), dead_letters=DeadLetters(sequenced=True)
        )(print)
    said(caught.value, "gives up the order", "leave one of them out")
    with pytest.raises(ConfigError) as caught:
        DeadLetters(sequenced="yes")  # type: ignore[arg-type]
    said(caught.value, "sequenced='yes'", "True or False")


def test_a_fatal_error_ends_a_program_with_one_line_and_status_1(tmp_path: Path) -> None:
    """What `run()` of a real script says, where nobody catches anything."""
    (tmp_path / "notes.db").write_text("no database" * 100)
    script = tmp_path / "service.py"
    script.write_text(
        "from streams import Streams\n"
        "app = Streams('sqlite:///notes.db')\n"
        "@app.processor(app.topic('orders', int), group='g')\n"
        "def handle(value: int) -> None: ...\n"
        "app.run()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("streams: ")
    assert "not a SQLite database" in line


# -- values

PLACED = Placed("o1", 5)
TWO: Any = "2"
MISTYPED = Placed("o2", TWO)
Call = Callable[[Any, Any], Any]

CALLS: list[tuple[str, Call, type[Exception], tuple[str, ...]]] = [
    (
        "another type",
        lambda _, t: t.publish(Paid("1")),
        EncodeError,
        ("expected Placed, got Paid",),
    ),
    ("a dict", lambda _, t: t.publish({"id": "1"}), EncodeError, ("expected Placed, got dict",)),
    ("None", lambda _, t: t.publish(None), EncodeError, ("expected Placed, got None",)),
    (
        "a field of another type",
        lambda _, t: t.publish(MISTYPED),
        EncodeError,
        ("orders value", "expected 'int', got 'str'", "$.amount"),
    ),
    ("one of many", lambda _, t: t.publish_many([PLACED, 5]), EncodeError, ("got int",)),
    ("a key", lambda _, t: t.publish(PLACED, key=1.5), EncodeError, ("orders key", "float", "str")),
    ("a yes as key", lambda _, t: t.publish(PLACED, key=True), EncodeError, ("bool", "str")),
    ("an ID", lambda _, t: t.publish(PLACED, id=""), EncodeError, ("message ID: ''", "non-empty")),
    ("a header", lambda _, t: t.publish(PLACED, headers={"a": 1}), EncodeError, ("'a'", "str")),
    ("headers", lambda _, t: t.publish(PLACED, headers=["a"]), EncodeError, ("list", "mapping")),
    (
        "the ID as a header",
        lambda _, t: t.publish(PLACED, headers={"ce_id": "1"}),
        EncodeError,
        ("give it as id=",),
    ),
    (
        "a naive time",
        lambda _, t: t.publish(PLACED, timestamp=NAIVE),
        EncodeError,
        ("no time zone", "timezone.utc"),
    ),
    (
        "a text as time",
        lambda _, t: t.publish(PLACED, timestamp="now"),
        EncodeError,
        ("a datetime",),
    ),
    ("an offset of nowhere", lambda _, t: t.read(5), InvalidValue, ("start=5", "partition=")),
    ("a word", lambda _, t: t.read("yesterday"), InvalidValue, ("'yesterday'", "'earliest'")),
    ("nothing", lambda _, t: t.read(None), InvalidValue, ("start=None", "'earliest'")),
    ("a yes", lambda _, t: t.read(True), InvalidValue, ("start=True", "'earliest'")),
    ("a naive start", lambda _, t: t.read(NAIVE), InvalidValue, ("no time zone", "timezone.utc")),
    ("a word as end", lambda _, t: t.read(end="tomorrow"), InvalidValue, ("end='tomorrow'",)),
    ("a partition", lambda _, t: t.read(partition=7), NotFound, ("partitions 0 to 1, not 7",)),
    (
        "a position elsewhere",
        lambda _, t: t.read(Position("other", 0, 1)),
        InvalidValue,
        ("other", "another partition"),
    ),
    ("errors", lambda _, t: t.read(errors="hide"), ConfigError, ("'raise' or 'skip'",)),
    ("its own loop", lambda a, t: a.wait(t.publish(PLACED)), ConfigError, ("use await",)),
    ("twice", lambda a, _: a.__aenter__(), NotRunning, ("running already", "enter it once")),
]


@pytest.mark.parametrize(
    ("call", "kind", "words"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS]
)
async def test_a_value_or_a_place_that_does_not_fit(
    call: Call, kind: type[Exception], words: tuple[str, ...]
) -> None:
    app = Streams("memory://")
    topic = app.topic("orders", Placed, key="id", partitions=2)
    async with app.connected():
        with pytest.raises(kind) as caught:
            made = call(app, topic)
            if isinstance(made, Awaitable):
                await made
        said(caught.value, *words)
        assert list(topic.read()) == []  # nothing was written, and the app goes on


def test_before_the_app_is_entered() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", Placed)

    async def publish() -> None:
        await topic.publish(PLACED)

    calls: list[Callable[[], Any]] = [
        lambda: asyncio.run(publish()),
        topic.read,
        lambda: app.wait(topic.publish(PLACED)),
    ]
    for call in calls:
        with pytest.raises(NotRunning) as caught:
            call()
        said(caught.value, "not running", "use it inside")


def test_a_transaction_where_there_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        Message(PLACED).transaction  # noqa: B018
    said(caught.value, "message.transaction", "sqlite://", "without to=")


# -- the command line


@dataclass
class Shell:
    folder: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "STREAMS_URL"}
        return subprocess.run(
            [sys.executable, "-m", "streams.cli", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


COMMANDS: list[tuple[list[str], int, tuple[str, ...]]] = [
    (["run", "shop:app"], 1, ("no module 'shop'", "looked in")),
    (["run", "shop.py"], 2, ("'shop.py'", "shop:app")),
    (["run", "broken:app"], 1, ("broken cannot be imported", "no_such_thing", "line 1")),
    (["run", "good:api"], 1, ("good has no 'api'", "good:app")),
    (["run", "wrong:app"], 1, ("wrong cannot be imported", "takes 3 parameters", "line 4")),
    (["topics", "ls"], 2, ("--url", "STREAMS_URL")),
    (["tail", "nothing", "--url", "sqlite:///log.db"], 1, ("no topic 'nothing'",)),
    (["groups", "show", "nobody", "--url", "sqlite:///log.db"], 1, ("'nobody'",)),
    (["topics", "ls", "--url", "sqlite:///lgo.db"], 1, ("no file", "lgo.db", "there is log.db")),
]


@pytest.mark.parametrize(("arguments", "status", "words"), COMMANDS, ids=ids(COMMANDS))
def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, arguments: list[str], status: int, words: tuple[str, ...]
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_thing\n")
    (tmp_path / "good.py").write_text("from streams import Streams\napp = Streams('memory://')\n")
    (tmp_path / "wrong.py").write_text(
        "from streams import Streams\n"
        "app = Streams('memory://')\n"
        "topic = app.topic('orders', int)\n"
        "@app.processor(topic, group='g')\n"
        "def handle(value, message, more): ...\n"
    )
    open_log(f"sqlite:///{tmp_path / 'log.db'}").close()
    done = Shell(tmp_path)(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("streams: ")
    for each in words:
        assert each in line
