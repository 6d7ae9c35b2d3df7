"""A dashboard: what happens on a log, in a browser, and whoever may can put it right.

``streams web`` serves it; :class:`Dashboard` is the same as an ASGI application, to be mounted in a
service of yours. It needs the extra ``web``.
"""

from typing import TYPE_CHECKING

from streams.errors import ConfigError
from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.web.access import Access as Access
    from streams.web.dashboard import Dashboard as Dashboard
    from streams.web.passwords import Passwords as Passwords
    from streams.web.redaction import Payload as Payload
    from streams.web.redaction import Redact as Redact
else:
    __all__, _import_name, __dir__ = lazy_exports(
        __name__,
        {
            "streams.web.access": "Access",
            "streams.web.dashboard": "Dashboard",
            "streams.web.passwords": "Passwords",
            "streams.web.redaction": "Payload Redact",
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
