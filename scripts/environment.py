"""The project's own virtual environment: built once, checked, and rebuilt when it is incomplete.

Promises: all packages are installed into ``.venv``; an interrupted installation is never
taken for a complete one; if nothing has changed, only one interpreter is run, and no network is
needed.

How: the last thing an installation does is to write a *stamp* into ``.venv``, and the first thing
the next one does is to remove it. The stamp names what was installed (extras), from what
(a fingerprint of pyproject.toml and constraints.txt), for which interpreter and where. If only the
first two differ, pip installs over what is there. If there is no stamp, ``.venv`` is in an unknown
state; if the interpreter is another or the folder was moved, its scripts are broken: then it is
built again from nothing.

It uses the standard library alone, and Python 3.8 is enough: this runs before anything is
installed, under any ``python3``, to find the interpreter that the project needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
NAMES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3", "python")
PYTHON_VARIABLE = "STREAMS_PYTHON"
"""Environment variable that names the interpreter to build with, instead of a search."""

BUILD = ("hatchling", "editables")
"""The build backend: it is installed with the dependencies, so that building this package
needs no further download."""

PINS = "constraints.txt"
"""The installed packages, with the hashes of their files, in two parts, each under its title:"""

PACKAGE = "# -- what the package needs, and its build backend"
DEV = "# -- what the development set adds"

_PROBE = """
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(sys.prefix)
try:
    import ensurepip, venv
except ImportError as error:
    print("no " + str(error).split("'")[1])
