"""``streams doctor``: the checklist of an event-driven service, held against a real application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli import show
from streams.cli.apps import load
from streams.cli.failures import DONE, FAILED, line
from streams.cli.options import AppUrl, Json

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.cli.checklist import Finding
    from streams.log.protocol import Log


def doctor(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is.")],
    prometheus: Annotated[
        str | None,
        typer.Option(
            "--prometheus",
            envvar="STREAMS_PROMETHEUS",
            metavar="URL",
            help="Where Prometheus is: http://localhost:9090.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="What cannot be known counts as wrong.")
    ] = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    r"""Hold an app and its log against the checklist.

    Are messages persisted, are they handled once, where do those go that
    cannot be handled, is memory bounded, is somebody told when it goes
    wrong, do retries end, is the order of keys kept, is what is deleted meant
    to be: yes, no, or why that cannot be known, and what to do. Nothing is
    changed. The exit status is 1 if anything is wrong.

    [bold]Examples[/bold]

      [cyan]streams doctor shop:app[/cyan]
      [cyan]streams doctor shop:app --prometheus http://localhost:9090[/cyan]
      [cyan]streams doctor shop:app --json | jq '.findings\[] | select(.verdict == "no")'[/cyan]
    """
    from streams.cli.checklist import Verdict, View, look
    from streams.cli.watchers import Watchers
    from streams.log.url import redact

    watchers = Watchers(prometheus)
    app = load(target, url)
    with _opened(app) as (log, trouble):
        findings = list(look(View(app, log, trouble, watchers)))
    counts = Counter(finding.verdict for finding in findings)
    well = not counts[Verdict.no] and not (strict and counts[Verdict.unknown])
    if json:
        show.print_json(
            {
                "app": target,
                "log": redact(app.url),
                "log_from": app.given_url.by,
                "ok": well,
                "findings": [_as_json(finding) for finding in findings],
            }
        )
    else:
        show.say(f"{target} on {app.given_url}")
        if app._lifespan is not None:
            show.note("what the app's lifespan declares is not looked at")
        show.table(
            ["", "item", "of", "why", "do"],
            [[f.verdict.value, f.item, f.of, f.why, f.do or None] for f in findings],
        )
        words = [f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict]]
        show.say(", ".join(words))
    raise typer.Exit(DONE if well else FAILED)


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "item": finding.item,
        "of": finding.of,
        "verdict": finding.verdict.value,
        "why": finding.why,
        "do": finding.do,
    }


@contextmanager
def _opened(app: Streams) -> Iterator[tuple[Log | None, str]]:
    """The app's log; or None and why it could not be opened.

    :raises ConfigError: the URL or a setting cannot be.
    """
    from streams.cli.logs import warnings
    from streams.errors import LogError, NotFound
    from streams.log.url import open_log

    warnings()
    try:
        log = open_log(app.url, app._config, app.clock, app.member, mode="ro")
    except NotFound as error:
        yield None, line(f"{error} (running the app once makes one)")
        return
    except LogError as error:
        yield None, line(str(error))
        return
    with closing(log):
        try:
            log.topic(next(iter(app.topics), "streams"))
        except NotFound:
            pass  # it answered
        except LogError as error:
            yield None, line(str(error))
            return
        yield log, ""
