"""``streams outbox``: the waiting rows of an app's outboxes, the failed ones, and a relay.

The app declares where its outboxes are, so each command takes ``MODULE:APP``.

=====================  ============================================================
``declared_outboxes``  the app of a command, and the outboxes that it declares
``rows``               outboxes and their rows, for people and for programs
``relays``             running relays without the app's processors
=====================  ============================================================
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.logging_setup import configure_warnings
from streams.cli.options import AppUrl, Json, Yes, confirm
from streams.cli.outbox.declared_outboxes import load_outbox, load_outboxes
from streams.cli.outbox.rows import outbox_json, print_outboxes, print_row, row_json

app = typer.Typer(no_args_is_help=True, help="List, show and retry rows of an outbox; relay them.")

Target = Annotated[str, Argument(metavar="MODULE:APP", help="The app, such as shop:app.")]
Table = Annotated[
    str | None,
    Option("--table", metavar="NAME", help="Table of the outbox, if the app has several."),
]


@app.command("ls")
def list_outboxes(
    target: Target,
    every: Annotated[
        bool, Option("--all", help="Include rows that are still to be relayed.")
    ] = False,
    number: Annotated[
        int, Option("-n", "--lines", min=1, metavar="N", help="At most N rows of each outbox.")
    ] = 20,
    table: Table = None,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    r"""List the outboxes of an app, and the rows that could not be published.

    For each outbox: how many rows are to be relayed, how old the first of them
    is, how many could not be published ([cyan]failed[/cyan]), how many wait behind
    those because they have the same keys, how many wait for a relay whose app
    declares their topic ([cyan]undeclared[/cyan]), and how many relays there are.

    [bold]Examples[/bold]

      [cyan]streams outbox ls shop:app[/cyan]
      [cyan]streams outbox ls shop:app --all -n 100[/cyan]
      [cyan]streams outbox ls shop:app --json | jq '.\[].rows\[].error'[/cyan]
    """
    from streams.outbox.inspection import inspect_outbox

    configure_warnings()
    found = [
        outbox_json(outbox, asyncio.run(inspect_outbox(outbox, number, all_states=every)))
        for outbox in load_outboxes(target, table, url)
    ]
    if json:
        output.print_json(found)
    else:
        print_outboxes(found)


@app.command("show")
def show_row(
    target: Target,
    row: Annotated[str, Argument(metavar="ROW", help="Message ID or row number.")],
    table: Table = None,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Show a row as it would be published, and why it was not.

    [bold]Examples[/bold]

      [cyan]streams outbox show shop:app 1041[/cyan]
      [cyan]streams outbox show shop:app order-17-paid --json | jq '.[0].value'[/cyan]
    """
    from streams.outbox.inspection import find_rows

    configure_warnings()
    outbox = load_outbox(target, table, url)
    found = [row_json(each) for each in asyncio.run(find_rows(outbox, row))]
    if json:
        output.print_json(found)
        return
    for each in found:
        print_row(each)


@app.command("retry")
def retry_rows(
    target: Target,
    rows: Annotated[
        list[str] | None, Argument(metavar="ROW...", help="Message IDs or row numbers.")
    ] = None,
    every: Annotated[bool, Option("--all", help="All rows that could not be published.")] = False,
    yes: Yes = False,
    table: Table = None,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Retry rows that could not be published.

    Rows of the same key that wait behind them follow in order. The relays do
    the publishing.

    [bold]Examples[/bold]

      [cyan]streams outbox retry shop:app 1041[/cyan]
      [cyan]streams outbox retry shop:app --all --yes[/cyan]
    """
    from streams.outbox.inspection import inspect_outbox, retry_rows

    if bool(rows) == every:
        raise UsageError("streams outbox retry takes rows or --all")
    configure_warnings()
    outbox = load_outbox(target, table, url)
    if every:
        failed = asyncio.run(inspect_outbox(outbox, 1)).backlog.failed
        confirm(f"Try {output.plural(failed, 'row')} of {outbox.name} again?", yes=yes)
    tried = asyncio.run(retry_rows(outbox, None if every else rows))
    if json:
        output.print_json({"outbox": outbox.name, "tried_again": tried})
    else:
        output.print_line(f"{output.plural(tried, 'row')} of {outbox.name} will be tried again")


@app.command("relay")
def relay(
    target: Target,
    table: Table = None,
    url: AppUrl = None,
) -> None:
    """Relay the app's outboxes to the log, until SIGINT or SIGTERM.

    No processors run here. Any number of relays can run, beside those of
    [cyan]streams run[/cyan]: they share the keys, and take over from each other.

    [bold]Examples[/bold]

      [cyan]streams outbox relay shop:app[/cyan]
    """
    from streams.cli.outbox.relays import run_relays

    run_relays(target, load_outboxes(target, table, url))
