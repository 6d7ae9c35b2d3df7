"""``streams run --workers N``: a supervisor of processes that share an app's groups.

Promises: N workers run, each an interpreter of its own; one that dies is restarted, at once if
it lived for ten seconds, else after 1 s and then twice as long each time up to 30 s. Its partitions
go to the others at once, if the log lets them take these. One whose name in its groups was taken
by another process is not restarted. SIGINT or SIGTERM is passed on and all workers may drain; a
second signal ends everything at once. Workers whose app cannot be loaded, or that keep dying at
their start, end the supervisor with one line.

Theory of operation. The supervisor never imports the app: an import may open resources that belong
to one process. It starts the first worker alone, and the others once that one has loaded the app,
so that a bad app is reported once and not N times. Supervisor and worker are joined by a socket,
the worker's standard input at its start: the worker writes a byte when the app is loaded, and
drains when it reads the end, for then the supervisor is gone, for whatever reason. Workers have
process groups of their own: Ctrl-C in a terminal reaches the supervisor alone, and the one signal
it passes on is not their second.

Workers are static members of their groups: one that is restarted gets its partitions back. For
that its name must be the same after a restart and unique in its groups, so it is made of the name
that the app was given, or of the host's and the app's, and of the worker's number; a second
supervisor of the same app on this machine finds a lock file taken and puts the number of its *slot*
before. The files are in a folder that only this user can write to; if another user has taken its
name, the slot is a random number. With KIP-848 there are no static members that can be restarted:
workers are ordinary ones.

The supervisor sees a worker die, so its leases need not be waited for. It has no connection to the
log, but the other workers have: it sends them the dead process's name and its life (the word that
no other process of that name has) in one line, and they expel it. A worker sends both after the
byte that says that the app is loaded.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from streams import wire
from streams.cli.command_errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    UsageError,
    hide_secret_also,
    print_error,
)
from streams.errors import EXIT_FENCED, StreamsError
from streams.text import count_with_noun, get_logger

if TYPE_CHECKING:
    from streams.app import Streams

logger = get_logger("streams")

LOADED_BYTE = b"+"
_MAX_LINE = 4_096
GROUP_INSTANCE_ID = "group.instance.id"
NUMBER_VARIABLE = "STREAMS_WORKER"
"""The environment variable in which an app finds its worker's number, from 1."""
_URL_VARIABLE = "STREAMS_WORKER_URL"
"""The variable in which the supervisor passes ``--url`` to a worker. It is not ``STREAMS_URL``, as
that has a lower priority than the app's code."""


def worker_number() -> int | None:
    """The number of this worker, from 1; None: its supervisor did not say."""
    return wire.parse_int(os.environ.get(NUMBER_VARIABLE))


def take_supervisor_url() -> str | None:
    """The value of ``--url``, removed from the environment: the app's children must not find it.

    From here on no error shows a secret in it.
    """
    url = os.environ.pop(_URL_VARIABLE, None)
    if url:
        hide_secret_also(url)
    return url


@dataclass(frozen=True)
class RestartPolicy:
    """How a supervisor reacts to the deaths of a worker; all times in seconds."""

    first_delay: float = 1.0
    """The wait before the restart of a worker that did not live long."""
    max_delay: float = 30.0
    """The limit up to which the wait doubles."""
    stable_after: float = 10.0
    """The life after which a worker is restarted at once."""
    startup_time: float = 10.0
    """The life below which a worker's death counts as one at its start."""
    max_failed_starts: int = 5
    """The number of consecutive deaths at the start, while no other worker lives on, that is
    enough."""

    def delay(self, deaths: int) -> float:
        """The wait after this many consecutive deaths of workers that did not live long."""
        return min(self.first_delay * 2.0 ** min(deaths - 1, 32), self.max_delay) if deaths else 0.0


# -- the supervisor -------------------------------------------------------------------------------


