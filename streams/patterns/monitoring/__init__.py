"""Monitoring: metrics, health over HTTP, traces. None of it runs or is imported unless asked for.

Metrics are read from :meth:`streams.Streams.stats` when somebody scrapes, so a message costs no
more than before; how far behind a partition is, the log is asked then too.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from streams.errors import ConfigError

if TYPE_CHECKING:
    from streams.patterns.monitoring.http_server import MonitoringServer
    from streams.patterns.monitoring.prometheus import MetricsCollector
    from streams.patterns.monitoring.tracing import instrument

_MODULE_OF = {
    "MetricsCollector": "streams.patterns.monitoring.prometheus",
    "MonitoringServer": "streams.patterns.monitoring.http_server",
    "instrument": "streams.patterns.monitoring.tracing",
}

__all__ = ["MetricsCollector", "MonitoringServer", "instrument"]


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = getattr(import_module(module), name)
    except ConfigError as error:
        # Without its extra a name can be imported, as `import *` and what lists a module do, and
        # says what it needs where it is used.
        return _missing_extra(name, str(error))
    globals()[name] = found
    return found


def _missing_extra(name: str, why: str) -> type:
    """The replacement of a class whose extra is not installed."""

    def refuse(cls: type, *args: object, **options: object) -> object:
        raise ConfigError(why)

    return type(name, (), {"__doc__": why, "__module__": __name__, "__new__": refuse})


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
