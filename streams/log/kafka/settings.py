"""From a URL and driver settings to the configuration of each Kafka client.

``kafka://host:9092,host2?name=value`` (plain) and ``kafka+ssl://`` (TLS); a user and password in
the URL mean SASL. Every setting of librdkafka passes through, from the URL's query or from the
mapping given in code (which wins), except what

* would run or load code that the program did not import (:data:`RUNS_CODE`),
* would break one of the toolkit's promises (:data:`FIXED`, :data:`MANAGED`).

Three settings are the toolkit's own: ``replication.factor`` of the topics that it creates;
``event_index``, a folder in which the indexes of event topics and of documents are kept from one
start to the next; and ``index_snapshots``, a number of events from which on the index of an event
topic's partition is kept in a topic.

Each of those above is a :class:`~streams.errors.ConfigError` that says why. librdkafka knows many
settings under two names; they are brought to one before anything is checked, so that no check is
passed by under an alias.

A setting's value appears in no repr and no error if its name says that it is secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException

from streams.config import Flow
from streams.errors import ConfigError, StreamsError
from streams.log.kafka.cache_file import check_folder
from streams.log.kafka.errors import translate
from streams.log.protocol import OpenRequest
from streams.log.url import parse
from streams.secrets import Secrets
from streams.text import did_you_mean, get_logger
from streams.wire import parse_int

logger = get_logger("streams.kafka")

Config = dict[str, Any]

MEGABYTE = 1 << 20

ALIASES: Mapping[str, str] = {
    "acks": "request.required.acks",
    "auto.commit.enable": "enable.auto.commit",
    "batch.size.bytes": "batch.size",
    "bootstrap.servers": "metadata.broker.list",
    "compression.codec": "compression.type",
    "delivery.timeout.ms": "message.timeout.ms",
    "fetch.message.max.bytes": "max.partition.fetch.bytes",
    "linger.ms": "queue.buffering.max.ms",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "retries": "message.send.max.retries",
    "sasl.mechanisms": "sasl.mechanism",
}
"""Second names of librdkafka's settings, brought to the one on the right."""

RUNS_CODE: Mapping[str, str] = {
    "interceptors": "it adds code to the client",
    "plugin.library.paths": "it loads shared libraries",
    "sasl.kerberos.kinit.cmd": "it is run by a shell",
    "ssl.engine.id": "it loads an OpenSSL engine",
    "ssl.engine.location": "it loads a shared library",
    "ssl.providers": "it loads OpenSSL providers",
}

_COMMITTED_WHEN_SETTLED = "a position is committed when its message is settled, never by the driver"


class _Fixed(NamedTuple):
    """The value that a setting must keep, and why."""

    allowed: str
    """Values, with spaces between them."""
    why: str


FIXED: Mapping[str, _Fixed] = {
    "auto.offset.reset": _Fixed(
        "error", "a position that is gone is reported as loss, never skipped"
    ),
    "delivery.report.only.error": _Fixed("false", "each write is confirmed"),
    "enable.auto.commit": _Fixed("false", _COMMITTED_WHEN_SETTLED),
    "enable.auto.offset.store": _Fixed("false", _COMMITTED_WHEN_SETTLED),
    "enable.idempotence": _Fixed(
        "true", "without it the client's own retries write twice and out of order"
    ),
    "enable.partition.eof": _Fixed("false", "the toolkit sets it where it needs it"),
    "produce.offset.report": _Fixed("true", "publish returns the position"),
    "queuing.strategy": _Fixed("fifo", "the messages of a key stay in order"),
    "request.required.acks": _Fixed("-1 all", "a confirmed message would be lost with one broker"),
}
"""Settings that a promise depends on."""

MANAGED: Mapping[str, str] = {
    "default.topic.config": "give its settings one by one",
    "group.id": "the group is the processor's group=",
    "log.queue": "the driver's log goes to the logger 'streams.kafka'",
    "metadata.broker.list": "give the brokers in the URL: kafka://host:9092,host2:9092",
    "offset.store.method": "positions are stored in Kafka",
    "statistics.interval.ms": "the toolkit reads from them until when it owns a partition",
    "transactional.id": "the toolkit gives its transactional producers IDs of their own",
}

