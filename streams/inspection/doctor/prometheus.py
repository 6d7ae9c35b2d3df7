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

from streams.errors import ConfigError
from streams.log.url import Url, parse_http
from streams.secrets import Secrets
from streams.text import one_line

REQUEST_TIMEOUT = 10.0
"""Seconds that Prometheus may take for an answer, all of it."""

MAX_RESPONSE = 32 << 20
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


class _Alertmanagers(msgspec.Struct):
    active: list[msgspec.Raw] = msgspec.field(name="activeAlertmanagers", default_factory=list)


T = TypeVar("T")


class PrometheusClient:
    """Asks Prometheus, where it is known.

    :param prometheus: its URL, which may hold a login; None: nobody said.
    :raises ConfigError: it is no http URL.
    """

    def __init__(self, prometheus: str | None) -> None:
        self.url: str | None = None
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
            raise ConfigError(f"--prometheus: {error}") from None
        self.url = url.location.rstrip("/") if url.path.isascii() else None
        if self.url is None:
            raise ConfigError("--prometheus: its path must be percent-encoded")
        self._secrets = url.secrets()
        if url.login:
            self._login = _basic_auth(url)

    def processor_names(self) -> set[str] | str:
        """The processors whose figures it has now; or why that is not known."""
        found = self._request_in_time(f"query?query={quote('streams_processor_up')}", _Query)
        if isinstance(found, str):
            return found
        return {each.metric.get("processor", "") for each in found.result}

    def alert_names(self) -> set[str] | str:
        """The names of the alerts it watches for; or why that is not known."""
        found = self._request_in_time("rules?type=alert", _Rules)
        if isinstance(found, str):
            return found
        return {rule.name for group in found.groups for rule in group.rules}

    def has_alertmanager(self) -> bool | str:
        """Whether it has an Alertmanager; or why that is not known."""
        found = self._request_in_time("alertmanagers", _Alertmanagers)
        return found if isinstance(found, str) else bool(found.active)

    def _request_in_time(self, endpoint: str, shape: type[T]) -> T | str:
        """What the API has under ``data``, or why there is none.

        The time for a single read does not bound the whole, which may come byte by byte; a thread
        can be waited for, and is left behind.
        """
        answers: list[T | str] = []
        thread = threading.Thread(
            target=lambda: answers.append(self._request(endpoint, shape)),
            name="prometheus",
            daemon=True,
        )
        thread.start()
        thread.join(REQUEST_TIMEOUT)
        if answers:
            return answers[0]
        return f"Prometheus takes longer than {REQUEST_TIMEOUT:g} s to answer"

    def _request(self, endpoint: str, shape: type[T]) -> T | str:
        page = endpoint.partition("?")[0]
        request = Request(f"{self.url}/api/v1/{endpoint}")  # noqa: S310 - http, see above
        if self._login is not None:
            request.add_unredirected_header("Authorization", self._login)
        try:
            with urlopen(request, timeout=REQUEST_TIMEOUT) as answer:  # noqa: S310
                data = answer.read(MAX_RESPONSE + 1)
        except HTTPError as error:
            error.close()
            return f"Prometheus answers {error.code} to {page}"
        except URLError as error:
            return f"Prometheus cannot be reached: {self._error_text(error.reason)}"
        except (OSError, HTTPException, ValueError) as error:
            return f"what answers there is no Prometheus ({page}: {self._error_text(error)})"
        if len(data) > MAX_RESPONSE:
            return f"what answers there is no Prometheus ({page}: more than {MAX_RESPONSE:,} bytes)"
        try:
            envelope = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            return msgspec.json.decode(envelope.get("data", b"null"), type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            kind = "not JSON" if isinstance(error, UnicodeDecodeError) else self._error_text(error)
            return f"what answers there is no Prometheus ({page}: {kind})"

    def _error_text(self, error: object) -> str:
        text = one_line(self._secrets.hide(str(error)))[:200]
        return text or type(error).__name__


def _basic_auth(url: Url) -> str:
    login = f"{url.user or ''}:{url.password or ''}"
    return f"Basic {b64encode(login.encode()).decode()}"
