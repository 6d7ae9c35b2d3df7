"""``streams projections``: the versions of an app's SQL projections, and commands for them.

The app declares where their tables are, so each command takes ``MODULE:APP``.

==========  =================================================================
``lists``   versions with their progress, for people and for programs
==========  =================================================================
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.logging_setup import configure_warnings
from streams.cli.options import AppUrl, Json, Yes, confirm
from streams.cli.projections.lists import (
    print_projection,
    print_versions,
    projection_json,
    version_rows,
)

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import OpenMode

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, help="List and show SQL projections; promote and drop versions."
)

Target = Annotated[str, Argument(metavar="MODULE:APP", help="The app, such as shop:app.")]
Name = Annotated[str, Argument(metavar="NAME", help="The projection's name: its group.")]
Version = Annotated[int, Option("--version", min=1, metavar="N", help="Version number.")]


def _on_app(
    target: str, url: str | None, act: Callable[[Streams], Awaitable[T]], mode: OpenMode
) -> T:
    """Call a function with a connected app, which runs no processors.

    :param mode: ``ro`` for a command that only reads.
    """
    loaded = load_app(target, url)
    loaded.open_mode = mode
    configure_warnings()

    async def connect() -> T:
        async with loaded.connected():
            return await act(loaded)

    return asyncio.run(connect())


@app.command("ls")
def list_projections(target: Target, url: AppUrl = None, json: Json = False) -> None:
    r"""List the projections of an app, a row for each version.

    Each row shows whether the version serves, how many processes run it, and
    how much of its topics it has handled. A version that runs and is behind is
    measured for a second: messages per second, and the time left.

    [bold]Examples[/bold]

      [cyan]streams projections ls shop:app[/cyan]
      [cyan]watch streams projections ls shop:app[/cyan]      while a version is built
    """
    rows = _on_app(target, url, version_rows, "ro")
    if json:
        output.print_json(rows)
    else:
        print_versions(rows)


@app.command("show")
def show_projection(target: Target, name: Name, url: AppUrl = None, json: Json = False) -> None:
    """Show a projection: its versions, and their progress in each partition.

    [bold]Examples[/bold]

      [cyan]streams projections show shop:app balances[/cyan]
    """
    found = _on_app(target, url, lambda loaded: projection_json(loaded, name), "ro")
    if json:
        output.print_json(found)
    else:
        print_projection(found)


@app.command("promote")
def promote_version(target: Target, name: Name, version: Version, url: AppUrl = None) -> None:
    """Make a version serve, if it has handled all that the one before it has.

    The app does this itself, unless the version is declared with promote=False.
    It cannot be undone: correct a mistake in the next version.

    [bold]Examples[/bold]

      [cyan]streams projections promote shop:app balances --version 2[/cyan]
    """
    from streams.projections import operations

    outcome = _on_app(
        target,
        url,
        lambda loaded: operations.promote_version(loaded.projections, name, version),
        "rw",
    )
    if not outcome.promoted:
        raise CommandFailed(f"version {version} of {name} was not promoted: {outcome.reason}")
    output.print_note(f"{name}: version {version} serves")


@app.command("drop")
def drop_version(
    target: Target, name: Name, version: Version, yes: Yes = False, url: AppUrl = None
) -> None:
    """Forget a version that does not serve and that no process runs.

    This deletes its group and its rows in the inbox. Its tables are yours: drop
    them once they are no longer read.

    [bold]Examples[/bold]

      [cyan]streams projections drop shop:app balances --version 1[/cyan]
    """
    from streams.projections import operations

    confirm(f"Forget version {version} of projection {name}?", yes=yes)
    _on_app(
        target,
        url,
        lambda loaded: operations.drop_version(loaded.log, loaded.projections, name, version),
        "rw",
    )
    output.print_note(f"{name}: version {version} is forgotten; its tables are yours to drop")


@app.command("ddl")
def ddl(
    dialect: Annotated[str, Argument(metavar="DIALECT", help="postgresql or sqlite.")],
) -> None:
    r"""Print the SQL that creates the table of projections.

    Processors create it when they start, if they have permission to. If they do
    not, run this once as a user who has, and declare the database with
    create=False.

    [bold]Examples[/bold]

      [cyan]streams projections ddl postgresql | psql "$DATABASE_URL"[/cyan]
    """
    from streams.databases.protocol import DIALECTS, known_dialect
    from streams.projections import ddl as statements

    known = known_dialect(dialect)
    if known is None:
        raise UsageError(f"{dialect!r}: {' or '.join(DIALECTS)}")
    output.write_bytes(statements(known).encode())
