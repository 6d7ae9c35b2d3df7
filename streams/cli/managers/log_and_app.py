"""The app of a command about process managers, and its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli.app_loading import load_app
from streams.cli.command_errors import CommandFailed
from streams.cli.options import open_url
from streams.text import suggestion

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.eventsourcing import ProcessManager
    from streams.eventsourcing.managers.inspection import ManagerInspector


class LogAndApp(NamedTuple):
    """An app that declares process managers, and a log that keeps histories."""

    log: Any
    """A :class:`~streams.log.protocol.Log` that is an :class:`~streams.log.events.EventLog`."""
    app: Streams
    target: str

    @property
    def managers(self) -> dict[str, ProcessManager[Any]]:
        """The managers that the app declares, by name."""
        from streams.eventsourcing import ProcessManager

        found = self.app.managers.items()
        return {name: each for name, each in found if isinstance(each, ProcessManager)}

    def inspector(self, name: str) -> ManagerInspector:
        """An inspector of a manager.

        :raises CommandFailed: the app declares no such manager.
        """
        from streams.eventsourcing.managers.inspection import ManagerInspector

        found = self.managers.get(name)
        if found is None:
            raise CommandFailed(
                f"{self.target} declares no process manager {name!r}; "
                f"{suggestion(name, list(self.managers))}"
            )
        return ManagerInspector(found, self.log)


@contextmanager
def open_log_and_app(target: str, url: str | None) -> Iterator[LogAndApp]:
    """The app, and its log or that of ``--url``, read-only.

    :raises UsageError: the app does not have the form ``MODULE:APP``.
    :raises CommandFailed: the app cannot be loaded, or the log keeps no histories.
    """
    from streams.log.events import EventLog

    app = load_app(target, url)
    with open_url(url, "ro", app) as log:
        if not isinstance(log, EventLog):
            raise CommandFailed(f"{log.capabilities.name} keeps no histories")
        yield LogAndApp(log, app, target)
