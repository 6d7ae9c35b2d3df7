"""``streams views``: the versions of views, their documents, and commands for them.

The log holds the whole state, so no app is needed: the running app goes on from the records that
are written here.

============  ==========================================================
``view_log``  the log of a command, and its views
``lists``     versions with their progress; stopped documents
``view``      one view, with its partitions
``change``    promote, rebuild, drop, retry
============  ==========================================================
"""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import DONE, FAILED, CommandFailed
from streams.cli.key_arguments import unescape
from streams.cli.offset_arguments import parse_duration
from streams.cli.options import Escapes, Json, Url, Yes, argument_bytes, confirm, resolve_url
from streams.cli.views import change
from streams.cli.views.lists import print_stopped, print_versions, stopped_rows, version_rows
from streams.cli.views.view import print_view, view_json
from streams.cli.views.view_log import open_view_log

app = typer.Typer(
    no_args_is_help=True, help="List and show views; promote, rebuild and drop versions."
)

Name = Annotated[str, Argument(metavar="NAME", help="The view's name.")]
Version = Annotated[int, Option("--version", min=1, metavar="N", help="Version number.")]
AnyVersion = Annotated[
    int | None,
    Option("--version", min=1, metavar="N", help="Version number; default: the one that serves."),
]
Lines = Annotated[
    int, Option("-n", "--lines", min=0, metavar="N", help="At most N stopped documents; 0: all.")
]


@app.command("ls")
def list_views(url: Url = None, json: Json = False) -> None:
    r"""List the views of a log, a row for each version.

    Each row shows whether the version serves, how many processes run it, its
    documents, how many of them are stopped because the view's function failed,
    and how much of its events is folded. A version that runs and is behind is
    measured for a second: events per second, and the time left.

    [bold]Examples[/bold]

      [cyan]streams views ls[/cyan]
      [cyan]watch streams views ls[/cyan]                             while a version is built
      [cyan]streams views ls --json | jq '.\[] | select(.stopped > 0)'[/cyan]
    """
    from streams.eventsourcing.views.inspection import find_views

    with open_view_log(url) as view_log:
        rows = version_rows(view_log, find_views(view_log.log))
    if json:
        output.print_json(rows)
    else:
        print_versions(rows)


