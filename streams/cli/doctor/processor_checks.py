"""The items of the checklist that are about processors: idempotent, dead letters, backpressure,
retries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streams.cli import output
from streams.cli.dead.topics import dead_ls_arguments
from streams.cli.doctor.inspection import AppInspection, Finding, Verdict
from streams.cli.log_queries import count_waiting
from streams.processor import Processor

WEEK = 7 * 86_400.0
"""Seconds that somebody needs to see a dead letter and do something about it."""


def check_idempotence(inspection: AppInspection) -> Iterator[Finding]:
    """A message that comes twice is handled once."""
    for processor in inspection.processors:
        yield _check_dedup_window(inspection, processor)
    for name, topic in inspection.topics.items():
        sample = inspection.sample(name)
        if not sample or topic.id_in_value:
            how = "IDs are read from the value" if topic.id_in_value else "publish() makes the IDs"
            yield Finding("idempotent", f"topic {name}", Verdict.yes, how)
            continue
        without_id = sum(seen.id is None for seen in sample)
        why = f"{without_id} of its last {output.plural(len(sample), 'message')} have no ID"
        if without_id:
            yield Finding(
                "idempotent", f"topic {name}", Verdict.no, why,
                "its producers must set the header ce_id, or name the field: app.topic(..., id=)",
            )  # fmt: skip
        else:
            why = f"each of its last {output.plural(len(sample), 'message')} has an ID"
            yield Finding("idempotent", f"topic {name}", Verdict.yes, why)


def _check_dedup_window(inspection: AppInspection, processor: Processor[..., Any]) -> Finding:
    dedup, of = processor.options.dedup, f"processor {processor.name}"
    if not dedup.window:
        return Finding(
            "idempotent", of, Verdict.no, "Dedup(window=0): duplicates are handled again",
            "leave dedup out, or see that its effects can happen twice",
        )  # fmt: skip
    infos = [inspection.info(topic) for topic in processor.topics]
    wanted = dedup.window * sum(info.partitions for info in infos if not isinstance(info, str))
    if wanted > dedup.cap:
        return Finding(
            "idempotent", of, Verdict.no,
            f"{wanted:,} IDs to remember, if it owns every partition, and at most {dedup.cap:,}",
            f"Dedup(window={dedup.window}, cap={wanted})",
        )  # fmt: skip
    return Finding(
        "idempotent", of, Verdict.yes, f"the last {dedup.window:,} IDs of a partition are known"
    )


def check_dead_letters(inspection: AppInspection) -> Iterator[Finding]:
    """What cannot be handled is kept, and somebody has the time to see it."""
    for processor in inspection.processors:
        config = processor.options.dead_letters
        for topic in processor.topics:
            name = config.name(topic, processor.group)
            yield _check_dead_letter_topic(inspection, processor, topic, name)


def _check_dead_letter_topic(
    inspection: AppInspection, processor: Processor[..., Any], topic: str, name: str
) -> Finding:
    item, of = "dead letters", f"processor {processor.name}"
    info = inspection.info(name)
    if isinstance(info, str):
        if inspection.log is None:
            return Finding(item, of, Verdict.unknown, f"they go to {name}", "see the log")
        return Finding(item, of, Verdict.yes, f"they go to {name}, made at its first start")
    bound = info.retention
    count = bound.messages or bound.bytes
    if count is not None or (bound.seconds or WEEK) < WEEK:
        kept = (
            f"{count:,} {'of them' if bound.messages else 'bytes of them'}"
            if count is not None
            else f"them {output.age_text(bound.seconds)}"
        )
        return Finding(
            item, of, Verdict.no, f"{name} keeps {kept}, and then they are gone",
            "keep them for a week at least, better for ever",
        )  # fmt: skip
    dead_letter_limit, source_limit = (
        _max_message_bytes(inspection, name),
        _max_message_bytes(inspection, topic),
    )
    if (
        dead_letter_limit is not None
        and source_limit is not None
        and dead_letter_limit <= source_limit
    ):
        return Finding(
            item, of, Verdict.no,
            f"{name} takes {dead_letter_limit:,} bytes, {topic} {source_limit:,}: a letter is "
            "larger than its message",
            _raise_limit_command(inspection, name, source_limit),
        )  # fmt: skip
    waiting = _count_waiting(inspection, name)
    if waiting:
        return Finding(
            item, of, Verdict.yes, f"{output.plural(waiting, 'letter')} in {name}",
            inspection.command(f"dead ls {dead_ls_arguments(processor.group, topic, name)}"),
        )  # fmt: skip
    return Finding(item, of, Verdict.yes, f"they go to {name}; none waits")


def _max_message_bytes(inspection: AppInspection, topic: str) -> int | None:
    """The largest message that a topic takes, where its log has such a setting."""
    if inspection.log is None or isinstance(inspection.info(topic), str):
        return None
    for fact in inspection.log.durability(topic):
        if fact.name == "max.message.bytes" and fact.value.isdecimal():
            return int(fact.value)
    return None


DEAD_LETTER_OVERHEAD = 1 << 16
"""Bytes that a dead letter has more than its message, at most, with room to spare."""


def _raise_limit_command(inspection: AppInspection, name: str, limit: int) -> str:
    """How to let a dead letter topic (of Kafka) take the letters of messages of this size."""
    from streams.log.url import parse

    setting = "max.message.bytes"
    default_size = (
        0
        if inspection.log is None
        else int(inspection.log.capabilities.dead_letter_config.get(setting, "0"))
    )
    size = max(default_size, limit + DEAD_LETTER_OVERHEAD)
    brokers = parse(inspection.app.url).addresses(9092)
    return (
        f"kafka-configs.sh --bootstrap-server {brokers} --alter --topic {name} "
        f"--add-config {setting}={size}"
    )


def _count_waiting(inspection: AppInspection, name: str) -> int:
    """Dead letters that nobody has dealt with, as far as the log can count."""
    from streams.patterns.deadletters import resolved_offsets

    log, info = inspection.log, inspection.info(name)
    if log is None or isinstance(info, str):
        return 0
    resolved = resolved_offsets(log, name, info.partitions)
    return sum(count_waiting(log, name, partition, each) for partition, each in resolved.items())


def check_backpressure(inspection: AppInspection) -> Iterator[Finding]:
    """What is held in memory has a bound, and this machine has the memory."""
    processors = inspection.processors
    for processor in processors:
        flow, of = processor.options.flow, f"processor {processor.name}"
        wanted = processor.options.concurrency * (processor.options.batch or 1)
        bound = f"{flow.messages:,} messages, {flow.bytes / (1 << 20):,.0f} MiB"
        if wanted > flow.messages:
            yield Finding(
                "backpressure", of, Verdict.no,
                f"its handlers can have {wanted:,} messages at once, Flow holds {flow.messages:,}",
                f"Flow(messages={2 * wanted}), or less concurrency",
            )  # fmt: skip
        else:
            yield Finding("backpressure", of, Verdict.yes, bound)
    if not processors:
        return
    memory = memory_limit()
    total = sum(processor.options.flow.bytes for processor in processors)
    if memory is not None:
        # Decoded values take more room than their bytes: see docs/promises.md.
        fits = total <= memory // 2
        yield Finding(
            "backpressure", "the process", Verdict.yes if fits else Verdict.no,
            f"processors hold {total / (1 << 20):,.0f} MiB at most, of {memory / (1 << 20):,.0f}",
            "" if fits else "Flow(bytes=...): less for each, or more memory",
        )  # fmt: skip


def memory_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may have: its control group's, else the machine's."""
    found: list[int] = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        pass
    return min(found, default=None)


