"""Asking a broker something: wait for the answer, try again what passes, translate the rest.

A broker that has just become the leader of a partition or the coordinator of a group says so for
a moment; a client with old metadata asks the wrong one. Both pass in milliseconds, so a question
is asked again before its asker hears of it. Questions change nothing, or the same thing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.errors import LogError, StreamsError, Unavailable
from streams.log.kafka.client import C, SharedClient
from streams.log.kafka.errors import (
    CONNECTION_CLOSED,
    ConnectionFailure,
    error_class_of,
    kafka_error_of,
    parse_connection_failure,
    translate,
    unreachable_error,
)
from streams.log.kafka.settings import Settings

K = TypeVar("K")
T = TypeVar("T")

REQUEST_TIMEOUT = 10.0
"""Seconds to wait for an answer."""

_RETRY_PAUSE = 0.05
"""Seconds until a question is asked again."""

_CHECK_INTERVAL = 0.2
"""Seconds after which it is looked whether waiting still makes sense."""

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
"""What a client says that has lost itself: another one is asked."""

_NO_BROKER = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
    }
)
"""What the driver says where no broker answers."""

FIRST_CONNECT_GRACE = 1.5
"""Seconds that brokers get to be reached for the first time, once a try failed: a host's name may
stand for several addresses, which are tried in turn."""


class RequestRetry:
    """How one log asks its brokers (any thread).

    Why no connection can be made, only the clients that are served hear, so it is noted here
    (:meth:`record_client_error`): whoever waits for an answer need not wait until the driver gives
    up, and is told the reason. That holds until a broker answered for the first time; later an
    outage is waited for, as it passes.

    :param settings: for the brokers' names, and what no error may show.
    :param admin: whom the first question is asked through.
    """

    def __init__(self, settings: Settings, admin: SharedClient[AdminClient]) -> None:
        self._settings = settings
        self._admin = admin
        self._login_refusal: tuple[KafkaError, float] | None = None
        """A login or a certificate that is refused, and when."""
        self._connection_failures: dict[str, tuple[ConnectionFailure, float]] = {}
        """What was said last of each broker's connection."""
        self._all_down_at = float("-inf")
        """When no broker could be reached."""
        self._ever_reached = False

    def record_client_error(self, error: KafkaError) -> None:
        """Note what a client's ``error_cb`` was told."""
        now = time.monotonic()
        code = error.code()
        failure = parse_connection_failure(self._settings.scrub(str(error.str())))
        if code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._login_refusal = (error, now)
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self._all_down_at = now
        elif failure is not None:
            self._connection_failures[failure.address] = (failure, now)

    def no_answer_error(self, operation: str, since: float) -> StreamsError:
        """The error for what no broker answered.

        :param since: what was noted from this moment on says why.
        """
        refusal = self._login_refused_since(since)
        if refusal is not None:
            return self._translate(refusal, operation)
        settings = self._settings
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
        return KafkaException(refusal[0]) if refusal is not None and refusal[1] > moment else None

    def _translate(self, error: KafkaException, operation: str) -> StreamsError:
        return translate(error, operation, self._settings.scrub)

    def _check_reachable(self, operation: str) -> None:
        """See that there is a broker at all, once.

        :raises LogError: none answers, or it lets nobody in.
        """
        with self._admin.use() as admin:
            self._wait_reachable(admin, operation)

    def _wait_reachable(self, admin: AdminClient, operation: str) -> None:
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

    def run(self, operation: str, client: SharedClient[C], request: Callable[[C], T]) -> T:
        """What ``request`` returns, given a client. One that does not answer is not asked again:
        whoever asks next asks another.

        :raises LogError: translated from what the driver raised.
        """
        if not self._ever_reached:
            self._check_reachable(operation)
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
                    if not retriable or time.monotonic() > start + REQUEST_TIMEOUT:
                        raise self._translate(error, operation) from error
                except TimeoutError as error:
                    client.retire(used_client)
                    raise self.no_answer_error(operation, start - REQUEST_TIMEOUT) from error
                except (TypeError, ValueError) as error:
                    raise LogError(f"Kafka, {operation}: {error}") from error
            time.sleep(_RETRY_PAUSE)

    def results_of(self, futures: Mapping[K, Any]) -> dict[K, Any]:
        """What several futures bring; a KafkaException where one of them failed."""
        results = {}
        for key, future in futures.items():
            try:
                results[key] = self.result_of(future)
            except KafkaException as error:
                results[key] = error
        return results

    def result_of(self, future: Any) -> Any:
        """What a future of the AdminClient brings; errors of parts of it are raised, too."""
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
