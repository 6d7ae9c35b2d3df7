"""What an app needs in its log before anything is read: topics, and a start for each new group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from streams.config import RETRY_PARTITIONS, Retention, Start
from streams.connection import Connection
from streams.errors import GroupNotEmpty, NotFound, TopicMismatch
from streams.log.protocol import (
    Log,
    TopicInfo,
    TopicPartition,
    check_outputs,
    check_retention,
    ensure_topic,
)
from streams.processor import Processor
from streams.topic import Topic
from streams.topic_reader import resolve_offset

StartPositions = dict[TopicPartition, int]
"""Offsets by topic and partition."""


def ensure_declared_topics(
    log: Log,
    declarations: Iterable[Topic[Any]],
    processors: Iterable[Processor[..., Any]],
    *,
    missing_ok: bool = False,
) -> None:
    """Check declared topics against the log, and create what is missing (off the loop)."""
    by_name: dict[str, list[Topic[Any]]] = {}
    for topic in declarations:
        by_name.setdefault(topic.name, []).append(topic)
    capabilities = log.capabilities
    for name, topics in by_name.items():
        for topic in topics:
            check_retention(name, topic.retention or Retention(), capabilities)
    processors = list(processors)
    dead_letter_topics = _dead_letter_topics(processors)
    sources = _dead_letter_sources(processors)

    def depth(name: str) -> int:
        """How many topics have to be there before it."""
        count = 0
        while name in sources and count < len(sources):
            name, count = sources[name], count + 1
        return count

    for name in sorted(by_name, key=depth):
        topics = by_name[name]
        for_letters = name in dead_letter_topics or any(each.for_dead_letters for each in topics)
        config = capabilities.dead_letter_config if for_letters else None
        try:
            _ensure_declared_topic(log, topics, config, sources.get(name))
        except NotFound:
            if not missing_ok:
                raise


def _dead_letter_topics(processors: Iterable[Processor[..., Any]]) -> set[str]:
    """The topics for the processors' dead letters, and for those that are put back."""
    return {
        name
        for processor in processors
        for name in processor.options.dead_letters.topic_names(processor.topics, processor.group)
    }


def _dead_letter_sources(processors: Iterable[Processor[..., Any]]) -> dict[str, str]:
    """By the name of a topic for dead letters: the topic that they come from."""
    sources: dict[str, str] = {}
    for processor in processors:
        if processor.has_group_topics:
            for source in processor.topics:
                name = processor.options.dead_letters.name(source, processor.group)
                sources.setdefault(name, source)
    return sources


def _ensure_declared_topic(
    log: Log,
    topics: Sequence[Topic[Any]],
    config: Mapping[str, str] | None,
    source: str | None = None,
) -> None:
    """Create a topic, or find it as it is declared.

    :param topics: its declarations, which do not contradict each other.
    :param config: settings that it is created with.
    :param source: the topic whose dead letters it gets, and whose number of partitions, unless it
        is declared with its own.
    """
    name = topics[0].name
    partitions = next((each.partitions for each in topics if each.partitions), None)
    retention = next((each.retention for each in topics if each.retention), Retention())
    internal = any(each.internal for each in topics)
    default_partitions = partitions or max(each.default_partitions for each in topics)
    if partitions is None and not internal:
        if source is not None:
            default_partitions = log.describe_topic(source).partitions
        elif not log.capabilities.creates_topics:
            log.describe_topic(name)
            return
    info = ensure_topic(log, name, default_partitions, retention, config)
    if partitions is not None and info.partitions != partitions:
        raise TopicMismatch(
            f"topic {name!r} has {info.partitions} partitions, but is declared with "
            f"{partitions}; declare {info.partitions}, or leave partitions out"
        )


def ensure_processor_topics(
    connection: Connection, processor: Processor[..., Any], start_positions: StartPositions
) -> None:
    """Create what a processor needs in the log, and give its group a start if it is new (off the
    loop).

    :param start_positions: gets the offsets of a group that is live and could not be given them.
    """
    processor.ensure_topics(connection)
    if not processor.has_group_topics:
        return
    log, options = connection.log, processor.options
    if options.exactly_once:
        check_outputs(f"processor {processor.name}", log.capabilities)
    if processor.attempt_log is not None:
        processor.attempt_log.prepare(log)
    if processor.key_parking is not None:
        processor.key_parking.prepare(log)
    group, config = processor.group, log.capabilities.dead_letter_config
    for source in options.topics:
        info = log.describe_topic(source.name)
        _initialize_group(connection, group, info, options.start, start_positions)
        dead_letter_topic = options.dead_letters.name(source.name, group)
        ensure_topic(log, dead_letter_topic, info.partitions, config=config)
        retry_topic = options.dead_letters.retry(source.name, group)
        created = ensure_topic(log, retry_topic, RETRY_PARTITIONS, config=config)
        _initialize_group(connection, group, created, "earliest", start_positions)


def _initialize_group(
    connection: Connection,
    group: str,
    info: TopicInfo,
    start: Start | datetime,
    start_positions: StartPositions,
) -> None:
    """Give a group that is new to this topic its positions there."""
    log = connection.log
    if log.committed(group, info.name):
        return
    now = connection.clock.time()
    offsets = {
        partition: resolve_offset(log, info.name, partition, start, option="start", now=now)
        for partition in range(info.partitions)
    }
    try:
        log.initialize_offsets(group, info.name, offsets)
    except GroupNotEmpty:
        # Members of the release before this one run, without this topic. Whoever of us gets a
        # partition begins it there.
        start_positions.update(((info.name, each), offset) for each, offset in offsets.items())
