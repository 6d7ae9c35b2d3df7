"""``scripts/dev.py`` sets itself up: real runs of it, on a machine made of fake interpreters.

A fake interpreter is a shell script that answers what the real one would: it runs or not, makes a
``.venv`` whose ``python -m pip`` notes what it is asked to install, and whose tools note that they
ran. So no test here touches the network, and each failure can be had on demand.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from environment import DEV, PACKAGE, Environment, SetupError
from tests.servers.lifetime import until

ROOT = Path(__file__).resolve().parents[2]

# dev.py as `python3 scripts/dev.py` runs it, but the interpreter that runs it is no candidate.
LAUNCH = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.executable = ""
sys.path.insert(0, "scripts")
sys.argv = ["scripts/dev.py", *sys.argv[1:]]
runpy.run_path("scripts/dev.py", run_name="__main__")
"""

PYTHON = r"""#!/bin/sh
# A Python {version}: `-c` is the question whether it works, `-m venv` and `-m pip` do their part.
PATH=/usr/bin:/bin
case "$1 $2 $3" in
"-E -c "*)
    echo "{version}"; echo "/prefix"
    {extra}
    exit 0 ;;
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    for tool in ruff lint-imports; do
        printf '#!/bin/sh\necho "%s $*" >> "{notes}"\n' "$tool" > "$3/bin/$tool"
        chmod +x "$3/bin/$tool"
    done
    exit 0 ;;
"-m pip "*)
    [ -e "${{0%/*}}/../installed.json" ] && echo "stamped early" >> "{notes}"
    how=
    case " $* " in *" --require-hashes "*) how=" by hashes" ;; esac
    for last; do :; done
    echo "pip ${{last##*/}}$how" >> "{notes}"
    if [ -e "{folder}/hang" ]; then echo "hanging $$" >> "{notes}"; exec sleep 600; fi
    [ -e "{folder}/offline" ] && {{ echo "no network" >&2; exit 1; }}
    exit 0 ;;
*)
    echo "python $*" >> "{notes}"
    case " $(cat "{folder}/failing" 2>/dev/null) " in *" $2 "*) exit 3 ;; esac
    exit 0 ;;
esac
"""


PINS = f"""\
# A file of pins.

{PACKAGE}
one=={{one}} \\
    --hash=sha256:1111
{DEV}
two==2 \\
    --hash=sha256:2222
"""