def check_retries(inspection: AppInspection) -> Iterator[Finding]:
    """Attempts end, leave time in between, and end before what they rest on is gone."""
    for processor in inspection.processors:
        yield _check_retry(inspection, processor)


def _check_retry(inspection: AppInspection, processor: Processor[..., Any]) -> Finding:
    item, of, retry = "retries", f"processor {processor.name}", processor.options.retry
    longest = retry.longest_backoff + retry.attempts * (processor.options.timeout or 0.0)
    said = f"{retry.attempts} attempts within {_duration_text(longest)}"
    if retry.attempts == 1:
        return Finding(item, of, Verdict.yes, "none: what fails is a dead letter at once")
    if min(retry.delay, retry.cap) <= 0:
        return Finding(
            item, of, Verdict.no, f"{retry.attempts} attempts with no time in between",
            "Retry(delay=0.1): give what failed the time to recover",
        )  # fmt: skip
    for topic in processor.topics:
        info = inspection.info(topic)
        kept = None if isinstance(info, str) else info.retention.seconds
        if kept is not None and kept <= longest:
            return Finding(
                item, of, Verdict.no,
                f"{said}, and {topic} keeps messages for {_duration_text(kept)} only",
                "fewer attempts or a smaller cap, or keep the topic's messages longer",
            )  # fmt: skip
        window = processor.options.dedup.window
        span = inspection.shortest_time_of(topic, window) if window else None
        if span is not None and span <= longest:
            return Finding(
                item, of, Verdict.no,
                f"{said}, and the last {window:,} messages of a partition of {topic} came within "
                f"{_duration_text(span)}: a duplicate would be forgotten meanwhile",
                "a larger Dedup(window=...), or fewer attempts",
            )  # fmt: skip
    return Finding(item, of, Verdict.yes, f"{said}, backed off with jitter")


def _duration_text(seconds: float) -> str:
    return output.age_text(seconds) or "0s"
