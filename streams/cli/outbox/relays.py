"""``streams outbox relay``: relays of an app's outboxes, run without its processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streams.cli.logging_setup import configure_logging
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.outbox import Outbox

logger = get_logger("streams")


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
