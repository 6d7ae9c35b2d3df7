"""A broker with TLS, logins and rights, set up by the commands of docs/kafka.md."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docs.blocks import ROOT, Block, blocks, commands
from tests.servers.java import Missing
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime

PAGE = ROOT / "docs" / "kafka.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks(PAGE)
TOOLS = {"kafka-configs.sh": "configs", "kafka-acls.sh": "org.apache.kafka.tools.AclCommand"}

SECURED = pytest.mark.xdist_group("kafka-docs")
"""One broker for all of its tests: one of pytest's workers runs them."""


class SecuredKafka(NamedTuple):
    """Such a broker.

    :param url: with the login of a service.
    """

    broker: Kafka
    url: str


def block_with(text: str) -> Block:
    """The block of the page that has this in it, and is no Python."""
    (found,) = [each for each in BLOCKS if text in each.text and each.language != "python"]
    return found


@pytest.fixture(scope="session")
def secured(lifetime: Lifetime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A broker that was set up by the page's blocks, and the URL it ends with."""
    if shutil.which("openssl") is None:
        raise Missing("openssl was not found (apt-get install openssl)")
    folder = tmp_path_factory.mktemp("walk")
    for line in block_with("openssl req").text.splitlines():
        subprocess.run(["sh", "-c", line], cwd=folder, check=True, capture_output=True, timeout=60)
    said = block_with("ssl.keystore.type").text.replace("/etc/kafka", str(folder))
    config = dict(line.split("=", 1) for line in said.splitlines())
    with Kafka(lifetime, secure=True, config=config) as broker:
        for line in commands(block_with("kafka-acls.sh")):
            program, *words = shlex.split(line)
            at = words.index("--bootstrap-server")
            assert words[at + 1] == "localhost:9092"
            broker.tool(TOOLS[program], *words[:at], *words[at + 2 :])
        url = re.search(r"STREAMS_URL='(.*)'", TEXT)
        assert url
        secure = broker.secure_client()["bootstrap.servers"].replace("127.0.0.1", "localhost")
        there = url[1].replace("localhost:9093", secure).replace("=ca.pem", f"={folder}/ca.pem")
        yield SecuredKafka(broker, there)
