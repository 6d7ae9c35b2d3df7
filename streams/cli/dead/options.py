"""Arguments and options that the commands of ``streams dead`` share."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

Group = Annotated[str, Argument(metavar="GROUP", help="Whose dead letters.")]
Topic = Annotated[str, Argument(metavar="TOPIC", help="Of which topic.")]
WhichLetters = Annotated[
    list[str] | None,
    Argument(metavar="[WHICH]...", help="PARTITION/OFFSET or message ID; all, if not given."),
]
Name = Annotated[
    str | None,
    Option("--name", metavar="TOPIC", help="Their topic, if it is not TOPIC.GROUP.dead as usual."),
]
ClosedKeyName = Annotated[str, Argument(metavar="KEY", help="The closed key.")]
Limit = Annotated[
    int | None,
    Option("--limit", "-n", min=1, metavar="N", help="The oldest N of each partition only."),
]
ErrorText = Annotated[
    str | None,
    Option(
        "--error", "-e", metavar="TEXT", help="Only those with this in the error's type or text."
    ),
]
Keys = Annotated[
    list[str] | None,
    Option("--key", "-k", metavar="KEY", help="Only those of this key; repeatable."),
]
Since = Annotated[
    str | None,
    Option(
        "--since", metavar="TIME", help="Only those that failed since then: 2h, 2013-01-05T10:00Z."
    ),
]
Until = Annotated[
    str | None, Option("--until", metavar="TIME", help="Only those that failed before that.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Say how many, and change nothing.")]
