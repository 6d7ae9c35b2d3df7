"""An app's figures for Prometheus: a collector that reads them on each scrape.

Counters begin at 0 with each start of a processor, as Prometheus expects of a process. Figures for
which the log did not answer in time are missing from that scrape (``streams_backlog_known`` is 0
then), so an alert can tell "nothing waits" from "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from typing_extensions import override

from streams.app import Streams
from streams.errors import ConfigError
from streams.health import (
    AggregateStats,
    Health,
    ManagerStats,
    OutboxStats,
    ProjectionStats,
    Stats,
    ViewStats,
)
from streams.patterns.arguments import check_app, check_seconds
from streams.patterns.monitoring.lag_probe import LagProbe, LagReport
from streams.processing import BUCKET_BOUNDS, Durations

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ImportError as error:
    raise ConfigError(
        "metrics need the package prometheus-client (the extra prometheus): "
        "pip install prometheus-client"
    ) from error

SCRAPE_TIMEOUT = 3.0
"""Seconds that a scrape waits for the log. Prometheus gives a scrape 10 by default."""

_PROCESSOR_LABELS = ("processor", "group")
_AGGREGATE_LABELS = ("aggregate",)
_PARTITION_LABELS = ("processor", "group", "topic", "partition")

_COUNTERS = (
    ("handled", "streams_messages_handled", "Messages whose handler succeeded"),
    ("duplicates", "streams_messages_duplicate", "Messages dropped, their ID being settled"),
    ("filtered", "streams_messages_filtered", "Messages passed over by a filter"),
    ("retries", "streams_retries", "Failed attempts that were followed by another"),
    ("dead_letters", "streams_dead_letters", "Messages moved to the dead letter topic"),
    ("commits", "streams_commits", "Commits acknowledged by the log"),
    ("rebalances", "streams_rebalances", "Times that partitions came or went"),
    ("losses", "streams_losses", "Times that a position was not in the log any more"),
    ("rejected", "streams_progress_rejected", "Times that stored progress was not believed"),
)
"""A field of ProcessorStats, a metric's name and its documentation."""

_GAUGES = (
    ("in_flight", "streams_in_flight_messages", "Messages held and not settled"),
    ("in_flight_bytes", "streams_in_flight_bytes", "Bytes of the messages held"),
    ("running", "streams_handlers_running", "Handlers running at this moment"),
    ("waiting", "streams_retries_waiting", "Messages waiting to be tried again"),
    ("held_back", "streams_held_back_messages", "Messages waiting for newer code"),
    ("closed_keys", "streams_closed_keys", "Keys that a dead message closes"),
    ("parked", "streams_parked_messages", "Messages waiting behind a dead one of their key"),
    ("partitions", "streams_partitions_owned", "Partitions owned"),
)

_INBOX_COUNTERS = (
    ("committed", "streams_inbox_commits", "Transactions of handlers that were committed"),
    ("duplicates", "streams_inbox_duplicates", "Messages settled as they had been handled"),
    ("reruns", "streams_inbox_reruns", "Transactions that were run again at once"),
)
"""A field of InboxStats, a metric's name and its documentation."""

_HEALTH = (
    ("running", "streams_processor_up", "1 while the processor polls, or is paused on purpose"),
    ("paused", "streams_processor_paused", "1 while the processor is paused on purpose"),
    ("reachable", "streams_log_reachable", "1 while the log answers the processor"),
    ("database_reachable", "streams_database_reachable", "1 while its database answers, if any"),
    ("overdue", "streams_handlers_overdue", "Plain handlers that outlive the timeout"),
)

_AGGREGATE_COUNTERS = (
    ("decisions", "streams_aggregate_decisions", "Calls of decide and append"),
    ("conflicts", "streams_aggregate_conflicts", "Appends that came too late"),
    ("retries", "streams_aggregate_retries", "Decisions called again because of a conflict"),
    ("appends", "streams_aggregate_appends", "Appends that count"),
    ("events", "streams_aggregate_events", "Events of the appends that count"),
    ("refused", "streams_aggregate_appends_refused", "Appends that the log refused"),
    ("caused", "streams_aggregate_causes_found", "Decisions that had been taken for their cause"),
    ("cache_hits", "streams_aggregate_cache_hits", "States that were in the cache"),
    ("cache_misses", "streams_aggregate_cache_misses", "States that were not in the cache"),
    ("snapshots", "streams_aggregate_snapshots", "Snapshots written"),
    ("snapshots_used", "streams_aggregate_snapshots_used", "Loads that began at a snapshot"),
    ("snapshots_useless", "streams_aggregate_snapshots_useless", "Snapshots that were not read"),
    ("snapshots_failed", "streams_aggregate_snapshots_failed", "Snapshots that were not written"),
    ("truncated", "streams_aggregate_truncated", "Times that the log lacked acknowledged events"),
    ("failures", "streams_aggregate_failures", "Calls that the log refused or did not answer"),
)
"""A field of AggregateStats, a metric's name and its documentation."""

