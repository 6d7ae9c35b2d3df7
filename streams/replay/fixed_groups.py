"""Protects groups whose positions must not be moved or deleted, as that would have no effect or do
harm; and topics that must not be deleted.

They are recognized by what the log holds, as a group can be moved without the app's code: a view
folds in the group that is named like its documents' collection; a delay topic has a floor, which is
the position of a separate group, and so has a topic of closed keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from streams.errors import InvalidValue, NotFound
from streams.log.documents import DocumentLog
from streams.log.protocol import Log
from streams.retries import floor_group

_VIEW = re.compile(r"(?P<view>.+)\.v(?P<version>[1-9][0-9]{0,17})(?P<keyed>\.keyed(\.floor)?)?")
"""The groups and the topic of a view's version."""

_EVENTS, _TIMEOUTS, _DELAY, _FLOOR = ".events", ".timeouts", ".delay", ".floor"
_PARKED = ".parked"


def check_may_move(log: Log, group: str, topic: str) -> None:
    """Check that a group may be moved in a topic (blocks).

    :raises InvalidValue: it is not; the text says why, and what to do instead.
    :raises LogError: the log cannot be asked.
    """
    for problem in _problems(log, group, topic):
        raise InvalidValue(problem)


def check_may_delete(log: Log, topic: str) -> None:
    """Check that no view folds a topic's messages into documents (blocks).

    :raises InvalidValue: a view does; the text says which, and what to do instead.
    :raises LogError: the log cannot be asked.
    """
    found = _VIEW.fullmatch(topic)
    if (
        found is not None
        and found["keyed"] == ".keyed"
        and _keeps(log, f"{found['view']}.v{found['version']}")
    ):
        view, version = found["view"], found["version"]
        raise InvalidValue(
            f"topic {topic!r} is one of view {view!r} version {version}, which is folded from it "
            "and deletes from it what it needs no more; to delete all of the version, "
            f"streams views drop {view} --version {version}"
        )


def check_may_delete_group(log: Log, group: str) -> None:
    """Check that a group may be deleted (blocks).

    :raises InvalidValue: it is not; the text says why, and what to do instead.
    :raises LogError: the log cannot be asked.
    """
    found = _VIEW.fullmatch(group)
    if found is not None and _keeps(log, f"{found['view']}.v{found['version']}"):
        view, version = found["view"], found["version"]
        reason = {
            None: "its documents go on from their checkpoint, whether it is there or not",
            ".keyed": "all events would be written again, and passed over",
            ".keyed.floor": f"it says below which position messages of {view}.v{version}.keyed "
            "were deleted, and that no others may be",
        }[found["keyed"]]
        raise InvalidValue(
            f"group {group!r} is one of view {view!r} version {version} and cannot be deleted: "
            f"{reason}; to rebuild its documents, run streams views rebuild {view} --version "
            f"{version}; to delete the whole version, run streams views drop {view} --version "
            f"{version}"
        )
    if _is_floor_of_parked(log, group):
        raise InvalidValue(
            f"group {group!r} cannot be deleted: {_OF_PARKED}, and closed keys could lose messages "
            f"without it; it goes with its topic, streams topics delete {group}"
        )
    topic = group.removesuffix(_FLOOR)
    if topic != group and _is_in(log, group, topic) and _is_in(log, topic, topic):
        # A delay topic: the group that delivers from it is named like it, its floor with .floor.
        raise InvalidValue(
            f"group {group!r} cannot be deleted: it says below which position nothing in "
            f"{topic!r} is needed any more, and what waits there could be lost without it; it goes "
            f"with its topic, streams topics delete {topic}"
        )


_OF_PARKED = (
    "it says below which position nothing in the topic of its name is needed any more, where "
    "messages wait behind a dead one of their key"
)


def _is_floor_of_parked(log: Log, group: str) -> bool:
    """Whether a group is the floor of the topic of closed keys with its name."""
    if not group.endswith(_PARKED) or not _is_in(log, group, group):
        return False
    parts = group.removesuffix(_PARKED).split(".")
    return any(_is_there(log, ".".join(parts[:at])) for at in range(1, len(parts)))


def _is_there(log: Log, topic: str) -> bool:
    try:
        log.describe_topic(topic)
    except NotFound:
        return False
    return True


def _is_in(log: Log, group: str, topic: str) -> bool:
    """Whether a group has a position in a topic."""
    try:
        return bool(log.committed(group, topic))
    except NotFound:
        return False


def _problems(log: Log, group: str, topic: str) -> Iterator[str]:
    for name in dict.fromkeys((group, topic)):
        found = _VIEW.fullmatch(name)
        if found is not None and _keeps(log, f"{found['view']}.v{found['version']}"):
            if name == topic and not found["keyed"]:
                continue  # a topic of the user's that happens to have this name
            yield _view_problem(group, topic, found)
    if group == floor_group(topic):
        yield (
            f"group {group!r} cannot be moved: it says below which position nothing in {topic!r} "
            "is needed any more, and is kept by whoever delivers what waits there; to look at it, "
            f"streams groups show {group}"
        )
    if group == topic and _is_floor_of_parked(log, group):
        yield (
            f"group {group!r} cannot be moved: {_OF_PARKED}, and is kept by whoever handles that; "
            "to look at what waits, streams dead keys GROUP TOPIC"
        )
    if group == topic and log.committed(floor_group(topic), topic):
        yield (
            f"group {group!r} cannot be moved: it delivers what waits in the topic of its name, "
            "and finds that again at each start, whatever the group's position; to see what waits, "
            f"streams tail {topic}"
        )
    if group == topic and _is_managers(log, group):
        manager = group.removesuffix(_TIMEOUTS)
        yield (
            f"group {group!r} cannot be moved: each timeout of process manager {manager!r} counts "
            "once, so moved back nothing comes again, and moved on what is due would never come; "
            f"streams managers show MODULE:APP {manager} says what waits"
        )


def _view_problem(group: str, topic: str, found: re.Match[str]) -> str:
    view, version = found["view"], found["version"]
    what = f"view {view!r} version {version}"
    reasons = {
        None: "it goes on from the checkpoint of its documents, whatever the group's position",
        ".keyed": "moved back it would write events again that are passed over, moved on events "
        "would be missing from the documents",
        ".keyed.floor": "it says what may be deleted",
    }
    subject = f"group {group!r} is"
    if _VIEW.fullmatch(group) is None:
        subject = f"topic {topic!r} is"
        reason = "no other group reads it"
    else:
        reason = reasons[found["keyed"]]
    return (
        f"{subject} one of {what} and cannot be moved: {reason}; to rebuild its documents, run "
        f"streams views rebuild {view} --version {version}"
    )


def _keeps(log: Log, collection: str) -> bool:
    """Whether the log has a document collection of that name."""
    if not isinstance(log, DocumentLog) or not log.capabilities.documents:
        return False
    try:
        log.documents.find(collection)
    except NotFound:
        return False
    return True


def _is_managers(log: Log, group: str) -> bool:
    """Whether a group belongs to the timeouts of a process manager."""
    if not group.endswith(_TIMEOUTS):
        return False
    try:
        events = log.describe_topic(f"{group.removesuffix(_TIMEOUTS)}{_EVENTS}")
    except NotFound:
        return False
    delay = f"{group}{_DELAY}"
    return events.is_event_topic and bool(log.committed(floor_group(delay), delay))
