"""``streams saga``: the state of durable sagas, and commands for those that do not advance.

The journal holds the whole state, so no app is needed: the running app goes on from the entries
that are written here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import CommandFailed
from streams.cli.key_arguments import unescape
from streams.cli.options import Escapes, Json, Url, Yes, confirm, open_url
from streams.text import did_you_mean

if TYPE_CHECKING:
    from streams.log.protocol import Log, OpenMode
    from streams.patterns.saga import Failure, Journal, JournalEntry

app = typer.Typer(no_args_is_help=True, help="List, show, resume and abandon sagas.")

Name = Annotated[str, Argument(metavar="SAGA", help="The orchestrator's name.")]
Id = Annotated[str, Argument(metavar="ID", help="The saga's ID.")]
Newest = Annotated[
    int,
    Option(
        "--newest",
        min=0,
        metavar="N",
        help="Read the last N entries of each partition of the journal; 0: all.",
    ),
]

NEWEST = 1_000_000
"""The value of :data:`streams.patterns.saga.DEFAULT_NEWEST`, which is imported only when it is
used."""


_SUGGESTED_FROM = 1_000
"""Newest entries of each partition that are searched for an ID similar to one that does not
exist."""


@app.command("ls", hidden=True)  # the name in the other groups of commands
@app.command("list")
def list_sagas(
    name: Annotated[
        str | None, Argument(metavar="SAGA", help="The orchestrator's name; default: all.")
    ] = None,
    include_ended: Annotated[bool, Option("--all", help="Include those that have ended.")] = False,
    newest: Newest = NEWEST,
    url: Url = None,
    json: Json = False,
) -> None:
    r"""List the sagas that have not ended, the most recently changed one last.

    They are running, are being undone ([cyan]compensating[/cyan]), could not be undone
    completely ([cyan]failed[/cyan]), or cannot continue with the present code
    ([cyan]stopped[/cyan]).

    [bold]Examples[/bold]

      [cyan]streams saga list[/cyan]
      [cyan]streams saga list orders --all[/cyan]
      [cyan]streams saga list --json | jq '.\[] | select(.status == "stopped")'[/cyan]
    """
    from streams.inspection.sagas import saga_names
    from streams.patterns.saga import Journal

    found: list[dict[str, Any]] = []
    with open_url(url, "ro") as log, _as_command_errors(log, name):
        for saga in saga_names(log.list_topics()) if name is None else (name,):
            journal = Journal(log, saga)
            journal.on_ignored = left_out = _left_out(journal)
            listing = journal.list_latest(lambda e: include_ended or not e.is_final, newest or None)
            for entry in listing.entries:
                where, summarize = f"{saga} {entry.saga}", partial(_saga_summary, saga, entry)
                if (summary := output.call_or_report(where, summarize)) is not None:
                    found.append(summary)
            left_out.print()
            if not listing.is_complete:
                output.print_note(
                    f"{journal.topic}: only the last {newest:,} entries of each partition were "
                    "read; --newest 0 reads all"
                )
    columns = {"saga": "saga", "id": "id", "status": "status", "at": "steps", "since": "seconds"}
    output.print_rows(found, columns | {"why": "why"}, json=json)


@app.command("status")
def show_status(
    name: Name,
    id: Id,
    newest: Newest = NEWEST,
    escapes: Escapes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show a saga's status and its context.

    [bold]Examples[/bold]

      [cyan]streams saga status orders o-17[/cyan]
      [cyan]streams saga status orders o-17 --json | jq .context[/cyan]
    """
    id = unescape(id, escapes=escapes)
    with _open_journal(url, name, "ro") as journal:
        journal.on_ignored = left_out = _left_out(journal)
        try:
            entry = journal.latest(id, newest or None).entry
        finally:
            left_out.print()
    details = _saga_details(name, entry)
    if json:
        output.print_json(details)
        return
    context = details.pop("context")
    plan = details.pop("plan")
    rows = {key: _format_value(found) for key, found in details.items() if key != "why"}
    output.print_mapping({key: found for key, found in rows.items() if found not in ("", None)})
    output.print_line("plan: " + ", ".join(" | ".join(group) for group in plan))
    output.print_line(f"context: {output.json_bytes(context).decode().rstrip()}")