CALLBACKS = frozenset({"error_cb", "oauth_cb", "stats_cb", "throttle_cb", "logger"})
"""Callables that code may give (a URL cannot)."""


def _name_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PRODUCER_ONLY = _name_set(
    """batch.num.messages batch.size compression.level compression.type delivery.report.only.error
    enable.gapless.guarantee enable.idempotence message.max.bytes message.send.max.retries
    message.timeout.ms
    partitioner produce.offset.report queue.buffering.backpressure.threshold
    queue.buffering.max.kbytes queue.buffering.max.messages queue.buffering.max.ms queuing.strategy
    request.required.acks request.timeout.ms sticky.partitioning.linger.ms
    transaction.timeout.ms"""
)
"""Settings that only a producer understands."""

CONSUMER_ONLY = _name_set(
    """auto.commit.interval.ms auto.offset.reset check.crcs consume.callback.max.messages
    coordinator.query.interval.ms enable.auto.commit enable.auto.offset.store enable.partition.eof
    fetch.error.backoff.ms fetch.max.bytes fetch.min.bytes fetch.queue.backoff.ms fetch.wait.max.ms
    group.instance.id group.protocol group.protocol.type group.remote.assignor
    heartbeat.interval.ms isolation.level max.partition.fetch.bytes max.poll.interval.ms
    partition.assignment.strategy queued.max.messages.kbytes queued.min.messages
    session.timeout.ms"""
)
"""Settings that only a consumer understands."""

COMMON = _name_set(
    """allow.auto.create.topics api.version.request.timeout.ms bootstrap.servers
    broker.address.family broker.address.ttl client.dns.lookup client.id client.rack
    connections.max.idle.ms debug enable.ssl.certificate.verification log_level
    max.in.flight.requests.per.connection message.copy.max.bytes metadata.max.age.ms
    receive.message.max.bytes reconnect.backoff.max.ms reconnect.backoff.ms
    retry.backoff.max.ms retry.backoff.ms sasl.kerberos.keytab sasl.kerberos.principal
    sasl.kerberos.service.name sasl.mechanism sasl.oauthbearer.client.id
    sasl.oauthbearer.client.secret sasl.oauthbearer.method sasl.oauthbearer.scope
    sasl.oauthbearer.token.endpoint.url sasl.password sasl.username security.protocol
    socket.connection.setup.timeout.ms socket.keepalive.enable socket.nagle.disable
    socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms ssl.ca.location
    ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.cipher.suites ssl.crl.location
    ssl.endpoint.identification.algorithm ssl.key.location ssl.key.password ssl.key.pem
    ssl.keystore.location ssl.keystore.password topic.metadata.refresh.interval.ms"""
)
"""Settings of every client that are given often: the driver does not list those it has."""

_UNKNOWN_SETTING = re.compile(r'No such configuration property: "([^"]*)"')


def suggest_setting(message: str) -> str:
    """Which setting was probably meant, where the driver's message says that it does not know one;
    empty if it says something else, or nothing is similar."""
    match = _UNKNOWN_SETTING.search(message)
    known = {"replication.factor", *COMMON, *PRODUCER_ONLY, *CONSUMER_ONLY}
    return did_you_mean(match[1], sorted(known)) if match else ""


NEEDS_POLLING = frozenset({"debug", "error_cb", "stats_cb", "throttle_cb", "logger"})
"""Settings that make the driver queue events for polling: they would pile up in clients that only
make requests, as nobody polls those regularly. The producer and the members report enough."""

MEMBER_ONLY = _name_set(
    """group.instance.id group.protocol group.protocol.type group.remote.assignor
    heartbeat.interval.ms max.poll.interval.ms partition.assignment.strategy
    session.timeout.ms"""
)
"""Settings of a consumer that is a member of a group (a plain reader is none)."""


