"""The result of the run, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from examples.bank.demo import Outcome


def show(outcome: Outcome, console: Console) -> None:
    """Print the table and the errors."""
    sums, figures = outcome.sums, outcome.figures
    table = Table(title="The bank's sums, from its events", show_header=False)
    table.add_column()
    table.add_column(justify="right")

    def row(name: str, value: object, *, is_right: bool = True) -> None:
        table.add_row(name, str(value), style=None if is_right else "bold red")

    is_conserved = sums.money_after == outcome.money_before
    row("money before", money(outcome.money_before))
    row("money after", money(sums.money_after), is_right=is_conserved)
    row("  in accounts", money(sum(sums.balances.values())))
    row("  paid out", money(sums.paid_out))
    row("  on its way", money(sums.on_its_way), is_right=not sums.on_its_way)
    table.add_section()
    row("transfers completed", f"{outcome.completed:,}")
    for reason, count in sorted(outcome.refused.items()):
        row(f"  refused: {reason}", f"{count:,}")
    row("refused at the counter (Overdrawn)", f"{outcome.counter_refusals:,}")
    table.add_section()
    row("events", f"{sums.events:,}")
    row("versions without gaps", "no" if sums.has_gaps else "yes", is_right=not sums.has_gaps)
    row("decisions taken", f"{figures.decisions:,}")
    row("  in conflict with another, taken again", f"{figures.conflicts:,}")
    row("  found done already, by their cause", f"{figures.found_by_cause:,}")
    row("workers killed", f"{outcome.kills:,}")
    console.print(table)
    for error in outcome.errors:
        console.print(f"[bold red]WRONG[/] {error}")


def money(cents: int) -> str:
    """Cents as an amount of money."""
    return f"{cents / 100:,.2f}"
