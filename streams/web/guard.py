"""The guard of every screen and action: the headers that restrict the browser, and the checks of a
request's origin.

Two attacks concern a server that only its own machine reaches: a foreign page that sends a form
here with the visitor's rights (cross-site request forgery), and one whose name suddenly resolves to
this machine's own address, so that the browser takes both for the same site (DNS rebinding). The
first is refused by the origin that the browser gives for a request, the second by the name in
``Host``. Neither needs a cookie or a token in a page.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from streams.errors import ConfigError
from streams.web.passwords import LOOPBACK

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; worker-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
"""Sent with every response. (With ``no-referrer`` browsers send forms with ``Origin: null``.)"""

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?\Z")

SAFE_METHODS = frozenset({"GET", "HEAD"})


def host_name(header: str) -> str | None:
    """The name in a ``Host`` header, in lower case and without its port; None: it is invalid."""
    found = _HOST.match(header)
    return None if found is None else found["name"].lower().strip("[]")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def check_hosts(names: Iterable[str]) -> frozenset[str]:
    """The checked host names under which a dashboard may be requested.

    :raises ConfigError: one is not a host name; a port is not allowed in it.
    """
    found = set[str]()
    for name in names:
        bare = name.strip("[]") if isinstance(name, str) else ""
        host = host_name(f"[{bare}]" if _is_ipv6(bare) else bare)
        if host is None or host != bare.lower():
            raise ConfigError(
                f"hosts: {name!r} is not a name such as dashboard.example.com (no port)"
            )
        found.add(host)
    return frozenset(found)


def refuse_host(headers: Headers, hosts: frozenset[str] | None) -> str | None:
    """Why a request is refused because of its host name; None: it is not.

    :param hosts: the names that are allowed; None: all.
    """
    if hosts is None:
        return None
    given = headers.getlist("host")
    name = host_name(given[0]) if len(given) == 1 else None
    return None if name in hosts else "host"


def refuse_origin(headers: Headers) -> str | None:
    """Why a request that changes something is refused because of its origin; None: it is not.

    Browsers give it in ``Sec-Fetch-Site``; over plain HTTP under a name they do not, and then in
    ``Origin``. A request with neither is not from a browser's form of this site.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site == "same-origin" else "site"
    origin = headers.get("origin")
    if origin is None:
        return "origin"
    try:
        location = urlsplit(origin)
    except ValueError:
        return "origin"
    same = location.scheme in ("http", "https") and location.netloc == headers.get("host")
    return None if same else "site"


def loopback_hosts() -> frozenset[str]:
    """The names of this machine's own addresses."""
    return LOOPBACK