@dataclass(frozen=True, repr=False)
class Settings:
    """The settings from which all clients of one log are configured.

    :param hosts: the brokers, as the URL names them.
    :param user_config: the user's settings under their one name, values as librdkafka takes them.
    :param replication: replicas of a topic that is created; -1 leaves it to the broker.
    :param secrets: what no text may show.
    :param possible_secret_names: names in the URL that may be part of a secret before them.
    :param member_name: the name that the app's members will have, if they will be static.
    :param event_index: the folder in which indexes of event topics and of documents are kept from
        one start to the next (``?event_index=DIR``); empty: nowhere.
    :param index_snapshots: events of a partition from which on snapshots of its index are written
        to a topic (``?index_snapshots=N``), and read; 0: never.
    :param only_looks: whoever opened the log only looks: no snapshots are written.
    """

    hosts: str
    user_config: Mapping[str, Any] = field(default_factory=dict)
    replication: int = -1
    secrets: Secrets = field(default_factory=Secrets)
    possible_secret_names: frozenset[str] = frozenset()
    member_name: str = ""
    event_index: str = ""
    index_snapshots: int = 0
    only_looks: bool = False

    def __repr__(self) -> str:
        return f"<Kafka settings for {self.hosts}>"

    @property
    def kip848(self) -> bool:
        """The group protocol of KIP-848 instead of the classic one."""
        return str(self.user_config.get("group.protocol", "classic")).lower() == "consumer"

    @property
    def eager(self) -> bool:
        """A classic assignor that takes all partitions away on each rebalance."""
        strategy = str(self.user_config.get("partition.assignment.strategy", "cooperative-sticky"))
        return not self.kip848 and "cooperative" not in strategy

    @property
    def session_timeout(self) -> float:
        """Seconds after which the broker gives up a silent member (classic protocol)."""
        return float(self.user_config.get("session.timeout.ms", 10_000)) / 1000

    @property
    def max_poll_interval(self) -> float:
        """Seconds between polls after which the driver leaves the group."""
        return float(self.user_config.get("max.poll.interval.ms", 300_000)) / 1000

    @property
    def tls(self) -> bool:
        """Connections are encrypted."""
        return "ssl" in str(self.user_config.get("security.protocol", "")).lower()

    def scrub(self, text: str) -> str:
        """The text without any secret that it may quote."""
        for name in self.possible_secret_names:
            text = text.replace(f'"{name}"', '"***" (write & in a value as %26)')
        return self.secrets.hide(text)

    def translate(
        self, error: KafkaException | KafkaError, operation: str, *, write: bool = False
    ) -> StreamsError:
        """The driver's error as one of ours, without any secret (see ``errors.py``)."""
        return translate(error, operation, self.scrub, write=write)

    # -- one configuration a kind of client

    def call_user(self, callback: str, value: Any, prefix: str = "") -> None:
        """Call a callback of the user's, if there is one; what it raises is logged.

        :param prefix: what the log line begins with.
        """
        try:
            if (function := self.user_config.get(callback)) is not None:
                function(value)
        except Exception:
            logger.exception("%s%s raised", prefix, callback)

    def _common_config(self, excluded: frozenset[str]) -> Config:
        config: Config = {
            "bootstrap.servers": self.hosts,
            "client.id": "streams",
            # A member may send its coordinator no other uncounted requests than its heartbeats (see
            # ownership.py). And what a service consumes is its own business.
            "enable.metrics.push": False,
            # A new partition is noticed within a minute instead of five.
            "topic.metadata.refresh.interval.ms": 60_000,
            # A new client waits for half of it until it looks for a group's coordinator.
            "reconnect.backoff.ms": 20,
            # A restarted broker is found again within a second, a frozen one given up after 15.
            "reconnect.backoff.max.ms": 1_000,
            "socket.timeout.ms": 15_000,
            # When it has lost every connection, the driver (2.16) would remove its brokers and
            # begin anew, and sometimes goes on using one that is gone and never reads again. So it
            # keeps them; a client that is cut off for long is replaced instead.
            "metadata.recovery.strategy": "none",
        }
        config.update((k, v) for k, v in self.user_config.items() if k not in excluded)
        return config

    def admin_config(self) -> Config:
        """For an AdminClient (which is a producer to librdkafka)."""
        return {
            **self._common_config(CONSUMER_ONLY | PRODUCER_ONLY | NEEDS_POLLING),
            "log_level": 0,
        }

    def producer_config(self) -> Config:
        """For the one producer of a log."""
        config = {
            "enable.idempotence": True,
            "acks": "all",
            # As Java clients place keys, so that all of them agree.
            "partitioner": "murmur2_random",
            "queue.buffering.max.ms": LINGER_MS,
            # Java's: long enough for a broker's restart; then the caller gets an error.
            "message.timeout.ms": 120_000,
            # The topic's own max.message.bytes decides, not the driver: a dead letter is larger
            # than its source. A batch of several messages stays under the broker's usual 1 MiB
            # because of batch.size.
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "batch.size": 1_000_000,
            # append waits for room past this; the driver's default is 1 GiB.
            "queue.buffering.max.kbytes": QUEUE_KBYTES,
            # Whether it is cut off (see reconnect.py).
            "statistics.interval.ms": 1_000,
        }
        config.update(self._common_config(CONSUMER_ONLY | {"stats_cb", "logger"}))
        return config

    def output_config(self, transactional_id: str, session_timeout: float) -> Config:
        """For the producer of an exactly-once processor.

        :param session_timeout: of its member, in seconds. What it leaves open when it ends is
            aborted before its partitions can have another owner.
        """
        longest = int(min(OUTPUT_TRANSACTION_MS, session_timeout * 750))
        timeout = min(longest, int(self.user_config.get("transaction.timeout.ms", longest)))
        config = self.transaction_config(transactional_id)
        config["transaction.timeout.ms"] = timeout
        for name in ("message.timeout.ms", "socket.timeout.ms"):
            config[name] = min(int(config[name]), timeout)
        # Brokers refuse a new transaction for some milliseconds after the one before.
        config["retry.backoff.ms"] = 1
        # Its records need no reports: they wait for the end of the transaction only.
        config["delivery.report.only.error"] = True
        return config

    def transaction_config(self, transactional_id: str) -> Config:
        """For a producer of transactions, which is polled only while it writes."""
        config = {**self.producer_config(), "log_level": 2, "transactional.id": transactional_id}
        for name in ("debug", "error_cb", "statistics.interval.ms", "throttle_cb"):
            config.pop(name, None)
        # A topic that was deleted stays so, whatever is written to it.
        config["allow.auto.create.topics"] = False
        # After this time, the brokers abort a transaction that a frozen writer left open.
        timeout = int(config.setdefault("transaction.timeout.ms", TRANSACTION_MS))
        config["message.timeout.ms"] = min(int(config["message.timeout.ms"]), timeout)
        return config

    def _consumer_config(self, prefetch: int, excluded: frozenset[str]) -> Config:
        config: Config = {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": FETCH_BACKOFF_MS,
            **prefetch_config(prefetch),
        }
        config.update(self._common_config(PRODUCER_ONLY | excluded))
        # The driver checks its sizes against each other, even those that a consumer never uses.
        fetch = int(config["fetch.max.bytes"])
        config["message.max.bytes"] = min(1_000_000, fetch)
        config.setdefault("receive.message.max.bytes", max(100_000_000, fetch + 1024))
        return config

    def reader_config(self, prefetch: int, *, follows: bool = False) -> Config:
        """For a consumer outside any group.

        :param follows: it waits at the ends of its partitions for what will be written.
        """
        config = self._consumer_config(prefetch, MEMBER_ONLY | NEEDS_POLLING)
        config["log_level"] = 0
        # A fetch that waits at one partition's end holds up the next reading (an aggregate's load
        # by its snapshot took 11 ms with 10, and takes 3); but who follows sends one after the
        # other, for ever.
        config.setdefault("fetch.wait.max.ms", 100 if follows else 2)
        # The driver asks for a group's name even of a consumer that never joins one.
        config["group.id"] = "streams-reader"
        config["enable.partition.eof"] = True
        return config

    def offset_reader_config(self, group: str) -> Config:
        """For a consumer that asks about a group and never joins it. It is told what is committed
        now, and does not wait for the end of a transaction that is open."""
        return {
            **self.reader_config(64 * 1024),
            "group.id": group,
            "isolation.level": "read_uncommitted",
        }

    def member_config(
        self, group: str, flow: Flow, on_statistics: Callable[[str], None], member_name: str = ""
    ) -> Config:
        """For a member of ``group``; ``on_statistics`` gets the driver's statistics.

        :param member_name: the name by which the group knows it, if it is a static member.
        """
        config = self._consumer_config(prefetch_bytes(flow), frozenset({"logger"}))
        config["group.id"] = group
        if member_name:
            config["group.instance.id"] = member_name
        config["stats_cb"] = on_statistics
        # A fetch that waits for idle partitions holds up those that are assigned meanwhile.
        config.setdefault("fetch.wait.max.ms", 100)
        if not self.kip848:
            config.setdefault("session.timeout.ms", 10_000)
            config.setdefault(
                "heartbeat.interval.ms", min(3_000, int(self.session_timeout * 1000 / 3))
            )
            config.setdefault("partition.assignment.strategy", "cooperative-sticky")
        # A tenth of the session, so that one lost report does not cost the ownership.
        config["statistics.interval.ms"] = max(100, min(1_000, int(self.session_timeout * 100)))
        return config


