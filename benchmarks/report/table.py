"""The table on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from benchmarks.measure import Row
from benchmarks.report import words

COLUMNS = ("log", "case", "against", "ours", "theirs", "unit", "ratio", "spread", "target", "")
_LEFT = ("log", "case", "against", "unit", "")


def cells(row: Row) -> list[str]:
    """One row's texts, in the order of :data:`COLUMNS`."""
    unit = row["unit"]
    return [
        row["log"], row["case"], row["against"], words.figure(row["figure"], unit),
        words.figure(row["baseline"], unit), unit, words.ratio(row), words.spread(row),
        words.target(row), words.verdict(row),
    ]  # fmt: skip


def table(rows: Sequence[Row], title: str) -> Table:
    """For the terminal; what was missed is yellow, what failed red."""
    made = Table(title=title)
    for column in COLUMNS:
        left = column in _LEFT
        made.add_column(column, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        style = "red" if row["error"] else "yellow" if row["met"] is False else None
        made.add_row(*(escape(cell) for cell in cells(row)), style=style)
    return made


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    columns = [column or "target met" for column in COLUMNS]
    return words.markdown(columns, (*_LEFT, "target met"), map(cells, rows))
