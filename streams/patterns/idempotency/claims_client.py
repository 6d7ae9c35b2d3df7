"""Requests of coroutines to the store of claims, sent by one thread.

Requests that arrive while one call runs go into the next, so many concurrent callers share a
transaction or a round trip. Requests are executed in the order in which they were made. A store
that never blocks is called directly, without a thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from streams.cancellation import run_in_thread
from streams.errors import Fatal, LogError, NotRunning
from streams.event_loop import answer_futures
from streams.log.claims import Answer, ClaimStore, Request
from streams.patterns.idempotency.errors import StoreClosed
from streams.text import get_logger

logger = get_logger("streams")

MAX_REQUESTS = 1000
"""The most requests in one call."""


class _PendingRequest(NamedTuple):
    """A request, and the future of its caller, if one waits."""

    request: Request
    future: asyncio.Future[Any] | None = None


class ClaimsClient:
    """Sends the requests of all callers. Usable from any thread and any loop."""

    def __init__(self, claims: ClaimStore, name: str) -> None:
        self.clock = claims.clock
        self._claims = claims
        self._name = name
        self._changed = threading.Condition()
        self._pending: list[_PendingRequest] = []
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    async def send(self, request: Request) -> Answer:
        """The answer to a request.

        The request is executed even if the caller is cancelled; later requests are executed after
        it.

        :raises LogError: the store did not answer, or refused.
        :raises StoreClosed: the client is closed.
        """
        if self._claims.never_blocks:
            return self._send_inline(request)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._enqueue(_PendingRequest(request, future))
        return await future

    def send_unanswered(self, request: Request) -> None:
        """Queue a request whose answer is not needed."""
        with suppress(LogError, NotRunning):
            if self._claims.never_blocks:
                self._send_inline(request)
            else:
                self._enqueue(_PendingRequest(request))

    async def close(self) -> None:
        """Finish all requests, and close the claims."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        if self._thread is None or self._pid != os.getpid():
            self._claims.close()
        else:
            await run_in_thread(self._thread.join)

    def _send_inline(self, request: Request) -> Answer:
        if self._closed:
            raise self._closed_error()
        (answer,) = self._claims.execute((request,))
        if isinstance(answer, LogError):
            raise answer
        return answer

    def _enqueue(self, pending: _PendingRequest) -> None:
        with self._changed:
            if self._closed:
                raise self._closed_error()
            if self._thread is None:
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._pid != os.getpid():
                raise Fatal(f"{self._name}: used before os.fork(); open it again in the child")
            self._pending.append(pending)
            self._changed.notify()

    def _closed_error(self) -> NotRunning:
        return StoreClosed(
            f"{self._name}: closed; close it after whatever uses it has ended, or let it live as "
            "long as its app: IdempotencyStore(app)"
        )

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                pending, self._pending = self._pending[:MAX_REQUESTS], self._pending[MAX_REQUESTS:]
            if not pending:
                break
            answers = self._run_requests([each.request for each in pending])
            answer_futures(
                (each.future, answer)
                for each, answer in zip(pending, answers, strict=True)
                if each.future is not None
            )
        try:
            self._claims.close()
        except LogError as error:
            logger.warning("%s: %s", self._name, error)

    def _run_requests(self, requests: Sequence[Request]) -> Sequence[Answer | LogError]:
        try:
            return self._claims.execute(requests)
        except LogError as error:
            return [error] * len(requests)
        except Exception as error:
            logger.exception("%s: the log failed in an unexpected way", self._name)
            return [LogError(f"{self._name}: {error!r}")] * len(requests)
