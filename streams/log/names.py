"""Valid names, errors about topics and groups, and the partition of a key: the same on every log.

Topic names are Kafka's (``org.apache.kafka.common.internals.Topic``), so that a service can move
from the embedded log to Kafka without renaming anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal
from zlib import crc32

from streams.errors import ConfigError, GroupNotEmpty, MemberFenced, NotFound, TopicMismatch
from streams.message import Record

_VALID_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")
_VALID_MEMBER_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")


def check_topic(name: str) -> str:
    """Return the name if it is a valid topic name.

    :raises ConfigError: otherwise.
    """
    if not isinstance(name, str) or not _VALID_NAME.match(name) or name in (".", ".."):
        raise ConfigError(
            f"topic name {name!r}: use 1 to 249 letters, digits, '.', '_' or '-' (Kafka's rule)"
        )
    return name


def check_group(name: str) -> str:
    """Return the name if it is a valid group name.

    :raises ConfigError: otherwise.
    """
    if not isinstance(name, str) or not _VALID_NAME.match(name):
        raise ConfigError(f"group name {name!r}: use 1 to 249 letters, digits, '.', '_' or '-'")
    return name


def check_member(name: str) -> str:
    """Return the name if it is valid for a static member (Kafka's rule for ``group.instance.id``,
    and short enough that a processor's or a worker's number can be appended).

    :raises ConfigError: otherwise.
    """
    if not isinstance(name, str) or not _VALID_MEMBER_NAME.match(name) or name in (".", ".."):
        raise ConfigError(f"member name {name!r}: use 1 to 200 letters, digits, '.', '_' or '-'")
    return name


def to_valid_name(text: str, replacement: str = ".") -> str:
    """The text with all characters replaced that are not valid in a name, here or on a file
    system."""
    return re.sub(r"[^A-Za-z0-9._-]", replacement, text)


def is_valid_name(name: str) -> bool:
    """Whether a topic or a group may have this name."""
    return _VALID_NAME.match(name) is not None


def topic_not_found(topic: str, suffix: str = "") -> NotFound:
    """The error for a missing topic, which says how to create it.

    :param suffix: what only this log can say of it.
    """
    text = f"there is no topic {topic!r}"
    if is_valid_name(topic):
        text += (
            f": declare it with app.topic({topic!r}, partitions=8), or create it with `streams "
            f"topics create {topic} --partitions 8`"
        )
    return not_found("topic", topic, text + suffix)


def group_not_found(group: str, suffix: str = "") -> NotFound:
    """The error for a missing group."""
    return not_found("group", group, f"there is no group {group!r}{suffix}")


def topic_mismatch(topic: str, partitions: int, declared: int) -> TopicMismatch:
    """The error for a topic that was declared with another number of partitions than it has."""
    return TopicMismatch(
        f"topic {topic!r} has {partitions} partitions, but {declared} were declared: declare what "
        "it has, or use another name"
    )


def group_not_empty(group: str, members: int | None, suffix: str = "") -> GroupNotEmpty:
    """The error for a group that cannot be changed because it has running members.

    :param members: their number, if it is known.
    :param suffix: what only this log can say of it.
    """
    count = "" if members is None else f"{members} "
    return GroupNotEmpty(
        f"group {group!r} has {count}running member{'s' * (members != 1)} and cannot be changed: "
        f"stop them first{suffix}"
    )


def not_found(kind: Literal["topic", "group"], name: str, text: str) -> NotFound:
    """The error for a missing topic or group, with a text of its own."""
    error = NotFound(text)
    error.missing = (kind, name)
    return error


def partition_for(key: bytes | None, id: str, partitions: int) -> int:
    """The partition of a key on the logs other than Kafka (which uses murmur2).

    A keyless message goes by its ID, so that its duplicate goes to the same partition.
    """
    if partitions == 1:
        return 0
    return crc32(key if key is not None else id.encode("utf-8", "surrogateescape")) % partitions


def partitions_for(records: Iterable[Record], partitions: int) -> list[int]:
    """The partition of each record: the one that the record names, else that of its key."""
    return [
        explicit
        if (explicit := record.partition) is not None
        else crc32(key) % partitions
        if (key := record.key) is not None
        else partition_for(None, record.id, partitions)
        for record in records
    ]


def member_fenced_error(group: str, name: str) -> MemberFenced:
    """The error for a static member whose name another process has taken."""
    return MemberFenced(
        f"group {group!r}: another process has joined as member {name!r}; give each process a name "
        "of its own, and start this one again only then"
    )
