"""``streams run``: runs an app's processors until a signal."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer import Argument, Option

from streams.cli.app_loading import load_app
from streams.cli.command_errors import (
    USAGE,
    CommandFailed,
    UsageError,
    error_line,
    is_debugging,
    print_error,
    print_traceback,
)
from streams.cli.logging_setup import LogFormat
from streams.cli.options import AppUrl, parse_address
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams

logger = get_logger("streams")


@contextmanager
def _serve_monitoring(app: Streams, http_address: tuple[str, int] | None) -> Iterator[None]:
    """Serve metrics and health during the block, if that is wanted."""
    if http_address is None:
        yield
        return
    from streams.patterns.monitoring import MonitoringServer

    with MonitoringServer(app, *http_address) as server:
        host = f"[{server.host}]" if ":" in server.host else server.host
        logger.info("metrics and health on http://%s:%d", host, server.port)
        yield


GC_THRESHOLD = 20_000
"""The number of new objects after which Python looks for unreachable cycles among them."""


def _raise_gc_threshold() -> None:
    """Raise the threshold, so that most messages are freed before the cyclic garbage collector
    runs.

    With Python's own 700 it scans all live objects again and again: a quarter of the CPU time with
    a thousand async handlers at once. The app may set another threshold.
    """
    first, *others = gc.get_threshold()
    if first:  # 0: it was turned off
        gc.set_threshold(max(first, GC_THRESHOLD), *others)


class LogLevel(StrEnum):
    """Levels of log lines, the chattiest first."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def run(
    target: Annotated[str, Argument(metavar="MODULE:APP", help="The app, such as shop:app.")],
    url: AppUrl = None,
    log_level: Annotated[
        LogLevel | None,
        Option("--log-level", "-l", help="Minimum log level (default: info, or the app's own)."),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        Option(
            "--log-format",
            envvar="STREAMS_LOG_FORMAT",
            help="Format of log lines: text, or one JSON object per line.",
        ),
    ] = None,
    http: Annotated[
        str | None,
        Option(
            "--http",
            envvar="STREAMS_HTTP",
            metavar="HOST:PORT",
            help="Serve /metrics, /healthz and /readyz on this address.",
        ),
    ] = None,
    workers: Annotated[
        int | None, Option("--workers", "-w", min=1, metavar="N", help="Run in N processes.")
    ] = None,
    member: Annotated[
        str | None,
        Option(
            "--member",
            "-m",
            envvar="STREAMS_MEMBER",
            metavar="NAME",
            help="Name of this process in its groups, kept across restarts.",
        ),
    ] = None,
    worker: Annotated[str | None, Option("--worker", hidden=True)] = None,
) -> None:
    """Run an app's processors.

    They run until SIGINT (Ctrl-C) or SIGTERM. The first signal lets handlers
    finish and commits positions; a second one ends the process at once. The
    exit status is 1 if a processor died.

    With --workers the app runs in that many processes, which share its
    groups; a worker that dies is restarted. With --http as well, worker N
    listens on PORT + N - 1.

    With --member, a restarted process gets its partitions back at once, however
    it ended (static membership); with --workers, -1, -2 ... is appended to the
    name. A process whose name is taken by another one exits with status 79 and
    should not be restarted.

    With --log-format json, each line on standard error is a JSON object: time,
    level, logger, message, worker (its number, or null), exception. It also
    replaces the log handlers of the app that write to the terminal.

    [bold]Examples[/bold]

      [cyan]streams run shop:app[/cyan]             app in shop.py, here or installed
      [cyan]streams run shop.events:app --log-level debug[/cyan]
      [cyan]streams run shop:app --url sqlite:///test.db[/cyan]
      [cyan]streams run shop:app --workers 4 --log-format json[/cyan]
      [cyan]streams run shop:app --member shop-3[/cyan]
      [cyan]streams run shop:app --http 0.0.0.0:9100[/cyan]
    """
    from streams.cli.supervisor import supervise

    http_address = None if not http else parse_address(http)
    logging_options = _LoggingOptions(log_level, log_format)
    if workers is not None and worker is None:
        logging_options.format_errors(0)
        logging_options.configure(0)
        options = logging_options.as_arguments()
        raise typer.Exit(supervise(target, workers, url, options, http_address, member))
    app = _load_in_process(target, url, member, worker, logging_options)
    _log_start(target, app)
    _run_processors(target, app, http_address)


class _LoggingOptions(NamedTuple):
    """The options of log lines, as they were given."""

    level: LogLevel | None
    format: LogFormat | None

    def configure(self, worker_index: int | None) -> None:
        """Write log lines as the options say.

        :param worker_index: the worker's number; 0: the supervisor; None: there are no workers.
        """
        from streams.cli.logging_setup import configure_logging

        level = None if self.level is None else getattr(logging, self.level.name.upper())
        configure_logging(level, self.format, worker_index)

    def format_errors(self, worker_index: int | None) -> None:
        """From now on write the command's own errors in the format of log lines, too."""
        from streams.cli.logging_setup import format_errors_as_logs

        format_errors_as_logs(self.format, worker_index)

    def as_arguments(self) -> list[str]:
        """The options as arguments of a worker's process."""
        arguments = []
        if self.level is not None:
            arguments += ["--log-level", self.level.value]
        if self.format is not None:
            arguments += ["--log-format", self.format.value]
        return arguments


def _load_in_process(
    target: str,
    url: str | None,
    member: str | None,
    worker: str | None,
    logging_options: _LoggingOptions,
) -> Streams:
    """Load the app, and prepare this process to run it.

    :param worker: the argument by which a supervisor started this process; None: none did.
    """
    from streams.cli.supervisor import WorkerProcess, take_supervisor_url, worker_number
    from streams.log.names import check_member

    worker_index = None if worker is None else worker_number()
    logging_options.format_errors(worker_index)
    worker_process = None
    if worker is not None:
        worker_process, url = WorkerProcess(worker), take_supervisor_url()
    _raise_gc_threshold()
    app = load_app(target, url)
    if member is not None:
        app.member = check_member(member)
    gc.freeze()  # imported objects stay, and are not scanned again
    logging_options.configure(worker_index)
    if worker_process is not None:
        worker_process.report_loaded(target, app)
    return app


def _log_start(target: str, app: Streams) -> None:
    """Log the app's URL, and its processors."""
    source = app.url_source
    logger.log(source.log_level, "running %s on %s", target, source)
    app.url_logged = True
    for each in app.processors:
        logger.info("%s: group %s, reading %s", each.name, each.group, ", ".join(each.topics))


def _run_processors(target: str, app: Streams, http_address: tuple[str, int] | None) -> None:
    """Run the app, with metrics and health on this address.

    :raises UsageError: the app is declared wrongly.
    :raises CommandFailed: it failed otherwise.
    :raises typer.Exit: an error ended it, which was printed.
    """
    try:
        with _serve_monitoring(app, http_address):
            run_until_stopped(app)
    except typer.Exit:
        raise
    except Exception as error:
        if is_debugging():
            raise
        text, status = error_line(error)
        if status == USAGE:
            raise UsageError(f"{target}: {text}") from error
        raise CommandFailed(f"{target} failed: {text}") from error


def run_until_stopped(app: Streams) -> None:
    """Run the app; print the error that ended it in one line.

    :raises typer.Exit: an error ended it.
    """
    from streams.errors import ConfigError, StreamsError, exit_status

    try:
        app.run_or_raise()
    except StreamsError as error:
        if is_debugging():
            print_traceback(error)
        print_error(str(error))
        status = USAGE if isinstance(error, ConfigError) else exit_status(error)
        raise typer.Exit(status) from None
