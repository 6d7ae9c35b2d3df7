"""Advice for errors about servers that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterable

_LOCAL_HOSTS = ("localhost", "127.", "[::1]", "::1")


def unreachable_advice(system: str, hosts: Iterable[str]) -> str:
    """Advice on what to check, and for a local server also how to work without one.

    :param system: the server's usual name.
    :param hosts: the addresses that were tried, ``host`` or ``host:port``.
    """
    text = f"is {system} running, and is the address right?"
    if all(host.startswith(_LOCAL_HOSTS) for host in hosts):
        text += " To try it without a server: sqlite:///events.db"
    return text
