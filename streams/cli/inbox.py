"""``streams inbox``: the tables of an inbox, for administrators who create them by hand."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument

from streams.cli import output
from streams.cli.command_errors import UsageError

app = typer.Typer(
    no_args_is_help=True, help="Print the SQL for the tables of processors with transaction=."
)


@app.callback()
def inbox() -> None:
    """Print the SQL for the tables of processors with transaction=."""


@app.command("ddl")
def ddl(
    dialect: Annotated[str, Argument(metavar="DIALECT", help="postgresql or sqlite.")],
) -> None:
    r"""Print the SQL that creates the inbox's tables.

    Processors create them when they start, if they have permission to. If they
    do not, run this once as a user who has, and declare the database with
    create=False.

    [bold]Examples[/bold]

      [cyan]streams inbox ddl postgresql | psql "$DATABASE_URL"[/cyan]
      [cyan]streams inbox ddl sqlite | sqlite3 orders.db[/cyan]
    """
    from streams.databases.protocol import DIALECTS, known_dialect
    from streams.inbox import ddl as statements

    known = known_dialect(dialect)
    if known is None:
        raise UsageError(f"{dialect!r}: {' or '.join(DIALECTS)}")
    output.write_bytes(statements(known).encode())
