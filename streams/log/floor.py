"""Topics with a *floor*, below which messages are no longer needed.

The floor is the position of a group without members: messages from it on are not trimmed.
"""

from __future__ import annotations

from streams.log.protocol import Log, Retention, TopicInfo, ensure_topic


def floor_group(topic: str) -> str:
    """The name of the group without members whose positions are the floor of a delay topic, or of
    the topic of a view by key."""
    return f"{topic}.floor"


def ensure_topic_with_floor(
    log: Log, name: str, partitions: int, group: str, retention: Retention, *, compacted: bool
) -> TopicInfo:
    """Create a topic if it does not exist; blocks. The floor is set before anything may be trimmed.

    :param group: the group whose position is the floor.
    :param retention: the topic's retention on a log that trims.
    :param compacted: keep only the last record of each key, if the log can.
    """
    capabilities = log.capabilities
    compaction = capabilities.compacted_config
    config = {**capabilities.dead_letter_config, **(compaction if compacted else {})}
    info = ensure_topic(log, name, partitions, config=config)
    if not log.committed(group, name):
        first = {number: log.watermarks(name, number)[0] for number in range(info.partitions)}
        log.initialize_offsets(group, name, first)
    if not compaction and info.retention != retention:
        info = log.create_topic(name, info.partitions, retention)
    return info
