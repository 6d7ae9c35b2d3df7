"""The screens and actions of the dashboard, one module for each subject.

A module has ``SCREENS`` and ``ACTIONS``, and ``PROBLEMS`` if the overview should ask it for
problems. They are listed here in the order of the navigation.
"""

from __future__ import annotations

from collections.abc import Iterator

from streams.web.page import Action, ProblemFinder, Screen
from streams.web.screens import (
    aggregates,
    closed_keys,
    dead,
    dead_actions,
    delayed,
    doctor,
    groups,
    jobs,
    managers,
    messages,
    outbox,
    overview,
    processors,
    publish,
    sagas,
    topics,
    views,
)

MODULES = (
    overview,
    topics,
    messages,
    groups,
    dead,
    dead_actions,
    closed_keys,
    delayed,
    processors,
    publish,
    sagas,
    aggregates,
    views,
    managers,
    outbox,
    doctor,
    jobs,
)


def screens() -> Iterator[Screen]:
    """All screens, those of the navigation in its order."""
    for module in MODULES:
        yield from module.SCREENS


def actions() -> Iterator[Action]:
    """All actions."""
    for module in MODULES:
        yield from getattr(module, "ACTIONS", ())


def problem_finders() -> Iterator[ProblemFinder]:
    """All functions that find problems for the overview."""
    for module in MODULES:
        yield from getattr(module, "PROBLEMS", ())
