"""``streams run``: an app's processors, until a signal."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated

import typer

from streams.cli.apps import load
from streams.cli.failures import FAILED, USAGE, Failed, Misused, debugging, describe
from streams.cli.options import Url

logger = logging.getLogger("streams")


class Level(StrEnum):
    """Levels of log lines, the chattiest first."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is.")],
    url: Url = None,
    log_level: Annotated[
        Level | None,
        typer.Option("--log-level", "-l", help="The least level logged (info, or the app's own)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-w", min=1, metavar="N", help="Run in N processes."),
    ] = None,
    worker: Annotated[str | None, typer.Option("--worker", hidden=True)] = None,
) -> None:
    """Run an app's processors.

    They run until SIGINT (Ctrl-C) or SIGTERM. The first signal lets handlers
    finish and commits positions, a second one ends the process at once. The
    exit status is 1 if a processor died.

    With --workers the app runs in that many processes, which share its
    groups; one that dies is started again.

    [bold]Examples[/bold]

      [cyan]streams run shop:app[/cyan]             app in shop.py, here or installed
      [cyan]streams run shop.events:app --log-level debug[/cyan]
      [cyan]streams run shop:app --url sqlite:///test.db[/cyan]
      [cyan]streams run shop:app --workers 4[/cyan]
    """
    from streams.cli.logs import set_up
    from streams.cli.workers import Worker, supervise
    from streams.errors import ConfigError
    from streams.log.url import redact

    level = None if log_level is None else getattr(logging, log_level.name.upper())
    if workers is not None and worker is None:
        set_up(level)
        raise typer.Exit(supervise(target, workers, url, log_level and log_level.value))
    place = None if worker is None else Worker(worker)
    app = load(target, url)
    set_up(level)
    if place is not None:
        place.loaded(target, app)
    logger.info("running %s on %s", target, redact(app.url))
    for each in app.processors:
        logger.info("%s: group %s, reading %s", each.name, each.group, ", ".join(each.topics))
    try:
        app.run()
    except SystemExit as ended:  # said already, in one line
        misused = isinstance(ended.__cause__, ConfigError)
        status = ended.code if isinstance(ended.code, int) else FAILED
        raise typer.Exit(USAGE if misused else status) from None
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if debugging():
            raise
        text, status = describe(error)
        if status == USAGE:
            raise Misused(f"{target}: {text}") from error
        raise Failed(f"{target} failed: {text}") from error
