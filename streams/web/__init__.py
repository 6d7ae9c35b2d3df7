"""A dashboard: shows what happens on a log in a browser, and lets permitted visitors repair it.

``streams web`` serves it; :class:`Dashboard` is the same as an ASGI application, to be mounted in a
service of yours. It needs the extra ``web``.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.web.access import Access as Access
    from streams.web.dashboard import Dashboard as Dashboard
    from streams.web.passwords import Passwords as Passwords
    from streams.web.redaction import Payload as Payload
    from streams.web.redaction import Redact as Redact
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.web.access": "Access",
            "streams.web.dashboard": "Dashboard",
            "streams.web.passwords": "Passwords",
            "streams.web.redaction": "Payload Redact",
        },
        need_extra=True,
    )
