"""What a person is told whose server cannot be reached."""

from __future__ import annotations

from collections.abc import Iterable

_LOCAL = ("localhost", "127.", "[::1]", "::1")


def advice(system: str, hosts: Iterable[str]) -> str:
    """What to look at; on this machine also how to have a server, or how to do without.

    :param system: the server's name, as people say it.
    :param hosts: where it was looked for, ``host`` or ``host:port``.
    """
    text = f"is {system} running, and is the address right?"
    if all(host.startswith(_LOCAL) for host in hosts):
        text += ' Start one with "docker compose up -d", or use sqlite:///events.db'
    return text
