"""Something that is held up in the middle until a test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.conformance.stage import PATIENCE


class Gate:
    """Holds up the first call of a function.

    :param function: what is called.
    :param after: it is held up with its result, instead of before it does anything.
    """

    def __init__(self, function: Callable[..., Any], *, after: bool = False) -> None:
        self._function = function
        self._after = after
        self._entered = threading.Event()
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.thread: threading.Thread | None = None
        """Whose call is held up."""
        self.calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            self.calls += 1
            is_first = self.thread is None
            if is_first:
                self.thread = threading.current_thread()
        if not is_first:
            return self._function(*args, **options)
        found = self._function(*args, **options) if self._after else None
        self._entered.set()
        assert self._open.wait(PATIENCE), "nobody let it go on"
        return found if self._after else self._function(*args, **options)

    def entered(self) -> None:
        """Wait until a call is held up."""
        assert self._entered.wait(PATIENCE), "nobody came"

    def open(self) -> None:
        """Let it go on."""
        self._open.set()

    def bound(self) -> Any:
        """The same as a method: a class's attribute."""

        def method(self_: Any, *args: Any, **options: Any) -> Any:
            return self(self_, *args, **options)

        return method
