"""The items of the checklist that are about the log: persisted, order, retention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streams.errors import NotFound
from streams.inspection import texts
from streams.inspection.doctor.app_inspection import AppInspection, CheckVerdict, Finding, Subject

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.log.protocol import DurabilityFact, Log, TopicInfo
    from streams.topic import Topic

REACH_ADVICE = "make sure that it can be reached"


def check_persistence(inspection: AppInspection) -> Iterator[Finding]:
    """What was acknowledged survives: the process, the power, one machine."""
    if inspection.log is None:
        yield Subject("persisted", "the log").no(inspection.open_error, REACH_ADVICE)
        return
    for topic in inspection.topics:
        subject = Subject("persisted", f"topic {topic}")
        found = _check_topic_persistence(inspection, inspection.log, subject, topic)
        yield from inspection.look_at(subject, found)


def _check_topic_persistence(
    inspection: AppInspection, log: Log, subject: Subject, topic: str
) -> Iterator[Finding]:
    try:
        facts = log.durability(topic)
    except NotFound:
        command = inspection.command(f"topics create {topic}")
        creates = log.capabilities.creates_topics
        by_app = creates or inspection.topics[topic].partitions is not None
        yield subject.unknown(
            "the log has no such topic yet",
            f"create it ({command}{', or run the app once' * by_app}), and ask again",
        )
        return
    info = inspection.info(topic)
    declared = inspection.topics[topic].partitions
    if isinstance(info, str) or topic in inspection.aggregates:
        pass  # of an aggregate's there is more to say
    elif declared is not None and info.partitions != declared:
        yield subject.no(
            f"it has {info.partitions} partitions, but is declared with {declared}",
            f"declare partitions={info.partitions}, or leave it out",
        )
    yield _persistence_finding(subject, facts)


def _persistence_finding(subject: Subject, facts: Sequence[DurabilityFact]) -> Finding:
    insufficient = [fact for fact in facts if fact.is_safe is False]
    undecided = [fact for fact in facts if fact.is_safe is None]
    verdict = (
        CheckVerdict.no if insufficient else CheckVerdict.unknown if undecided else CheckVerdict.yes
    )
    why = ", ".join(f"{fact.name} {fact.value}" for fact in insufficient or undecided or facts)
    with_advice = [*insufficient, *undecided] or [fact for fact in facts if fact.advice]
    return Finding(*subject, verdict, why, "; ".join(each.advice for each in with_advice))


def check_order(inspection: AppInspection) -> Iterator[Finding]:
    """Messages of a key come in their order, and the events of an aggregate in that of its
    history."""
    keyed = {name: topic for name, topic in inspection.topics.items() if topic.key_of is not None}
    aggregates = inspection.aggregates
    if not keyed and not aggregates:
        yield Subject("order", "the app").yes("no topic declares a key: no order is promised")
    for name in keyed:
        subject = Subject("order", f"topic {name}")
        yield from inspection.look_at(subject, _check_key_partitions(inspection, subject, name))
    for aggregate in aggregates.values():
        yield Subject("order", f"aggregate {aggregate.name}").yes(
            "the events of each aggregate are one history, and come in its order"
        )
    for processor in inspection.processors:
        mine = [topic for topic in processor.topics if topic in keyed or topic in aggregates]
        if not mine:
            continue
        subject = Subject("order", f"processor {processor.name}")
        if processor.options.retry.in_order:
            yield subject.yes("a message that fails holds up its key")
        else:
            yield subject.no(
                f"Retry(in_order=False): what fails is overtaken by its key, on {', '.join(mine)}",
                "Retry(in_order=True)"
                + ", or declare no key where order does not matter" * any(t in keyed for t in mine),
            )


def _check_key_partitions(
    inspection: AppInspection, subject: Subject, topic: str
) -> Iterator[Finding]:
    """Whether every message of a key is in one partition, as far as a sample shows."""
    sample = inspection.sample(topic)
    partitions_of: defaultdict[bytes, set[int]] = defaultdict(set)
    for seen in sample:
        if seen.key is not None:
            partitions_of[seen.key].add(seen.partition)
    split_keys = sorted(key for key, found in partitions_of.items() if len(found) > 1)
    without_key = sum(seen.key is None for seen in sample)
    if split_keys:
        name = inspection.texts.key(topic, split_keys[0])
        partitions = ", ".join(map(str, sorted(partitions_of[split_keys[0]])))
        more = f", and {len(split_keys) - 1:,} more keys like it" if len(split_keys) > 1 else ""
        yield subject.no(
            f"key {name} is in partitions {partitions}{more}",
            "its producers must partition keys alike (on Kafka partitioner=murmur2_random), and "
            "the number of partitions must not change",
        )
    elif without_key:
        yield subject.no(
            f"{without_key:,} of its last {texts.plural(len(sample), 'message')} have no key",
            "its producers must set the key that the app declares",
        )
    elif not partitions_of:
        yield subject.yes("no message yet")
    else:
        yield subject.yes(f"{texts.plural(len(partitions_of), 'key')} seen, each in one partition")


def check_retention(inspection: AppInspection) -> Iterator[Finding]:
    """What is deleted is meant to be, and so is what is kept for ever."""
    for topic in inspection.topics.values():
        if topic.name not in inspection.aggregates:  # whose events are kept for ever, always
            yield _check_topic_retention(inspection, topic)
    for processor in inspection.processors:
        if not processor.has_group_topics:
            continue
        names = processor.options.dead_letters.topic_names(processor.topics, processor.group)
        kept = [name for name in names if _is_kept_for_ever(inspection.info(name))]
        if kept:
            command = inspection.command(f"topics retain {kept[0]} --keep-for 90d")
            yield Subject("retention", f"processor {processor.name}").yes(
                f"dead letters and their retries are kept for ever: {', '.join(kept)}",
                f"{command}, if they need not be",
            )


def _is_kept_for_ever(info: TopicInfo | str) -> bool:
    from streams.config import Retention

    return not isinstance(info, str) and info.retention_known and info.retention == Retention()


def _check_topic_retention(inspection: AppInspection, topic: Topic[Any]) -> Finding:
    """How long one topic's messages are kept, and whether somebody said so."""
    from streams.config import Retention

    subject, info = Subject("retention", f"topic {topic.name}"), inspection.info(topic.name)
    timeouts = [each.definition.timeouts for each in inspection.managers]
    declarable = topic not in [each.topic for each in timeouts if each is not None]
    declared = None
    for each in inspection.app.declared_topics:
        if each.name == topic.name and each.retention is not None:
            declared = each.retention
    advice = (
        "declare retention=Retention(seconds=...), or retention=Retention() if that is intended"
    )
    if inspection.log is None:
        return subject.unknown(inspection.open_error, REACH_ADVICE)
    if isinstance(info, str):
        if declared is None and declarable:
            return subject.unknown("it does not exist yet, and is to be kept for ever", advice)
        kept = texts.retention_text(declared or Retention())
        return subject.yes(f"it does not exist yet, and is to be {kept}")
    if not info.retention_known:
        return subject.unknown(
            "this login may not read the topic's settings",
            "give it DescribeConfigs on the topic",
        )
    actual = texts.retention_text(info.retention)
    if declared is None:
        if not _is_kept_for_ever(info):
            return subject.yes(actual)
        if not declarable:
            command = inspection.command(f"topics retain {topic.name} --keep-for 90d")
            return subject.yes(actual, f"{command}, if it need not be")
        return subject.unknown("kept for ever, as no retention is declared", advice)
    if _round_to_milliseconds(info.retention) == _round_to_milliseconds(declared):
        return subject.yes(f"{actual}, as declared")
    words = f"topics retain {topic.name} {texts.retention_options(declared)}"
    return subject.no(
        f"{actual}, but declared to be {texts.retention_text(declared)}",
        f"{inspection.command(words)}, or declare retention={info.retention!r}",
    )


def _round_to_milliseconds(retention: Retention) -> Retention:
    """As Kafka has it, in milliseconds."""
    seconds = retention.seconds
    return retention if seconds is None else replace(retention, seconds=round(seconds, 3))