def supervise(
    target: str,
    workers: int,
    url: str | None,
    options: Sequence[str] = (),
    http: tuple[str, int] | None = None,
    member: str | None = None,
) -> int:
    """Run an app in this many workers until a signal; returns the exit status.

    :param url: ``--url``, which has priority over the app's code.
    :param options: of the command line, for each worker.
    :param member: the prefix of their names in their groups; the app's own name if None.
    :param http: where the first serves its metrics; each other has the next port.
    :raises UsageError: there are not enough ports.
    """
    if http is not None and http[1] and http[1] + workers - 1 > 65_535:
        where = f"--http {http[0]}:{http[1]}"
        raise UsageError(f"{where}: {workers} workers need that many ports from there")
    command = [sys.executable, "-m", "streams.cli", "run", target, *options]
    environment = dict(os.environ)
    if url:  # not an argument: others on the machine see those, and a URL may contain a password
        environment[_URL_VARIABLE] = url
    if member is not None:
        command += ["--member", member]
    lock, slot = claim_slot(target)
    try:
        prefix = "" if slot == 1 else f"{slot}."
        commands = [
            [*command, *_http_arguments(http, index), "--worker", f"{prefix}{index + 1}"]
            for index in range(workers)
        ]
        return asyncio.run(Supervisor(target, commands, environment).run())
    finally:
        os.close(lock)


def _http_arguments(address: tuple[str, int] | None, index: int) -> list[str]:
    """The arguments that tell a worker, counted from 0, where to serve its metrics."""
    if address is None:
        return []
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return ["--http", f"{host}:{address[1] + index if address[1] else 0}"]


