"""The logs of tests/patterns, the command line of tests/cli, and what /metrics prints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from streams.patterns import MonitoringServer
from tests.cli.conftest import run, shell
from tests.patterns.conftest import pytest_generate_tests, stage

__all__ = ["pytest_generate_tests", "run", "shell", "stage"]


def get(server: MonitoringServer | str, page: str) -> tuple[int, str]:
    """Status and text of a page."""
    base = server if isinstance(server, str) else f"http://{server.host}:{server.port}"
    try:
        with urlopen(f"{base}{page}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> list[Sample]:
    """What /metrics printed, of ours."""
    families = text_string_to_metric_families(text)
    return [
        sample
        for family in families
        for sample in family.samples
        if sample.name.startswith("streams_")
    ]


class Figures:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.samples = samples(text)

    def of(self, name: str, **labels: str) -> list[float]:
        """The values of the samples with this name and these labels."""
        return [
            sample.value
            for sample in self.samples
            if sample.name == f"streams_{name}" and labels.items() <= sample.labels.items()
        ]

    def one(self, name: str, **labels: str) -> float:
        """The value of the one sample there is."""
        (found,) = self.of(name, **labels)
        return found


async def come(about: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something is so; asked in a thread, as it may block."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    while not await asyncio.to_thread(about):
        assert loop.time() < give_up, "it did not come about"
        await asyncio.sleep(0.01)


async def scrape(server: MonitoringServer) -> Figures:
    """What Prometheus would see now."""
    status, text = await asyncio.to_thread(get, server, "/metrics")
    assert status == 200, text
    return Figures(text)


async def until(
    server: MonitoringServer, over: Callable[[Figures], Any], seconds: float = 30.0
) -> Figures:
    """Scrape until something is so."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    while True:
        found = await scrape(server)
        if over(found):
            return found
        assert loop.time() < give_up, [each for each in found.samples if each.value]
        await asyncio.sleep(0.02)
