"""``streams dead``: messages that could not be handled, and the commands that deal with them.

============================  ======================================================
``listing``, ``show``         ``ls`` and ``show``
``retry``, ``edit``           ``retry``; ``edit``: put a letter back with another value
``purge``                     ``purge``: set letters aside
``closed_keys``               ``keys`` and ``drop``: keys that a dead message closes
``options``                   arguments and options
``filter``                    the letters selected by ``--error``, ``--key`` and so on
``topics``                    the topics that hold dead letters, and opening one
``handling``                  count, ask, and act on the selected letters
``rendering``                 a letter as JSON and as table cells
``editor``                    bytes in the user's editor
============================  ======================================================
"""

from __future__ import annotations

import typer

from streams.cli.dead import closed_keys, edit, listing, purge, retry, show

app = typer.Typer(
    no_args_is_help=True, help="List, show, retry, edit and purge dead letters; reopen closed keys."
)
app.command("ls")(listing.list_dead_letters)
app.command("show")(show.show_dead_letter)
app.command("retry")(retry.retry_dead_letters)
app.command("keys")(closed_keys.list_closed_keys)
app.command("edit")(edit.edit_dead_letter)
app.command("drop")(closed_keys.drop_closed_key)
app.command("purge")(purge.purge_dead_letters)