LINGER_MS = 1
TRANSACTION_MS = 15_000
OUTPUT_TRANSACTION_MS = 10_000
FETCH_BACKOFF_MS = 5
MAX_MESSAGE_BYTES = 32 * MEGABYTE
QUEUE_KBYTES = 64 * 1024


def prefetch_bytes(flow: Flow) -> int:
    """How many of ``flow.bytes`` the driver's own queue may take up: half, at most 32 MiB.

    More is not faster: past some megabytes the queue only falls out of the processor's cache.
    """
    return max(64 * 1024, min(flow.bytes // 2, 32 * MEGABYTE))


def prefetch_config(prefetch: int) -> Config:
    """The driver's queue and fetch sizes, so that they take up ``prefetch`` bytes together.

    The queue's limits are looked at before a fetch is sent, so they are overshot by what one fetch
    brings; and small messages take up more than their own size. A quarter for the queue's bytes,
    an eighth for a fetch and a limit by count keep the sum for messages of 100 bytes and more. A
    fetch of more than 1 MiB falls out of the processor's cache before it is read: 4 MiB were a
    tenth slower.
    (A message larger than all that still comes, alone: KIP-74.)
    """
    fetch = min(MEGABYTE, prefetch // 8)
    return {
        "queued.max.messages.kbytes": max(1, prefetch // 4 // 1024),
        "queued.min.messages": prefetch // 1280,
        "fetch.max.bytes": fetch,
        "max.partition.fetch.bytes": min(MEGABYTE, fetch),
    }


# -- reading a URL and a mapping ------------------------------------------------------------------


def read_settings(request: OpenRequest) -> Settings:
    """The settings of what was asked to be opened.

    :raises ConfigError: for a URL, a name or a value that cannot work.
    """
    url = parse(request.url)
    if url.path.strip("/"):
        raise ConfigError(f"{url.scheme}:// URL: nothing may follow the brokers but ?name=value")
    if not all(host.isascii() for host, _ in url.hosts):
        raise ConfigError(f"{url.scheme}:// URL: a broker's name is written in ASCII (IDNA)")
    user_config: Config = {}
    replication, event_index, index_snapshots = -1, "", 0
    for source, pairs in (("URL", request.options), ("config", request.config)):
        for name, value in pairs.items():
            if name == "replication.factor":
                replication = _replication_factor(value)
                continue
            if name == "event_index":
                event_index = check_folder(str(value))
                continue
            if name == "index_snapshots":
                index_snapshots = _event_count(value)
                continue
            shown = repr(name) if source == "config" else url.display_name(name)
            user_config[ALIASES.get(name, name)] = _checked_value(name, value, source, shown)
    tls = url.scheme == "kafka+ssl"
    if url.user is not None:
        user_config |= {"sasl.username": url.user, "sasl.password": url.password or ""}
    sasl = "sasl.username" in user_config or "sasl.mechanism" in user_config
    if sasl:
        user_config.setdefault("sasl.mechanism", "SCRAM-SHA-512")
    protocol = ("sasl_" if sasl else "") + ("ssl" if tls else "plaintext")
    chosen = str(user_config.setdefault("security.protocol", protocol)).lower()
    if tls and chosen != protocol:
        raise ConfigError(
            f"kafka+ssl:// means security.protocol={protocol}: leave that setting out"
        )
    settings = Settings(
        url.addresses(9092),
        user_config,
        replication,
        url.secrets(request.config),
        frozenset(url.possible_secret_names()),
        request.member,
        event_index,
        index_snapshots,
        request.mode == "ro",
    )
    if event_index and index_snapshots:
        raise ConfigError(
            "event_index= keeps indexes of event topics in a folder, index_snapshots= keeps them "
            "in topics: one of them"
        )
    check_settings(settings)
    return settings


def _replication_factor(value: Any) -> int:
    try:
        replicas = int(value)
    except (TypeError, ValueError):
        replicas = 0
    if replicas < 1:
        raise ConfigError("replication.factor: a number of replicas, at least 1")
    return replicas


def _event_count(value: Any) -> int:
    found = parse_int(str(value).encode())
    if found is None:
        raise ConfigError(
            "index_snapshots: a number of events in a partition from which on its index is kept in "
            "a topic, 1000000 for example; 0: never"
        )
    return found


def _checked_value(name: str, value: Any, source: str, display_name: str) -> Any:
    """The value as the driver takes it, if it may be set at all."""
    label = f"Kafka setting {display_name} ({source})"
    name = ALIASES.get(name, name)
    if name in RUNS_CODE:
        raise ConfigError(f"{label}: not accepted, {RUNS_CODE[name]}")
    if name in MANAGED:
        raise ConfigError(f"{label}: not accepted, {MANAGED[name]}")
    if name in CALLBACKS:
        if source == "URL" or not (callable(value) or name == "logger"):
            raise ConfigError(f"{label}: a callable given in config=")
        return value
    if name.endswith("_cb") or callable(value):
        raise ConfigError(f"{label}: this callback is the toolkit's own")
    if isinstance(value, bool):
        value = "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise ConfigError(f"{label}: text, a number or a bool, got {type(value).__name__}")
    if name in FIXED:
        allowed = FIXED[name].allowed.split()
        if str(value).lower() not in allowed:
            raise ConfigError(f"{label}: must stay {' or '.join(allowed)}, {FIXED[name].why}")
    return value


def check_settings(settings: Settings) -> None:
    """Find wrong settings that librdkafka would report late, or not at all.

    :raises ConfigError: these settings cannot work together.
    """
    user_config = settings.user_config
    for name in (
        "session.timeout.ms",
        "max.poll.interval.ms",
        "heartbeat.interval.ms",
        "fetch.max.bytes",
        "message.max.bytes",
        "queue.buffering.max.kbytes",
    ):
        if name in user_config and not re.fullmatch(r"[1-9]\d*", str(user_config[name])):
            got = settings.secrets.hide(repr(user_config[name]))
            raise ConfigError(f"Kafka setting {name}: a number, more than 0, got {got}")
    queue_bytes = int(user_config.get("queue.buffering.max.kbytes", QUEUE_KBYTES)) * 1024
    if int(user_config.get("message.max.bytes", MAX_MESSAGE_BYTES)) > queue_bytes // 2:
        # A message that never finds room would be waited for without end.
        raise ConfigError(
            "Kafka setting message.max.bytes: at most half of queue.buffering.max.kbytes "
            f"({queue_bytes // 2:,} bytes)"
        )
    if settings.kip848:
        for name in ("session.timeout.ms", "heartbeat.interval.ms"):
            if name in user_config:
                raise ConfigError(
                    f"Kafka setting {name}: with group.protocol=consumer the broker sets it "
                    f"(group.consumer.{name})"
                )
        if "partition.assignment.strategy" in user_config:
            raise ConfigError(
                "Kafka setting partition.assignment.strategy: with group.protocol=consumer the "
                "broker assigns; use group.remote.assignor"
            )
        for name, is_set in (
            ("Kafka setting group.instance.id", "group.instance.id" in user_config),
            (f"member={settings.member_name!r}", settings.member_name),
        ):
            if is_set:
                raise ConfigError(
                    f"{name}: not with group.protocol=consumer, where a restarted static member "
                    "is refused until its session ends; use the classic protocol"
                )
    if settings.member_name and "group.instance.id" in user_config:
        raise ConfigError(
            f"member={settings.member_name!r} is group.instance.id on Kafka, which is set to "
            f"{user_config['group.instance.id']!r} as well: leave one of them out"
        )
    # KIP-848 has no heartbeat.interval.ms of the client's.
    heartbeat_interval = float(user_config.get("heartbeat.interval.ms", 0)) / 1000
    if heartbeat_interval * 3 > settings.session_timeout:
        raise ConfigError(
            "Kafka setting heartbeat.interval.ms: at most a third of session.timeout.ms "
            f"({settings.session_timeout:g} s)"
        )
