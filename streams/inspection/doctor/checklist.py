"""The checklist of ``streams doctor``: its items in their order.

Nothing is written and nothing is created. A check says what it saw, never what it hopes: what the
log, a login or an address does not tell is *unknown*, with the way to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from streams.errors import LogError
from streams.inspection.doctor.app_inspection import AppInspection, Finding, Subject
from streams.inspection.doctor.history_checks import check_histories
from streams.inspection.doctor.log_checks import check_order, check_persistence, check_retention
from streams.inspection.doctor.manager_checks import check_managers
from streams.inspection.doctor.monitoring_checks import check_alerts, check_monitoring
from streams.inspection.doctor.outbox_checks import check_outboxes
from streams.inspection.doctor.processor_checks import (
    check_backpressure,
    check_dead_letters,
    check_idempotence,
    check_retries,
)
from streams.inspection.doctor.projection_checks import check_projections
from streams.inspection.doctor.view_checks import check_views

CHECKS: Sequence[tuple[str, Callable[[AppInspection], Iterator[Finding]]]] = (
    ("persisted", check_persistence),
    ("idempotent", check_idempotence),
    ("dead letters", check_dead_letters),
    ("backpressure", check_backpressure),
    ("monitoring", check_monitoring),
    ("alerts", check_alerts),
    ("retries", check_retries),
    ("order", check_order),
    ("retention", check_retention),
    ("histories", check_histories),
    ("views", check_views),
    ("managers", check_managers),
    ("projections", check_projections),
    ("outbox", check_outboxes),
)


def run_checks(inspection: AppInspection) -> Iterator[Finding]:
    """Every item of the checklist, in its order."""
    for item, check in CHECKS:
        try:
            yield from check(inspection)
        except LogError as error:
            yield Subject(item, "the log").unknown(str(error), "ask again")
