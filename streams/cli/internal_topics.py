"""Which topics and groups are the toolkit's own: what patterns and processors keep beside a user's
topics. Lists leave them out unless ``--all`` is given.

A name alone may deceive: somebody's own topic may be called ``left.for.dead``. So a name such as
``TOPIC.GROUP.dead`` counts only if there is the TOPIC, and a delay topic, which may have any name,
is known by the group that keeps its floor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

INTERNAL_SUFFIXES = ("attempts", "dead", "delay", "parked", "retry")
"""What stands behind ``TOPIC.GROUP.``, or behind a delay topic's own name."""


def internal_topics(topics: Iterable[str], groups: Iterable[str]) -> set[str]:
    """The toolkit's own among these topics.

    :param groups: the names of all groups.
    """
    from streams.patterns.saga.journal import TOPIC_SUFFIX
    from streams.retries.scheduler import floor_group

    names, known = set(topics), set(groups)
    delays = {name for name in names if floor_group(name) in known}
    journals = {name for name in names if name.endswith(TOPIC_SUFFIX) and name != TOPIC_SUFFIX}
    return delays | journals | {name for name in names if _is_derived_topic(name, names, delays)}


def _is_derived_topic(name: str, names: Collection[str], delays: Collection[str]) -> bool:
    base, _, suffix = name.rpartition(".")
    if suffix not in INTERNAL_SUFFIXES:
        return False
    parts = base.split(".")
    return base in delays or any(".".join(parts[:at]) in names for at in range(1, len(parts)))


def is_internal_group(name: str, topics: Collection[str], internal: Collection[str]) -> bool:
    """Whether a group is the toolkit's own: all it reads is; or it is the one that marks the dead
    letters of the topic of its name as dealt with.

    :param topics: where it has positions.
    :param internal: the topics that are the toolkit's own.
    """
    return bool(topics) and (set(topics) <= set(internal) or list(topics) == [name])


def print_hidden_count(count: int, noun: str) -> None:
    """Say that so many were left out."""
    from streams.cli import output

    if count:
        are = "is" if count == 1 else "are"
        output.print_note(
            f"{output.count_text(count, noun)} of the toolkit's own {are} not shown; --all shows "
            "all"
        )
