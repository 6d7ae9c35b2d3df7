"""``streams aggregates``: event-sourced aggregates, their events, states and snapshots.

Without an app the stored records are shown. With one, ``MODULE:APP`` before the name, its code
gives the events as they are today, the states, and the errors at which it cannot go on. The app is
not run, and nothing is created or changed except by ``drop-snapshots``.

===============  ==========================================================
``log_and_app``  the log and the app of a command, and the event topics there
``lists``        lists of aggregates and of IDs; those that the code cannot read
``view``         one aggregate: state, events, snapshots
===============  ==========================================================
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.aggregates.lists import list_ids, list_keys, list_stopped, list_topics
from streams.cli.aggregates.log_and_app import LogAndApp, open_log_and_app
from streams.cli.aggregates.view import AggregateView, print_aggregate
from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.key_arguments import unescape
from streams.cli.log_queries import await_index
from streams.cli.offset_arguments import parse_duration, parse_time
from streams.cli.options import AppUrl, Escapes, Json, Yes, argument_bytes, confirm
from streams.text import suggestion
from streams.wire import parse_duration as parse_seconds
from streams.wire import parse_int, shorten, utc_from_seconds

app = typer.Typer(
    no_args_is_help=True, help="List and show event-sourced aggregates; delete snapshots."
)

PAGE = 1_000
"""How many IDs are read at once."""


@app.command("ls")
def list_aggregates(
    first: Annotated[
        str | None,
        Argument(metavar="APP|NAME", help="Aggregate's name, or MODULE:APP followed by it."),
    ] = None,
    second: Annotated[
        str | None, Argument(metavar="NAME", help="Aggregate's name, if an app comes first.")
    ] = None,
    prefix: Annotated[
        str, Option("--prefix", metavar="TEXT", help="Only IDs with this prefix.")
    ] = "",
    after: Annotated[
        str | None, Option("--after", metavar="ID", help="Only IDs after this one, in order.")
    ] = None,
    number: Annotated[
        int, Option("-n", "--lines", min=0, metavar="N", help="At most N IDs; 0: all.")
    ] = 100,
    undecodable: Annotated[
        bool,
        Option("--undecodable", help="Only those with an event at which the app's code stops."),
    ] = False,
    scan: Annotated[
        int,
        Option(
            "--scan",
            min=0,
            metavar="N",
            help="With --undecodable: check at most N aggregates; 0: all.",
        ),
    ] = 100_000,
    escapes: Escapes = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    r"""List the aggregates of a log or an app, or the IDs of one aggregate.

    Without a name: how many aggregates, events and causes each event topic
    holds, and snapshots by the fingerprint of the code that made them. With a
    name: the IDs in order, with their versions.

    [bold]Examples[/bold]

      [cyan]streams aggregates ls[/cyan]                              all of the log's
      [cyan]streams aggregates ls shop:app[/cyan]                     those that the app declares
      [cyan]streams aggregates ls accounts --prefix a- -n 20[/cyan]   IDs and versions
      [cyan]streams aggregates ls shop:app accounts --undecodable[/cyan]
    """
    target, (name,) = _split_words("ls", (first, second), 1)
    if undecodable and target is None:
        raise UsageError("--undecodable needs an app's code: write MODULE:APP before the name")
    if name is None and (prefix or after is not None):
        raise UsageError("--prefix and --after need the name of an aggregate")
    prefix_bytes = argument_bytes(unescape(prefix, escapes=escapes))
    after_bytes = None if after is None else argument_bytes(unescape(after, escapes=escapes))
    with open_log_and_app(target, url) as opened:
        if name is None:
            list_topics(opened, scan if undecodable else None, json=json)
            return
        info = opened.event_topic(name)
        await_index(opened.log, info.name)
        size = min(number or PAGE, PAGE)
        keys = list_keys(opened.log, info, prefix_bytes, after_bytes, size)
        if undecodable:
            list_stopped(opened, name, keys, number, scan, json=json)
        else:
            list_ids(keys, number, json=json)


@app.command("show")
def show_aggregate(
    first: Annotated[
        str, Argument(metavar="APP|NAME", help="Aggregate's name, or MODULE:APP followed by it.")
    ],
    second: Annotated[
        str, Argument(metavar="NAME|ID", help="Aggregate's ID; after an app, its name.")
    ],
    third: Annotated[
        str | None, Argument(metavar="ID", help="Aggregate's ID, if an app comes first.")
    ] = None,
    at: Annotated[
        str | None,
        Option(
            "--at",
            metavar="VERSION|TIME",
            help="Show it as of a version (17), a time (2013-01-05T10:00Z), or that long ago (2h).",
        ),
    ] = None,
    events: Annotated[
        bool, Option("--events", "-e", help="Show its events and stored refusals, too.")
    ] = False,
    number: Annotated[
        int,
        Option(
            "-n",
            "--lines",
            min=0,
            metavar="N",
            help="At most the last N events and refusals; 0: all.",
        ),
    ] = 1_000,
    escapes: Escapes = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    r"""Show an aggregate: version, state, snapshots, events.

    The app's code computes the state and reads old events as today's; without
    an app, events are shown as stored. An event that cannot be decoded is shown
    as stored, with the reason. With --events, stored refusals are shown among
    the events, with the version at which they were decided.

    [bold]Examples[/bold]

      [cyan]streams aggregates show shop:app accounts a-1[/cyan]
      [cyan]streams aggregates show shop:app accounts a-1 --at 17[/cyan]
      [cyan]streams aggregates show accounts a-1 --events[/cyan]      without the app
      [cyan]streams aggregates show shop:app accounts a-1 --json | jq .state[/cyan]
      [cyan]streams aggregates show accounts 'a\x00b' --escapes[/cyan]   an ID with a NUL
    """
    target, (name, id) = _split_words("show", (first, second, third), 2)
    if name is None or id is None:
        raise UsageError(
            f"{second}: no ID given; write streams aggregates show {first} {second} ID"
        )
    key = argument_bytes(unescape(id, escapes=escapes))
    moment = None if at is None else _parse_at(at)
    with open_log_and_app(target, url) as opened:
        info = opened.event_topic(name)
        view = AggregateView(opened, name, info, key)
        document = view.document(moment, number if events else None)
    if json:
        output.print_json(document)
    else:
        print_aggregate(document)


@app.command("drop-snapshots")
def drop_snapshots(
    first: Annotated[
        str, Argument(metavar="APP|NAME", help="Aggregate's name, or MODULE:APP followed by it.")
    ],
    second: Annotated[
        str | None, Argument(metavar="NAME", help="Aggregate's name, if an app comes first.")
    ] = None,
    fingerprint: Annotated[
        str | None,
        Option("--fingerprint", "-f", metavar="F", help="Only those of this fingerprint."),
    ] = None,
    unused: Annotated[
        bool, Option("--unused", help="Only those that the app's code does not use.")
    ] = False,
    yes: Yes = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    """Delete snapshots of an aggregate.

    They are only a cache: deleting them changes no state and no version, but
    loading takes longer until there are new ones.

    [bold]Examples[/bold]

      [cyan]streams aggregates drop-snapshots accounts[/cyan]                     asks first
      [cyan]streams aggregates drop-snapshots accounts -f 3f0c9b1d2a4e5f60 --yes[/cyan]
      [cyan]streams aggregates drop-snapshots shop:app accounts --unused[/cyan]   of older code
    """
    target, (name,) = _split_words("drop-snapshots", (first, second), 1)
    if name is None:
        raise UsageError(
            f"{first}: no aggregate given; write streams aggregates drop-snapshots {first} NAME"
        )
    if unused and target is None:
        raise UsageError("--unused needs an app's code: write MODULE:APP before the name")
    if unused and fingerprint is not None:
        raise UsageError("--unused and --fingerprint cannot be combined")
    with open_log_and_app(target, url, "rw") as opened:
        topic = opened.event_topic(name).name
        chosen = _count_chosen(opened, name, topic, fingerprint, unused=unused)
        deleted = 0
        if any(chosen.values()):
            _confirm_deletion(name, chosen, yes=yes)
            deleted = sum(opened.log.delete_snapshots(topic, each) for each in chosen)
    if json:
        output.print_json({"aggregate": name, "deleted": deleted})
    else:
        output.print_line(f"{name}: {output.plural(deleted, 'snapshot')} deleted")


def _count_chosen(
    opened: LogAndApp, name: str, topic: str, fingerprint: str | None, *, unused: bool
) -> dict[str, int]:
    """The fingerprints that the options select, and how many snapshots each has.

    :raises CommandFailed: there is no snapshot of the fingerprint.
    """
    counts = dict(opened.log.event_totals(topic).snapshots)
    used = opened.aggregate(name).definition.fingerprint if opened.app is not None else ""
    if fingerprint is not None and fingerprint not in counts:
        raise CommandFailed(
            f"{name} has no snapshots of fingerprint {shorten(fingerprint, 60)!r}; "
            f"{suggestion(fingerprint, list(counts))}"
        )
    return {
        each: counts[each]
        for each in sorted(counts)
        if (fingerprint is None or each == fingerprint) and not (unused and each == used)
    }


def _confirm_deletion(name: str, counts: Mapping[str, int], *, yes: bool) -> None:
    """Ask before snapshots are deleted, with the number of each fingerprint."""
    texts = ", ".join(f"{count:,} of fingerprint {each}" for each, count in counts.items())
    confirm(
        f"Delete {output.plural(sum(counts.values()), 'snapshot')} of {name} ({texts})? Loading "
        "takes longer until there are new ones.",
        yes=yes,
    )


def _split_words(
    command: str, words: tuple[str | None, ...], count: int
) -> tuple[str | None, tuple[str | None, ...]]:
    """``MODULE:APP`` if it was given, and the other words. An aggregate's name has no colon."""
    given = [word for word in words if word is not None]
    target = given.pop(0) if given and ":" in given[0] else None
    if len(given) > count:
        usage = {"ls": "[NAME]", "show": "NAME ID", "drop-snapshots": "NAME"}[command]
        raise UsageError(
            f"{given[0]!r} is not an app: streams aggregates {command} [MODULE:APP] {usage}"
        )
    return target, (*given, *[None] * (count - len(given)))


def _parse_at(text: str) -> int | datetime:
    """A version, a time, or a time relative to now.

    :raises UsageError: it is none of them.
    """
    text = text.strip()
    version = parse_int(text)
    if version is not None:
        return version
    if parse_seconds(text) is not None:
        return utc_from_seconds(time.time() - parse_duration(text, "--at"))
    if not text[:1].isdigit() or text.isdigit():
        raise UsageError(
            f"--at {shorten(text, 60)!r}: a version (17), a time (2013-01-05T10:00Z), or that long "
            "ago (2h30m)"
        )
    return parse_time(text, "--at")
