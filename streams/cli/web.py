"""``streams web``: the dashboard in a browser."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from streams.cli import output
from streams.cli.app_loading import load_app
from streams.cli.command_errors import UsageError
from streams.cli.options import AppUrl, resolve_url

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.web.access import Access
    from streams.web.passwords import Passwords

PORT = 8765


def web(
    target: Annotated[
        str | None,
        Argument(metavar="MODULE:APP", help="App whose types, sagas and views are shown, too."),
    ] = None,
    url: AppUrl = None,
    host: Annotated[
        str, Option("--host", metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        Option(
            "--port", min=0, max=65_535, metavar="N", help="Port to listen on; 0: any free one."
        ),
    ] = PORT,
    write: Annotated[
        bool, Option("--write", help="Let visitors act; without it the dashboard is read-only.")
    ] = False,
    payloads: Annotated[
        bool,
        Option(
            "--payloads/--no-payloads", help="Show the contents of messages: values, keys, headers."
        ),
    ] = True,
    password_file: Annotated[
        Path | None,
        Option(
            "--password-file",
            metavar="FILE",
            help="File of NAME:PASSWORD lines to log in with. Default: STREAMS_WEB_PASSWORDS.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, Option("--tls-cert", metavar="FILE", help="Certificate to serve https with.")
    ] = None,
    tls_key: Annotated[
        Path | None, Option("--tls-key", metavar="FILE", help="The certificate's key.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        Option(
            "--allow-host",
            metavar="NAME",
            help="Accept requests for this host name, too; repeatable.",
        ),
    ] = None,
    environment: Annotated[
        str,
        Option(
            "--environment", metavar="NAME", help="Name to show on every page, such as production."
        ),
    ] = "",
) -> None:
    """Show the log in a browser: topics, messages, groups, dead letters and more.

    By default, only this machine can reach it, and nothing can be changed. On
    other addresses, it requires passwords and https.

    [bold]Examples[/bold]

      [cyan]streams web --url sqlite:///app.db[/cyan]     without an app
      [cyan]streams web shop:app --write[/cyan]           with its types, and with actions
      [cyan]streams web --port 0[/cyan]                   on any free port
    """
    from streams.cli.logging_setup import configure_logging
    from streams.web.access import ACTION_NAMES, Access
    from streams.web.dashboard import Dashboard
    from streams.web.server import check_address, serve

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key: give both or neither")
    app = _app(target, url)
    access = Access(read=True, payloads=payloads, actions=ACTION_NAMES if write else frozenset())
    passwords = _passwords(password_file, access)
    check_address(host, has_passwords=passwords is not None, has_tls=tls_cert is not None)
    configure_logging(logging.INFO)
    dashboard = Dashboard(
        app,
        access=access if passwords is None else passwords,
        hosts=_accepted_hosts(host, allow_host or ()),
        environment=environment,
        read_only=not write,
    )
    _check_file(app)
    announce = partial(_print_address, app, write)
    serve(dashboard, host, port, announce, certificate=tls_cert, key=tls_key)


def _passwords(file: Path | None, access: Access) -> Passwords | None:
    """The passwords of the file, else of the environment; None: there are none."""
    from streams.web.passwords import Passwords

    if file is not None:
        return Passwords.from_file(file, access)
    return Passwords.from_environment(access)


def _accepted_hosts(host: str, more: Collection[str]) -> Collection[str] | None:
    """The host names whose requests are accepted; None: all."""
    from streams.web.passwords import LOOPBACK, is_loopback

    return {*LOOPBACK, host, *more} if is_loopback(host) else more or None


def _print_address(app: Streams, write: bool, address: str) -> None:
    """Print where the dashboard is served, and what it allows."""
    may = "visitors may act" if write else "read-only; --write lets visitors act"
    output.print_line(f"{address}  ({app.url_source}; {may})")
    sys.stdout.flush()  # a parent process in the background waits for the address


def _app(target: str | None, url: str | None) -> Streams:
    """The app, or one without declarations on the chosen log."""
    from streams.app import Streams

    if target is not None:
        return load_app(target, url)
    resolve_url(url)  # if there is none, its error says what is missing
    app = Streams()
    app.url_override = url
    return app


def _check_file(app: Streams) -> None:
    """Check that the file of a SQLite log exists. A server may start later: the pages say so.

    :raises NotFound: the file does not exist.
    """
    from streams.log.url import open_log

    if app.url.startswith("sqlite:"):
        open_log(app.url, app.driver_config, app.clock, mode="ro").close()
