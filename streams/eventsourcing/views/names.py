"""What belongs to one version of a view, by the names that it has in the log."""

from __future__ import annotations


def collection_name(view: str, version: int) -> str:
    """Of its documents; the group that folds them has the same name."""
    return f"{view}.v{version}"


def keyed_topic_name(collection: str) -> str:
    """The name of the topic to which a keyed version's events are repartitioned; the group that
    does so has the same name."""
    return f"{collection}.keyed"


def group_names(collection: str, *, is_keyed: bool) -> tuple[str, ...]:
    """The names of the groups that run a version of a view."""
    return (collection, keyed_topic_name(collection)) if is_keyed else (collection,)
