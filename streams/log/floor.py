"""Topics that are read from a *floor* on, below which nothing is needed any more.

The floor is the position of a group that no member ever runs in: what it has not reached is not
trimmed.
"""

from __future__ import annotations

from streams.log.protocol import Log, Retention, TopicInfo, ensure_topic


def floor_group(topic: str) -> str:
    """The group, without members, whose positions are the floor of a delay topic, or of the topic
    of a view by key."""
    return f"{topic}.floor"


def ensure_topic_with_floor(
    log: Log, name: str, partitions: int, group: str, retention: Retention, *, compacted: bool
) -> TopicInfo:
    """Create a topic, or find it; blocks. The floor stands before anything may be trimmed.

    :param group: whose position is the floor.
    :param retention: how it is kept on a log that trims.
    :param compacted: only the last record of a key is needed, where the log can do that.
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
