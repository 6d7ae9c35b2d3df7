"""Options that several commands share, and the log they open."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.failures import Misused
from streams.errors import LogError, NotFound
from streams.text import close_match, escape

if TYPE_CHECKING:
    from streams.log.protocol import Log, Mode
    from streams.log.url import Given

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The log: sqlite:///app.db, redis://host:6379/0, kafka://host:9092. "
        "If not given: STREAMS_URL.",
    ),
]
AppUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The log, instead of the app's own: sqlite:///app.db, redis://host:6379/0, "
        "kafka://host:9092. If neither is given: STREAMS_URL.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="Also those that the toolkit keeps for itself.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Partition = Annotated[
    int | None, typer.Option("--partition", "-p", min=0, metavar="N", help="Only this partition.")
]
Key = Annotated[
    str | None, typer.Option("--key", "-k", metavar="KEY", help="Only messages of this key.")
]


def given_url(url: str | None) -> Given:
    """The log of ``--url``, else of the environment.

    :raises Misused: neither is given.
    """
    from streams.log.url import choose

    given = choose(url)
    if given is None:
        raise Misused("no log: give --url, or set STREAMS_URL (such as sqlite:///app.db)")
    return given


@contextmanager
def open_url(url: str | Given | None, mode: Mode = "rw") -> Iterator[Log]:
    """The log of ``--url``, else of the environment, closed afterwards. A person who looks on is
    told which one it is.

    :param url: ``--url``, or a choice that was made already.
    :param mode: ``ro`` for a command that only looks, ``rwc`` for one that may make a file.
    :raises Misused: neither is given.
    :raises NotFound: there is no such file.
    """
    from streams.cli import show
    from streams.cli.logs import warnings
    from streams.log.url import Given, open_log

    given = url if isinstance(url, Given) else given_url(url)
    warnings()
    if sys.stderr.isatty():
        show.note(f"on {given}")
    with closing(open_log(given.url, mode=mode)) as log:
        try:
            yield log
        except NotFound as error:
            if (better := _with_nearest(log, error)) is None:
                raise
            raise better from error


def _with_nearest(log: Log, error: NotFound) -> NotFound | None:
    """The same error, which names the topic or group that was probably meant first; None: nothing
    there is like it."""
    if error.missing is None:
        return None
    what, name = error.missing
    try:
        there = [info.name for info in log.topics()] if what == "topic" else log.groups()
    except LogError:
        return None
    found = close_match(name, there)
    if found is None or found == name:
        return None
    start = f"there is no {what} {name!r}"
    rest = str(error).removeprefix(start).removeprefix(": ")
    return NotFound(f"{start}: did you mean {found!r}?" + (f" Else: {rest}" if rest else ""))


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[IPV6]:PORT``, or ``:PORT`` for all of this machine's addresses.

    :raises Misused: it is not written so.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdecimal()) or (":" in bare and bare == host):
        raise Misused(f"{text!r}: an address is written as HOST:PORT, such as 0.0.0.0:9100")
    if int(port) > 65_535:
        raise Misused(f"{text!r}: there is no port {port}; the last one is 65535")
    return bare or "0.0.0.0", int(port)  # noqa: S104 - asked for


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is lost.

    :raises Misused: nobody is there to be asked.
    :raises typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Misused(f"{question} Nobody is there to be asked: say --yes")
    typer.confirm(escape(question), abort=True, err=True)
