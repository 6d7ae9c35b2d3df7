"""Requests of the app's loop to the threads that fold a view: retry stopped documents; start over,
as the documents were deleted; or end with an error, as the stored documents do not match the
view's declaration here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from streams.errors import ConfigError


class RetryRequest(NamedTuple):
    """A request to retry a stopped document.

    :param id: the ID of the request.
    """

    id: str
    partition: int
    key: bytes


class RetryRequests:
    """Requests that wait for the thread that folds their partition (any thread).

    :param on_done: called with a request that was carried out, and whether the document is folded
        again.
    """

    def __init__(self, on_done: Callable[[RetryRequest, bool], None]) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, RetryRequest] = {}
        self._taken: set[str] = set()
        self._on_done = on_done
        self._restart_requested = False
        self._error: ConfigError | None = None

    def resume(self) -> None:
        """Let the threads continue folding."""
        self._error = None

    def fail(self, error: ConfigError) -> None:
        """Have the threads end with this error."""
        self._error = error

    def check_running(self) -> None:
        """Check that folding may go on.

        :raises ConfigError: the error that :meth:`fail` was called with.
        """
        if self._error is not None:
            raise self._error

    def request_restart(self) -> None:
        """Have the writer of the documents start over, even if no event arrives: they were
        deleted."""
        self._restart_requested = True

    def take_restart(self) -> bool:
        """Whether a restart was requested; resets that."""
        if not self._restart_requested:
            return False
        self._restart_requested = False
        return True

    def add_requests(self, requests: Iterable[RetryRequest]) -> None:
        """Replace the waiting requests by these, without those that were taken already."""
        with self._lock:
            listed = {each.id: each for each in requests}
            self._taken &= listed.keys()
            for id in self._taken:
                del listed[id]
            self._waiting = listed

    def take_requests(self, partition: int) -> list[RetryRequest]:
        """The requests for a partition, to be carried out now."""
        if not self._waiting:
            return []
        with self._lock:
            found = [each for each in self._waiting.values() if each.partition == partition]
            for each in found:
                del self._waiting[each.id]
                self._taken.add(each.id)
        return found

    def put_back(self, requests: Iterable[RetryRequest]) -> None:
        """Return requests that could not be carried out now."""
        with self._lock:
            self._taken.difference_update(each.id for each in requests)

    def finish_request(self, request: RetryRequest, goes_on: bool) -> None:
        """Report that a request was carried out."""
        self._on_done(request, goes_on)
