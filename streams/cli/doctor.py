"""``streams doctor``: checks a real application against the checklist of an event-driven service.

The checks are in :mod:`streams.inspection.doctor`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from streams.cli import output
from streams.cli.app_loading import load_app
from streams.cli.command_errors import DONE, FAILED, UsageError
from streams.cli.options import AppUrl, Json
from streams.errors import ConfigError
from streams.text import one_line

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.inspection.doctor.app_inspection import CheckVerdict, Finding
    from streams.inspection.doctor.prometheus import PrometheusClient
    from streams.log.protocol import Log


def doctor(
    target: Annotated[str, Argument(metavar="MODULE:APP", help="The app, such as shop:app.")],
    prometheus: Annotated[
        str | None,
        Option(
            "--prometheus",
            envvar="STREAMS_PROMETHEUS",
            metavar="URL",
            help="URL of Prometheus: http://localhost:9090.",
        ),
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Treat unknown items as wrong.")] = False,
    url: AppUrl = None,
    json: Json = False,
) -> None:
    r"""Check an app and its log against the checklist.

    Are messages persisted and handled once, where do messages go that cannot be
    handled, is memory bounded, do failures raise alerts, do retries end, is the
    order of keys kept, is deletion intended, are the histories of aggregates
    complete and readable, do views progress, do process managers react? Each
    answer is yes, no or unknown, with the reason and what to do. Nothing is
    changed. The exit status is 1 if anything is wrong.

    [bold]Examples[/bold]

      [cyan]streams doctor shop:app[/cyan]
      [cyan]streams doctor shop:app --prometheus http://localhost:9090[/cyan]
      [cyan]streams doctor shop:app --json | jq '.findings\[] | select(.verdict == "no")'[/cyan]
    """
    from streams.inspection.doctor.app_inspection import AppInspection, CheckVerdict
    from streams.inspection.doctor.checklist import run_checks

    prometheus_client = _prometheus_client(prometheus)
    app = load_app(target, url)
    with _open_read_only(app) as (log, open_error):
        inspection = AppInspection(app, log, open_error, prometheus_client, target)
        findings = list(run_checks(inspection))
    counts = Counter(finding.verdict for finding in findings)
    passed = not counts[CheckVerdict.no] and not (strict and counts[CheckVerdict.unknown])
    if json:
        _print_json(target, app, findings, passed=passed)
    else:
        _print_for_people(target, app, findings, counts)
    raise typer.Exit(DONE if passed else FAILED)


def _prometheus_client(url: str | None) -> PrometheusClient:
    """:raises UsageError: the URL is invalid."""
    from streams.inspection.doctor.prometheus import PrometheusClient

    try:
        return PrometheusClient(url)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _print_json(target: str, app: Streams, findings: Sequence[Finding], *, passed: bool) -> None:
    from streams.log.url import redact

    where = {"app": target, "log": redact(app.url), "log_from": app.url_source.source}
    names = ("item", "of", "verdict", "why", "do")
    found = [dict(zip(names, astuple(finding), strict=True)) for finding in findings]
    output.print_json({**where, "ok": passed, "findings": found})


def _print_for_people(
    target: str, app: Streams, findings: Sequence[Finding], counts: Counter[CheckVerdict]
) -> None:
    from streams.inspection.doctor.app_inspection import CheckVerdict

    output.print_line(f"{target} on {app.url_source}")
    if app.lifespan is not None:
        output.print_note("declarations made in the app's lifespan are not checked")
    output.print_table(
        ["", "item", "of", "why", "do"],
        [[f.verdict.value, f.item, f.subject, f.reason, f.advice or None] for f in findings],
    )
    texts = (f"{counts[verdict]} {verdict.value}" for verdict in CheckVerdict if counts[verdict])
    output.print_line(", ".join(texts))


@contextmanager
def _open_read_only(app: Streams) -> Iterator[tuple[Log | None, str]]:
    """The app's log; or None and why it could not be opened.

    :raises ConfigError: the URL or a setting is invalid.
    """
    from streams.cli.logging_setup import configure_warnings
    from streams.errors import LogError, NotFound
    from streams.log.url import open_log

    configure_warnings()
    try:
        log = open_log(app.url, app.driver_config, app.clock, app.member, mode="ro")
    except NotFound as error:
        yield None, one_line(f"{error} (running the app once creates it)")
        return
    except LogError as error:
        yield None, one_line(str(error))
        return
    with closing(log):
        try:
            log.describe_topic(next(iter(app.topics), "streams"))
        except NotFound:
            pass  # it answered
        except LogError as error:
            yield None, one_line(str(error))
            return
        yield log, ""
