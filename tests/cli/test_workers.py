"""``streams run --workers``: real processes, killed, told to stop, and never able to start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from streams import Streams
from streams.cli.supervisor import RestartPolicy, Supervisor, claim_slot
from streams.cli.supervisor import name_member as name_it
from streams.errors import ConfigError, NotFound
from streams.message import Record
from streams.wiring import static_member
from tests.cli.conftest import Shell, eventually

COUNTING = """
import os

from streams import Streams

app = Streams("sqlite:///shop.db")
numbers = app.topic("numbers", int, partitions=4)


@app.processor(numbers, group="count")
def count(value):
    with open("seen.txt", "a") as file:
        file.write(f"{value} {os.environ['STREAMS_WORKER']} {os.getpid()}\\n")
"""

SLOW = """
import asyncio
import os

from streams import Streams

app = Streams("sqlite:///shop.db")


def note(text):
    with open("seen.txt", "a") as file:
        file.write(f"{text}\\n")


@app.processor(app.topic("numbers", int, partitions=4), group="count", concurrency=4)
async def wait(value):
    note("begin")
    await asyncio.sleep(600 if os.path.exists("stuck") else 0.3)
    note("end")
"""


def publish(shell: Shell, numbers: range) -> None:
    """Into all four partitions by turns."""
    with shell.log() as log:
        records = [Record(str(n).encode(), str(n).encode(), f"n{n}", [], n % 4) for n in numbers]
        log.append("numbers", records, lambda answers: None)


def seen(shell: Shell) -> list[list[str]]:
    return [line.split() for line in shell.read("seen.txt")]


def owners(shell: Shell) -> set[str]:
    """The members of the group that own a partition."""
    with shell.log() as log:
        try:
            members = log.describe_group("count").members
        except NotFound:
            return set()
    return {each.id for each in members if each.partitions}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def counting(shell: Shell) -> Shell:
    shell.write("counting.py", COUNTING)
    with shell.log() as log:
        log.create_topic("numbers", 4)
    return shell


def test_workers_share_partitions_and_a_killed_one_comes_back(counting: Shell) -> None:
    with counting.start("run", "counting:app", "--workers", "2") as process:
        eventually(lambda: len(owners(counting)) == 2)
        publish(counting, range(40))
        eventually(lambda: len({line[0] for line in seen(counting)}) == 40)
        pids = {worker: int(pid) for _, worker, pid in seen(counting)}
        assert pids.keys() == {"1", "2"}
        os.kill(pids["2"], signal.SIGKILL)
        publish(counting, range(40, 80))
        eventually(lambda: len({line[0] for line in seen(counting)}) == 80)
        eventually(lambda: len(owners(counting)) == 2 and not alive(pids["2"]))
        publish(counting, range(80, 120))
        eventually(lambda: len({line[0] for line in seen(counting)}) == 120)
        after = {worker: int(pid) for _, worker, pid in seen(counting)}
        assert after.keys() == {"1", "2"}
        assert after["1"] == pids["1"]
        assert after["2"] != pids["2"]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    # At once, if it had lived long before this busy machine came to kill it.
    again = r"worker 2 was killed by SIGKILL: (again in 1 s|started again at once)"
    assert re.search(again, err.decode())
    assert not any(alive(pid) for pid in after.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_the_first_signal_drains_all_workers(counting: Shell, number: signal.Signals) -> None:
    counting.write("slow.py", SLOW)
    with counting.start("run", "slow:app", "--workers", "2") as process:
        eventually(lambda: len(owners(counting)) == 2)
        publish(counting, range(4))
        eventually(lambda: counting.read("seen.txt"))
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 0
    lines = counting.read("seen.txt")
    assert lines.count("begin") == lines.count("end") >= 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM"],
)
def test_the_second_signal_ends_everything_at_once(
    counting: Shell, number: signal.Signals, status: int
) -> None:
    counting.write("slow.py", SLOW)
    counting.write("stuck", "")
    publish(counting, range(4))
    with counting.start("run", "slow:app", "--workers", "2") as process:
        eventually(lambda: counting.read("seen.txt"))
        process.send_signal(number)
        assert process.stderr is not None
        said = b""
        while b"to finish" not in said:
            said = process.stderr.readline()
            assert said
        process.send_signal(number)
        _, err = process.communicate(timeout=60)  # the workers held its end: they are gone
    assert process.returncode == status
    assert b"not everything was finished" in err


def test_workers_drain_when_their_supervisor_is_killed(counting: Shell) -> None:
    with counting.start("run", "counting:app", "--workers", "2") as process:
        eventually(lambda: len(owners(counting)) == 2)
        process.kill()
        _, err = process.communicate(timeout=30)
    assert err.decode().count("the supervisor is gone") == 2
    assert not owners(counting)  # given back, not left to expire


@pytest.mark.parametrize(
    ("module", "text", "status", "words"),
    [
        ("missing", None, 1, "there is no module 'missing'"),
        ("broken", "1 / 0\n", 1, "ZeroDivisionError"),
        ("private", "import streams\napp = streams.Streams('memory://')\n", 2, "one process's own"),
        ("dead", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", 1, "SIGKILL"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_said_once(
    shell: Shell, module: str, text: str | None, status: int, words: str
) -> None:
    if text is not None:
        shell.write(f"{module}.py", text)
    shell.environment.pop("STREAMS_URL")
    ended = shell("run", f"{module}:app", "--workers", "4", "--log-level", "error")
    assert (ended.status, ended.out) == (status, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("streams: ")
    assert words in line


# -- the supervisor alone, with patience that a test has

LOADS = "import os; os.write(0, b'+'); "


def supervised(
    *programs: str, patience: RestartPolicy, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A supervisor of these Python programs, in a process of its own."""
    commands = [[sys.executable, "-c", program] for program in programs]
    text = (
        "import asyncio, sys\n"
        "from streams.cli.logging_setup import configure_logging\n"
        "from streams.cli.supervisor import RestartPolicy, Supervisor\n"
        "configure_logging(None)\n"
        f"sys.exit(asyncio.run(Supervisor('shop:app', {commands!r}, {dict(environment or {})!r},"
        f" {patience!r}).run()))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )


def test_workers_that_keep_dying_at_their_start_end_it() -> None:
    patience = RestartPolicy(first_delay=0.01, max_delay=0.04, startup_time=30)
    # The second lives, though not for so long that it would count; it is drained.
    lives = LOADS + "import signal; signal.pause()"
    ended = supervised(LOADS + "raise SystemExit(3)", lives, patience=patience)
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    waits = [line.rpartition(" again in ")[2] for line in before if "worker 1 ended" in line]
    assert waits == ["0.01 s", "0.02 s", "0.04 s", "0.04 s"]
    assert last == (
        "streams: shop:app: workers do not stay alive: one died 5 times in a row within 30 s of "
        "its start, most recently it ended with status 3"
    )


def test_while_one_lives_on_another_is_tried_again(tmp_path: Path) -> None:
    patience = RestartPolicy(
        first_delay=0.01, max_delay=0.01, startup_time=1.0, max_failed_starts=2
    )
    tries, lived = str(tmp_path / "tries"), str(tmp_path / "lived")
    # Its first life is as long as the other needs to count; the eighth ends the supervisor.
    dies = (
        f"{LOADS}import signal, time\n"
        f"with open({tries!r}, 'a') as file: file.write('x'); life = file.tell()\n"
        f"while not os.path.exists({lived!r}): time.sleep(0.01)\n"
        "if life == 8: os.kill(os.getppid(), signal.SIGTERM); signal.pause()\n"
        "raise SystemExit(1)\n"
    )
    # Longer than it takes to count (1 s) by what the supervisor may note its start too late.
    lives = f"import signal, time; time.sleep(4); open({lived!r}, 'w'); signal.pause()"
    ended = supervised(dies, lives, patience=patience)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("worker 1 ended with status 1") == 7


def test_the_wait_doubles_up_to_its_limit() -> None:
    waits = [RestartPolicy().delay(deaths) for deaths in (0, 1, 2, 3, 4, 5, 6, 7, 5000)]
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30, 30]


