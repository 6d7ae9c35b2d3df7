"""The table on the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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
    """The table for the terminal; a missed target is yellow, a failure red."""
    styles = ["red" if row["error"] else "yellow" if row["met"] is False else None for row in rows]
    return styled(title, COLUMNS, _LEFT, zip(map(cells, rows), styles, strict=True))


def styled(
    title: str,
    columns: Sequence[str],
    left: Collection[str],
    rows: Iterable[tuple[Sequence[str], str | None]],
) -> Table:
    """A table for the terminal.

    :param left: the columns that are aligned to the left.
    :param rows: each one's texts, and its style.
    """
    made = Table(title=title)
    for column in columns:
        made.add_column(
            column, justify="left" if column in left else "right", no_wrap=column not in left
        )
    for texts, style in rows:
        made.add_row(*map(escape, texts), style=style)
    return made


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    columns = [column or "target met" for column in COLUMNS]
    return words.markdown(columns, (*_LEFT, "target met"), map(cells, rows))
