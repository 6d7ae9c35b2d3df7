"""Kafka on this machine: real brokers in KRaft mode, one process each, no ZooKeeper, no container.

Every node is broker and controller, on fixed loopback ports, with its data in the lifetime's
folder, so that a node can be killed and come back to what it had. Timings which a production
cluster wants long (sessions, elections) are short here; anything can be set otherwise.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.servers.certificates import Certificates, certificates
from tests.servers.java import KAFKA, class_archive, java, log_option
from tests.servers.lifetime import Lifetime, Process, free_port, locked

USER = "app"
PASSWORD = "app-secret"
MECHANISM = "SCRAM-SHA-512"

SMALL_JAVA = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Starts in two thirds of the time, for it compiles quickly rather than well."""
FAST_JAVA = ("-Xms1g", "-Xmx1g")
"""What a server in production comes near to."""

_TOOLS = {
    "groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "produce": "org.apache.kafka.tools.ConsoleProducer",
    "consume": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "configs": "kafka.admin.ConfigCommand",
}


def _java_command(options: Sequence[str], level: str, folder: Path) -> list[str]:
    archive = class_archive()
    return [
        java(), *options,
        *([f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []),
        # An archive that does not fit is no error, and nothing for what reads a tool's output.
        "-Xlog:disable", "-Xlog:all=warning:stderr",
        log_option(folder, level),
        "-cp", f"{KAFKA.folder()}/*",
    ]  # fmt: skip


def tool(bootstrap: str, folder: Path, name: str, *arguments: str, input: str | None = None) -> str:
    """What one of Kafka's own command-line tools prints, see :meth:`Kafka.tool`.

    :param folder: where it finds how to log.
    """
    command = _java_command(["-Xmx256m", "-XX:TieredStopAtLevel=1"], "error", folder)
    done = subprocess.run(
        [*command, _TOOLS.get(name, name), "--bootstrap-server", bootstrap, *arguments],
        input=input,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    return done.stdout


def make_class_archive() -> None:
    """Run a broker once, and keep the classes it loaded in the form in which a JVM maps them."""
    archive = class_archive()
    with locked(archive.with_suffix(".lock")):
        if archive.exists():
            return
        draft = archive.with_suffix(".draft")
        options = (*SMALL_JAVA, f"-XX:ArchiveClassesAtExit={draft}")
        with Lifetime() as lifetime, Kafka(lifetime, java_options=options) as broker:
            client: dict[str, Any] = {"bootstrap.servers": broker.bootstrap, "log_level": 0}
            admin = AdminClient(client)
            admin.create_topics([NewTopic("topic", 1, 1)])["topic"].result(60)
            producer = Producer({**client, "transactional.id": "id"})
            producer.init_transactions(60)
            producer.begin_transaction()
            producer.produce("topic", b"value")
            producer.commit_transaction(60)
            del admin, producer  # so that nobody misses the broker
            for protocol in ("classic", "consumer"):
                consumer = Consumer(
                    {**client, "group.id": protocol, "group.protocol": protocol,
                     "auto.offset.reset": "earliest"}
                )  # fmt: skip
                consumer.subscribe(["topic"])
                consumer.poll(60)
                consumer.commit(asynchronous=False)
                consumer.close()
            broker.nodes[0].process.stop(300)  # it writes the archive as it ends
        if draft.exists():
            draft.rename(archive)


class Node:
    """One broker, with its controller.

    :ivar process: what a test kills, pauses and starts again.
    """

    def __init__(self, id: int, folder: Path) -> None:
        self.id = id
        self.folder = folder
        self.port = free_port()
        self.controller_port = free_port()
        self.secure_port = free_port()
        self.process: Process

    @property
    def address(self) -> str:
        """``host:port`` of the plain listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def properties(self) -> Path:
        """Its configuration file."""
        return self.folder / "server.properties"


class Kafka:
    """A cluster of one or more brokers. A context manager: entering starts it, leaving kills it.

    :param lifetime: what it ends with at the latest.
    :param brokers: how many nodes; with 3, one may be killed at any time.
    :param secure: open one more listener with TLS and SASL/SCRAM (:meth:`secure_client`).
    :param config: broker settings on top of ours.
    :param java_options: the JVM's; ours make it start fast, a benchmark wants :data:`FAST_JAVA`.
    :raises Missing: this machine has no Java or no jars.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        *,
        brokers: int = 1,
        secure: bool = False,
        config: Mapping[str, str] | None = None,
        java_options: Sequence[str] = SMALL_JAVA,
    ) -> None:
        self.folder = lifetime.place("kafka")
        self.certificates: Certificates | None = certificates(self.folder) if secure else None
        self.nodes: list[Node] = []
        for number in range(1, brokers + 1):
            folder = self.folder / f"node-{number}"
            folder.mkdir()
            self.nodes.append(Node(number, folder))
        for node in self.nodes:
            self._write(node, config or {})
            command = _java_command(java_options, "info", self.folder)
            node.process = Process(
                lifetime,
                [*command, "kafka.Kafka", str(node.properties)],
                node.folder / "server.log",
            )
        self._format(lifetime)

    def __enter__(self) -> Kafka:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for place in range(len(self.nodes)):
            self.kill(place)

    @property
    def bootstrap(self) -> str:
        """``bootstrap.servers`` of the plain listener."""
        return ",".join(node.address for node in self.nodes)

    @property
    def url(self) -> str:
        """The same as an app's URL."""
        return f"kafka://{self.bootstrap}"

    def secure_client(self) -> dict[str, Any]:
        """Client settings for the listener with TLS and SASL.

        :raises RuntimeError: the cluster was not made with ``secure=True``.
        """
        if self.certificates is None:
            raise RuntimeError("this cluster has no secure listener: Kafka(..., secure=True)")
        return {
            "bootstrap.servers": ",".join(f"127.0.0.1:{node.secure_port}" for node in self.nodes),
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISM,
            "sasl.username": USER,
            "sasl.password": PASSWORD,
            "ssl.ca.location": str(self.certificates.authority),
        }

    # -- life

    def start(self) -> None:
        """Start every node that does not run; returns once all of them serve.

        :raises StartError: one did not come up.
        """
        for node in self.nodes:
            if not node.process.alive:
                node.process.start()
        self.wait_ready()

    def stop(self) -> None:
        """End every node in order (a broker hands over what it leads)."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(lambda node: node.process.stop(), self.nodes))

    def kill(self, node: int = 0) -> None:
        """``kill -9`` of one node, by its place in :attr:`nodes`."""
        self.nodes[node].process.kill()

    def pause(self, node: int = 0) -> None:
        """Freeze one node: its connections stay open, nothing answers."""
        self.nodes[node].process.pause()

    def resume(self, node: int = 0) -> None:
        """Let a frozen node go on."""
        self.nodes[node].process.resume()

    def restart(self, node: int = 0) -> None:
        """Start a node that was killed or stopped again, on its own data; waits until it serves."""
        self.nodes[node].process.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return once every running node is known to the cluster and answers.

        :raises StartError: one ended, or it took too long.
        """
        running = [node for node in self.nodes if node.process.alive]
        expected = {node.id for node in running}
        for node in running:
            admin = AdminClient(
                {
                    "bootstrap.servers": node.address,
                    "log_level": 0,
                    "reconnect.backoff.ms": 20,
                    "reconnect.backoff.max.ms": 200,
                }
            )

            def ready(admin: AdminClient = admin) -> bool | None:
                try:
                    return expected <= set(admin.list_topics(timeout=1).brokers) or None
                except KafkaException:
                    return None

            node.process.wait_ready(ready)

    def leader(self, topic: str, partition: int = 0) -> int:
        """The place in :attr:`nodes` of the node that leads a partition."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        leader = admin.list_topics(topic, timeout=10).topics[topic].partitions[partition].leader
        return next(place for place, node in enumerate(self.nodes) if node.id == leader)

    def tool(self, name: str, *arguments: str, input: str | None = None) -> str:
        """What one of Kafka's own command-line tools prints.

        :param name: ``groups``, ``produce``, ``consume``, ``topics``, ``configs`` or a class.
        :raises subprocess.CalledProcessError: it failed.
        """
        return tool(self.bootstrap, self.folder, name, *arguments, input=input)

    # -- making

    def _write(self, node: Node, config: Mapping[str, str]) -> None:
        replicas = str(min(3, len(self.nodes)))
        safe = str(min(2, len(self.nodes)))
        listeners = {"PLAINTEXT": node.port, "CONTROLLER": node.controller_port}
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": ",".join(
                f"{peer.id}@127.0.0.1:{peer.controller_port}" for peer in self.nodes
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL"
            ),
            "log.dirs": str(node.folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": safe,
            "transaction.state.log.num.partitions": "4",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": safe,
            "share.coordinator.state.topic.num.partitions": "4",
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            # Whatever wakes up all the time costs as much, in ten minutes, as a start.
            "metadata.max.idle.interval.ms": "0",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            # A broker that was killed may come back only once its old session is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "group.consumer.min.heartbeat.interval.ms": "100",
            "group.consumer.heartbeat.interval.ms": "200",
            # Kafka 4.3 computes a group's assignment once a second at most, unless told so.
            "group.consumer.min.assignment.interval.ms": "0",
            "group.consumer.assignment.interval.ms": "0",
            "group.consumer.min.session.timeout.ms": "1000",
            "group.consumer.session.timeout.ms": "6000",
        }
        if self.certificates is not None:
            listeners["SASL_SSL"] = node.secure_port
            name = f"listener.name.sasl_ssl.{MECHANISM.lower()}.sasl.jaas.config"
            settings |= {
                "sasl.enabled.mechanisms": MECHANISM,
                name: "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.certificates.both),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.certificates.authority),
            }
        settings["listeners"] = ",".join(
            f"{name}://127.0.0.1:{port}" for name, port in listeners.items()
        )
        settings |= config
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        node.properties.write_text(text, encoding="utf-8")

    def _format(self, lifetime: Lifetime) -> None:
        """Format the nodes' folders; Kafka's tool does it once a session, the rest is copied."""
        kind = "plain" if self.certificates is None else "secure"
        made = lifetime.shared(f"kafka-{kind}-format", self._format_first)
        cluster = _kafka_uuid()
        for node in self.nodes:
            data = node.folder / "data"
            data.mkdir(exist_ok=True)
            shutil.copy(made["checkpoint"], data / "bootstrap.checkpoint")
            (data / "meta.properties").write_text(
                f"version=1\ncluster.id={cluster}\n"
                f"node.id={node.id}\ndirectory.id={_kafka_uuid()}\n",
                encoding="utf-8",
            )

    def _format_first(self) -> dict[str, str]:
        node = self.nodes[0]
        arguments = ["kafka.tools.StorageTool", "format", "-t", _kafka_uuid()]
        if self.certificates is not None:
            arguments += ["--add-scram", f"{MECHANISM}=[name={USER},password={PASSWORD}]"]
        subprocess.run(
            [
                *_java_command(["-XX:TieredStopAtLevel=1"], "error", self.folder),
                *arguments, "-c", str(node.properties),
            ],
            capture_output=True,
            check=True,
            timeout=500,
        )  # fmt: skip
        # Not where it is: a broker may replace its own.
        checkpoint = self.folder / "bootstrap.checkpoint"
        shutil.copy(node.folder / "data" / checkpoint.name, checkpoint)
        return {"checkpoint": str(checkpoint)}


def _kafka_uuid() -> str:
    text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return text.replace("-", "A").replace("_", "A")  # a leading dash would be an option
