"""The items of the checklist that are about who watches the app: monitoring, alerts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

from streams.inspection.doctor.app_inspection import AppInspection, Finding, Subject

PROMETHEUS_ADVICE = "check the URL of --prometheus"


def check_monitoring(inspection: AppInspection) -> Iterator[Finding]:
    """Somebody can see how it goes."""
    subject = Subject("monitoring", "metrics")
    names = {processor.name for processor in inspection.processors}
    if inspection.prometheus.url is not None:
        seen = inspection.prometheus.processor_names()
        if isinstance(seen, str):
            yield subject.unknown(seen, PROMETHEUS_ADVICE)
        elif missing := sorted(names - seen):
            yield subject.no(
                f"Prometheus has no metrics of {', '.join(missing)}",
                "run with --http, and let Prometheus scrape /metrics there",
            )
        else:
            yield subject.yes("Prometheus has metrics of every processor")
    elif find_spec("prometheus_client") is None:
        yield subject.no("prometheus-client is not installed", "pip install prometheus-client")
    elif http_address := os.environ.get("STREAMS_HTTP"):
        yield subject.yes(f"streams run serves them on {http_address} (STREAMS_HTTP)")
    elif inspection.app.timing_enabled:
        yield subject.yes("the app registers a MetricsCollector")
    else:
        yield subject.no(
            "nothing serves this app's metrics",
            "streams run --http 0.0.0.0:9100 (or STREAMS_HTTP), or register MetricsCollector(app)",
        )


def check_alerts(inspection: AppInspection) -> Iterator[Finding]:
    """Somebody is told when it does not go well."""
    subject = Subject("alerts", "Prometheus")
    if inspection.prometheus.url is None:
        yield subject.unknown(
            "the URL of Prometheus is not given",
            "load monitoring/alerts.yml into it, and give --prometheus URL (or STREAMS_PROMETHEUS)",
        )
        return
    loaded = inspection.prometheus.alert_names()
    if isinstance(loaded, str):
        yield subject.unknown(loaded, PROMETHEUS_ADVICE)
        return
    required: tuple[str, ...] = REQUIRED_ALERTS
    if inspection.app.aggregates:
        required += AGGREGATE_ALERTS
    if inspection.app.views:
        required += VIEW_ALERTS
    if inspection.app.managers:
        required += MANAGER_ALERTS
    if inspection.app.outboxes:
        required += OUTBOX_ALERTS
    if inspection.app.projections:
        required += PROJECTION_ALERTS
    missing = [name for name in required if name not in loaded]
    if missing:
        yield subject.no(
            f"it lacks the rules {', '.join(missing)}",
            "load monitoring/alerts.yml (rule_files), or rules of these names",
        )
    elif isinstance(has_alertmanager := inspection.prometheus.has_alertmanager(), str):
        yield subject.unknown(has_alertmanager, PROMETHEUS_ADVICE)
    elif not has_alertmanager:
        yield subject.no(
            "it has the rules, but no Alertmanager to notify",
            "set alerting.alertmanagers in its configuration",
        )
    else:
        yield subject.yes(f"{len(required)} rules, and an Alertmanager to notify")


REQUIRED_ALERTS = (
    "StreamsProcessorDead",
    "StreamsLogUnreachable",
    "StreamsLagGrows",
    "StreamsOldestUnsettled",
    "StreamsNoCommits",
    "StreamsDeadLetters",
    "StreamsRetryStorm",
    "StreamsMessagesLost",
)
"""The rules of ``monitoring/alerts.yml`` that everybody needs."""

AGGREGATE_ALERTS = ("StreamsAggregatesStopped", "StreamsHistoryTruncated", "StreamsDecisionsFail")
"""The rules of ``monitoring/alerts.yml`` that everybody needs who has aggregates."""

VIEW_ALERTS = ("StreamsViewDocumentsStopped", "StreamsViewWaits", "StreamsViewLags")
"""The rules of ``monitoring/alerts.yml`` that everybody needs who has views."""

MANAGER_ALERTS = ("StreamsManagerFails", "StreamsManagerTimeoutsOverdue")
"""The rules of ``monitoring/alerts.yml`` that everybody needs who has process managers."""

OUTBOX_ALERTS = (
    "StreamsOutboxOld",
    "StreamsOutboxRowsFailed",
    "StreamsOutboxTopicUndeclared",
)
"""The rules of ``monitoring/alerts.yml`` that everybody needs who has outboxes."""

PROJECTION_ALERTS = ("StreamsProjectionNotPromoted",)
"""The rules of ``monitoring/alerts.yml`` that everybody needs who has SQL projections."""
