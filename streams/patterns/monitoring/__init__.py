"""Monitoring: metrics, health over HTTP, traces. None of it runs or is imported unless asked for.

Metrics are read from :meth:`streams.Streams.stats` on each scrape, so a message costs no more than
without monitoring; the log is asked for the lag of each partition then too.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.patterns.monitoring.http_server import MonitoringServer as MonitoringServer
    from streams.patterns.monitoring.prometheus import MetricsCollector as MetricsCollector
    from streams.patterns.monitoring.tracing import instrument as instrument
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.patterns.monitoring.http_server": "MonitoringServer",
            "streams.patterns.monitoring.prometheus": "MetricsCollector",
            "streams.patterns.monitoring.tracing": "instrument",
        },
        need_extra=True,
    )
