"""Options that several commands share, and the log they open."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.failures import Misused
from streams.text import escape

if TYPE_CHECKING:
    from streams.log.protocol import Log

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="STREAMS_URL",
        metavar="URL",
        help="The log: sqlite:///app.db, redis://host:6379/0, kafka://host:9092.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Partition = Annotated[
    int | None, typer.Option("--partition", "-p", min=0, metavar="N", help="Only this partition.")
]
Key = Annotated[
    str | None, typer.Option("--key", "-k", metavar="KEY", help="Only messages of this key.")
]


@contextmanager
def open_url(url: str | None) -> Iterator[Log]:
    """The log of ``--url`` or of the environment, closed afterwards.

    :raises Misused: neither is given.
    """
    from streams.cli.logs import warnings
    from streams.log.url import open_log

    if not url:
        raise Misused("no log: give --url, or set STREAMS_URL (such as sqlite:///app.db)")
    warnings()
    with closing(open_log(url)) as log:
        yield log


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