class Machine:
    """A checkout and a PATH with nothing on it but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "checkout"
        self.path = folder / "bin"
        self.notes_file = folder / "notes"
        self.path.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.pin("1")

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def stamp(self) -> Path:
        return self.venv / "installed.json"

    def pin(self, one: str) -> None:
        (self.root / "constraints.txt").write_text(PINS.format(one=one))

    def pinned(self) -> list[str]:
        """What pip was told to install."""
        text = (self.venv / "pins.txt").read_text()
        return [line.split()[0] for line in text.splitlines() if "==" in line]

    def script(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def python(self, name: str, version: str, extra: str = "") -> None:
        text = PYTHON.format(
            version=version, extra=extra, notes=self.notes_file, folder=self.folder
        )
        self.script(name, text)

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", LAUNCH, *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.path), "HOME": str(self.folder), **more}

    def dev(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(arguments),
            cwd=self.root,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def notes(self) -> list[str]:
        """What ran since this was last asked."""
        if not self.notes_file.exists():
            return []
        found = self.notes_file.read_text().splitlines()
        self.notes_file.unlink()
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


INSTALL = ["pip pins.txt by hashes", "pip ."]
DEMO = "python -m examples.flights"


def test_the_newest_interpreter_that_works_is_taken(machine: Machine) -> None:
    machine.script("python3.14", "#!/bin/sh\necho 'python3.14: command not found' >&2\nexit 127\n")
    machine.python("python3.13", "3.13.9", extra="echo 'no ensurepip'")
    machine.python("python3.12", "3.12.1")
    machine.python("python3.11", "3.11.7")
    done = machine.dev("demo")
    assert done.returncode == 0
    assert "Building .venv with Python 3.12.1" in done.stdout
    assert machine.notes() == [*INSTALL, DEMO]
    assert json.loads(machine.stamp.read_text())["python"] == "3.12.1"


def test_a_broken_one_does_not_hide_a_good_one_of_the_same_name(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    shims = machine.folder / "shims"
    shims.mkdir()
    (shims / "python3.12").write_text("#!/bin/sh\nexit 127\n")
    (shims / "python3.12").chmod(0o755)
    done = machine.dev("demo", PATH=f"{shims}{os.pathsep}{machine.path}")
    assert f"Python 3.12.1 ({machine.path}/python3.12)" in done.stdout


def test_none_that_works_says_what_was_tried_and_what_helps(machine: Machine) -> None:
    machine.script("python3.13", "#!/bin/sh\necho 'not installed' >&2\nexit 127\n")
    machine.python("python3.12", "3.12.1", extra="echo 'no ensurepip'")
    machine.python("python3", "3.9.2")
    done = machine.dev("test")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert f"{machine.path}/python3.13 does not run (not installed)" in done.stdout
    assert "is Python 3.12.1, but cannot make virtual environments (no ensurepip)" in done.stdout
    assert "is Python 3.9.2, too old" in done.stdout
    assert "apt-get install python3 python3-venv" in done.stdout
    assert not machine.venv.exists()


def test_the_interpreter_can_be_named(machine: Machine) -> None:
    machine.python("python3.13", "3.13.9")
    machine.python("python3.11", "3.11.7")
    assert "Python 3.11.7" in machine.dev("demo", STREAMS_PYTHON="python3.11").stdout
    # Without the name, what is there is kept; with another, it is built anew.
    assert "Building" not in machine.dev("demo").stdout
    assert "Python 3.13.9" in machine.dev("demo", STREAMS_PYTHON="python3.13").stdout
    refused = machine.dev("demo", STREAMS_PYTHON="python3.10")
    assert refused.returncode == 1
    assert "STREAMS_PYTHON=python3.10 cannot be used" in refused.stdout


def test_a_second_run_installs_nothing(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.dev("demo")
    assert machine.notes() == [*INSTALL, DEMO]
    assert machine.dev("demo").returncode == 0
    assert machine.notes() == [DEMO]


def test_the_stamp_is_written_last(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    (machine.folder / "offline").touch()
    done = machine.dev("demo")
    assert done.returncode == 1
    assert "Could not install what this package needs" in done.stdout
    assert "Traceback" not in done.stdout
    assert not machine.stamp.exists()
    assert machine.notes() == INSTALL[:1]

    (machine.folder / "offline").unlink()
    done = machine.dev("demo")
    assert done.returncode == 0
    assert "Removing .venv" in done.stdout
    assert machine.notes() == [*INSTALL, DEMO]
    assert machine.stamp.exists()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_installation_starts_over(machine: Machine, ending: signal.Signals) -> None:
    machine.python("python3.12", "3.12.1")
    machine.dev("demo")
    machine.pin("2")
    (machine.folder / "hang").touch()
    machine.notes()
    with subprocess.Popen(
        machine.command(["demo"]),
        cwd=machine.root,
        env=machine.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:

        def hanging() -> int | None:
            noted = machine.notes_file.read_text() if machine.notes_file.exists() else ""
            return int(noted.split()[-1]) if "hanging" in noted and noted.endswith("\n") else None

        try:
            pip = until(hanging, 60, "pip is at work")
            if ending == signal.SIGINT:
                os.killpg(running.pid, ending)  # as a terminal does
            else:
                running.kill()
                os.kill(pip, ending)
            running.wait(60)
        finally:
            running.kill()
    assert running.returncode != 0
    assert not machine.stamp.exists()

    (machine.folder / "hang").unlink()
    machine.notes()
    done = machine.dev("demo")
    assert "Removing .venv" in done.stdout
    assert machine.notes() == [*INSTALL, DEMO]


def test_changed_pins_are_installed_over_the_old(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.dev("demo")
    machine.pin("2")
    machine.notes()
    done = machine.dev("demo")
    assert "Updating .venv" in done.stdout
    assert machine.notes() == [*INSTALL, DEMO]  # and pip found no stamp
    assert machine.dev("demo").returncode == 0
    assert machine.notes() == [DEMO]


def test_the_demo_installs_only_what_it_needs(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.dev("demo")
    assert machine.pinned() == ["one==1"]
    machine.dev("check")
    assert machine.pinned() == ["one==1", "two==2"]
    machine.notes()
    machine.dev("demo")
    assert machine.notes() == [DEMO]


def test_setup_installs_what_the_tests_need_and_runs_nothing(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.dev("setup").returncode == 0
    assert machine.notes() == INSTALL
    assert machine.pinned() == ["one==1", "two==2"]
    assert machine.dev("setup").returncode == 0
    assert machine.notes() == []


def test_pins_that_are_damaged_install_nothing(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    (machine.root / "constraints.txt").write_text("one==1\n")
    done = machine.dev("demo")
    assert done.returncode == 1
    assert "constraints.txt lacks a part" in done.stdout
    assert "Traceback" not in done.stdout
    assert machine.notes() == []
    assert not machine.stamp.exists()


@pytest.mark.faults  # pip's own work, and it takes as long as fifty of the others
def test_a_file_that_is_not_the_one_that_was_pinned_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a real interpreter, and the pip that it brings."""
    offered = machine.folder / "offered"
    offered.mkdir()
    with zipfile.ZipFile(offered / "one-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("one.py", "")
        wheel.writestr("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1\n")
        wheel.writestr("one-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("one-1.dist-info/RECORD", "")
    monkeypatch.setenv("STREAMS_PYTHON", sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    environment = Environment(machine.root)
    text = PINS.format(one="1")
    (machine.root / "constraints.txt").write_text(text.replace("1111", "1" * 64))
    with pytest.raises(SetupError, match="Could not install what this package needs"):
        environment.ensure()
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err
    assert not list(machine.venv.rglob("one.py"))


def test_a_moved_checkout_and_a_vanished_interpreter_are_noticed(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    machine.dev("demo")
    machine.root = machine.root.rename(machine.folder / "moved")
    assert "Removing .venv" in machine.dev("demo").stdout
    (machine.venv / "bin" / "python").unlink()
    assert "Removing .venv" in machine.dev("demo").stdout
    machine.notes()
    machine.dev("demo")
    assert machine.notes() == [DEMO]


def test_two_set_ups_at_once_install_once(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    running = [
        subprocess.Popen(
            machine.command(["demo"]),
            cwd=machine.root,
            env=machine.environment(),
            stdout=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(machine.notes()) == sorted([*INSTALL, DEMO, DEMO, DEMO])


def test_all_families_run_and_the_first_failure_is_the_status(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    (machine.folder / "failing").write_text("mypy pytest")
    done = machine.dev("test", "--", "-k", "retry")
    assert done.returncode == 3
    *ran, tests = [note for note in machine.notes() if not note.startswith("pip")]
    assert sorted(ran) == [  # at the same time, so in any order
        "lint-imports --no-logo",
        "python -m mypy",
        "python -m pyright",
        "python -m pytest --collect-only -p no:terminal -o addopts=--import-mode=importlib",
        "python -m tests.servers",
        "ruff check .",
        "ruff format --check .",
    ]
    assert tests.startswith("python -m pytest -n ")
    assert tests.endswith(" -k retry")
    summary = done.stdout[done.stdout.rindex("ruff check") :].splitlines()
    failed = ["mypy", "collect", "pytest"]  # two of them are pytest, which fails here
    assert [line.split()[0] for line in summary if "FAILED" in line] == failed
    assert [line.split()[-1] for line in summary if "FAILED" not in line] == ["ok"] * 5


def test_arguments_reach_the_demo_and_check_takes_none(machine: Machine) -> None:
    machine.python("python3.12", "3.12.1")
    assert machine.dev("demo", "--", "--url", "memory://").returncode == 0
    assert machine.notes()[-1] == f"{DEMO} --url memory://"
    assert machine.dev("check", "--", "-x").returncode == 2
    assert machine.dev("setup", "--", "-x").returncode == 2
    assert machine.dev("everything").returncode == 2
    assert machine.notes() == []