"""


class SetupError(Exception):
    """The environment cannot be built; the message says what to do."""


class Interpreter(NamedTuple):
    """A Python that was run and works."""

    path: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return "Python {} ({})".format(".".join(map(str, self.version)), self.path)


def print_now(text: str) -> None:
    """Print one line of progress, unbuffered."""
    print(text, flush=True)


def run_program(command: Sequence[str], env: Mapping[str, str], folder: Path) -> int:
    """Run a program to its end; returns its exit status.

    Ctrl-C in a terminal reaches the program as well, so it gets the time to end in order.
    """
    with subprocess.Popen(command, env=env, cwd=folder) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(30)
            raise
        finally:
            child.kill()


# -- finding an interpreter ----------------------------------------------------------------------


def probe(path: str) -> Interpreter | str:
    """The interpreter at ``path``, or why it cannot be used.

    Only running it tells: a version manager's shim exists for versions that are not selected, and
    a distribution may leave out what virtual environments need.
    """
    try:
        done = subprocess.run(
            [path, "-E", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            cwd=ROOT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or len(lines) < 2:
        stderr_lines = done.stderr.decode(errors="replace").strip().splitlines()
        return "does not run ({})".format(
            stderr_lines[-1] if stderr_lines else f"exit status {done.returncode}"
        )
    try:
        version = tuple(map(int, lines[0].split(".")))
    except ValueError:
        return f"does not run (answers {lines[0]!r})"
    if version < OLDEST:
        return f"is Python {lines[0]}, too old"
    if len(lines) > 2:
        return f"is Python {lines[0]}, but cannot make virtual environments ({lines[2]})"
    return Interpreter(path, version)


def candidates(venv: Path) -> Iterator[str]:
    """Every interpreter worth a try, the newest names first; none from ``venv`` itself."""
    seen = set()
    folders = [folder for folder in os.get_exec_path() if folder]
    paths = [os.path.join(folder, name) for name in NAMES for folder in folders]
    for path in [*paths, sys.executable or ""]:
        real = os.path.realpath(path)
        inside = os.path.abspath(path).startswith(str(venv) + os.sep)
        if path and real not in seen and not inside and os.access(path, os.X_OK):
            seen.add(real)
            yield path


def find_interpreter(venv: Path) -> Interpreter:
    """The newest interpreter that runs and can build a virtual environment.

    :raises SetupError: there is none; says what was tried and what to install.
    """
    chosen = os.environ.get(PYTHON_VARIABLE)
    tried = []
    for path in [shutil.which(chosen) or chosen] if chosen else candidates(venv):
        found = probe(path)
        if isinstance(found, Interpreter):
            return found
        tried.append(f"  {path} {found}")
    lines = [
        "No Python {}.{} or newer that can build a virtual environment was found.".format(*OLDEST)
    ]
    if chosen:
        lines = [f"{PYTHON_VARIABLE}={chosen} cannot be used."]
    lines += tried
    lines += [
        "What helps:",
        "  Debian, Ubuntu: apt-get install python3 python3-venv   (as root)",
        "  Fedora:         dnf install python3.13                 (as root)",
        "  macOS:          brew install python@3.13",
        f"  elsewhere:      install Python; {PYTHON_VARIABLE}=/path/to/python3.13 make test",
    ]
    raise SetupError("\n".join(lines))


# -- the pins ------------------------------------------------------------------------------------


def select_pins(text: str, extras: Sequence[str]) -> str:
    """The pins to install: the package's, and with the extra ``dev`` all of them.

    :raises SetupError: the file does not have these two parts.
    """
    _, found, rest = text.partition(PACKAGE + "\n")
    package, found_too, dev = rest.partition(DEV + "\n")
    if not found or not found_too:
        raise SetupError(f"{PINS} lacks a part; `git checkout {PINS}` brings it back.")
    return package + (dev if "dev" in extras else "")


# -- the stamp -----------------------------------------------------------------------------------


def fingerprint(root: Path) -> str:
    """A hash that changes with everything that decides what is installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", PINS):
        digest.update(b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


class Environment:
    """``.venv`` of one checkout.

    :param root: the checkout.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.folder = root / ".venv"
        self.bin = self.folder / "bin"
        self.python = self.bin / "python"
        self.stamp = self.folder / "installed.json"

    def ensure(self, extras: Sequence[str] = ()) -> None:
        """Install the package and these extras, if they are not.

        :raises SetupError: they cannot be installed.
        """
        with self._lock():
            state = self._read_stamp()
            wanted = sorted({*extras, *state.get("extras", [])})
            current = fingerprint(self.root)
            if state.get("fingerprint") == current and wanted == state["extras"]:
                return
            began = time.monotonic()
            if state:
                known = state["fingerprint"] == current
                print_now(
                    "Adding to .venv" if known else "Updating .venv: what is pinned has changed"
                )
                self.stamp.unlink()
            else:
                self._create()
            self._install(wanted)
            self._write_stamp(
                {
                    "extras": wanted,
                    "fingerprint": current,
                    "folder": str(self.folder),
                    "python": self._version(),
                }
            )
            print_now(f"Ready in {time.monotonic() - began:.0f} s.")

    def variables(self) -> dict[str, str]:
        """The environment variables for the tools of ``.venv``, which must use only that."""
        env = dict(os.environ)
        for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
            env.pop(name, None)
        # If bytecode is not kept, as in many containers, each of pytest's workers compiles all
        # tests again (10 s), and each process that a test starts compiles the package.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env.update(
            VIRTUAL_ENV=str(self.folder),
            PATH=str(self.bin) + os.pathsep + env.get("PATH", os.defpath),
            PIP_USER="0",
            # Pyright's program is in its wheel, and node in another; it must fetch nothing
            # and write nowhere else.
            PYRIGHT_PYTHON_IGNORE_WARNINGS="1",
            PYRIGHT_PYTHON_CACHE_DIR=str(self.folder / "cache"),
        )
        # Pyright creates much garbage: with a larger young generation it is a sixth faster.
        env.setdefault("NODE_OPTIONS", "--max-semi-space-size=64")
        return env

    # -- steps

    def _read_stamp(self) -> dict[str, Any]:
        """The content of the stamp, if it is valid; else nothing."""
        try:
            state = json.loads(self.stamp.read_text(encoding="utf-8"))
            extras, known, version = state["extras"], state["fingerprint"], state["python"]
            folder = state["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        chosen = os.environ.get(PYTHON_VARIABLE)
        if chosen:
            found = probe(shutil.which(chosen) or chosen)
            if not isinstance(found, Interpreter) or ".".join(map(str, found.version)) != version:
                return {}
        # The interpreter below may have been removed or replaced.
        if folder != str(self.folder) or self._version() != version:
            return {}
        return {"extras": extras, "fingerprint": known}

    def _version(self) -> str:
        found = probe(str(self.python))
        return ".".join(map(str, found.version)) if isinstance(found, Interpreter) else ""

    def _create(self) -> None:
        interpreter = find_interpreter(self.folder)
        if self.folder.is_symlink() or self.folder.is_file():
            self.folder.unlink()
        elif self.folder.exists():
            print_now(
                "Removing .venv: it was not finished, it was moved, or its interpreter is gone"
            )
            shutil.rmtree(self.folder)
        print_now(f"Building .venv with {interpreter}")
        self._run_or_fail([interpreter.path, "-m", "venv", str(self.folder)], "create .venv")

    def _install(self, extras: Sequence[str]) -> None:
        what = "this package" + (f" with the extras {', '.join(extras)}" if extras else "")
        print_now(
            f"Installing {what} and what it needs (pinned; a minute or so if it is to be fetched)"
        )
        chosen = self.folder / "pins.txt"
        pinned = (self.root / PINS).read_text(encoding="utf-8")
        chosen.write_text(select_pins(pinned, extras), encoding="utf-8")
        pip = [
            str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
            "--quiet", "--no-deps",
        ]  # fmt: skip
        # A file whose hash is not pinned is refused, whatever its source.
        hashed = [*pip, "--require-hashes", "--requirement", str(chosen)]
        self._run_or_fail(hashed, f"install what {what} needs")
        self._run_or_fail([*pip, "--no-build-isolation", "--editable", "."], f"install {what}")

    def _run_or_fail(self, command: Sequence[str], purpose: str) -> None:
        status = run_program(command, self.variables(), self.root)
        if status:
            raise SetupError(
                f"Could not {purpose} (exit status {status}); the lines above say why.\n"
                "Nothing is half done: the next run starts over."
            )

    def _write_stamp(self, state: dict[str, Any]) -> None:
        """Write the stamp atomically."""
        draft = self.stamp.with_suffix(".draft")
        draft.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self.stamp)

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        """Hold the lock of set-ups of this checkout; it ends with its process."""
        try:
            import fcntl
        except ImportError:  # this platform has no such locks
            yield
            return
        with open(self.root / "pyproject.toml", "rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                print_now("Waiting for another set-up of this folder to finish")
                fcntl.flock(held, fcntl.LOCK_EX)
            yield
