"""The peers' toolkits: in this environment, else in one of their own, made on request.

An environment of its own is made under ``share/`` of this one, from the pinned requirements beside
this file, once for each text of them. Quix Streams always needs one: it pins another version of
confluent-kafka than ours. The Parallel Consumer needs Java, its compiler and Maven.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import MeasureError, run_once
from tests.servers.java import java
from tests.servers.lifetime import locked

HERE = Path(__file__).resolve().parent


class PeerMissing(Exception):
    """A peer is not available here; the message says why, and what to do."""


@dataclass(frozen=True)
class Peer:
    """A toolkit to compare with.

    :param name: its name on the command line.
    :param title: its name in a table.
    :param module: its program, in ``benchmarks.peers``.
    :param imports: the modules it needs in this environment to run here.
    :param requirements: the file with its pins; empty: it is no Python package.
    """

    name: str
    title: str
    module: str = ""
    imports: Sequence[str] = ()
    requirements: str = ""


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "faststream", "FastStream", "faststream_program", ("faststream", "uvloop"),
            "faststream.txt",
        ),
        Peer("quix", "Quix Streams", "quix_program", ("quixstreams",), "quix.txt"),
        Peer(
            "aiokafka", "aiokafka", "aiokafka_program", ("aiokafka", "uvloop"), "faststream.txt"
        ),
        Peer(
            "eventsourcing", "eventsourcing", "eventsourcing_program", ("eventsourcing",),
            "eventsourcing.txt",
        ),
        Peer("parallel-consumer", "Parallel Consumer (JVM)"),
    )
}  # fmt: skip


def store_folder() -> Path:
    """The folder of environments and jars."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "share"
    return Path.home() / ".cache" / "streams-toolkit"


class InstalledPeer:
    """A peer that can run."""

    def __init__(self, peer: Peer, command: Sequence[str]) -> None:
        self.peer = peer
        self._command = list(command)

    def run(self, task: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One measurement.

        :raises MeasureError: it failed.
        """
        if self.peer.module:
            return run_once([*self._command, task, json.dumps(dict(arguments))])
        return _run_java(self._command, arguments)


def install(name: str) -> InstalledPeer:
    """Make a peer ready to run.

    :raises PeerMissing: it is not available; says why.
    """
    peer = PEERS[name]
    if not peer.module:
        return InstalledPeer(peer, _java_command())
    interpreter = sys.executable
    if not all(importlib.util.find_spec(each) for each in peer.imports):
        interpreter = str(_environment(peer) / "bin" / "python")
    return InstalledPeer(peer, [interpreter, "-m", f"benchmarks.peers.{peer.module}"])


def _environment(peer: Peer) -> Path:
    """The virtual environment of a peer, made if it is not there."""
    requirements = HERE / peer.requirements
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = requirements.read_bytes() + version.encode()
    label = f"peer-{requirements.stem}-{hashlib.sha256(text).hexdigest()[:8]}"
    wanted = store_folder() / label
    store_folder().mkdir(parents=True, exist_ok=True)
    with locked(store_folder() / "peers.lock"):
        if (wanted / "ready").exists():
            return wanted
        shutil.rmtree(wanted, ignore_errors=True)
        python = str(wanted / "bin" / "python")
        for command in (
            [sys.executable, "-m", "venv", str(wanted)],
            [python, "-m", "pip", "install", "-q", "-r", str(requirements)],
        ):
            _run_or_fail(command, f"{peer.title} could not be installed")
        (wanted / "ready").touch()
    return wanted


def _java_command() -> list[str]:
    """The command of the Parallel Consumer's program, fetched and compiled once."""
    for tool, package in (("javac", "default-jdk-headless"), ("mvn", "maven")):
        if shutil.which(tool) is None:
            raise PeerMissing(
                f"the Parallel Consumer needs {tool}, not found (apt-get install {package})"
            )
    folder = HERE / "parallel_consumer"
    text = (folder / "pom.xml").read_bytes() + (folder / "Bench.java").read_bytes()
    wanted = store_folder() / f"peer-parallel-consumer-{hashlib.sha256(text).hexdigest()[:8]}"
    store_folder().mkdir(parents=True, exist_ok=True)
    with locked(store_folder() / "peers.lock"):
        if not wanted.is_dir():
            with tempfile.TemporaryDirectory(dir=store_folder()) as scratch:
                made = Path(scratch, "made")
                what = "the Parallel Consumer could not be built"
                _run_or_fail(
                    [
                        "mvn", "-q", "-B", "-f", str(folder / "pom.xml"),
                        "dependency:copy-dependencies", f"-DoutputDirectory={made}",
                        "-DincludeScope=runtime",
                    ],
                    what,
                )  # fmt: skip
                _run_or_fail(
                    ["javac", "-cp", f"{made}/*", "-d", str(made), str(folder / "Bench.java")], what
                )
                made.rename(wanted)  # atomically: whole, or not at all
    memory = ("-Xms1g", "-Xmx2g")
    return [java(), *memory, "-cp", f"{wanted}:{wanted}/*", "Bench"]


def _run_java(command: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    messages = arguments["messages"]
    # The first part is a warm-up for the JIT compiler.
    skip = max(1, messages // 4)
    answer = run_once(
        [
            *command,
            arguments["url"].partition("://")[2],
            arguments["topic"],
            str(messages),
            str(skip),
            str(arguments["concurrency"]),
            str(round(arguments.get("wait", 0.0) * 1000)),
        ]
    )
    answer["settings"] = {
        "toolkit": "Parallel Consumer 0.5.3.3, kafka-clients 3.9.1",
        "options": (
            f"ordering=KEY, maxConcurrency={arguments['concurrency']}, "
            "PERIODIC_CONSUMER_ASYNCHRONOUS every second; decodes nothing, no dedup"
        ),
        "client": "max.poll.records=5000, fetch.max.wait.ms=100",
        "java": " ".join(command[1:3]) + f"; the first {skip:,} messages are left out",
    }
    return answer


def _run_or_fail(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as error:
        raise PeerMissing(f"{what}: {error}") from error
    if done.returncode:
        said = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise PeerMissing(f"{what}: {said}")


__all__ = ["PEERS", "InstalledPeer", "MeasureError", "Peer", "PeerMissing", "install"]
