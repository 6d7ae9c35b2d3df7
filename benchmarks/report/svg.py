"""Plots as SVG text: bars on a log scale, and lines. They load no script, font or anything else.

Colours come from the page's style sheet (classes ``c0`` to ``c5``): they follow a dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 860
SERIES = 6
"""The number of colours."""


class Bar(NamedTuple):
    """One bar in a group."""

    name: str
    value: float
    colour: int
    note: str = ""


class Group(NamedTuple):
    """Bars that are compared with each other."""

    name: str
    bars: Sequence[Bar]


class Line(NamedTuple):
    """Points joined by a line."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def bars(groups: Sequence[Group], unit: str) -> str:
    """Horizontal bars on a logarithmic scale, grouped, each with its figure."""
    values = [bar.value for group in groups for bar in group.bars if bar.value > 0]
    if not values:
        return ""
    left, right, thick, gap = 330, 120, 15, 12
    low = 10 ** math.floor(math.log10(min(values) * 0.6))  # so that the shortest bar is visible
    high = 10 ** math.ceil(math.log10(max(values) * 1.0001))
    scale = _Scale(low, high, left, WIDTH - right, logarithmic=True)
    parts: list[str] = []
    y = 24
    for group in groups:
        parts.append(_text(left - 10, y + thick - 3, group.name, "end", "group"))
        y += thick + 3
        for bar in group.bars:
            width = max(1.0, scale.coordinate(bar.value) - left) if bar.value > 0 else 1.0
            title = f"<title>{escape(f'{bar.name}: {bar.value:,.4g} {unit} {bar.note}')}</title>"
            parts.append(
                f'<rect class="c{bar.colour % SERIES}" x="{left}" y="{y}" width="{width:.1f}" '
                f'height="{thick - 3}">{title}</rect>'
            )
            parts.append(_text(left - 10, y + thick - 5, bar.name, "end"))
            parts.append(_text(left + width + 6, y + thick - 5, short(bar.value), "start"))
            y += thick
        y += gap
    grid = [
        f'<line class="grid" x1="{scale.coordinate(tick):.1f}" '
        f'x2="{scale.coordinate(tick):.1f}" y1="18" y2="{y}"/>'
        + _text(scale.coordinate(tick), 12, short(tick), "middle")
        for tick in scale.ticks
    ]
    parts.append(_text(WIDTH - 4, 12, unit, "end"))
    return _svg(y + 6, [*grid, *parts])


def lines(
    drawn: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    height: int = 320,
) -> str:
    """Lines with axes and a legend; points that a logarithmic scale cannot show are left out."""
    kept = [
        Line(line.name, points, line.colour, line.dashed)
        for line in drawn
        if (points := _drawable(line.points, log_x, log_y))
    ]
    if not kept:
        return ""
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points]
    left, right, top = 70, 20, 14
    legend = 18 * len(kept)
    bottom = height - 42
    across = _axis(xs, left, WIDTH - right, log_x)
    up = _axis(ys, bottom, top, log_y)
    parts: list[str] = []
    for tick in across.ticks:
        x = across.coordinate(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, short(tick), "middle"))
    for tick in up.ticks:
        y = up.coordinate(tick)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(left - 6, y + 4, short(tick), "end"))
    parts.append(_text((left + WIDTH - right) / 2, bottom + 34, x_name, "middle"))
    parts.append(_text(4, top - 3, y_name, "start"))
    for number, line in enumerate(kept):
        path = " ".join(
            f"{across.coordinate(x):.1f},{up.coordinate(y):.1f}" for x, y in line.points
        )
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        colour = line.colour % SERIES
        parts.append(f'<polyline class="l{colour}"{dash} points="{path}"/>')
        if len(line.points) < 12:
            parts += [
                f'<circle class="c{colour}" cx="{across.coordinate(x):.1f}" '
                f'cy="{up.coordinate(y):.1f}" r="3">'
                f"<title>{escape(f'{line.name}: {short(x)}, {short(y)}')}</title></circle>"
                for x, y in line.points
            ]
        y = height + 6 + 18 * number
        parts.append(
            f'<line class="l{colour}"{dash} x1="{left}" x2="{left + 30}" y1="{y}" y2="{y}"/>'
        )
        parts.append(_text(left + 38, y + 4, line.name, "start"))
    return _svg(height + legend, parts)


class _Scale:
    """Maps values to coordinates."""

    def __init__(
        self, low: float, high: float, begin: float, end: float, *, logarithmic: bool
    ) -> None:
        self._log = logarithmic
        self._low = math.log10(low) if logarithmic else low
        high = math.log10(high) if logarithmic else high
        self._high = high if high > self._low else self._low + 1
        self._begin, self._end = begin, end

    def coordinate(self, value: float) -> float:
        """The coordinate of a value."""
        value = math.log10(value) if self._log else value
        share = (value - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    @property
    def ticks(self) -> list[float]:
        """Round values to be shown."""
        if self._log:
            first, last = math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9)
            tens = [10.0**power for power in range(first, last + 1)]
            if len(tens) > 3:
                return tens
            found = [m * 10.0**p for p in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [t for t in found if self._low - 1e-9 <= math.log10(t) <= self._high + 1e-9]
        step = _round_step((self._high - self._low) / 5)
        first = math.ceil(self._low / step)
        last = math.floor(self._high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)


def _axis(values: Sequence[float], begin: float, end: float, logarithmic: bool) -> _Scale:
    low, high = min(values), max(values)
    if logarithmic:
        return _Scale(low / 1.1, high * 1.1, begin, end, logarithmic=True)
    return _Scale(min(0.0, low), high * 1.05 or 1.0, begin, end, logarithmic=False)


def _drawable(
    points: Sequence[tuple[float, float]], log_x: bool, log_y: bool
) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if (x > 0 or not log_x) and (y > 0 or not log_y)]


def short(value: float) -> str:
    """A figure in few characters: ``1.5M``, ``200k``, ``0.5``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img">{"".join(parts)}</svg>'
    )
