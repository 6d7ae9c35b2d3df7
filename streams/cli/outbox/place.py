"""The app of a command about outboxes, and its outboxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed
from streams.cli.logging_setup import configure_logging
from streams.text import get_logger, suggestion

if TYPE_CHECKING:
    from streams.outbox import Outbox

logger = get_logger("streams")


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


def run_relays(target: str, outboxes: Sequence[Outbox]) -> None:
    """Relay until a signal, without the app's processors and its lifespan."""
    from streams.cli.run_app import run_until_stopped

    app = outboxes[0].app
    configure_logging(None, None, None)
    app.processors.clear()
    app.lifespan = None
    app.services = [outbox.relay for outbox in outboxes]
    names = ", ".join(each.name for each in outboxes)
    source = app.url_source
    logger.log(source.log_level, "relaying %s of %s to %s", names, target, source)
    app.url_logged = True
    run_until_stopped(app)
