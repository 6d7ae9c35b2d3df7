"""What a person is told whose server cannot be reached."""

from __future__ import annotations

from collections.abc import Iterable

_LOCAL_HOSTS = ("localhost", "127.", "[::1]", "::1")


def unreachable_advice(system: str, hosts: Iterable[str]) -> str:
    """What to look at; on this machine also how to do without a server.

    :param system: the server's name, as people say it.
    :param hosts: where it was looked for, ``host`` or ``host:port``.
    """
    text = f"is {system} running, and is the address right?"
    if all(host.startswith(_LOCAL_HOSTS) for host in hosts):
        text += " sqlite:///events.db needs no server"
    return text
