"""Options that several commands share, and the log they open."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from streams.cli.command_errors import UsageError
from streams.errors import LogError, NotFound
from streams.text import close_match, escape

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log, OpenMode
    from streams.log.url import ChosenUrl

Url = Annotated[
    str | None,
    Option(
        "--url",
        metavar="URL",
        help="URL of the log: sqlite:///app.db, redis://host:6379/0, kafka://host:9092. "
        "Default: STREAMS_URL.",
    ),
]
AppUrl = Annotated[
    str | None,
    Option(
        "--url",
        metavar="URL",
        help="URL of the log, instead of the app's own: sqlite:///app.db, redis://host:6379/0, "
        "kafka://host:9092. If neither is given: STREAMS_URL.",
    ),
]
ShowAll = Annotated[bool, Option("--all", help="Include those that the toolkit keeps for itself.")]
Json = Annotated[bool, Option("--json", help="Print JSON.")]
Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask for confirmation.")]
Partition = Annotated[
    int | None, Option("--partition", "-p", min=0, metavar="N", help="Only this partition.")
]
Key = Annotated[
    str | None, Option("--key", "-k", metavar="KEY", help="Only messages with this key.")
]
Escapes = Annotated[
    bool,
    Option(
        "--escapes",
        help=r"Read \x00 (a byte), \u200b, \n, \r, \t and \\ in the given keys and IDs as escapes.",
    ),
]
Index = Annotated[
    str | None,
    Option(
        "--index",
        metavar="DIR",
        help="On Kafka: a directory that stores which events count, for the next call.",
    ),
]


def argument_bytes(text: str) -> bytes:
    """A word of the command line as bytes in the log: bytes that were not UTF-8 are kept."""
    return text.encode("utf-8", "surrogateescape")


def resolve_url(url: str | None) -> ChosenUrl:
    """The log of ``--url``, else of the environment.

    :raises UsageError: neither is given.
    """
    from streams.log.url import choose_url

    source = choose_url(url)
    if source is None:
        raise UsageError("no log: give --url, or set STREAMS_URL (such as sqlite:///app.db)")
    return source


@contextmanager
def open_url(
    url: str | ChosenUrl | None,
    mode: OpenMode = "rw",
    app: Streams | None = None,
    index: str | None = None,
) -> Iterator[Log]:
    """The app's log, or that of ``--url``, else of the environment, closed afterwards. On a
    terminal the chosen log is shown.

    :param url: ``--url``, or a choice that was made already.
    :param mode: ``ro`` for a command that only reads, ``rwc`` for one that may create a file.
    :param app: the app whose log and driver settings are used, if any.
    :param index: the folder of ``--index``.
    :raises UsageError: neither is given; or an index is given, and the log has none.
    :raises NotFound: there is no such file.
    """
    from streams.cli import output
    from streams.cli.logging_setup import configure_warnings
    from streams.log.url import ChosenUrl, open_log

    driver_config: Mapping[str, Any] = {}
    if app is not None:
        url, driver_config = app.url_source, app.driver_config
    source = url if isinstance(url, ChosenUrl) else resolve_url(url)
    configure_warnings()
    if sys.stderr.isatty():
        output.print_note(f"on {source}")
    if index is not None:
        if not source.url.startswith("kafka"):
            raise UsageError(
                "--index is only for Kafka: other logs already know which events count"
            )
        driver_config = {**driver_config, "event_index": index, "index_snapshots": 0}
    with closing(open_log(source.url, driver_config, mode=mode)) as log:
        try:
            yield log
        except NotFound as error:
            if (suggested := _with_suggestion(log, error)) is None:
                raise
            raise suggested from error


def _with_suggestion(log: Log, error: NotFound) -> NotFound | None:
    """The same error with a similar existing topic or group named first; None: there is no similar
    one."""
    if error.missing is None:
        return None
    kind, name = error.missing
    try:
        existing = log.list_topics() if kind == "topic" else log.list_groups()
    except LogError:
        return None
    found = close_match(name, existing)
    if found is None or found == name:
        return None
    start = f"there is no {kind} {name!r}"
    rest = str(error).removeprefix(start).removeprefix(": ")
    return NotFound(f"{start}: did you mean {found!r}?" + (f" Else: {rest}" if rest else ""))


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[IPV6]:PORT``, or ``:PORT`` for all of this machine's addresses.

    :raises UsageError: it does not have this form.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdecimal()) or (":" in bare and bare == host):
        raise UsageError(f"{text!r}: an address is written as HOST:PORT, such as 0.0.0.0:9100")
    if int(port) > 65_535:
        raise UsageError(f"{text!r}: there is no port {port}; the highest is 65535")
    return bare or "0.0.0.0", int(port)  # noqa: S104 - asked for


def confirm(question: str, *, yes: bool) -> None:
    """Ask before data is lost.

    :raises UsageError: there is no terminal to ask at.
    :raises typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is no terminal to ask on: add --yes")
    typer.confirm(escape(question), abort=True, err=True)
