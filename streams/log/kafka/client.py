"""The driver's clients that several threads share, and requests to the brokers.

**A client** is replaced when it is broken. librdkafka can come out of an outage with a client that
never answers again: when every connection was lost, or a broker was missing from the metadata for a
moment, it removes the handle of that broker and goes on using it (seen with 2.16 where connections
were cut or a broker was frozen: each request ends with ``_DESTROY_BROKER``, or finds no broker).
Another client of the same process reaches the broker at once. So a client that did not answer is
not used again.

**A client that is asked about groups** has one user at a time. Where such a request has timed out
while the group's coordinator was out of reach, and the client reaches the coordinator later,
librdkafka 2.16 aborts the whole process (its issue 4605). So that client is destroyed as soon as
the request has failed, and nobody else may keep it alive.

**A request** waits for the answer, is retried after an error that passes, and otherwise ends with
an error of ours. A broker that has just become the leader of a partition or the coordinator of a
group refuses for a moment, and a client with old metadata asks the wrong broker; both pass in
milliseconds. Requests are idempotent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

# Documented there, though the package's __all__ does not list all of them.
# pyright: reportPrivateImportUsage=false
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    ResourceType,
)

from streams.errors import LogError, StreamsError, Unavailable
from streams.log.kafka.errors import (
    CONNECTION_CLOSED,
    ConnectionFailure,
    error_class_of,
    kafka_error_of,
    parse_connection_failure,
    unreachable_error,
)
from streams.log.kafka.settings import Settings
from streams.log.protocol import TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

C = TypeVar("C", bound="Consumer | AdminClient")
K = TypeVar("K")
T = TypeVar("T")

REQUEST_TIMEOUT = 10.0
"""Seconds to wait for an answer."""

_RETRY_PAUSE = 0.05
"""Seconds until a request is retried."""

MAX_IDLE = 2
"""Idle clients that are kept for questions about groups."""

_CHECK_INTERVAL = 0.2
"""Seconds between two checks whether waiting still makes sense."""

_RETRIABLE = frozenset(
    {
        KafkaError._WAIT_CACHE,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)

_CLIENT_BROKEN = frozenset({KafkaError._DESTROY, KafkaError._DESTROY_BROKER})
"""Errors of a client that never recovers: another one is used."""

_NO_BROKER = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
    }
)
"""Errors where no broker answers."""

FIRST_CONNECT_GRACE = 1.5
"""Seconds that brokers get to be reached for the first time, once a try failed: a host's name may
stand for several addresses, which are tried in turn."""


@dataclass(eq=False)
class _CountedClient(Generic[C]):
    """A client, how many are using it, and whether the last of them is to close it."""

    client: C
    users: int = 0
    retired: bool = False


class SharedClient(Generic[C]):
    """Makes its client when it is first needed (any thread).

    A retired client is closed when its last user is done, in a thread of its own: closing a broken
    one may take long.

    :param make: makes a client; raises ConfigError.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._current: _CountedClient[C] | None = None
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[C]:
        """Use the client.

        :raises LogError: closed.
        """
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            counted = self._current
            if counted is None:
                counted = self._current = _CountedClient(self._make())
            counted.users += 1
        try:
            yield counted.client
        finally:
            with self._lock:
                counted.users -= 1
                last_user = counted.retired and not counted.users
            if last_user:
                close_in_background(counted.client)

    def retire(self, client: C) -> None:
        """Give the next user a new one."""
        with self._lock:
            if self._current is None or self._current.client is not client:
                return
            idle = self._detach()
        if idle is not None:
            close_in_background(idle)

    def close(self) -> None:
        """Close the client, once its users have finished."""
        with self._lock:
            self._closed = True
            idle = self._detach()
        if idle is not None:
            close_client(idle)

    def _detach(self) -> C | None:
        """Give this client to nobody else (the lock is held). Return it to be closed, unless it is
        in use: then its last user closes it."""
        counted, self._current = self._current, None
        if counted is None:
            return None
        counted.retired = True
        return None if counted.users else counted.client


