"""``streams managers``: process managers, their instances, timeouts and commands.

The log holds an instance's reactions, and the app's code interprets them, so each command takes
``MODULE:APP``. The app is not run, and nothing is created or changed.

===============  ==========================================================
``log_and_app``  the app of a command, and its log
``lists``        the managers of an app, a row for each
``manager``      one manager: the topics that it reads, and the timeouts that wait
``instance``     one instance: state, timeouts, reactions, commands
===============  ==========================================================
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.key_arguments import unescape
from streams.cli.managers.instance import instance_json, print_instance
from streams.cli.managers.lists import manager_rows, print_managers
from streams.cli.managers.log_and_app import open_log_and_app
from streams.cli.managers.manager import manager_json, print_manager
from streams.cli.options import AppUrl, Escapes, Json

app = typer.Typer(no_args_is_help=True, help="List and show process managers.")

Target = Annotated[str, Argument(metavar="MODULE:APP", help="The app, such as shop:app.")]
Newest = Annotated[
    int,
    Option(
        "--newest",
        min=0,
        metavar="N",
        help="Read the last N reactions and timeouts of each partition; 0: all.",
    ),
]

NEWEST = 10_000


@app.command("ls")
def list_managers(
    target: Target, newest: Newest = NEWEST, url: AppUrl = None, json: Json = False
) -> None:
    r"""List the process managers of an app.

    Each row shows how many processes run the manager, how many of its instances
    have not ended, its waiting and overdue timeouts, the commands that were
    refused, the waiting dead letters of messages that it could not react to
    ([cyan]dead[/cyan]), and the messages that it has not handled yet ([cyan]lag[/cyan]).

    [bold]Examples[/bold]

      [cyan]streams managers ls shop:app[/cyan]
      [cyan]streams managers ls shop:app --newest 0[/cyan]            reads everything
      [cyan]streams managers ls shop:app --json | jq '.\[] | select(.dead > 0)'[/cyan]
    """
    with open_log_and_app(target, url) as opened:
        rows = manager_rows(opened, newest or None)
    if json:
        output.print_json(rows)
    else:
        print_managers(rows)


@app.command("show")
def show_manager(
    target: Target,
    name: Annotated[str, Argument(metavar="NAME", help="The manager's name.")],
    id: Annotated[str | None, Argument(metavar="ID", help="Key of one of its instances.")] = None,
    number: Annotated[
        int,
        Option(
            "-n",
            "--lines",
            min=0,
            metavar="N",
            help="The next N timeouts, or the last N reactions of an instance; 0: all.",
        ),
    ] = 20,
    newest: Newest = NEWEST,
    escapes: Escapes = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Show a process manager, or one of its instances.

    For a manager: its declaration, the topics that it reads and its progress in
    them, and the next timeouts. For an instance: its state, the timeouts and
    commands that it waits for, and its reactions, each with the outcome of its
    commands.

    [bold]Examples[/bold]

      [cyan]streams managers show shop:app bookings[/cyan]
      [cyan]streams managers show shop:app bookings o-17[/cyan]
      [cyan]streams managers show shop:app bookings o-17 --json | jq .state[/cyan]
    """
    with open_log_and_app(target, url) as opened:
        inspector = opened.inspector(name)
        if id is None:
            document = manager_json(opened, inspector, newest or None, number or None)
        else:
            document = instance_json(
                opened, inspector, unescape(id, escapes=escapes), number or None
            )
    if json:
        output.print_json(document)
    elif id is None:
        print_manager(document)
    else:
        print_instance(document)