_AGGREGATE_GAUGES = (
    ("cached", "streams_aggregate_cached", "States in the cache"),
    ("cached_bytes", "streams_aggregate_cached_bytes", "Bytes of the states in the cache"),
    ("undecodable", "streams_aggregate_undecodable", "Aggregates stopped by an unreadable event"),
    ("uncounted", "streams_aggregate_uncounted_records", "Records that count for no history"),
)

_VIEW_LABELS = ("view", "version")

_VIEW_GAUGES = (
    ("waiting", "streams_view_waiting_partitions", "Partitions that wait at an event"),
    ("serving", "streams_view_serving", "1 where this process reads from this version"),
)
"""A field of ViewStats, a metric's name and its documentation."""

_VIEW_BACKLOG = (
    ("stopped", "streams_view_stopped_documents", "Documents that stand still"),
    ("lag", "streams_view_lag_messages", "Messages that are not folded yet"),
    ("share", "streams_view_folded_ratio", "How much of the messages is folded, from 0 to 1"),
)
"""A field of ViewBacklog, a metric's name and its documentation."""

_MANAGER_LABELS = ("manager",)

_MANAGER_COUNTERS = (
    ("reacted", "streams_manager_reactions", "Reactions to messages, timeouts and refusals"),
    ("passed_over", "streams_manager_passed_over", "Messages and timeouts that were for nobody"),
    ("commands", "streams_manager_commands", "Commands carried out"),
    ("refused", "streams_manager_commands_refused", "Commands that their aggregates refused"),
    ("failures", "streams_manager_failures", "Attempts to react, or to carry out, that failed"),
)
"""A field of ManagerStats, a metric's name and its documentation."""

_MANAGER_GAUGES = (
    ("timeouts", "streams_manager_timeouts_waiting", "Timeouts that are waited for"),
    ("overdue", "streams_manager_timeouts_overdue_seconds", "Seconds since the first was due"),
)

_PROJECTION_LABELS = ("projection", "version")

_OUTBOX_LABELS = ("outbox",)

_OUTBOX_COUNTERS = (
    ("relayed", "streams_outbox_relayed", "Rows that the log has confirmed"),
    ("failures", "streams_outbox_failures", "Attempts to publish a row that the log refused"),
    ("outages", "streams_outbox_outages", "Times that the connection to the database failed"),
)
"""A field of OutboxStats, a metric's name and its documentation."""

_OUTBOX_GAUGES = (
    ("buckets", "streams_outbox_buckets_owned", "Buckets of keys that this relay has"),
    ("depth", "streams_outbox_rows", "Rows that are to be relayed"),
    ("oldest", "streams_outbox_oldest_seconds", "Seconds since the first of them was written"),
    ("failed", "streams_outbox_failed_rows", "Rows that could not be published"),
    ("waiting", "streams_outbox_waiting_rows", "Rows that wait behind one of their key"),
    (
        "undeclared",
        "streams_outbox_undeclared_rows",
        "Rows that wait for a relay whose app declares their topic",
    ),
)

_DURATIONS = (
    ("handler_seconds", "streams_handler_seconds", "How long calls of the handler take"),
    ("commit_seconds", "streams_commit_seconds", "How long the log takes to acknowledge a commit"),
)