class Noting(RestartPolicy):
    """Notes what it is asked, and ends the supervisor at the third question."""

    def delay(self, deaths: int) -> float:
        asked.append(deaths)
        if len(asked) % 3 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0


asked: list[int] = []


@pytest.mark.parametrize(("steady", "expected"), [(0.0, [0, 0, 0]), (60.0, [1, 2, 3])])
def test_who_lived_for_long_is_started_again_at_once(steady: float, expected: list[int]) -> None:
    async def run() -> int:
        patience = Noting(stable_after=steady)
        return await Supervisor("app", [[sys.executable, "-c", LOADS]], {}, patience).run()

    asked.clear()
    assert asyncio.run(run()) == 0
    assert asked == expected


# -- names of static members


def test_a_second_supervisor_on_this_machine_has_a_slot_of_its_own() -> None:
    name = f"test-{os.getpid()}:app"
    first, slot = claim_slot(name)
    second, other = claim_slot(name)
    assert (slot, other) == (1, 2)
    os.close(first)
    again, slot = claim_slot(name)
    assert slot == 1
    os.close(second)
    os.close(again)


def test_the_locks_are_in_a_folder_that_is_this_user_s_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock, slot = claim_slot("shop:app")
    assert slot == 1
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    os.close(lock)
    # A symbolic link in it is not followed.
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        claim_slot("shop:app")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("squatted", ["link", "file", "open", "foreign"])
def test_a_folder_that_somebody_else_took_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    squatted: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"streams-{os.geteuid()}"
    if squatted == "link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    elif squatted == "file":
        folder.touch()
    else:
        folder.mkdir()
        if squatted == "open":
            folder.chmod(0o777)
        elif os.geteuid():
            pytest.skip("only root can give a folder to another user")
        else:
            os.chown(folder, 65_534, 65_534)
    first, slot = claim_slot("shop:app")
    second, other = claim_slot("shop:app")
    os.close(first)
    os.close(second)
    assert slot != other
    assert "TMPDIR" in caplog.text
    if folder.is_dir():
        assert not list(folder.iterdir())


