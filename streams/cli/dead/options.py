"""Arguments and options that the commands of ``streams dead`` share."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

Group = Annotated[str, Argument(metavar="GROUP", help="Consumer group of the dead letters.")]
Topic = Annotated[str, Argument(metavar="TOPIC", help="Topic that the group was reading.")]
WhichLetters = Annotated[
    list[str] | None,
    Argument(metavar="[WHICH]...", help="PARTITION/OFFSET or message ID; default: all."),
]
Name = Annotated[
    str | None,
    Option("--name", metavar="TOPIC", help="Dead letter topic, if it is not TOPIC.GROUP.dead."),
]
ClosedKeyName = Annotated[str, Argument(metavar="KEY", help="The closed key.")]
Limit = Annotated[
    int | None,
    Option("--limit", "-n", min=1, metavar="N", help="Only the oldest N of each partition."),
]
ErrorText = Annotated[
    str | None,
    Option(
        "--error", "-e", metavar="TEXT", help="Only those with this in the error's type or text."
    ),
]
Keys = Annotated[
    list[str] | None,
    Option("--key", "-k", metavar="KEY", help="Only those with this key; repeatable."),
]
Since = Annotated[
    str | None,
    Option(
        "--since",
        metavar="TIME",
        help="Only those that failed since this time: 2h, 2013-01-05T10:00Z.",
    ),
]
Until = Annotated[
    str | None, Option("--until", metavar="TIME", help="Only those that failed before this time.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Print the number, and change nothing.")]