class MetricsCollector(Collector):
    """The metrics of one app. Register it: ``prometheus_client.REGISTRY.register(...)``.

    From then on the app takes the time of handlers' calls (:meth:`streams.Streams.measure`).

    :param app: before or after it is entered; processors that do not run have no figures.
    :param patience: seconds that a scrape waits for the log at most.
    :raises ConfigError: ``app`` is not an app.
    """

    def __init__(self, app: Streams, *, patience: float = SCRAPE_TIMEOUT) -> None:
        check_app(app, "MetricsCollector")
        check_seconds("MetricsCollector", "patience", patience)
        self.app = app
        self._timeout = patience
        self._lag_probe = LagProbe(app)
        app.measure()

    def describe(self) -> Iterable[Metric]:
        """The metrics without figures, so that a registry finds duplicate names."""
        metrics = _app_metrics(Stats({}, 0), Health(False, {}), {})
        return [*metrics, *_lag_metrics(None, {}), *_view_backlog_metrics(None)]

    @override
    def collect(self) -> Iterator[Metric]:
        """Read the figures, and ask the log for the lag of each partition."""
        app = self.app
        stats, health = app.stats(), app.health()
        groups = {each.name: each.group for each in list(app.processors)}
        yield from _app_metrics(stats, health, groups)
        log_is_open = health.connected and not health.stopping
        found = self._lag_probe.measure(stats, self._timeout) if log_is_open else None
        yield from _lag_metrics(found, groups)
        yield from _view_backlog_metrics(found)


def _app_metrics(stats: Stats, health: Health, groups: dict[str, str]) -> Iterator[Metric]:
    """All metrics except those that the log is asked for."""
    yield from _families(CounterMetricFamily, _COUNTERS, stats.processors, groups)
    yield from _families(GaugeMetricFamily, _GAUGES, stats.processors, groups)
    for field, name, documentation in _DURATIONS:
        histogram = HistogramMetricFamily(name, documentation, labels=_PROCESSOR_LABELS)
        for processor, found in stats.processors.items():
            durations: Durations = getattr(found, field)
            histogram.add_metric(_labels(processor, groups), _buckets(durations), durations.total)
        yield histogram
    yield from _families(GaugeMetricFamily, _HEALTH, health.processors, groups)
    yield from _families(CounterMetricFamily, _INBOX_COUNTERS, stats.inboxes, groups)
    yield from _aggregate_metrics(stats.aggregates)
    yield from _view_metrics(stats.views)
    yield from _manager_metrics(stats.managers)
    yield from _projection_metrics(stats.projections)
    yield from _outbox_metrics(stats.outboxes)
    published = "Records published and acknowledged"
    yield CounterMetricFamily("streams_published", published, stats.published)
    is_up, up = (
        health.connected and not health.stopping,
        "1 while the app is entered and not stopping",
    )
    yield GaugeMetricFamily("streams_app_up", up, int(is_up))


def _aggregate_metrics(aggregates: Mapping[str, AggregateStats]) -> Iterator[Metric]:
    """The metrics of aggregates, each with the label ``aggregate``."""
    for make, rows in (
        (CounterMetricFamily, _AGGREGATE_COUNTERS),
        (GaugeMetricFamily, _AGGREGATE_GAUGES),
    ):
        for field, name, documentation in rows:
            family = make(name, documentation, labels=_AGGREGATE_LABELS)
            for aggregate, found in aggregates.items():
                family.add_metric([aggregate], getattr(found, field))
            yield family
    loads = HistogramMetricFamily(
        "streams_aggregate_load_seconds",
        "How long it takes to read a history, or to catch up with it",
        labels=_AGGREGATE_LABELS,
    )
    age = GaugeMetricFamily(
        "streams_aggregate_snapshot_age_seconds",
        "Seconds since snapshots were written last",
        labels=_AGGREGATE_LABELS,
    )
    for aggregate, found in aggregates.items():
        durations = found.load_durations
        loads.add_metric([aggregate], _buckets(durations), durations.total)
        if found.snapshot_age is not None:
            age.add_metric([aggregate], found.snapshot_age)
    yield loads
    yield age


def _families(
    make: type[CounterMetricFamily | GaugeMetricFamily],
    rows: Iterable[tuple[str, str, str]],
    processors: Mapping[str, object],
    groups: dict[str, str],
) -> Iterator[Metric]:
    """A metric for each row, with the figure of each processor."""
    for field, name, documentation in rows:
        family = make(name, documentation, labels=_PROCESSOR_LABELS)
        for processor, found in processors.items():
            family.add_metric(_labels(processor, groups), int(getattr(found, field)))
        yield family


