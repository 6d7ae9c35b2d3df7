"""Monitoring: metrics, health over HTTP, traces. None of it runs or is imported unless asked for.

Metrics are read from :meth:`streams.Streams.stats` when somebody scrapes, so a message costs no
more than before; how far behind a partition is, the log is asked then too.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.patterns.monitoring.prometheus import MetricsCollector
    from streams.patterns.monitoring.serving import MonitoringServer
    from streams.patterns.monitoring.tracing import instrument

_HOME = {
    "MetricsCollector": "streams.patterns.monitoring.prometheus",
    "MonitoringServer": "streams.patterns.monitoring.serving",
    "instrument": "streams.patterns.monitoring.tracing",
}

__all__ = ["MetricsCollector", "MonitoringServer", "instrument"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