class ExclusiveClients:
    """AdminClients with one user each (any thread); a few that are idle are kept.

    :param make: makes a client; raises ConfigError.
    """

    def __init__(self, make: Callable[[], AdminClient]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[AdminClient] = []
        self._failed: set[int] = set()
        """The identities of those in use that are to be destroyed."""
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[AdminClient]:
        """Use a client that nobody else uses. After an error that is not ours, it is unknown what
        it still waits for, and it is destroyed.

        :raises LogError: closed.
        """
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            client = self._idle.pop() if self._idle else None
        client = client or self._make()
        try:
            yield client
        except StreamsError:
            self._release(client)
            raise
        except BaseException:
            close_in_background(client)
            raise
        else:
            self._release(client)

    def retire(self, client: AdminClient) -> None:
        """Have it destroyed when its user is done."""
        with self._lock:
            self._failed.add(id(client))

    def _release(self, client: AdminClient) -> None:
        with self._lock:
            failed = id(client) in self._failed
            self._failed.discard(id(client))
            if not failed and not self._closed and len(self._idle) < MAX_IDLE:
                self._idle.append(client)
                return
        close_in_background(client)

    def close(self) -> None:
        """Destroy the idle ones; the others follow when their users are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            close_client(client)


def close_client(client: Consumer | AdminClient) -> None:
    """Close a client, whoever still refers to it; the driver's errors only go to the log."""
    try:
        if isinstance(client, Consumer):
            client.close()
        else:
            client.__exit__(None, None, None)  # has no other name there
    except (KafkaException, RuntimeError) as error:
        logger.debug("closing a client: %s", error)


def close_in_background(client: Consumer | AdminClient) -> threading.Thread:
    """Close a client that may be broken, without waiting for it."""
    closing = threading.Thread(
        target=close_client, args=(client,), name="streams-kafka-close", daemon=True
    )
    closing.start()
    return closing


def learns_partition(
    producer: Producer, error: KafkaException, place: TopicPartition, partition_count: int
) -> bool:
    """Whether ``error`` says that a producer did not know a partition which others know: the topic
    has grown, or was made anew with more. Then it has looked again by now, and may know it.

    :param partition_count: how many the topic has.
    :raises KafkaException: it cannot look.
    """
    topic, partition = place
    found = kafka_error_of(error)
    if (
        found is None
        or found.code() != KafkaError._UNKNOWN_PARTITION
        or not 0 <= partition < partition_count
    ):
        return False
    producer.list_topics(topic, REQUEST_TIMEOUT)
    return True


class Clients(Protocol[C]):
    """Provides a client, and a new one after that was retired."""

    def use(self) -> AbstractContextManager[C]:
        """Use a client."""
        ...

    def retire(self, client: C) -> None:
        """Do not hand this client out again."""
        ...


# -- requests ------------------------------------------------------------------------------


class _LoginRefusal(NamedTuple):
    """A broker's refusal of the login."""

    error: KafkaError
    at: float
    """Monotonic time."""


class RequestRetry:
    """Requests of one log to its brokers (any thread).

    Only clients that are polled learn why no connection can be made, so that is noted here
    (:meth:`record_client_error`): a request then fails without waiting until the driver gives up,
    and its error names the reason. This holds until a broker has answered for the first time;
    later, a request waits for the end of an outage.

    :param settings: for the brokers' names, and the secrets that no error may show.
    :param admin: also used for the very first request.
    :param group_admins: for requests to a group's coordinator.
    """

    def __init__(
        self, settings: Settings, admin: SharedClient[AdminClient], group_admins: ExclusiveClients
    ) -> None:
        self.settings = settings
        self.admin = admin
        self._group_admins = group_admins
        self._login_refusal: _LoginRefusal | None = None
        """A refused login or certificate, and when that was."""
        self._connection_failures: dict[str, tuple[ConnectionFailure, float]] = {}
        """The last failure of each broker's connection, and when that was."""
        self._all_down_at = float("-inf")
        """When no broker could be reached."""
        self._ever_reached = False

    def record_client_error(self, error: KafkaError) -> None:
        """Note an error that a client's ``error_cb`` was called with."""
        now = time.monotonic()
        code = error.code()
        failure = parse_connection_failure(self.settings.scrub(str(error.str())))
        if code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._login_refusal = _LoginRefusal(error, now)
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self._all_down_at = now
        elif failure is not None:
            self._connection_failures[failure.address] = (failure, now)

    def no_answer_error(self, operation: str, since: float) -> StreamsError:
        """The error for a request that no broker answered.

        :param since: what was noted from this moment on is the reason.
        """
        refusal = self._login_refused_since(since)
        settings = self.settings
        if refusal is not None:
            return settings.translate(refusal, operation)
        failures = [
            failures for failures, at in list(self._connection_failures.values()) if at > since
        ]
        if not failures and self._all_down_at > since:
            failures = [ConnectionFailure(settings.hosts, CONNECTION_CLOSED)]
        if not failures and self._ever_reached:
            return Unavailable(f"Kafka, {operation}: no answer within {REQUEST_TIMEOUT:g} s")
        return unreachable_error(operation, settings.hosts, failures, tls=settings.tls)

    def _login_refused_since(self, moment: float) -> KafkaException | None:
        refusal = self._login_refusal
        if refusal is None or refusal.at <= moment:
            return None
        return KafkaException(refusal.error)

    def _check_reachable(self, admin: AdminClient, operation: str) -> None:
        """See that there is a broker at all, once.

        :raises LogError: none answers, or it lets nobody in.
        """
        start = time.monotonic()
        noted_since = start - REQUEST_TIMEOUT
        future = admin.describe_cluster(request_timeout=REQUEST_TIMEOUT)
        while not self._ever_reached:
            try:
                future.result(_RETRY_PAUSE)
                self._ever_reached = True
            except TimeoutError:
                now = time.monotonic()
                all_down = now > start + FIRST_CONNECT_GRACE and self._all_down_at > noted_since
                if (
                    all_down
                    or now > start + REQUEST_TIMEOUT
                    or self._login_refused_since(noted_since)
                ):
                    raise self.no_answer_error(operation, noted_since) from None
            except KafkaException as error:
                kafka_error = kafka_error_of(error)
                if kafka_error is not None and error_class_of(kafka_error) is Unavailable:
                    raise self.no_answer_error(operation, noted_since) from error
                self._ever_reached = True  # it answered

    def run(
        self,
        operation: str,
        client: Clients[C],
        request: Callable[[C], T],
        *,
        timeout: float = REQUEST_TIMEOUT,
    ) -> T:
        """The result of ``request``, called with a client; one that does not answer is replaced.

        :param timeout: seconds for which the request is retried.
        :raises LogError: translated from what the driver raised.
        """
        if not self._ever_reached:
            with self.admin.use() as admin:
                self._check_reachable(admin, operation)
        start = time.monotonic()
        while True:
            with client.use() as used_client:
                try:
                    return request(used_client)
                except KafkaException as error:
                    kafka_error = kafka_error_of(error)
                    code = None if kafka_error is None else kafka_error.code()
                    if code in _CLIENT_BROKEN or code in _NO_BROKER:
                        client.retire(used_client)
                    if code in _NO_BROKER:
                        raise self.no_answer_error(operation, start - REQUEST_TIMEOUT) from error
                    retriable = code in _RETRIABLE or code in _CLIENT_BROKEN
                    if not retriable or time.monotonic() > start + timeout:
                        raise self.settings.translate(error, operation) from error
                except TimeoutError as error:
                    client.retire(used_client)
                    raise self.no_answer_error(operation, start - REQUEST_TIMEOUT) from error
                except (TypeError, ValueError) as error:
                    raise LogError(f"Kafka, {operation}: {error}") from error
            time.sleep(_RETRY_PAUSE)

    def run_admin(self, operation: str, method: Callable[..., Any], *args: Any) -> Any:
        """The result of the one future that a method of the AdminClient returns.

        :raises LogError: translated from what the driver raised.
        """
        return self.run(operation, self.admin, partial(self._admin_request, method, args))

    def run_group_admin(self, operation: str, method: Callable[..., Any], *args: Any) -> Any:
        """The same, for a method that asks a group's coordinator.

        :raises LogError: translated from what the driver raised.
        """
        return self.run(operation, self._group_admins, partial(self._admin_request, method, args))

    def _admin_request(
        self, method: Callable[..., Any], args: Sequence[Any], admin: AdminClient
    ) -> Any:
        answer = method(admin, *args, request_timeout=REQUEST_TIMEOUT)
        (future,) = answer.values() if isinstance(answer, dict) else (answer,)
        return self.result_of(future)

    def read_config(self, operation: str, kind: ResourceType, name: str) -> dict[str, str | None]:
        """The settings of a topic or a group.

        :raises LogError: translated from what the driver raised.
        """
        resources = [ConfigResource(kind, name)]
        entries = self.run_admin(operation, AdminClient.describe_configs, resources)
        return {name: entry.value for name, entry in entries.items()}

    def results_of(self, futures: Mapping[K, Any]) -> dict[K, Any]:
        """The results of several futures; a KafkaException where one of them failed."""
        results = {}
        for key, future in futures.items():
            try:
                results[key] = self.result_of(future)
            except KafkaException as error:
                results[key] = error
        return results

    def result_of(self, future: Any) -> Any:
        """The result of a future of the AdminClient; errors of parts of it are raised, too."""
        start = time.monotonic()
        while not future.done():
            try:
                future.result(_CHECK_INTERVAL)
            except TimeoutError:
                refusal = self._login_refused_since(start - REQUEST_TIMEOUT)
                if refusal is not None:
                    raise refusal from None
                if time.monotonic() > start + REQUEST_TIMEOUT + 5:
                    raise
        result = future.result(0)
        for partition in getattr(result, "topic_partitions", None) or ():
            if partition.error is not None:
                raise KafkaException(partition.error)
        return result


def error_names(error: BaseException | None) -> set[str]:
    """The driver's names of what is behind an error."""
    names = set()
    while error is not None:
        if isinstance(error, KafkaException):
            kafka_error = kafka_error_of(error)
            if kafka_error is not None:
                names.add(kafka_error.name())
        error = error.__cause__
    return names
