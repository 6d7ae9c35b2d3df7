"""All commands together, and how each of them ends.

Building the command line takes the library longer than most commands take, and grows with every
option of every command. So only the called command is imported and built; all of them are if it is
not known which one is called: for the help, for a wrong name, for completion.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup
from typing_extensions import override

from streams.cli.command_errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    PIPE_CLOSED,
    USAGE,
    PipeClosed,
    error_line,
    hide_secrets_of,
    is_closed_pipe,
    is_debugging,
    print_error,
    print_traceback,
    set_error_format,
)
from streams.text import one_line

_COMMANDS = {
    "run": "run_app.run",
    "doctor": "doctor.doctor",
    "web": "web.web",
    "topics": "topics.app",
    "groups": "groups.app",
    "publish": "publish.publish",
    "tail": "tail.tail",
    "replay": "replay.replay",
    "reset": "reset.reset",
    "dead": "dead.app",
    "saga": "saga.app",
    "aggregates": "aggregates.app",
    "views": "views.app",
    "managers": "managers.app",
    "inbox": "inbox.app",
    "outbox": "outbox.app",
    "projections": "projections.app",
}
"""In the order of the help: a module of this package, and its function or its group of commands."""


class _RootGroup(TyperGroup):
    """Handles exceptions that the library would swallow: a closed pipe, an interrupt."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            if is_closed_pipe(error):
                raise PipeClosed from error
            raise


def _print_version(requested: bool) -> None:
    if requested:
        from streams.version import __version__

        typer.echo(f"streams {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Event streams on Kafka, Redis or SQLite: run, inspect, publish, replay, repair.

    The log is that of [cyan]--url[/cyan], else of the app's code, else of
    [cyan]STREAMS_URL[/cyan]: sqlite:///app.db, redis://host:6379/0, kafka://host:9092.

    [bold]First steps[/bold]

      [cyan]export STREAMS_URL=sqlite:///app.db[/cyan]
      [cyan]streams run shop:app[/cyan]            run the app in shop.py
      [cyan]streams topics ls[/cyan]               list the topics
      [cyan]streams tail orders -f[/cyan]          watch messages arrive
      [cyan]streams groups show billing[/cyan]     show a group's progress
      [cyan]streams dead ls[/cyan]                 list what could not be handled
      [cyan]streams web[/cyan]                     show all of it in a browser
    """


def make_app(names: Iterable[str] = tuple(_COMMANDS)) -> typer.Typer:
    """The command line with the named commands."""
    app = typer.Typer(
        name="streams",
        cls=_RootGroup,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(".")
        found = getattr(import_module(f"streams.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit status."""
    hide_secrets_of(arguments)
    set_error_format()
    try:
        status = _invoke(arguments)
        sys.stdout.flush()
    except (PipeClosed, BrokenPipeError):
        # Python flushes standard output once more at its end: that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


@cache
def _command(*names: str) -> Any:
    """The click command of these names."""
    return typer.main.get_command(make_app(names))


def _invoke(arguments: Sequence[str]) -> int:
    names = arguments[:1] if arguments and arguments[0] in _COMMANDS else _COMMANDS
    try:
        found = _command(*names).main(list(arguments), prog_name="streams", standalone_mode=False)
    except typer.Exit as ended:
        return ended.exit_code
    except typer.Abort:
        print_error("aborted, nothing was changed")
        return FAILED
    except (PipeClosed, BrokenPipeError):
        raise
    except Exception as error:
        if hasattr(error, "format_message"):
            return _print_usage_error(error)
        text, status = error_line(error)
        if is_debugging():
            print_traceback(error)
        print_error(text)
        return status
    return found if isinstance(found, int) else DONE


def _print_usage_error(error: Any) -> int:
    """Print why the command line is invalid, and where help is."""
    text = one_line(str(error.format_message()))
    if not text:  # a group without a command: its help was shown
        return USAGE
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "streams")
    print_error(f"{text.rstrip('.')}; see {command} --help")
    return int(getattr(error, "exit_code", USAGE))
