"""What the threads that fold are to do beside it, told by the app's loop: fold documents on that
stand still; begin anew, as the documents were deleted; end, as they are not the ones that are
declared here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from streams.errors import ConfigError


class RetryRequest(NamedTuple):
    """A document that stands still, and is to be folded on.

    :param id: of the request.
    """

    id: str
    partition: int
    key: bytes


class RetryRequests:
    """Requests that wait for the thread that folds their partition (any thread).

    :param on_done: called with a request that was carried out, and whether the document stands
        still no more.
    """

    def __init__(self, on_done: Callable[[RetryRequest, bool], None]) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, RetryRequest] = {}
        self._taken: set[str] = set()
        self._on_done = on_done
        self._is_stale = False
        self._error: ConfigError | None = None

    def go_on(self) -> None:
        """Whoever folds may do so."""
        self._error = None

    def end(self, error: ConfigError) -> None:
        """Whoever folds is to end with this error."""
        self._error = error

    def check(self) -> None:
        """See that it may go on.

        :raises ConfigError: it may not.
        """
        if self._error is not None:
            raise self._error

    def begin_anew(self) -> None:
        """The documents were deleted: who writes them is to begin anew, even if nothing comes."""
        self._is_stale = True

    def take_stale(self) -> bool:
        """Whether to begin anew now."""
        if not self._is_stale:
            return False
        self._is_stale = False
        return True

    def offer(self, requests: Iterable[RetryRequest]) -> None:
        """Have these carried out, unless that is done or being done, and no others."""
        with self._lock:
            listed = {each.id: each for each in requests}
            self._taken &= listed.keys()
            for id in self._taken:
                del listed[id]
            self._waiting = listed

    def take(self, partition: int) -> list[RetryRequest]:
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
        """They could not be carried out now."""
        with self._lock:
            self._taken.difference_update(each.id for each in requests)

    def done(self, request: RetryRequest, goes_on: bool) -> None:
        """It was carried out."""
        self._on_done(request, goes_on)