@app.command("resume")
def resume_saga(
    name: Name,
    id: Id,
    newest: Newest = NEWEST,
    escapes: Escapes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Resume a saga that was stopped or that failed.

    A stopped saga continues where it was: first deploy what it was stopped for.
    For a failed saga, the failed compensations are tried again.

    [bold]Examples[/bold]

      [cyan]streams saga resume orders o-17[/cyan]
    """
    from streams.patterns.saga import resume_entry

    id = unescape(id, escapes=escapes)
    with _open_journal(url, name) as journal:
        entry = journal.append_command(
            id, lambda last: resume_entry(last, time.time()), newest or None
        )
    _print_result(name, entry, json=json)


@app.command("abandon")
def abandon_saga(
    name: Name,
    id: Id,
    reason: Annotated[
        str, Option("--reason", "-r", metavar="TEXT", help="The reason; it is kept.")
    ] = "",
    yes: Yes = False,
    newest: Newest = NEWEST,
    escapes: Escapes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Abandon a saga: take no further step, neither forward nor backward.

    What it has done stays done. A step that is running at this moment finishes,
    and nothing follows it.

    [bold]Examples[/bold]

      [cyan]streams saga abandon orders o-17 --reason "refunded by hand"[/cyan]
      [cyan]streams saga abandon orders o-17 --yes[/cyan]
    """
    from streams.inspection.sagas import steps_not_undone
    from streams.patterns.saga import abandon_entry

    id = unescape(id, escapes=escapes)
    with _open_journal(url, name) as journal:
        last = journal.latest(id, newest or None).entry
        abandon_entry(last, time.time())  # refused before the user is asked
        rest = ", ".join(steps_not_undone(last)) or "nothing"
        confirm(f"Abandon saga {id}, which is {last.status}? Not undone: {rest}.", yes=yes)
        entry = journal.append_command(
            id, lambda last: abandon_entry(last, time.time(), reason), newest or None
        )
    _print_result(name, entry, json=json)


@contextmanager
def _as_command_errors(log: Log, name: str | None) -> Iterator[None]:
    """Turn errors for missing sagas into command errors, with a suggestion.

    :param name: the orchestrator's name, if it was given.
    """
    from streams.patterns.saga import SagaError, UnknownSaga

    try:
        yield
    except UnknownSaga as error:
        hint = "" if name is None else _suggestion(log, name, error.id)
        raise CommandFailed(f"{error}; {hint}" if hint else str(error)) from error
    except SagaError as error:
        raise CommandFailed(str(error)) from error


def _suggestion(log: Log, name: str, id: str | None) -> str:
    """The similar saga that was probably meant, for one that does not exist."""
    from streams.errors import LogError
    from streams.inspection.sagas import saga_names
    from streams.patterns.saga import Journal

    try:
        if id is None:
            return did_you_mean(name, saga_names(log.list_topics()))
        return did_you_mean(id, sorted(Journal(log, name).saga_ids(_SUGGESTED_FROM)))
    except LogError:
        return ""


@contextmanager
def _open_journal(url: str | None, name: str, mode: OpenMode = "rw") -> Iterator[Journal]:
    from streams.patterns.saga import Journal

    with open_url(url, mode) as log, _as_command_errors(log, name):
        yield Journal(log, name)


def _left_out(journal: Journal) -> output.LeftOut:
    return output.LeftOut(journal.log, journal.topic, "entry of a saga")


def _print_result(name: str, entry: JournalEntry, *, json: bool) -> None:
    if json:
        output.print_json(_saga_summary(name, entry))
    else:
        output.print_line(f"{entry.saga}: {entry.status}")


def _saga_summary(name: str, entry: JournalEntry) -> dict[str, Any]:
    from streams.inspection.sagas import why

    return {
        "saga": name,
        "id": output.printable_text(entry.saga),
        "status": entry.status,
        "steps": list(entry.current_steps),
        "seconds": max(0.0, time.time() - entry.at) if entry.at else None,
        "why": why(entry) or None,
    }


def _saga_details(name: str, entry: JournalEntry) -> dict[str, Any]:
    def failure_json(found: Failure) -> dict[str, Any]:
        return {"step": found.step, "error": str(found.error), "attempts": found.attempts}

    return {
        **_saga_summary(name, entry),
        "updated": output.iso_time(entry.at) if entry.at else None,
        "done": list(entry.done),
        "not_undone": list(entry.uncompensated_steps),
        "plan": [list(group) for group in entry.plan],
        "failure": None if entry.failure is None else failure_json(entry.failure),
        "failed_compensations": [failure_json(each) for each in entry.uncompensated],
        "retrying": [failure_json(each) for each in entry.last],
        "reason": entry.error or None,
        "transitions": entry.n,
        "context": output.document_json(bytes(entry.context)),
    }


def _format_value(found: Any) -> output.Cell:
    if isinstance(found, list):
        return "; ".join(str(_format_value(each)) for each in found)
    if isinstance(found, dict):
        return f"{found['step']}: {found['error']} (attempt {found['attempts']})"
    if isinstance(found, float):
        return output.age_text(found)
    return found if found is None or isinstance(found, int) else str(found)
