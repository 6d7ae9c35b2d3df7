"""The outboxes that the app of a command declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed
from streams.text import suggestion

if TYPE_CHECKING:
    from streams.outbox import Outbox


def load_outboxes(target: str, table: str | None, url: str | None) -> list[Outbox]:
    """The outboxes of an app, or the one of this table.

    :raises UsageError: the app does not have the form ``MODULE:APP``.
    :raises CommandFailed: the app cannot be loaded, or declares no such outbox.
    """
    from streams.outbox import Outbox

    app = load_app(target, url)
    declared = app.outboxes.items()
    found = {name: each for name, each in declared if isinstance(each, Outbox)}
    if not found:
        raise CommandFailed(f"{target} declares no outbox: Outbox(app, ...)")
    if table is None:
        return list(found.values())
    if table not in found:
        raise CommandFailed(
            f"{target} declares no outbox {table!r}; {suggestion(table, list(found))}"
        )
    return [found[table]]


def load_outbox(target: str, table: str | None, url: str | None) -> Outbox:
    """The outbox of an app, or the one of this table.

    :raises CommandFailed: as :func:`load_outboxes`; or there are several, and none is named.
    """
    found = load_outboxes(target, table, url)
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise CommandFailed(f"{target} declares several outboxes: give --table, one of {names}")
    return found[0]
