"""Batches requests: many concurrent callers share few calls of the log.

A thread takes all requests that arrived during its last call, and sends them in one call. Answers
go back to the loops that wait, all answers for one loop in one step.
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
"""Called with requests and a function to call once with their answers, in the same thread or in
another."""


class RequestBatcher(Generic[Q, A]):
    """Sends the requests of all callers to the log, in order of arrival. Usable from any loop.

    :param keeps_thread: False: the thread ends when no request is left, and the next request
        starts another one.
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
        """Requests that the thread has not taken yet; None comes last."""
        self._lock = threading.Lock()
        """Guards the next two fields, so that no request is put after the None or left without a
        thread."""
        self._closed = False
        self._thread: threading.Thread | None = None

    def send(self, request: Q) -> asyncio.Future[A]:
        """Hand in a request; returns the future of its answer. The request is sent even if the
        future is cancelled or never awaited.

        The future ends with a LogError if there is no answer.

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
        """Send the requests that were handed in before, then end; blocks."""
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
            # Only this thread takes requests, so those in the queue can be taken without waiting.
            for _ in range(min(self._requests.qsize(), self._max_requests - 1)):
                following = self._requests.get()
                if following is None:
                    self._requests.put(None)
                    break
                taken.append(following)
            self._send_requests(taken)

    def _take_first(self) -> tuple[Q, asyncio.Future[A]] | None:
        """The next request; None: the thread ends."""
        if self._keeps_thread:
            return self._requests.get()
        with self._lock:
            if self._requests.empty():
                self._thread = None
                return None
            return self._requests.get()

    def _send_requests(self, taken: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
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