def claim_slot(target: str) -> tuple[int, int]:
    """The lowest slot that no other supervisor of this app holds on this machine, and its lock.

    It is held while the descriptor is open. If files cannot be locked the slot is always 1. It
    is a random, unique one if this user cannot have a folder of its own.
    """
    try:
        import fcntl
    except ImportError:
        return os.open(os.devnull, os.O_RDONLY), 1
    path = os.path.join(tempfile.gettempdir(), f"streams-{os.geteuid()}")
    try:
        folder = _open_private_folder(path)
    except OSError as error:
        logger.warning(
            "%s: %s: without it a restart of this command is a new member of its groups; set "
            "TMPDIR to a folder that others cannot write to", path, error.strerror,
        )  # fmt: skip
        return os.open(os.devnull, os.O_RDONLY), 1 + secrets.randbelow(1 << 48)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for slot in count(1):
            lock = os.open(f"{_name_part(target)}-{slot}.lock", flags, 0o600, dir_fd=folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return lock, slot
    finally:
        os.close(folder)
    raise AssertionError("unreachable: slots have no end")


def _open_private_folder(path: str) -> int:
    """A folder that no other user can write to, created if it is missing, as a descriptor.

    :raises OSError: another user has created it, or it is writable for others.
    """
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(folder)
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(folder)
        raise PermissionError(errno.EPERM, "others can write to it")
    return folder


@dataclass(slots=True)
class RunningWorker:
    """A worker's process, and the supervisor's socket to it."""

    process: Process
    connection: socket.socket
    started_at: float
    """The start time on :func:`time.monotonic`."""
    received: bytes = b""
    """The bytes that it has sent since its start."""


class Supervisor:
    """Keeps a process running for each command.

    :param name: the app's name, for log lines.
    :param commands: the arguments of each worker.
    :param environment: the workers' environment.
    """

    def __init__(
        self,
        name: str,
        commands: Sequence[Sequence[str]],
        environment: Mapping[str, str],
        policy: RestartPolicy = RestartPolicy(),
    ) -> None:
        self._name = name
        self._commands = commands
        self._environment = environment
        self._policy = policy
        self._running: dict[int, RunningWorker] = {}
        self._signal = signal.SIGTERM
        self._stop_requested = asyncio.Event()
        self._status = DONE

    async def run(self) -> int:
        """Run until a signal, or until it is hopeless; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._handle_signal, number)
        try:
            first = await self._start_worker(1)
            if not await self._wait_until_loaded(1) and not self._stop_requested.is_set():
                return self._load_failed(await first.wait())
            numbers = range(1, len(self._commands) + 1)
            await asyncio.gather(*map(self._keep_running, numbers))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            self._signal_workers(signal.SIGKILL)  # some are left only after an error here
        return self._status

    def _handle_signal(self, number: signal.Signals) -> None:
        if not self._stop_requested.is_set():
            logger.info("%s: waiting for %s to finish", number.name, self._count_workers())
            self._stop_workers(number)
            return
        logger.warning(
            "%s again: killing %s, not everything was finished", number.name, self._count_workers()
        )
        self._signal_workers(signal.SIGKILL)
        if number == signal.SIGTERM:
            asyncio.get_running_loop().remove_signal_handler(number)
            os.kill(os.getpid(), number)
        os._exit(INTERRUPTED)

    def _count_workers(self) -> str:
        return count_with_noun(len(self._running), "worker")

    def _stop_workers(self, number: signal.Signals) -> None:
        self._signal = number
        self._stop_requested.set()
        self._signal_workers(number)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._running.values():
            with suppress(ProcessLookupError):
                worker.process.send_signal(number)

    async def _start_worker(self, number: int) -> Process:
        socket_end, worker_end = socket.socketpair()
        socket_end.setblocking(False)
        with worker_end:
            process = await asyncio.create_subprocess_exec(
                *self._commands[number - 1],
                stdin=worker_end.fileno(),
                env={**self._environment, NUMBER_VARIABLE: str(number)},
                process_group=0,
            )
        self._running[number] = RunningWorker(process, socket_end, time.monotonic())
        logger.info("worker %d is process %d", number, process.pid)
        if self._stop_requested.is_set():  # the signal came while it was being started
            with suppress(ProcessLookupError):
                process.send_signal(self._signal)
        return process

    async def _wait_until_loaded(self, number: int) -> bool:
        """Wait until a worker has loaded the app; False if it ended instead."""
        worker = self._running[number]
        try:
            loop = asyncio.get_running_loop()
            worker.received += await loop.sock_recv(worker.connection, _MAX_LINE)
        except OSError:
            return False
        return worker.received.startswith(LOADED_BYTE)

    def _announce_ended(self, number: int) -> None:
        """A worker's process has ended: tell the others, which expel it from its groups."""
        ended = self._running.pop(number)
        with suppress(OSError):  # its last bytes, if there are any
            ended.received += ended.connection.recv(_MAX_LINE)
        ended.connection.close()
        line, newline, _ = ended.received.removeprefix(LOADED_BYTE).partition(b"\n")
        if newline and line and not self._stop_requested.is_set():
            for other in self._running.values():
                with suppress(OSError):  # the other worker is about to end, or does not read
                    other.connection.send(line + b"\n")

    def _load_failed(self, status: int) -> int:
        """The first worker could not load the app. Its own error is not repeated."""
        self._running.pop(1).connection.close()
        if status in (DONE, FAILED, 2):
            return status or FAILED
        print_error(f"{self._name}: the first worker {exit_text(status)} while it loaded the app")
        return FAILED

    async def _keep_running(self, number: int) -> None:
        """Keep one worker running until it is done, in one process after another."""
        policy = self._policy
        deaths = failed_starts = 0
        while True:
            if number not in self._running:
                await self._start_worker(number)
            worker = self._running[number]
            status = await worker.process.wait()
            uptime = time.monotonic() - worker.started_at
            self._announce_ended(number)
            if self._stop_requested.is_set():
                # A worker without a handler for the signal yet had nothing in flight either.
                if status not in (DONE, -self._signal, INTERRUPTED):
                    logger.error("worker %d %s", number, exit_text(status))
                    self._status = self._status or FAILED
                return
            if status == EXIT_FENCED:
                logger.error(
                    "worker %d: another process has taken its name in its groups; it is not "
                    "started again", number,
                )  # fmt: skip
                self._status = EXIT_FENCED
                return
            deaths = 0 if uptime >= policy.stable_after else deaths + 1
            failed_starts = failed_starts + 1 if uptime < policy.startup_time else 0
            if failed_starts >= policy.max_failed_starts and not self._has_stable_worker():
                print_error(
                    f"{self._name}: workers do not stay alive: one died {failed_starts} times in a "
                    f"row within {policy.startup_time:g} s of its start, most recently it "
                    f"{exit_text(status)}"
                )
                self._status = self._status or FAILED
                self._stop_workers(signal.SIGTERM)
                return
            delay = policy.delay(deaths)
            when = f"again in {delay:g} s" if delay else "started again at once"
            logger.warning("worker %d %s: %s", number, exit_text(status), when)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), delay)
            if self._stop_requested.is_set():
                return

    def _has_stable_worker(self) -> bool:
        latest_start = time.monotonic() - self._policy.startup_time
        return any(worker.started_at <= latest_start for worker in self._running.values())


