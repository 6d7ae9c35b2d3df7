"""Answers of the log that visitors share for some seconds: simultaneous requests ask it once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable
from typing import Any, Generic, TypeVar, cast

from streams.web.log_source import NoAnswer

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds of real time for which an answer that another thread requests is waited for: waiting
threads are missing for other pages."""

MAX_ANSWERS = 1_000
"""The most answers that are kept; expired ones are forgotten first."""


class _SharedAnswer(Generic[T]):
    """An answer that is being requested, or was given.

    :param until: when it expires; unknown until it was given.
    """

    def __init__(self) -> None:
        self.given = threading.Event()
        self.until = float("inf")
        self.error: BaseException | None = None

    def give(self, value: T) -> None:
        self.value = value
        self.given.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.given.set()

    def take(self) -> T:
        if not self.given.wait(PATIENCE):
            raise NoAnswer(f"no answer within {PATIENCE:g} s to a request that is already running")
        if self.error is not None:
            raise self.error
        return self.value


class SharedAnswers:
    """Keeps the answers (any thread)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[Hashable, _SharedAnswer[Any]] = {}

    def get(self, key: Hashable, seconds: float, make: Callable[[], T]) -> T:
        """The result of ``make`` for this key within the last ``seconds`` of real time, whoever
        called; if another thread is calling it now, its result (blocks). A failure is not kept.

        :param key: everything that the answer depends on, such as a visitor's language.
        :raises NoAnswer: another thread calls it, and gets no answer within :data:`PATIENCE`.
        """
        with self._lock:
            found = self._answers.get(key)
            if found is not None and time.monotonic() < found.until:
                is_own = False
                answer = cast("_SharedAnswer[T]", found)
            else:
                is_own = True
                answer = self._answers[key] = _SharedAnswer[T]()
                self._bound()
        if not is_own:
            return answer.take()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                self._forget(key, answer)
            answer.fail(error)
            raise
        with self._lock:
            answer.until = time.monotonic() + seconds
        answer.give(made)
        return made

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: answers from before expire."""
        with self._lock:
            self._answers.clear()

    def close(self) -> None:
        """Forget all answers."""
        self.expire()

    def __len__(self) -> int:
        return len(self._answers)

    def _forget(self, key: Hashable, answer: _SharedAnswer[Any]) -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]

    def _bound(self) -> None:
        if len(self._answers) <= MAX_ANSWERS:
            return
        now = time.monotonic()
        for key in [key for key, each in self._answers.items() if each.until <= now]:
            del self._answers[key]
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[min(self._answers, key=lambda key: self._answers[key].until)]
