"""Many concurrent callers, few calls of the log.

A thread takes all that was asked for while its last call ran, and asks for it in one. Answers go
back to the loops that wait, all answers for one loop in one step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from streams.errors import LogError, NotRunning
from streams.text import get_logger

Q = TypeVar("Q")
A = TypeVar("A")

logger = get_logger("streams")

MAX_REQUESTS = 1_000
"""Requests in one call, at most."""

Answers = Sequence["A | LogError"]


class RequestBatcher(Generic[Q, A]):
    """Asks on behalf of everybody, in the order in which requests came. Usable from any loop.

    :param call: given requests and a function that is to be called once with their answers, in
        this thread or another.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[Sequence[Q], Callable[[Answers[A]], None]], None],
        *,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._name = name
        self._call = call
        self._max_requests = max_requests
        self._changed = threading.Condition()
        self._requests: list[tuple[Q, asyncio.Future[A], asyncio.AbstractEventLoop]] = []
        self._idle = False
        self._closed = False
        self._thread: threading.Thread | None = None

    async def send(self, request: Q) -> A:
        """The answer to a request. Cancelled or not, it will be asked.

        :raises LogError: there is none.
        :raises NotRunning: the batcher is closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        with self._changed:
            if self._closed:
                raise NotRunning(f"{self._name}: the app is closing or closed")
            self._requests.append((request, future, loop))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._idle:
                self._idle = False
                self._changed.notify()
        return await future

    def close(self) -> None:
        """Ask what was handed in before, then end; blocks."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._requests:
                    if self._closed:
                        return
                    self._idle = True
                    self._changed.wait()
                    self._idle = False
                taken = self._requests[: self._max_requests]
                del self._requests[: self._max_requests]
            self._ask(taken)

    def _ask(self, taken: Sequence[tuple[Q, asyncio.Future[A], asyncio.AbstractEventLoop]]) -> None:
        def answer(answers: Answers[A]) -> None:
            by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[A], Any]]] = {}
            for (_, future, loop), each in zip(taken, answers, strict=True):
                by_loop.setdefault(loop, []).append((future, each))
            for loop, answered in by_loop.items():
                try:
                    loop.call_soon_threadsafe(_set_answers, answered)
                except RuntimeError:
                    continue  # that loop is closed: nobody waits any more

        try:
            self._call([request for request, _, _ in taken], answer)
        except LogError as error:
            answer([error] * len(taken))
        except Exception as error:
            logger.exception("%s: the log failed in an unexpected way", self._name)
            answer([LogError(f"{self._name}: {error!r}")] * len(taken))


def _set_answers(answered: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    """On the loop of those who wait."""
    for future, answer in answered:
        if future.done():
            continue
        if isinstance(answer, LogError):
            # Each its own, as a traceback grows on it where it is raised.
            error = type(answer)(str(answer))
            error.__cause__ = answer
            future.set_exception(error)
        else:
            future.set_result(answer)
