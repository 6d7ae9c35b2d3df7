"""The doctor's findings for the dashboard: made in the background, cached for a while.

Going through the checklist takes many requests to the log, so a visitor sees the last findings,
and a thread looks for new ones. Findings name keys and errors, so there are two kinds: for visitors
who may see the contents of messages (past the app's ``redact=``), and for the others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

from streams.errors import ConfigError, StreamsError
from streams.inspection.doctor.app_inspection import AppInspection, Finding, MessageTexts
from streams.inspection.doctor.checklist import run_checks
from streams.inspection.doctor.prometheus import PrometheusClient
from streams.text import describe_error, get_logger
from streams.web.ages import is_recent
from streams.web.redaction import Payloads, Redact, Shown

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log

logger = get_logger("streams.web")

PROMETHEUS = "STREAMS_PROMETHEUS"
"""The environment variable with the address of Prometheus, as for the command."""


class DoctorResult(NamedTuple):
    """The findings of one run.

    :param at: when it ran (seconds of real time since the epoch).
    :param seconds: how long it took.
    :param error: why it failed; empty: it did not.
    :param changes: how many changes were known of when it began.
    """

    findings: Sequence[Finding]
    at: float
    seconds: float
    error: str = ""
    changes: int = 0


class _RedactedTexts(MessageTexts):
    """The contents of messages, as a visitor may see them."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads

    @override
    def key(self, topic: str, data: bytes) -> str:
        return _text(self._payloads.key(topic, data))

    @override
    def error(self, topic: str, text: str) -> str:
        return _text(self._payloads.error(topic, text))


def _text(shown: Shown) -> str:
    return shown.text if shown.text is not None else "(not shown)"


def declares_anything(app: Streams) -> bool:
    """Whether the app declares something to check; False for an address alone."""
    return bool(app.processors or app.topics or app.aggregates or app.views or app.outboxes)


class DoctorRuns:
    """Runs the doctor, one thread at a time (any thread may ask).

    :param open_log: returns the log; it may raise.
    :param on_result: called when there are new findings.
    """

    def __init__(
        self,
        app: Streams,
        open_log: Callable[[], Log],
        redact: Redact | None,
        on_result: Callable[[], None],
    ) -> None:
        self._on_result = on_result
        self._app = app
        self._open_log = open_log
        self._redact = redact
        self._lock = threading.Lock()
        self._results: dict[bool, DoctorResult] = {}
        self._running: set[bool] = set()
        self._changes = 0
        self._looked = threading.Condition(self._lock)
        self._closed = False

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed: the next request starts a new run."""
        with self._lock:
            self._changes += 1

    def close(self) -> None:
        """Start no more runs. A current one ends by itself."""
        with self._lock:
            self._closed = True
            self._looked.notify_all()

    def result(
        self, *, payloads: bool, older_than: float, patience: float = 0.0
    ) -> tuple[DoctorResult | None, bool]:
        """The last findings, if there are any, and whether a run is under way. A new run is
        started if the last was longer ago than this many seconds of real time, or before
        :meth:`expire`.

        :param payloads: for a visitor who may see the contents of messages.
        :param patience: the most seconds of real time to wait for new findings if the last are from
            before :meth:`expire` (blocks).
        """
        deadline = time.monotonic() + patience
        with self._lock:
            while True:
                found = self._results.get(payloads)
                is_changed = found is not None and found.changes != self._changes
                is_old = found is None or is_changed or not is_recent(found.at, older_than)
                if is_old and payloads not in self._running and not self._closed:
                    self._start(payloads=payloads)
                is_over = self._closed or not is_changed
                if is_over or not self._looked.wait(deadline - time.monotonic()):
                    return found, payloads in self._running

    def progress(self, *, payloads: bool) -> tuple[float, bool]:
        """When the last run was (seconds of real time since the epoch; 0.0: never), and whether one
        is under way.

        :param payloads: for a visitor who may see the contents of messages.
        """
        with self._lock:
            found = self._results.get(payloads)
            return 0.0 if found is None else found.at, payloads in self._running

    def _start(self, *, payloads: bool) -> None:
        threading.Thread(
            target=self._run,
            args=(payloads, self._changes),
            name="streams-web-doctor",
            daemon=True,
        ).start()
        self._running.add(payloads)

    def _run(self, payloads: bool, changes: int) -> None:
        began = time.monotonic()
        findings: list[Finding] = []
        error = ""
        try:
            findings = self._run_doctor(payloads=payloads)
        except StreamsError as found:
            error = describe_error(found)
        except Exception as found:
            logger.exception("the dashboard's doctor failed")
            error = type(found).__name__
        finally:
            with self._lock:
                took = time.monotonic() - began
                self._results[payloads] = DoctorResult(findings, time.time(), took, error, changes)
                self._running.discard(payloads)
                self._looked.notify_all()
            self._on_result()

    def _run_doctor(self, *, payloads: bool) -> list[Finding]:
        log, open_error = None, ""
        try:
            log = self._open_log()
        except ConfigError:
            raise
        except StreamsError as error:
            open_error = str(error)
        prometheus = PrometheusClient(os.environ.get(PROMETHEUS))
        shown = _RedactedTexts(Payloads(allowed=payloads, redact=self._redact))
        inspection = AppInspection(self._app, log, open_error, prometheus, texts=shown)
        return list(run_checks(inspection))
