"""Monitoring: metrics, health over HTTP, traces. None of it runs or is imported unless asked for.

Metrics are read from :meth:`streams.Streams.stats` when somebody scrapes, so a message costs no
more than before; how far behind a partition is, the log is asked then too.
"""

from typing import TYPE_CHECKING

from streams.errors import ConfigError
from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.patterns.monitoring.http_server import MonitoringServer as MonitoringServer
    from streams.patterns.monitoring.prometheus import MetricsCollector as MetricsCollector
    from streams.patterns.monitoring.tracing import instrument as instrument
else:
    __all__, _import_name, __dir__ = lazy_exports(
        __name__,
        {
            "streams.patterns.monitoring.http_server": "MonitoringServer",
            "streams.patterns.monitoring.prometheus": "MetricsCollector",
            "streams.patterns.monitoring.tracing": "instrument",
        },
    )

    def __getattr__(name: str) -> object:
        try:
            return _import_name(name)
        except ConfigError as error:
            # Without its extra a name can be imported, as `import *` and what lists a module do,
            # and says what it needs where it is used.
            return _missing_extra(name, str(error))


def _missing_extra(name: str, why: str) -> type:
    """The replacement of a class whose extra is not installed."""

    def refuse(cls: type, *args: object, **options: object) -> object:
        raise ConfigError(why)

    return type(name, (), {"__doc__": why, "__module__": __name__, "__new__": refuse})
