"""What Prometheus says of an app: its figures, the rules it has loaded, and whom it tells.

Its HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from streams.cli.failures import Misused

PATIENCE = 10.0
"""Seconds that Prometheus may take for an answer."""

LARGEST = 32 << 20
"""Bytes of an answer that are read."""


class Watchers:
    """Asks Prometheus, where it is known.

    :param prometheus: its URL; None: nobody said.
    :raises Misused: it is no http URL.
    """

    def __init__(self, prometheus: str | None) -> None:
        self.prometheus = prometheus.rstrip("/") if prometheus else None
        if self.prometheus is not None:
            parts = urlsplit(self.prometheus)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise Misused(
                    f"--prometheus {self.prometheus}: an http URL is needed, such as "
                    "http://localhost:9090"
                )

    def processors(self) -> set[str] | str:
        """The processors whose figures it has now; or why that is not known."""
        found = self._get(f"query?query={quote('streams_processor_up')}")
        if isinstance(found, str):
            return found
        return {each["metric"].get("processor", "") for each in found.get("result", ())}

    def alerts(self) -> set[str] | str:
        """The names of the alerts it watches for; or why that is not known."""
        found = self._get("rules?type=alert")
        if isinstance(found, str):
            return found
        groups = found.get("groups", ())
        return {rule["name"] for group in groups for rule in group.get("rules", ())}

    def told(self) -> bool:
        """Whether it has an Alertmanager."""
        found = self._get("alertmanagers")
        return not isinstance(found, str) and bool(found.get("activeAlertmanagers"))

    def _get(self, what: str) -> dict[str, Any] | str:
        url = f"{self.prometheus}/api/v1/{what}"
        try:
            with urlopen(Request(url), timeout=PATIENCE) as answer:  # noqa: S310 - http, see above
                found = json.loads(answer.read(LARGEST))
        except HTTPError as error:
            return f"Prometheus answers {error.code} to {urlsplit(url).path}"
        except URLError as error:
            return f"Prometheus cannot be reached: {error.reason}"
        except (OSError, ValueError):
            return f"what answers there is no Prometheus: {urlsplit(url).path}"
        data = found.get("data") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            return f"what answers there is no Prometheus: {urlsplit(url).path}"
        return data