HOST = "node-shop:app"


@pytest.mark.parametrize(
    ("url", "config", "member", "instance"),
    [
        ("kafka://host", {}, "node-shop.app-2", None),
        ("kafka+ssl://host?group.instance.id=blue", {}, "", "blue-2"),
        (
            "kafka://host?group.instance.id=blue",
            {"group.instance.id": "green"},
            "",
            "green-2",
        ),
        ("kafka://host?group.protocol=consumer", {}, "", None),
        ("kafka://host", {"group.protocol": "consumer"}, "", None),
        ("redis://host", {}, "node-shop.app-2", None),
        ("sqlite:///file", {}, "node-shop.app-2", None),
    ],
)
def test_names_of_workers(
    url: str, config: dict[str, str], member: str, instance: str | None
) -> None:
    app = Streams(url, config=config)
    name_it(app, HOST, "2")
    assert app.member == member
    assert app.driver_config.get("group.instance.id") == instance
    named = Streams(url, config=config, member="billing")
    name_it(named, HOST, "1.2")
    assert named.member == "billing-1.2"


def test_two_processors_of_a_group_do_not_share_a_name() -> None:
    app = Streams("kafka://host", member="worker-3")
    for topic in ("one", "two", "three"):

        @app.processor(app.topic(topic), group="alone" if topic == "three" else "both")
        def handle(value: bytes) -> None:
            return

    found = [
        static_member(each, app.processors, app.member, app.instance_id) for each in app.processors
    ]
    assert [each.name for each in found if each] == ["worker-3", "worker-3-handle-2", "worker-3"]
    assert {each.incarnation for each in found if each} == {app.instance_id}
    assert Streams("kafka://host", member="worker-3").instance_id != app.instance_id


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ä", "..", "x" * 201, 7])
def test_what_cannot_be_a_members_name(name: Any) -> None:
    with pytest.raises(ConfigError, match="member name"):
        Streams("redis://host", member=name)


# -- what the others are told, and who is not started again


def test_the_others_are_told_which_process_has_ended(tmp_path: Path) -> None:
    """Its name and its life, so that whoever has the name next is not meant."""
    heard = tmp_path / "heard"
    # The first says its line and dies by a signal once the second listens; the second writes down
    # what it hears, and ends it all.
    dies = (
        f"{LOADS}import os, time\n"
        "os.write(0, b'shop-1 abc\\n')\n"
        f"while not os.path.exists({str(tmp_path / 'listens')!r}): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    hears = (
        f"{LOADS}import os, signal\n"
        "os.write(0, b'shop-2 def\\n')\n"
        f"open({str(tmp_path / 'listens')!r}, 'w').close()\n"
        f"with open({str(heard)!r}, 'wb') as file: file.write(os.read(0, 100))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    ended = supervised(dies, hears, patience=RestartPolicy(first_delay=30))
    assert ended.returncode == 0, ended.stderr
    assert heard.read_bytes() == b"shop-1 abc\n"


def test_who_is_fenced_by_its_name_is_not_started_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    fenced = f"{LOADS}open({str(count)!r}, 'a').write('x')\nraise SystemExit(79)"
    other = f"{LOADS}import time; time.sleep(0.5); raise SystemExit(79)"
    ended = supervised(fenced, other, patience=RestartPolicy(first_delay=0.01, max_delay=0.01))
    assert ended.returncode == 79
    assert count.read_text() == "x"
    assert ended.stderr.count("another process has taken its name") == 2


def test_a_second_process_of_a_name_ends_the_first_with_a_status_of_its_own(
    counting: Shell,
) -> None:
    counting.environment["STREAMS_WORKER"] = "0"
    command = ("run", "counting:app", "--member", "shop-1")
    with counting.start(*command) as first:
        eventually(lambda: owners(counting) == {"shop-1"})
        with counting.start(*command) as second:
            _, err = first.communicate(timeout=30)
            assert first.returncode == 79
            assert "another process has joined as member 'shop-1'" in err.decode().splitlines()[-1]
            publish(counting, range(8))
            eventually(lambda: len(seen(counting)) == 8)
            assert {int(pid) for *_, pid in seen(counting)} == {second.pid}
            second.send_signal(signal.SIGTERM)
            assert second.wait(30) == 0


def test_workers_have_the_name_and_their_numbers(counting: Shell) -> None:
    with counting.start("run", "counting:app", "--member", "shop", "--workers", "2") as process:
        eventually(lambda: owners(counting) == {"shop-1", "shop-2"})
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
