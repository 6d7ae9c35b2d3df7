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
from streams.log.kafka.client import C, Shared
from streams.log.kafka.errors import (
    CLOSED,
    Said,
    connection,
    error_of,
    kind_of,
    translate,
    unreachable,
)
from streams.log.kafka.settings import Settings

K = TypeVar("K")
T = TypeVar("T")

ANSWER = 10.0
"""Seconds to wait for an answer."""

_AGAIN = 0.05
"""Seconds until a question is asked again."""

_LOOK = 0.2
"""Seconds after which it is looked whether waiting still makes sense."""

_PASSES = frozenset(
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

_BROKEN = frozenset({KafkaError._DESTROY, KafkaError._DESTROY_BROKER})
"""What a client says that has lost itself: another one is asked."""

_ABSENT = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
    }
)
"""What the driver says where no broker answers."""

GRACE = 1.5
"""Seconds that brokers get to be reached for the first time, once a try failed: a host's name may
stand for several addresses, which are tried in turn."""


class Asking:
    """How one log asks its brokers (any thread).

    Why no connection can be made, only the clients that are served hear, so it is noted here
    (:meth:`told`): whoever waits for an answer need not wait until the driver gives up, and is told
    the reason. That holds until a broker answered for the first time; later an outage is waited
    for, as it passes.

    :param settings: for the brokers' names, and what no error may show.
    :param admin: whom the first question is asked through.
    """

    def __init__(self, settings: Settings, admin: Shared[AdminClient]) -> None:
        self._settings = settings
        self._admin = admin
        self._refusal: tuple[KafkaError, float] | None = None
        """A login or a certificate that is refused, and when."""
        self._said: dict[str, tuple[Said, float]] = {}
        """What was said last of each broker's connection."""
        self._down = float("-inf")
        """When no broker could be reached."""
        self._reached = False

    def told(self, error: KafkaError) -> None:
        """Note what a client's ``error_cb`` was told."""
        now = time.monotonic()
        code = error.code()
        said = connection(self._settings.scrub(str(error.str())))
        if code in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self._refusal = (error, now)
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self._down = now
        elif said is not None:
            self._said[said.address] = (said, now)

    def absent(self, doing: str, since: float) -> StreamsError:
        """The error for what no broker answered.

        :param since: what was noted from this moment on says why.
        """
        refusal = self._refused_since(since)
        if refusal is not None:
            return self._translated(refusal, doing)
        settings = self._settings
        said = [said for said, at in list(self._said.values()) if at > since]
        if not said and self._down > since:
            said = [Said(settings.hosts, CLOSED)]
        if not said and self._reached:
            return Unavailable(f"Kafka, {doing}: no answer within {ANSWER:g} s")
        return unreachable(doing, settings.hosts, said, tls=settings.tls)

    def _refused_since(self, moment: float) -> KafkaException | None:
        refusal = self._refusal
        return KafkaException(refusal[0]) if refusal is not None and refusal[1] > moment else None

    def _translated(self, error: KafkaException, doing: str) -> StreamsError:
        return translate(error, doing, self._settings.scrub)

    def _knock(self, doing: str) -> None:
        """See that there is a broker at all, once.

        :raises LogError: none answers, or it lets nobody in.
        """
        with self._admin.use() as admin:
            self._knock_with(admin, doing)

    def _knock_with(self, admin: AdminClient, doing: str) -> None:
        start = time.monotonic()
        recent = start - ANSWER
        future = admin.describe_cluster(request_timeout=ANSWER)
        while not self._reached:
            try:
                future.result(_AGAIN)
                self._reached = True
            except TimeoutError:
                now = time.monotonic()
                down = now > start + GRACE and self._down > recent
                if down or now > start + ANSWER or self._refused_since(recent):
                    raise self.absent(doing, recent) from None
            except KafkaException as error:
                found = error_of(error)
                if found is not None and kind_of(found) is Unavailable:
                    raise self.absent(doing, recent) from error
                self._reached = True  # it answered

    def ask(self, doing: str, client: Shared[C], question: Callable[[C], T]) -> T:
        """What ``question`` returns, given a client. One that does not answer is not asked again:
        whoever asks next asks another.

        :raises LogError: translated from what the driver raised.
        """
        if not self._reached:
            self._knock(doing)
        start = time.monotonic()
        while True:
            with client.use() as used:
                try:
                    return question(used)
                except KafkaException as error:
                    found = error_of(error)
                    code = None if found is None else found.code()
                    if code in _BROKEN or code in _ABSENT:
                        client.retire(used)
                    if code in _ABSENT:
                        raise self.absent(doing, start - ANSWER) from error
                    passes = code in _PASSES or code in _BROKEN
                    if not passes or time.monotonic() > start + ANSWER:
                        raise self._translated(error, doing) from error
                except TimeoutError as error:
                    client.retire(used)
                    raise self.absent(doing, start - ANSWER) from error
                except (TypeError, ValueError) as error:
                    raise LogError(f"Kafka, {doing}: {error}") from error
            time.sleep(_AGAIN)

    def answers(self, futures: Mapping[K, Any]) -> dict[K, Any]:
        """What several futures bring; a KafkaException where one of them failed."""
        found = {}
        for key, future in futures.items():
            try:
                found[key] = self.answer(future)
            except KafkaException as error:
                found[key] = error
        return found

    def answer(self, future: Any) -> Any:
        """What a future of the AdminClient brings; errors of parts of it are raised, too."""
        start = time.monotonic()
        while not future.done():
            try:
                future.result(_LOOK)
            except TimeoutError:
                refusal = self._refused_since(start - ANSWER)
                if refusal is not None:
                    raise refusal from None
                if time.monotonic() > start + ANSWER + 5:
                    raise
        found = future.result(0)
        for part in getattr(found, "topic_partitions", None) or ():
            if part.error is not None:
                raise KafkaException(part.error)
        return found


def codes(error: BaseException | None) -> set[str]:
    """The driver's names of what is behind an error."""
    names = set()
    while error is not None:
        if isinstance(error, KafkaException):
            found = error_of(error)
            if found is not None:
                names.add(found.name())
        error = error.__cause__
    return names
