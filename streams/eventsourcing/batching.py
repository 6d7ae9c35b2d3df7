"""Many concurrent callers, few calls of the log.

A thread takes all that was asked for while its last call ran, and asks for it in one. Answers go
back to the loops that wait, all answers for one loop in one step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from streams.errors import LogError, NotRunning
from streams.event_loop import answer_futures
from streams.text import get_logger

Q = TypeVar("Q")
A = TypeVar("A")

logger = get_logger("streams")

MAX_REQUESTS = 1_000
"""Requests in one call, at most."""

Answers = Sequence[A | LogError]

Call = Callable[[Sequence[Q], Callable[[Answers[A]], None]], None]
"""Given requests and a function that is to be called once with their answers, in the thread of the
call or another."""


class RequestBatcher(Generic[Q, A]):
    """Asks on behalf of everybody, in the order in which requests came. Usable from any loop.

    :param keeps_thread: False: the thread ends where nothing is left to be asked, and the next
        request starts another one.
    """

    def __init__(
        self,
        name: str,
        call: Call[Q, A],
        *,
        max_requests: int = MAX_REQUESTS,
        keeps_thread: bool = True,
    ) -> None:
        self._name = name
        self._call = call
        self._max_requests = max_requests
        self._keeps_thread = keeps_thread
        self._requests: SimpleQueue[tuple[Q, asyncio.Future[A]] | None] = SimpleQueue()
        """What was asked and is not taken yet; None comes last."""
        self._lock = threading.Lock()
        """Of what follows, so that nothing is put behind the None, or left without a thread."""
        self._closed = False
        self._thread: threading.Thread | None = None

    def send(self, request: Q) -> asyncio.Future[A]:
        """The answer to a request. Awaited or cancelled or not, it will be asked.

        The future ends with a LogError where there is no answer.

        :raises NotRunning: the batcher is closed.
        """
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                raise NotRunning(f"{self._name}: the app is closing or closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._requests.put((request, future))
        return future

    def close(self) -> None:
        """Ask what was handed in before, then end; blocks."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._requests.put(None)
            thread = self._thread
        if thread is not None:
            thread.join()

    # -- the thread

    def _run(self) -> None:
        while (first := self._take_first()) is not None:
            taken = [first]
            # Only this thread takes any, so as many as there are can be had without waiting.
            for _ in range(min(self._requests.qsize(), self._max_requests - 1)):
                following = self._requests.get()
                if following is None:
                    self._requests.put(None)
                    break
                taken.append(following)
            self._ask(taken)

    def _take_first(self) -> tuple[Q, asyncio.Future[A]] | None:
        """What is asked next; None: the thread ends."""
        if self._keeps_thread:
            return self._requests.get()
        with self._lock:
            if self._requests.empty():
                self._thread = None
                return None
            return self._requests.get()

    def _ask(self, taken: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        def answer(answers: Answers[A]) -> None:
            futures = [future for _, future in taken]
            answer_futures(zip(futures, answers, strict=True))

        try:
            self._call([request for request, _ in taken], answer)
        except LogError as error:
            answer([error] * len(taken))
        except Exception as error:
            logger.exception("%s: the log failed in an unexpected way", self._name)
            answer([LogError(f"{self._name}: {error!r}")] * len(taken))
