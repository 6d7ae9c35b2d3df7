"""The log of a command about views, and its views and versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from streams.cli import output
from streams.cli.command_errors import CommandFailed
from streams.cli.options import open_url
from streams.text import suggestion

if TYPE_CHECKING:
    from streams.eventsourcing.views.inspection import KnownView, VersionInspector
    from streams.log.protocol import Log
    from streams.log.url import ChosenUrl


class ViewLog(NamedTuple):
    """A log that keeps documents."""

    log: Log

    def view(self, name: str) -> KnownView:
        """A view as the log describes it.

        :raises CommandFailed: the log has no such view.
        """
        from streams.eventsourcing.views.inspection import find_views, read_view

        found = read_view(self.log, name)
        if not found.versions:
            shown = output.printable_text(name)
            known = [each for each in find_views(self.log) if read_view(self.log, each).versions]
            raise CommandFailed(f"the log has no view {shown!r}; {suggestion(shown, known)}")
        return found

    def inspector(self, name: str, number: int | None) -> VersionInspector:
        """The inspector of a version.

        :param number: the version; None: the one that serves; if none does, the newest.
        :raises CommandFailed: the log has no such view or version.
        """
        view = self.view(name)
        chosen = number or view.promoted or view.versions[-1].version
        return self.inspectors_of(name, view, chosen)[0]

    def inspectors_of(
        self, name: str, view: KnownView, number: int | None = None
    ) -> list[VersionInspector]:
        """The inspectors of the versions of a view that was read, the newest first.

        :param number: only of this version.
        :raises CommandFailed: the view has no such version.
        """
        from streams.eventsourcing.views.inspection import VersionInspector

        found = [each for each in reversed(view.versions) if number in (None, each.version)]
        if number is not None and not found:
            there = ", ".join(str(each.version) for each in view.versions)
            raise CommandFailed(f"view {name!r} has no version {number}; it has {there}")
        return [VersionInspector(self.log, name, view, known) for known in found]

    def inspectors(self, name: str) -> list[VersionInspector]:
        """The inspectors of all versions, the newest first."""
        from streams.eventsourcing.views.inspection import read_view

        return self.inspectors_of(name, read_view(self.log, name))


@contextmanager
def open_view_log(url: str | ChosenUrl | None) -> Iterator[ViewLog]:
    """The log of ``--url``, or of the environment, opened read-only.

    :raises CommandFailed: the log keeps no documents.
    """
    from streams.log.documents import DocumentLog

    with open_url(url, "ro") as log:
        if not isinstance(log, DocumentLog) or not log.capabilities.documents:
            raise CommandFailed(f"{log.capabilities.name} keeps no documents")
        yield ViewLog(log)
