"""What a user gets wrong: one line on standard error that says what to do, and the right status."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.cli.conftest import Run, Shell, fill, order

MODULES = {
    "absent.py": "import no_such_thing\n",
    "broken.py": "def start():\n    raise OSError('no\\nlicence')\n\nstart()\n",
    "syntax.py": "app = (\n",
    "leaves.py": "raise SystemExit('not today')\n",
    "named.py": "from streams import Streams\n\nshop = Streams('memory://')\nnumber = 3\n",
    "none.py": "pass\n",
    "shape.py": (
        "from streams import Streams\n\napp = Streams('memory://')\n\n\n"
        "@app.processor(app.topic('t'), group='g')\ndef handle(a, b, c):\n    pass\n"
    ),
    "field.py": (
        "import msgspec\nfrom streams import Streams\n\n\n"
        "class Order(msgspec.Struct):\n    n: int\n\n\n"
        "app = Streams('memory://')\napp.topic('orders', Order, key='customer')\n"
    ),
    "idle.py": "from streams import Streams\n\napp = Streams('memory://')\n",
    "homeless.py": "from streams import Streams\n\napp = Streams()\n",
    "lifespan.py": (
        "from contextlib import asynccontextmanager\nfrom streams import Streams\n\n\n"
        "@asynccontextmanager\nasync def life(app):\n    raise ConnectionError('no database')\n"
        "    yield\n\n\napp = Streams('memory://', lifespan=life)\n"
    ),
    "wrong_count.py": (
        "from streams import Streams\n\napp = Streams('sqlite:///shop.db')\n\n\n"
        "@app.processor(app.topic('orders', dict, partitions=3), group='g')\n"
        "def handle(value):\n    pass\n"
    ),
}

CASES: list[tuple[str, int, list[str]]] = [
    # The command line itself.
    ("run", 2, ["Missing argument", "streams run --help"]),
    ("nonsense", 2, ["No such command 'nonsense'", "streams --help"]),
    ("topics lss", 2, ["No such command 'lss'", "ls"]),
    ("tail orders --folow", 2, ["No such option: --folow", "streams tail --help"]),
    ("tail orders -n many", 2, ["-n", "'many'"]),
    ("tail orders -p -1", 2, ["--partition"]),
    ("topics create orders -p 0", 2, ["--partitions"]),
    ("topics create orders --keep-for week", 2, ["--keep-for 'week'", "7d"]),
    ("topics create orders --config a", 2, ["--config 'a'", "name=value"]),
    ("topics create a/b", 2, ["topic name 'a/b'", "letters"]),
    ("dead ls billing", 2, ["a group and its topic"]),
    # Where the log is.
    ("topics ls --url nowhere", 2, ["log URL without a scheme", "sqlite:///"]),
    ("topics ls --url oracle://host", 2, ["'oracle'"]),
    ("topics ls --url sqlite:///no/such/folder.db", 2, ["no directory"]),
    ("topics ls --url sqlite:///shop.py", 1, ["shop.py", "not a SQLite database"]),
    ("topics ls --url redis://:hidden@127.0.0.1:1/0", 1, ["127.0.0.1"]),
    ("run shop:app --url nowhere", 2, ["log URL without a scheme"]),
    # Apps that cannot be had.
    ("run shop", 2, ["'shop'", "shop:app"]),
    ("run ./shop.py", 2, ["shop:app"]),
    ("run nowhere:app", 1, ["no module 'nowhere'"]),
    ("run nowhere.deep:app", 1, ["no module 'nowhere'"]),
    ("run absent:app", 1, ["absent", "No module named 'no_such_thing'", "absent.py, line 1"]),
    ("run broken:app", 1, ["OSError: no licence", "broken.py, line 2"]),
    ("run syntax:app", 1, ["syntax.py, line 1", "never closed"]),
    ("run leaves:app", 1, ["SystemExit: not today"]),
    ("run named:app", 1, ["no 'app'", "it has named:shop"]),
    ("run named:number", 1, ["of type int", "named:shop"]),
    ("run none:app", 1, ["none.py declares no app"]),
    ("run shape:app", 1, ["handle", "3 parameters", "shape.py, line 6"]),
    ("run field:app", 1, ["'customer'", "no such field", "field.py, line 10"]),
    ("run idle:app", 2, ["declare a processor"]),
    ("run lifespan:app", 1, ["lifespan:app failed", "ConnectionError: no database"]),
    ("run wrong_count:app", 1, ["has 2 partitions", "declared with 3"]),
    # What is not there.
    ("tail nothing", 1, ["no topic 'nothing'"]),
    ("topics show nothing", 1, ["no topic 'nothing'"]),
    ("topics delete nothing --yes", 1, ["no topic 'nothing'"]),
    ("topics create orders -p 3", 1, ["has 2 partitions"]),
    ("groups show nobody", 1, ["no group 'nobody'"]),
    ("groups delete nobody --yes", 1, ["no group 'nobody'"]),
    ("publish nothing shop.py", 1, ["no topic 'nothing'"]),
    ("publish orders no-file.jsonl", 1, ["no-file.jsonl", "No such file"]),
    ("publish orders .", 1, ["directory"]),
    ("publish orders shop.py -k a --key-field b", 2, ["cannot be combined"]),
    ("dead ls billing nothing", 1, ["no dead letter topic 'nothing.billing.dead'"]),
    ("tail orders -p 2", 1, ["partitions 0 to 1, not 2"]),
    # Places.
    ("tail orders --from yesterday", 2, ["--from 'yesterday'", "2h"]),
    ("tail orders --from 2013-01-05", 2, ["time zone", "2013-01-05T00:00Z"]),
    ("tail orders --from 2013-13-05T10:00Z", 2, ["no such time"]),
    ("tail orders --from 3", 2, ["2 partitions", "--partition N"]),
    ("tail orders --from 3x -p 0", 2, ["'3x'"]),
    ("tail orders --from 0/1 -p 0", 2, ["leave --partition out"]),
    ("replay orders --start 0/1,0/2", 2, ["partition 0 is named twice"]),
    ("replay orders --start 0/1,x", 2, ["0/1041,1/998"]),
    ("replay orders --end 0/1,1/2", 2, ["--end", "takes a single offset"]),
    ("replay orders --start -0", 2, ["-N"]),
    ("replay orders --start 7/1", 1, ["partitions 0 to 1, not 7"]),
    # Replay and reset.
    ("replay shop:app", 2, ["no topic given", "streams replay shop:app TOPIC"]),
    ("replay orders --into total", 2, ["needs an app"]),
    ("replay shop:app orders --into nothing", 1, ["it has: bill, total"]),
    ("replay shop:app orders --into total --to bills", 2, ["cannot be combined"]),
    ("replay orders --to nothing", 1, ["no topic 'nothing'"]),
    ("replay orders --to orders", 2, ["into itself"]),
    ("replay orders --rate 0", 2, ["--rate 0"]),
    ("replay nothing", 1, ["no topic 'nothing'"]),
    ("reset nobody orders --to earliest", 1, ["no group 'nobody'"]),
    ("reset held nothing --to earliest", 1, ["no topic 'nothing'"]),
    ("reset held orders --to 99 -p 0", 2, ["nothing stands there yet"]),
    ("reset held orders", 2, ["--to"]),
]


@pytest.fixture
def filled(shell: Shell) -> Shell:
    for name, text in MODULES.items():
        shell.write(name, text)
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(4)])
        log.initialize_offsets("held", "orders", {0: 0, 1: 0})
    return shell


@pytest.mark.parametrize(("command", "status", "says"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("filled")
def test_one_line_says_what_to_do(run: Run, command: str, status: int, says: list[str]) -> None:
    ended = run(*command.split())
    said = [line for line in ended.err.splitlines() if line.startswith("streams: ")]
    assert len(said) == 1, ended.err
    for words in says:
        assert words in said[0]
    assert "Traceback" not in ended.err
    assert "hidden" not in ended.err
    assert (ended.status, ended.out) == (status, "")


def test_without_a_url_anywhere(shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.write("homeless.py", MODULES["homeless.py"])
    monkeypatch.setenv("STREAMS_URL", "")
    for command in (("topics", "ls"), ("run", "homeless:app"), ("replay", "homeless:app", "t")):
        ended = run(*command)
        assert ended.status == 2
        assert "STREAMS_URL" in ended.err
        assert ended.err.count("\n") == 1


def test_a_locked_file_says_so(filled: Shell) -> None:
    with closing(sqlite3.connect(filled.folder / "shop.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ended = filled("topics", "create", "more", "--url", "sqlite:///shop.db?timeout=0.05")
    assert ended.status == 1
    assert "another process is writing" in ended.err
    assert ended.err.count("\n") == 1


def test_the_traceback_is_there_for_whoever_wants_it(shell: Shell) -> None:
    shell.write("broken.py", MODULES["broken.py"])
    ended = shell("run", "broken:app", env={"STREAMS_DEBUG": "1"})
    assert ended.status == 1
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("streams: broken cannot be imported: OSError")
