"""The items of the checklist that are about the log: persisted, order, retention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.doctor.inspection import AppInspection, Finding, Verdict
from streams.errors import NotFound

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.log.protocol import DurabilityFact, TopicInfo
    from streams.topic import Topic


def check_persistence(inspection: AppInspection) -> Iterator[Finding]:
    """What was acknowledged survives: the process, the power, one machine."""
    if inspection.log is None:
        yield Finding(
            "persisted", "the log", Verdict.no, inspection.open_error, "see that it can be reached"
        )
        return
    for topic in inspection.topics:
        of = f"topic {topic}"
        try:
            facts = inspection.log.durability(topic)
        except NotFound:
            yield Finding(
                "persisted", of, Verdict.unknown, "the log has no such topic yet",
                f"create it ({inspection.command(f'topics create {topic}')}, or run the app "
                "once), and "
                "ask again",
            )  # fmt: skip
            continue
        info = inspection.info(topic)
        declared = inspection.topics[topic].partitions
        if not isinstance(info, str) and declared is not None and info.partitions != declared:
            yield Finding(
                "persisted", of, Verdict.no,
                f"it has {info.partitions} partitions, and is declared with {declared}",
                f"declare partitions={info.partitions}, or leave it out",
            )  # fmt: skip
        yield _persistence_finding(of, facts)


def _persistence_finding(of: str, facts: Sequence[DurabilityFact]) -> Finding:
    insufficient = [fact for fact in facts if fact.is_safe is False]
    undecided = [fact for fact in facts if fact.is_safe is None]
    verdict = Verdict.no if insufficient else Verdict.unknown if undecided else Verdict.yes
    decisive = insufficient or undecided or facts
    why = ", ".join(f"{fact.name} {fact.value}" for fact in decisive)
    with_advice = [*insufficient, *undecided] or [fact for fact in facts if fact.advice]
    return Finding("persisted", of, verdict, why, "; ".join(each.advice for each in with_advice))


def check_order(inspection: AppInspection) -> Iterator[Finding]:
    """Messages of a key come in their order."""
    keyed = {name: topic for name, topic in inspection.topics.items() if topic.key_of is not None}
    if not keyed:
        yield Finding("order", "the app", Verdict.yes, "no topic declares a key: none is promised")
    for name in keyed:
        yield _check_key_partitions(inspection, name)
    for processor in inspection.processors:
        mine = [topic for topic in processor.topics if topic in keyed]
        if not mine:
            continue
        of = f"processor {processor.name}"
        if processor.options.retry.in_order:
            yield Finding("order", of, Verdict.yes, "a message that fails holds up its key")
        else:
            yield Finding(
                "order", of, Verdict.no,
                f"Retry(in_order=False): what fails is overtaken by its key, on {', '.join(mine)}",
                "Retry(in_order=True), or declare no key where order does not matter",
            )  # fmt: skip


def _check_key_partitions(inspection: AppInspection, topic: str) -> Finding:
    """Whether every message of a key is in one partition, as far as a sample shows."""
    of, sample = f"topic {topic}", inspection.sample(topic)
    partitions_of: defaultdict[bytes, set[int]] = defaultdict(set)
    for seen in sample:
        if seen.key is not None:
            partitions_of[seen.key].add(seen.partition)
    split_keys = sorted(key for key, found in partitions_of.items() if len(found) > 1)
    without_key = sum(seen.key is None for seen in sample)
    if split_keys:
        name = output.bytes_text(split_keys[0]) or ""
        return Finding(
            "order", of, Verdict.no,
            f"key {name} is in partitions "
            f"{', '.join(map(str, sorted(partitions_of[split_keys[0]])))}"
            + (f", and {len(split_keys) - 1:,} more keys like it" if len(split_keys) > 1 else ""),
            "its producers must place keys alike (on Kafka partitioner=murmur2_random), and the "
            "number of partitions must stay",
        )  # fmt: skip
    if without_key:
        return Finding(
            "order", of, Verdict.no,
            f"{without_key:,} of its last {output.plural(len(sample), 'message')} have no key",
            "its producers must set the key that the app declares",
        )  # fmt: skip
    why = (
        f"{output.plural(len(partitions_of), 'key')} seen, each in one partition"
        if partitions_of
        else "no message yet"
    )
    return Finding("order", of, Verdict.yes, why)


def check_retention(inspection: AppInspection) -> Iterator[Finding]:
    """What is deleted is meant to be, and so is what is kept for ever."""
    for topic in inspection.topics.values():
        yield _check_topic_retention(inspection, topic)
    for processor in inspection.processors:
        names = processor.options.dead_letters.topic_names(processor.topics, processor.group)
        for_ever = [name for name in names if _is_kept_for_ever(inspection.info(name))]
        if for_ever:
            yield Finding(
                "retention", f"processor {processor.name}", Verdict.yes,
                f"dead letters and their retries are kept for ever: {', '.join(for_ever)}",
                f"{inspection.command(f'topics retain {for_ever[0]} --keep-for 90d')}, if they "
                "need not "
                "be",
            )  # fmt: skip


def _is_kept_for_ever(info: TopicInfo | str) -> bool:
    from streams.config import Retention

    return not isinstance(info, str) and info.retention_known and info.retention == Retention()


def _check_topic_retention(inspection: AppInspection, topic: Topic[Any]) -> Finding:
    """How long one topic's messages are kept, and whether somebody said so."""
    item, of, info, declared = "retention", f"topic {topic.name}", inspection.info(topic.name), None
    for each in inspection.app.declared_topics:
        if each.name == topic.name and each.retention is not None:
            declared = each.retention
    advice = "declare retention=Retention(seconds=...), or retention=Retention() if that is meant"
    if inspection.log is None:
        return Finding(
            item, of, Verdict.unknown, inspection.open_error, "see that it can be reached"
        )
    if not isinstance(info, str) and not info.retention_known:
        return Finding(
            item, of, Verdict.unknown, "this login may not ask for the topic's settings",
            "give it DescribeConfigs on the topic",
        )  # fmt: skip
    if isinstance(info, str):
        if declared is None:
            return Finding(item, of, Verdict.unknown, "not there yet, to be kept for ever", advice)
        return Finding(
            item, of, Verdict.yes, f"not there yet, to be {output.retention_text(declared)}"
        )
    actual = info.retention
    if declared is None:
        if _is_kept_for_ever(info):
            return Finding(item, of, Verdict.unknown, "kept for ever, as nobody said so", advice)
        return Finding(item, of, Verdict.yes, output.retention_text(actual))
    if _round_to_milliseconds(actual) == _round_to_milliseconds(declared):
        return Finding(item, of, Verdict.yes, f"{output.retention_text(actual)}, as declared")
    command = f"topics retain {topic.name} {output.retention_options(declared)}"
    return Finding(
        item, of, Verdict.no,
        f"{output.retention_text(actual)}, and declared to be {output.retention_text(declared)}",
        f"{inspection.command(command)}, or "
        f"declare retention={actual!r}",
    )  # fmt: skip


def _round_to_milliseconds(retention: Retention) -> Retention:
    """As Kafka has it, in milliseconds."""
    seconds = retention.seconds
    return retention if seconds is None else replace(retention, seconds=round(seconds, 3))
