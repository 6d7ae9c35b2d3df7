"""The demo's result: a table for people, one JSON object for machines."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from examples.flights.demo import Outcome
from examples.flights.verdict import Figures


def as_json(outcome: Outcome) -> str:
    """The figures as one JSON object."""
    verdict, figures = outcome.verdict, outcome.verdict.figures
    return json.dumps(
        {
            "flights": figures.flights,
            "departures": figures.departures,
            "arrivals": figures.arrivals,
            "cancellations": figures.cancellations,
            "carriers": {
                carrier: {"flights": count, "mean_departure_delay": figures.mean_delay(carrier)}
                for carrier, count in sorted(figures.carrier_flights.items())
            },
            "busiest_aircraft": dict(figures.busiest()),
            "order_violations": verdict.order_violations,
            "lost": verdict.lost,
            "handled_twice": verdict.handled_twice,
            "handled_at_most": verdict.handled_at_most,
            "published_twice": outcome.twice_published,
            "dead_letters": outcome.dead_letters,
            "kills": outcome.kills,
            "replays": [
                {"what": each.what, "read": each.read, "expected": each.expected}
                for each in outcome.replays
            ],
            "messages_per_second": round(outcome.messages_per_second, 1),
            "broken_promises": outcome.broken(),
        },
        indent=2,
    )


def show(outcome: Outcome, console: Console) -> None:
    """Print the table: the processor's figures beside those of a plain count over the file."""
    found, plain, verdict = outcome.verdict.figures, outcome.plain, outcome.verdict
    table = Table(title="What the processor handled, beside a plain count over the file")
    for column in ("", "handled", "counted"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, handled: object, counted: object) -> None:
        style = None if handled == counted else "bold red"
        table.add_row(name, str(handled), str(counted), style=style)

    row("flights", f"{found.flights:,}", f"{plain.flights:,}")
    row("departures", f"{found.departures:,}", f"{plain.departures:,}")
    row("arrivals", f"{found.arrivals:,}", f"{plain.arrivals:,}")
    row("cancellations", f"{found.cancellations:,}", f"{plain.cancellations:,}")
    table.add_section()
    for carrier in sorted(plain.carrier_flights.keys() | found.carrier_flights.keys()):
        row(f"{carrier}: flights, mean delay", _carrier(found, carrier), _carrier(plain, carrier))
    table.add_section()
    for number, (mine, theirs) in enumerate(zip(found.busiest(), plain.busiest(), strict=False), 1):
        row(f"busiest aircraft {number}", f"{mine[0]} ({mine[1]})", f"{theirs[0]} ({theirs[1]})")
    console.print(table)

    promises = Table(title="What was promised", show_header=False)
    promises.add_row("order violations", str(verdict.order_violations))
    promises.add_row("lost", str(verdict.lost))
    again = f"{verdict.handled_twice:,} of {event_count(outcome):,}"
    if verdict.handled_twice:
        again += f", at most {verdict.handled_at_most} times (redelivered after the SIGKILL)"
    promises.add_row("handled more than once", again)
    promises.add_row("published twice, handled once", f"{outcome.twice_published:,}")
    promises.add_row("dead letters", f"{outcome.dead_letters} (of {outcome.undecodable} sent)")
    for replay in outcome.replays:
        promises.add_row(f"replay: {replay.what}", f"{replay.read:,} events")
    promises.add_row("messages a second", f"{outcome.messages_per_second:,.0f}")
    console.print(promises)
    for promise in outcome.broken():
        console.print(f"[bold red]broken[/] {promise}")


def _carrier(figures: Figures, carrier: str) -> str:
    mean = figures.mean_delay(carrier)
    text = "none left" if mean is None else f"{mean:.2f} min"
    return f"{figures.carrier_flights[carrier]:,}, {text}"


def event_count(outcome: Outcome) -> int:
    """The number of different events."""
    return outcome.published - outcome.twice_published