def exit_text(status: int) -> str:
    """An exit status in words; a negative one is the signal that ended the process."""
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with status {status}" if status else "ended by itself"


# -- a worker -------------------------------------------------------------------------------------


class WorkerProcess:
    """The part of a supervised process beside running its app.

    :param tag: distinguishes it from the supervisor's other workers; the same after a restart.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        # Standard input becomes what it is without a supervisor; children must not hold ours.
        self._supervisor = socket.socket(fileno=os.dup(0))
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)

    def report_loaded(self, target: str, app: Streams) -> None:
        """Configure the app as one of several workers, and tell the supervisor that it is loaded.

        :raises UsageError: the app's log is private to one process.
        :raises ConfigError: it has no URL, or an invalid one.
        """
        if app.url.lower().startswith("memory:"):
            problem = "memory:// is one process's own: --workers needs another log"
            raise UsageError(f"{target}: {problem}")
        name_member(app, f"{socket.gethostname()}-{target}", self._tag)
        line = f"{app.member} {app.instance_id}\n".encode() if app.member else b""
        with suppress(OSError):  # the supervisor is gone: the thread will notice
            self._supervisor.sendall(LOADED_BYTE + line)
        threading.Thread(
            target=self._follow_supervisor, args=(app,), name="streams-supervisor", daemon=True
        ).start()

    def _follow_supervisor(self, app: Streams) -> None:
        with suppress(OSError), self._supervisor.makefile("rb") as lines:
            for line in lines:
                member, _, instance_id = line.decode().strip().partition(" ")
                try:
                    app.expel_member(member, instance_id)
                except StreamsError as error:
                    logger.info("%s has ended, and what it had is waited for: %s", member, error)
        logger.warning("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)


def name_member(app: Streams, default_name: str, tag: str) -> None:
    """Give a worker's app a name in its groups: the app's own, or ``default_name``, and ``tag``.

    On Kafka the user's ``group.instance.id`` takes the place of a name; with KIP-848 there is none.
    """
    from streams.log.url import parse

    config = app.driver_config
    if app.member:
        app.member = f"{app.member}-{tag}"
        return
    url = parse(app.url)
    if url.scheme in ("kafka", "kafka+ssl"):
        settings = {**url.options, **config}
        if str(settings.get("group.protocol", "classic")).lower() != "classic":
            return
        if GROUP_INSTANCE_ID in settings:
            config[GROUP_INSTANCE_ID] = f"{_name_part(str(settings[GROUP_INSTANCE_ID]))}-{tag}"
            return
    app.member = f"{_name_part(default_name)[-180:]}-{tag}"


def _name_part(text: str) -> str:
    """The text as a part of a name: only characters that Kafka and file systems accept."""
    from streams.log.names import to_valid_name

    return to_valid_name(text)[-200:]
