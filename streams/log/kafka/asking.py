"""Asking a broker something: wait for the answer, try again what passes, translate the rest.

A broker that has just become the leader of a partition or the coordinator of a group says so for
a moment; a client with old metadata asks the wrong one. Both pass in milliseconds, so a question
is asked again before its asker hears of it. Questions change nothing, or the same thing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from streams.errors import LogError, Unavailable
from streams.log.kafka.errors import error_of, kind_of, translate

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


class Asking:
    """How one log asks its brokers (any thread).

    Of a login or a certificate that is refused only the client that is served hears, so it is
    noted here: whoever waits for an answer then need not wait any longer, and is told the reason.
    """

    def __init__(self, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub
        self._refusal: tuple[KafkaError, float] | None = None

    def refused(self, error: KafkaError) -> None:
        """Note why no connection can be made."""
        self._refusal = (error, time.monotonic())

    def _refused_since(self, moment: float) -> KafkaException | None:
        refusal = self._refusal
        return KafkaException(refusal[0]) if refusal is not None and refusal[1] > moment else None

    def ask(self, doing: str, question: Callable[[], T]) -> T:
        """What ``question`` returns.

        :raises LogError: translated from what the driver raised.
        """
        start = time.monotonic()
        while True:
            try:
                return question()
            except KafkaException as error:
                found = error_of(error)
                if found is not None and found.code() in _PASSES:
                    if time.monotonic() < start + ANSWER:
                        time.sleep(_AGAIN)
                        continue
                elif found is not None and kind_of(found) is Unavailable:
                    error = self._refused_since(start - ANSWER) or error
                raise translate(error, doing, self._scrub) from error
            except TimeoutError as error:
                raise Unavailable(f"Kafka, {doing}: no answer within {ANSWER:g} s") from error
            except (TypeError, ValueError) as error:
                raise LogError(f"Kafka, {doing}: {error}") from error

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