@app.command("show")
def show_view(
    name: Name,
    version: Annotated[
        int | None, Option("--version", min=1, metavar="N", help="Only this version.")
    ] = None,
    number: Lines = 20,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show a view: its versions, the progress of each partition, stopped documents.

    [bold]Examples[/bold]

      [cyan]streams views show accounts.balances[/cyan]
      [cyan]streams views show accounts.balances --version 2 --json[/cyan]
    """
    with open_view_log(url) as view_log:
        document = view_json(view_log, name, version, number)
    if json:
        output.print_json(document)
    else:
        print_view(document)


@app.command("stopped")
def list_stopped(
    name: Name, version: AnyVersion = None, number: Lines = 100, url: Url = None, json: Json = False
) -> None:
    r"""List the documents that are stopped because the view's function failed.

    Each is shown with the position of the event at which it stopped, and what
    the function raised. Once the function is fixed, [cyan]streams views retry[/cyan]
    resumes a document.

    [bold]Examples[/bold]

      [cyan]streams views stopped accounts.balances[/cyan]
      [cyan]streams views stopped accounts.balances --json | jq -r '.\[].key'[/cyan]
    """
    with open_view_log(url) as view_log:
        rows, has_more = stopped_rows(view_log.inspector(name, version), number)
    if json:
        output.print_json(rows)
    else:
        print_stopped(rows)
    if has_more:
        output.print_note("there are more: -n 0 lists all")


@app.command("promote")
def promote_version(
    name: Name,
    version: Version,
    force: Annotated[
        bool, Option("--force", help="Promote it even if it has not caught up.")
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a version serve, in all processes that declare it.

    This is for versions declared with promote=False; others are promoted once
    they have caught up with the version before them. It cannot be undone: a
    version before the promoted one does not serve again.

    [bold]Examples[/bold]

      [cyan]streams views promote accounts.balances --version 2[/cyan]
    """
    source = resolve_url(url)
    with open_view_log(source) as view_log:
        view_log.inspector(name, version)
    is_new = change.run(source, name, lambda view: view.promote(version, force=force))
    if json:
        output.print_json({"view": name, "version": version, "promoted": is_new})
        return
    said = "serves from now on" if is_new else "serves already"
    output.print_line(f"{name}: version {version} {said}")


@app.command("rebuild")
def rebuild_version(
    name: Name,
    version: Version,
    wait: Annotated[
        bool, Option("--wait", help="Wait until it is rebuilt; a process must run it.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Delete a version's documents, so that they are rebuilt.

    The processes that run the version start again at its first event. Until it
    has caught up with its topics as they are now, nothing serves from it:
    readers get an older version that they declare, or ViewNotReady. A new
    version, declared beside the old one, avoids that. If this is interrupted,
    run it again.

    [bold]Examples[/bold]

      [cyan]streams views rebuild accounts.balances --version 2[/cyan]
      [cyan]streams views rebuild accounts.balances --version 2 --yes --wait[/cyan]
    """
    source = resolve_url(url)
    with open_view_log(source) as view_log:
        found = view_log.inspector(name, version).inspect()
    documents = output.plural(found.totals.documents, "document")
    confirm(
        f"Delete {documents} of {name} version {version}, to rebuild it? Nothing serves from it "
        "meanwhile; a new version, declared beside it, avoids that.",
        yes=yes,
    )
    with output.progress_bar(f"clearing {name}") as show_progress:
        cleared = change.run(
            source, name, lambda view: view.rebuild(version, on_cleared=show_progress)
        )
    if wait:
        change.await_built(source, name, version)
    if json:
        output.print_json({"view": name, "version": version, "cleared": cleared, "built": wait})
        return
    partitions = output.plural(cleared, "partition")
    output.print_line(f"{name}: version {version}: {partitions} cleared")
    if not wait:
        runs = "" if found.members else " as soon as a process runs that declares it"
        output.print_note(
            f"it is rebuilt{runs}, and nothing serves from it until then: streams views show "
            f"{name} shows the progress"
        )


@app.command("drop")
def drop_version(
    name: Name,
    version: Version,
    force: Annotated[bool, Option("--force", help="Drop it even if it serves.")] = False,
    yes: Yes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Delete a version: its documents, its keyed topic and its groups.

    The events stay, so it can be built again by declaring it. Refused while
    processes run it. If this is interrupted, run it again.

    [bold]Examples[/bold]

      [cyan]streams views drop accounts.balances --version 1[/cyan]
      [cyan]streams views drop accounts.balances --version 1 --yes[/cyan]
    """
    source = resolve_url(url)
    with open_view_log(source) as view_log:
        found = view_log.inspector(name, version).inspect()
    change.run(source, name, lambda view: view.check_drop(version, force=force))
    documents = output.plural(found.totals.documents, "document")
    confirm(f"Delete version {version} of {name} with its {documents}?", yes=yes)
    change.run(source, name, lambda view: view.drop(version, force=force))
    if json:
        output.print_json({"view": name, "version": version, "dropped": True})
    else:
        output.print_line(f"{name}: version {version} dropped")


@app.command("retry")
def retry_document(
    name: Name,
    key: Annotated[str, Argument(metavar="KEY", help="Key of the document.")],
    version: AnyVersion = None,
    timeout: Annotated[
        str, Option("--timeout", metavar="TIME", help="How long to wait for it: 30s, 5m.")
    ] = "30s",
    escapes: Escapes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Resume a stopped document, in the process that folds it.

    Do this once the view's function is fixed and the new code runs. All events
    from the one where it failed are folded; none is skipped.

    [bold]Examples[/bold]

      [cyan]streams views retry accounts.balances a-1[/cyan]
    """
    key = unescape(key, escapes=escapes)
    seconds = parse_duration(timeout, "--timeout")
    source = resolve_url(url)
    with open_view_log(source) as view_log:
        inspector = view_log.inspector(name, version)
        chosen = inspector.known.version
        document = inspector.find_document(argument_bytes(key))
        if document is None:
            raise CommandFailed(f"{name}: version {chosen} has no document {key!r}")
    stood_still = bool(document[1].failure)
    goes_on = change.run(
        source, name, lambda view: view.retry(chosen, argument_bytes(key), seconds)
    )
    if goes_on is None:
        raise CommandFailed(
            f"{name}: no process that runs version {chosen} has resumed {key!r} within "
            f"{timeout}: it is resumed as soon as one runs"
        )
    if json:
        found = {"view": name, "version": chosen, "key": key}
        output.print_json({**found, "stood_still": stood_still, "goes_on": goes_on})
    elif not stood_still:
        output.print_line(f"{name}: {key!r} is not stopped")
    elif goes_on:
        output.print_line(f"{name}: {key!r} is resumed")
    else:
        with open_view_log(source) as view_log:
            reason = change.stopped_reason(view_log, name, chosen, argument_bytes(key))
        output.print_line(f"{name}: {key!r} is stopped again: {reason}")
    raise typer.Exit(DONE if goes_on else FAILED)