def _view_metrics(views: Mapping[str, ViewStats]) -> Iterator[Metric]:
    """The metrics of versions of views that this process knows without asking the log."""
    events = CounterMetricFamily("streams_view_events", "Events folded", labels=_VIEW_LABELS)
    for found in views.values():
        events.add_metric([found.view, str(found.version)], found.events)
    yield events
    for field, name, documentation in _VIEW_GAUGES:
        family = GaugeMetricFamily(name, documentation, labels=_VIEW_LABELS)
        for found in views.values():
            family.add_metric([found.view, str(found.version)], int(getattr(found, field)))
        yield family


def _manager_metrics(managers: Mapping[str, ManagerStats]) -> Iterator[Metric]:
    """The metrics of process managers, each with the label ``manager``."""
    for make, rows in (
        (CounterMetricFamily, _MANAGER_COUNTERS),
        (GaugeMetricFamily, _MANAGER_GAUGES),
    ):
        for field, name, documentation in rows:
            family = make(name, documentation, labels=_MANAGER_LABELS)
            for manager, found in managers.items():
                family.add_metric([manager], getattr(found, field))
            yield family


def _projection_metrics(projections: Mapping[str, ProjectionStats]) -> Iterator[Metric]:
    """The metrics of versions of SQL projections; their progress is their processors' lag."""
    serving = GaugeMetricFamily(
        "streams_projection_serving", "1 where this version serves, as this process saw last",
        labels=_PROJECTION_LABELS,
    )  # fmt: skip
    failures = CounterMetricFamily(
        "streams_projection_promotion_failures", "Attempts to promote this version that failed",
        labels=_PROJECTION_LABELS,
    )  # fmt: skip
    for each in projections.values():
        labels = [each.projection, str(each.version)]
        serving.add_metric(labels, int(each.serving))
        failures.add_metric(labels, each.failures)
    yield serving
    yield failures


def _outbox_metrics(outboxes: Mapping[str, OutboxStats]) -> Iterator[Metric]:
    """The metrics of outboxes, each with the label ``outbox``; only processes that relay report how
    many rows there are."""
    for make, rows in (
        (CounterMetricFamily, _OUTBOX_COUNTERS),
        (GaugeMetricFamily, _OUTBOX_GAUGES),
    ):
        for field, name, documentation in rows:
            family = make(name, documentation, labels=_OUTBOX_LABELS)
            for outbox, found in outboxes.items():
                figure = getattr(found, field)
                if figure is not None:
                    family.add_metric([outbox], figure)
            yield family


def _view_backlog_metrics(found: LagReport | None) -> Iterator[Metric]:
    """The metrics that the log is asked for; they are the same in each process."""
    for field, name, documentation in _VIEW_BACKLOG:
        family = GaugeMetricFamily(name, documentation, labels=_VIEW_LABELS)
        for each in () if found is None else found.views:
            figure = getattr(each, field)
            if figure is not None:
                family.add_metric([each.view, str(each.version)], figure)
        yield family


def _lag_metrics(found: LagReport | None, groups: dict[str, str]) -> Iterator[Metric]:
    known = "1 where the log said in time how far behind the processors are"
    yield GaugeMetricFamily("streams_backlog_known", known, int(found is not None))
    lag = GaugeMetricFamily(
        "streams_lag_messages",
        "Messages from the first that is not settled to the partition's end",
        labels=_PARTITION_LABELS,
    )
    age = GaugeMetricFamily(
        "streams_oldest_unsettled_seconds",
        "Age of the first message that is not settled",
        labels=_PARTITION_LABELS,
    )
    for each in () if found is None else found.partitions:
        labels = [*_labels(each.processor, groups), each.topic, str(each.partition)]
        if each.lag is not None:
            lag.add_metric(labels, each.lag)
        if each.age is not None:
            age.add_metric(labels, each.age)
    yield lag
    yield age


def _labels(processor: str, groups: dict[str, str]) -> tuple[str, str]:
    return (processor, groups.get(processor, ""))


def _buckets(durations: Durations) -> list[Any]:
    """Upper bounds with cumulative counts, as in a Prometheus histogram."""
    bounds = map(floatToGoString, BUCKET_BOUNDS)
    return list(zip([*bounds, "+Inf"], accumulate(durations.counts), strict=True))
