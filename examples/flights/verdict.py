"""Compares the handled events with a plain count over the file."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from examples.flights.events import Event, Row
from examples.flights.worker import Effect

_decode = msgspec.json.Decoder(Effect).decode


@dataclass
class Figures:
    """Figures of a month of flights."""

    flights: int = 0
    departures: int = 0
    arrivals: int = 0
    cancellations: int = 0
    carrier_flights: Counter[str] = field(default_factory=Counter)
    carrier_departures: Counter[str] = field(default_factory=Counter)
    carrier_delay: Counter[str] = field(default_factory=Counter)
    aircraft: Counter[str] = field(default_factory=Counter)
    """Departures by tail number."""

    def mean_delay(self, carrier: str) -> float | None:
        """Mean departure delay in minutes; None if there was no departure."""
        departures = self.carrier_departures[carrier]
        return self.carrier_delay[carrier] / departures if departures else None

    def departed(self, carrier: str, tail_number: str | None, delay: int) -> None:
        """Count a departure."""
        self.departures += 1
        self.carrier_departures[carrier] += 1
        self.carrier_delay[carrier] += delay
        if tail_number is not None:
            self.aircraft[tail_number] += 1

    def busiest(self, count: int = 3) -> list[tuple[str, int]]:
        """The aircraft that left most often, ties by name."""
        return sorted(self.aircraft.items(), key=lambda item: (-item[1], item[0]))[:count]


def plain_count(table: list[Row]) -> Figures:
    """The same figures by counting rows: no log, no events."""
    figures = Figures()
    for row in table:
        figures.flights += 1
        figures.carrier_flights[row.carrier] += 1
        figures.arrivals += row.arrived
        if row.departed:
            figures.departed(row.carrier, row.tail_number, row.delay)
        else:
            figures.cancellations += 1
    return figures


@dataclass
class Verdict:
    """The result of checking the effects."""

    figures: Figures
    order_violations: int
    lost: int
    handled_twice: int
    """Events handled more than once."""
    handled_at_most: int
    """The largest number of times that one event was handled."""


class Effects:
    """The file of effects, read incrementally as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.all: list[Effect] = []
        self.seen: set[int] = set()

    def read(self) -> int:
        """Read the new effects; returns how many different events were handled so far."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1  # a line truncated by a kill does not count
        self._at += whole
        for line in data[:whole].splitlines():
            effect = _decode(line)
            self.all.append(effect)
            self.seen.add(effect.sequence)
        return len(self.seen)


def judge(effects: list[Effect], expected: list[tuple[str, Event]]) -> Verdict:
    """Count each event once, and look for violations."""
    figures = Figures()
    times: Counter[int] = Counter()
    last_in_worker: dict[tuple[int, str], int] = {}
    last_overall: dict[str, int] = defaultdict(lambda: -1)
    violations = 0
    for effect in effects:
        times[effect.sequence] += 1
        again = times[effect.sequence] > 1
        key = effect.tail_number
        if key is not None:
            # Within one life of the worker a key's events come in order; events repeated after a
            # crash come in order too.
            worker_and_key = (effect.worker_pid, key)
            if effect.sequence <= last_in_worker.get(worker_and_key, -1):
                violations += 1
            last_in_worker[worker_and_key] = effect.sequence
            # Over all lives, first deliveries come in order.
            if not again:
                if effect.sequence < last_overall[key]:
                    violations += 1
                last_overall[key] = effect.sequence
        if again:
            continue
        if effect.kind == "departed":
            figures.flights += 1
            figures.carrier_flights[effect.carrier] += 1
            figures.departed(effect.carrier, effect.tail_number, effect.delay_minutes)
        elif effect.kind == "arrived":
            figures.arrivals += 1
        else:
            figures.flights += 1
            figures.carrier_flights[effect.carrier] += 1
            figures.cancellations += 1
    return Verdict(
        figures=figures,
        order_violations=violations,
        lost=sum(1 for _, event in expected if event.sequence not in times),
        handled_twice=sum(1 for count in times.values() if count > 1),
        handled_at_most=max(times.values(), default=0),
    )
