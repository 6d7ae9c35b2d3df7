"""docker-compose.yml is what ``docker compose config`` accepts, and what the documentation says.

Where Compose is installed it reads the file; elsewhere a reader of the little YAML that the file is
written in does, which refuses everything else.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from tests.servers import containers
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"


# -- reading ---------------------------------------------------------------------------------------


def scalar(text: str) -> Any:
    """A value that stands on one line."""
    if re.fullmatch(r'"[^"\\]*"', text):
        return text[1:-1]
    if text.startswith("["):
        return json.loads(text)
    if text.isdecimal():
        return int(text)
    if re.fullmatch(r"true|false|yes|no|on|off|null|~|[\d.]+", text, re.IGNORECASE):
        raise ValueError(f"{text}: no string unless it is quoted")
    if re.search(r"^[&*!|>%@`'\"{}]|: |:$| #", text):
        raise ValueError(f"{text}: not in this reader's YAML")
    return text


def parse(text: str) -> dict[str, Any]:
    """Mappings, lists of scalars, strings, ``["flow", "lists"]``, comments on lines of their own.

    :raises ValueError: there is anything else, or a key stands twice.
    """
    lines: list[tuple[int, str]] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            if "\t" in line:
                raise ValueError(f"{line!r}: a tab")
            lines.append((len(line) - len(line.lstrip()), stripped))

    def block(depth: int) -> Any:
        if lines[0][1].startswith("- "):
            items: list[Any] = []
            while lines and lines[0][0] == depth and lines[0][1].startswith("- "):
                items.append(scalar(lines.pop(0)[1][2:]))
            return items
        found: dict[str, Any] = {}
        while lines and lines[0][0] == depth:
            match = re.fullmatch(r"([\w-]+):(?: (.+))?", lines.pop(0)[1])
            if match is None or match[1] in found:
                raise ValueError(f"{match and match[1]}: no key, or one that stands twice")
            if match[2]:
                found[match[1]] = scalar(match[2])
            else:
                deeper = lines[0][0] if lines else 0
                found[match[1]] = block(deeper) if deeper > depth else None
        if lines and lines[0][0] > depth:
            raise ValueError(f"{lines[0][1]}: too far to the right")
        return found

    whole: dict[str, Any] = block(0)
    if lines:
        raise ValueError(f"{lines[0][1]}: left over")
    return whole


def compose() -> list[str] | None:
    """The command of Docker's Compose, where it is installed (it needs no engine to read)."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    found = subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30)
    return [docker, "compose"] if found.returncode == 0 else None


def test_compose_accepts_the_file() -> None:
    command = compose()
    if command is None:
        parse(FILE.read_text(encoding="utf-8"))
        return
    done = subprocess.run(
        [*command, "-f", str(FILE), "config", "--format", "json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, service in json.loads(done.stdout)["services"].items():
        ours = SERVICES[name]
        assert service["image"] == ours["image"]
        assert service.get("environment", {}) == ours.get("environment", {})


@pytest.mark.parametrize(
    "text",
    [
        "a: 1.5", "a: yes", "a:\n  b: |\n    c", "a: &x b", "a: b\na: c", "a:\n  - b: c",
        "a:\n\tb: c", "a: b\n  c: d", "a: 'b", "- a\nb: c", "a: b # c",
    ],
)  # fmt: skip
def test_what_the_reader_does_not_know_it_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=":"):
        parse(text)


def test_what_the_reader_knows() -> None:
    text = '# x\na:\n  b: c:d\n  e: "1"\n  f:\n    - "g: h"\n    - i\n  j: ["k", "l"]\nm:\n'
    expected = {"a": {"b": "c:d", "e": "1", "f": ["g: h", "i"], "j": ["k", "l"]}, "m": None}
    assert parse(text) == expected


# -- what it says ----------------------------------------------------------------------------------

DOCUMENT = parse(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]


def test_it_has_the_tests_servers_in_pinned_images() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images == {
        "kafka": containers.KAFKA_IMAGE,
        "postgres": containers.POSTGRES_IMAGE,
        "redis": containers.REDIS_IMAGE,
    }
    for image in (*images.values(), containers.VALKEY_IMAGE):
        pinned = re.search(r":\d+\.\d+.*@sha256:[0-9a-f]{64}$", image)
        assert pinned, f"{image} is another one next month"


def test_nothing_in_it_is_misspelt() -> None:
    assert set(DOCUMENT) == {"services", "volumes"}
    for name, service in SERVICES.items():
        known = {"command", "environment", "healthcheck", "image", "ports", "volumes"}
        assert set(service) <= known, name
        # "docker compose up --wait" waits for what has one.
        health = service["healthcheck"]
        assert set(health) <= {"test", "interval", "timeout", "retries", "start_period"}
        assert health["test"][0] in ("CMD", "CMD-SHELL")
        # A number or a truth value is not what the image would see.
        assert all(isinstance(each, str) for each in service.get("environment", {}).values())
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in DOCUMENT["volumes"]


def published() -> dict[str, tuple[str, int, int]]:
    """Each service's address on this machine, its port there and inside."""
    found = {}
    for name, service in SERVICES.items():
        (port,) = service["ports"]
        host, outside, inside = port.split(":")
        found[name] = (host, int(outside), int(inside))
    return found


def test_its_ports_are_those_that_are_written_everywhere() -> None:
    pages = [
        FILE,
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.py"),
    ]
    written: dict[str, set[int]] = {"kafka": set(), "postgres": set(), "redis": set()}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for scheme, port in re.findall(r"\b(kafka|redis)://localhost:(\d+)", text):
            written[scheme].add(int(port))
        for port in re.findall(r"\bpostgresql://[^\s/]*localhost:(\d+)", text):
            written["postgres"].add(int(port))
        for port in re.findall(r"STREAMS_TEST_KAFKA=localhost:(\d+)", text):
            written["kafka"].add(int(port))
    for name, (host, outside, _) in published().items():
        assert host == "127.0.0.1", f"{name} could be reached from other machines"
        assert written[name] == {outside}


def test_clients_of_this_machine_are_led_back_to_the_published_port() -> None:
    _, outside, inside = published()["kafka"]
    environment = SERVICES["kafka"]["environment"]
    listeners = dict(each.split("://") for each in environment["KAFKA_LISTENERS"].split(","))
    advertised = dict(
        each.split("://") for each in environment["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised["EXTERNAL"] == f"localhost:{outside}"
    assert listeners["EXTERNAL"] == f":{inside}"
    protocols = environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    assert {each.partition(":")[0] for each in protocols.split(",")} == set(listeners)
    health = " ".join(SERVICES["kafka"]["healthcheck"]["test"])
    assert f"localhost{listeners['INTERNAL']}" in health


def test_a_broker_knows_each_of_its_settings(lifetime: Lifetime) -> None:
    """The image makes log.dirs of KAFKA_LOG_DIRS; a name that is misspelt means nothing."""
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in SERVICES["kafka"]["environment"].items()
    }
    place = [name for name in settings if "listener" in name or "quorum" in name]
    config = {name: value for name, value in settings.items() if name not in (*place, "log.dirs")}
    with Kafka(lifetime, config=config) as broker:
        client = AdminClient({"bootstrap.servers": broker.bootstrap})
        resource = ConfigResource(ResourceType.BROKER, "1")
        found = client.describe_configs([resource])[resource].result(30)
    assert set(place) <= set(found)
    assert {name: found[name].value if name in found else None for name in config} == config
