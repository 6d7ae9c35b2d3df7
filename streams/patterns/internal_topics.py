"""The toolkit's own topics and groups, which patterns and processors keep beside a user's topics.
The command line's lists leave them out unless ``--all`` is given.

A name alone proves nothing: a user's topic may be called ``left.for.dead``. So a name such as
``TOPIC.GROUP.dead`` counts only if the TOPIC exists, and a delay topic, which may have any name, is
known by the group that keeps its floor. A view's topics are known by the group that folds them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from streams.patterns.delay import floor_group
from streams.patterns.saga import saga_name

VIEW_REGISTRY = "__streams.views.events"
"""The event topic that records which versions of views exist."""

INTERNAL_SUFFIXES = ("attempts", "dead", "delay", "parked", "retry")
"""The suffixes after ``TOPIC.GROUP.``, or after a delay topic's own name."""


def internal_topics(topics: Iterable[str], groups: Iterable[str]) -> set[str]:
    """The toolkit's own among these topics.

    :param groups: the names of all groups.
    """
    names, known = set(topics), set(groups)
    delays = {name for name in names if floor_group(name) in known}
    journals = {name for name in names if saga_name(name) is not None}
    registries = names & {VIEW_REGISTRY}
    derived = {name for name in names if _is_derived_topic(name, names, delays, known)}
    return delays | journals | registries | derived


def _is_derived_topic(
    name: str, names: Collection[str], delays: Collection[str], groups: Collection[str]
) -> bool:
    base, _, suffix = name.rpartition(".")
    if suffix in ("keyed", "documents") and base in groups:
        return True  # a view's
    if suffix == "snapshots":
        return base in names  # of an event topic, on Kafka
    if suffix == "index":
        return f"{base}.snapshots" in names  # of its index
    if suffix not in INTERNAL_SUFFIXES:
        return False
    parts = base.split(".")
    return base in delays or any(".".join(parts[:at]) in names for at in range(1, len(parts)))


def is_internal_group(name: str, topics: Collection[str], internal: Collection[str]) -> bool:
    """Whether a group is the toolkit's own: all topics it reads are; or its progress marks the dead
    letters of the topic of its name as resolved.

    :param topics: the topics in which it has positions.
    :param internal: the topics that are the toolkit's own.
    """
    all_are = all(topic in internal for topic in topics)
    return bool(topics) and (all_are or list(topics) == [name])
