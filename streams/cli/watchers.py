"""What Prometheus says of an app: its figures, the rules it has loaded, and whom it tells.

Its HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/

Whatever answers there is asked for a few seconds and read up to a bound, and what it says is
checked against the shape it must have: anything else is a reason why something is not known.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from http.client import HTTPException
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

from streams.cli.failures import Misused
from streams.errors import ConfigError
from streams.log.secrets import Secrets
from streams.log.url import Url, parse_http
from streams.text import one_line

PATIENCE = 10.0
"""Seconds that Prometheus may take for an answer, all of it."""

LARGEST = 32 << 20
"""Bytes of an answer that are read."""


class _Series(msgspec.Struct):
    metric: dict[str, str]


class _Query(msgspec.Struct):
    result: list[_Series]


class _Rule(msgspec.Struct):
    name: str


class _RuleGroup(msgspec.Struct):
    rules: list[_Rule] = []


class _Rules(msgspec.Struct):
    groups: list[_RuleGroup]


class _Managers(msgspec.Struct):
    active: list[msgspec.Raw] = msgspec.field(name="activeAlertmanagers", default_factory=list)


T = TypeVar("T")


class Watchers:
    """Asks Prometheus, where it is known.

    :param prometheus: its URL, which may hold a login; None: nobody said.
    :raises Misused: it is no http URL.
    """

    def __init__(self, prometheus: str | None) -> None:
        self.prometheus: str | None = None
        """Its URL without the login."""
        self._login: str | None = None
        self._secrets = Secrets()
        if not prometheus:
            return
        try:
            url = parse_http(prometheus)
            if len(url.hosts) > 1 or url.settings:
                raise ConfigError("one host and a path, such as http://localhost:9090")
        except ConfigError as error:
            raise Misused(f"--prometheus: {error}") from None
        self.prometheus = url.place.rstrip("/") if url.path.isascii() else None
        if self.prometheus is None:
            raise Misused("--prometheus: its path must be percent-encoded")
        self._secrets = url.secrets()
        if url.login:
            self._login = _basic(url)

    def processors(self) -> set[str] | str:
        """The processors whose figures it has now; or why that is not known."""
        found = self._get(f"query?query={quote('streams_processor_up')}", _Query)
        if isinstance(found, str):
            return found
        return {each.metric.get("processor", "") for each in found.result}

    def alerts(self) -> set[str] | str:
        """The names of the alerts it watches for; or why that is not known."""
        found = self._get("rules?type=alert", _Rules)
        if isinstance(found, str):
            return found
        return {rule.name for group in found.groups for rule in group.rules}

    def told(self) -> bool | str:
        """Whether it has an Alertmanager; or why that is not known."""
        found = self._get("alertmanagers", _Managers)
        return found if isinstance(found, str) else bool(found.active)

    def _get(self, what: str, shape: type[T]) -> T | str:
        """What the API has under ``data``, or why there is none.

        The time for a single read does not bound the whole, which may come byte by byte; a thread
        can be waited for, and is left behind.
        """
        answers: list[T | str] = []
        thread = threading.Thread(
            target=lambda: answers.append(self._ask(what, shape)), name="prometheus", daemon=True
        )
        thread.start()
        thread.join(PATIENCE)
        return answers[0] if answers else f"Prometheus takes longer than {PATIENCE:g} s to answer"

    def _ask(self, what: str, shape: type[T]) -> T | str:
        page = what.partition("?")[0]
        request = Request(f"{self.prometheus}/api/v1/{what}")  # noqa: S310 - http, see above
        if self._login is not None:
            request.add_unredirected_header("Authorization", self._login)
        try:
            with urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
                data = answer.read(LARGEST + 1)
        except HTTPError as error:
            error.close()
            return f"Prometheus answers {error.code} to {page}"
        except URLError as error:
            return f"Prometheus cannot be reached: {self._said(error.reason)}"
        except (OSError, HTTPException, ValueError) as error:
            return f"what answers there is no Prometheus ({page}: {self._said(error)})"
        if len(data) > LARGEST:
            return f"what answers there is no Prometheus ({page}: more than {LARGEST:,} bytes)"
        try:
            envelope = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            return msgspec.json.decode(envelope.get("data", b"null"), type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            kind = "not JSON" if isinstance(error, UnicodeDecodeError) else self._said(error)
            return f"what answers there is no Prometheus ({page}: {kind})"

    def _said(self, error: object) -> str:
        text = one_line(self._secrets.hide(str(error)))[:200]
        return text or type(error).__name__


def _basic(url: Url) -> str:
    login = f"{url.user or ''}:{url.password or ''}"
    return f"Basic {b64encode(login.encode()).decode()}"
