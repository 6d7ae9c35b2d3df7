"""The command line arguments for the dead letters of a group and topic."""

from __future__ import annotations

from streams.config import DeadLetters


def dead_ls_arguments(group: str, topic: str, name: str) -> str:
    """The arguments of ``streams dead ls`` and its sibling commands for these letters."""
    default_name = DeadLetters().name(topic, group)
    return f"{group} {topic}" + ("" if name == default_name else f" --name {name}")
