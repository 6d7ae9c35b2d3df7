"""The notation of figures, the same in every report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from benchmarks.measure import Row

NO_FIGURE = "-"
"""Shown where there is no figure."""


def figure(value: float | None, unit: str) -> str:
    """A figure with its significant digits."""
    if value is None:
        return NO_FIGURE
    if unit == "messages/s" or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio(row: Row) -> str:
    """The median ratio."""
    return NO_FIGURE if row["ratio"] is None else short_figure(row["ratio"])


def spread(row: Row) -> str:
    """The lowest and the highest ratio."""
    if row["spread"] is None:
        return NO_FIGURE
    low, high = row["spread"]
    return f"{short_figure(low)}-{short_figure(high)}"


def target(row: Row) -> str:
    """The target of the ratio."""
    if row["target"] is None:
        return ""
    return f"{'≥' if row['better'] == 'more' else '≤'} {row['target']:g}"


def verdict(row: Row) -> str:
    """Whether the target was met."""
    if row["error"] is not None:
        return "failed"
    said = {True: "met", False: "missed", None: ""}[row["met"]]
    if row["violations"]:
        return f"{said}, {row['violations']:,} out of order".removeprefix(", ")
    return said


def short_figure(value: float) -> str:
    """A ratio with its significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(columns: Sequence[str], left: Collection[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    :param left: the columns that are aligned to the left.
    """
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if column in left else "---:" for column in columns) + "|",
    ]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows
    ]
    return "\n".join(lines) + "\n"
