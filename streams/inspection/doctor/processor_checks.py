"""The items of the checklist that are about processors: idempotent, dead letters, backpressure,
retries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streams.inspection import texts
from streams.inspection.closed_keys import count_closed_keys
from streams.inspection.counting import count_waiting
from streams.inspection.dead_arguments import dead_ls_arguments
from streams.inspection.delayed import DelayIndex
from streams.inspection.doctor.app_inspection import (
    AppInspection,
    Finding,
    Subject,
)
from streams.inspection.reading_on import count_once
from streams.log.protocol import Log
from streams.parking import parked_topic
from streams.processor import Processor
from streams.retries import delay_topic

MIB = 1 << 20

WEEK = 7 * 86_400.0
"""Seconds that somebody needs to see a dead letter and do something about it."""

LEFT_WAITING_TIMEOUT = 5.0
"""Real seconds for which it is looked for what waits by an option that is not declared any more."""


def check_idempotence(inspection: AppInspection) -> Iterator[Finding]:
    """A message that comes twice is handled once."""
    for processor in inspection.processors:
        if processor.has_own_options:
            yield _check_dedup_window(inspection, processor)
    for name in inspection.topics:
        subject = Subject("idempotent", f"topic {name}")
        yield from inspection.look_at(subject, _check_ids(inspection, subject, name))


def _check_ids(inspection: AppInspection, subject: Subject, name: str) -> Iterator[Finding]:
    sample = inspection.sample(name)
    messages = texts.plural(len(sample), "message")
    without_id = sum(seen.id is None for seen in sample)
    if inspection.topics[name].id_in_value:
        yield subject.yes("IDs are read from the value")
    elif not sample:
        yield subject.yes("publish() makes the IDs")
    elif without_id:
        yield subject.no(
            f"{without_id} of its last {messages} have no ID",
            "its producers must set the header ce_id, or name the field: app.topic(..., id=)",
        )
    else:
        yield subject.yes(f"each of its last {messages} has an ID")


def _check_dedup_window(inspection: AppInspection, processor: Processor[..., Any]) -> Finding:
    dedup, subject = processor.options.dedup, Subject("idempotent", f"processor {processor.name}")
    if processor.options.transaction is not None:
        return subject.yes("its database records what was handled (transaction=)")
    if not dedup.window:
        return subject.no(
            "Dedup(window=0): duplicates are handled again",
            "leave dedup out, or make sure that its effects can happen twice",
        )
    infos = [inspection.info(topic) for topic in processor.topics]
    wanted = dedup.window * sum(info.partitions for info in infos if not isinstance(info, str))
    if wanted > dedup.cap:
        return subject.no(
            f"{wanted:,} IDs to remember, if it owns every partition, but at most {dedup.cap:,}",
            f"Dedup(window={dedup.window}, cap={wanted})",
        )
    return subject.yes(f"the last {dedup.window:,} IDs of a partition are remembered")


def check_dead_letters(inspection: AppInspection) -> Iterator[Finding]:
    """What cannot be handled is kept, and somebody has the time to see it."""
    for processor in inspection.processors:
        if not processor.has_group_topics:
            continue
        subject = Subject("dead letters", f"processor {processor.name}")
        for topic in processor.topics:
            found = _check_dead_letters_of(inspection, processor, topic)
            yield from inspection.look_at(subject, found)


def _check_dead_letters_of(
    inspection: AppInspection, processor: Processor[..., Any], topic: str
) -> Iterator[Finding]:
    config = processor.options.dead_letters
    name = config.name(topic, processor.group)
    yield _check_dead_letter_topic(inspection, processor, topic, name)
    if config.sequenced and inspection.log is not None:
        yield from _check_closed_keys(inspection, inspection.log, processor, topic)


def _check_closed_keys(
    inspection: AppInspection, log: Log, processor: Processor[..., Any], topic: str
) -> Iterator[Finding]:
    """Dead messages of a key close it."""
    subject = Subject("dead letters", f"processor {processor.name}")
    name = parked_topic(topic, processor.group)
    counts = count_closed_keys(log, name, LEFT_WAITING_TIMEOUT)
    if counts is None:
        return
    if (too_small := _takes_too_little(inspection, name, topic)) is not None:
        yield subject.no(*too_small)
    if counts.keys:
        closed = texts.plural(counts.keys, "closed key")
        behind = texts.plural(counts.parked, "message")
        advice = inspection.command(f"dead keys {processor.group} {topic}")
        yield subject.yes(f"{closed} in {name}, {behind} behind", advice)


def _check_dead_letter_topic(
    inspection: AppInspection, processor: Processor[..., Any], topic: str, name: str
) -> Finding:
    subject, info = Subject("dead letters", f"processor {processor.name}"), inspection.info(name)
    who = "those without a key" if processor.options.dead_letters.sequenced else "they"
    if isinstance(info, str):
        if inspection.log is None:
            return subject.unknown(f"{who} go to {name}", "see the log")
        return subject.yes(f"{who} go to {name}, created at its first start")
    bound = info.retention
    count = bound.messages or bound.bytes
    if count is not None or (bound.seconds or WEEK) < WEEK:
        kept = f"them {texts.age_text(bound.seconds)}"
        if count is not None:
            kept = f"{count:,} {'of them' if bound.messages else 'bytes of them'}"
        return subject.no(
            f"{name} keeps {kept}, and then deletes them",
            "keep them for at least a week, or better for ever",
        )
    if (too_small := _takes_too_little(inspection, name, topic)) is not None:
        return subject.no(*too_small)
    waiting = _count_waiting(inspection, name)
    if waiting:
        command = f"dead ls {dead_ls_arguments(processor.group, topic, name)}"
        letters = texts.plural(waiting, "dead letter")
        return subject.yes(f"{letters} in {name}", inspection.command(command))
    return subject.yes(f"{who} go to {name}; none waits")


def _takes_too_little(inspection: AppInspection, name: str, topic: str) -> tuple[str, str] | None:
    """Why a topic cannot hold each letter of another one's messages, and what to do about it; None:
    it can, as far as that is known."""
    limit, needed = (_max_message_bytes(inspection, each) for each in (name, topic))
    if limit is None or needed is None or limit > needed:
        return None
    sizes = f"{name} takes {limit:,} bytes, {topic} {needed:,}"
    reason = f"{sizes}: a dead letter is larger than its message"
    return reason, _raise_limit_command(inspection, name, needed)


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

    setting, default_size = "max.message.bytes", 0
    if inspection.log is not None:
        default_size = int(inspection.log.capabilities.dead_letter_config.get(setting, "0"))
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
        flow = processor.options.flow
        subject = Subject("backpressure", f"processor {processor.name}")
        wanted = processor.options.concurrency * (processor.options.batch or 1)
        if wanted > flow.messages:
            yield subject.no(
                f"its handlers can have {wanted:,} messages, but Flow holds {flow.messages:,}",
                f"Flow(messages={2 * wanted}), or less concurrency",
            )
        else:
            yield subject.yes(f"{flow.messages:,} messages, {flow.bytes / MIB:,.0f} MiB")
    if not processors:
        return
    memory = memory_limit()
    total = sum(processor.options.flow.bytes for processor in processors)
    if memory is not None:
        subject = Subject("backpressure", "the process")
        reason = f"processors hold {total / MIB:,.0f} MiB at most, of {memory / MIB:,.0f}"
        # Decoded values take more room than their bytes: see docs/promises.md.
        if total <= memory // 2:
            yield subject.yes(reason)
        else:
            yield subject.no(reason, "Flow(bytes=...): less for each, or more memory")


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
        if processor.has_own_options:
            subject = Subject("retries", f"processor {processor.name}")
            yield from inspection.look_at(subject, _check_retries_of(inspection, processor))


def _check_retries_of(
    inspection: AppInspection, processor: Processor[..., Any]
) -> Iterator[Finding]:
    yield _check_retry(inspection, processor)
    if inspection.log is not None:
        yield from _check_left_waiting(inspection.log, processor)


def _check_left_waiting(log: Log, processor: Processor[..., Any]) -> Iterator[Finding]:
    """Nothing waits by an option that the processor has no more: it was settled when it was put
    there, and nobody brings it back."""
    subject, retry = Subject("retries", f"processor {processor.name}"), processor.options.retry
    for topic in processor.topics:
        if not retry.uses_attempt_log:
            name = delay_topic(topic, processor.group)
            delayed = count_once(DelayIndex(name, lambda: log), LEFT_WAITING_TIMEOUT)
            waiting = 0 if delayed is None else delayed.number
            option = "Retry(in_order=False) or Retry(durable=True)"
            yield from _left_waiting(subject, waiting, name, option)
        if not processor.options.dead_letters.sequenced:
            name = parked_topic(topic, processor.group)
            counts = count_closed_keys(log, name, LEFT_WAITING_TIMEOUT)
            waiting = 0 if counts is None else counts.keys + counts.parked
            yield from _left_waiting(subject, waiting, name, "DeadLetters(sequenced=True)")


def _left_waiting(subject: Subject, waiting: int, name: str, option: str) -> Iterator[Finding]:
    if waiting:
        verb = "waits" if waiting == 1 else "wait"
        yield subject.no(
            f"{texts.plural(waiting, 'message')} {verb} in {name}, where {option} has put them",
            f"declare {option} again until they are handled: without it they never come back",
        )


def _check_retry(inspection: AppInspection, processor: Processor[..., Any]) -> Finding:
    subject, retry = Subject("retries", f"processor {processor.name}"), processor.options.retry
    longest = retry.longest_backoff + retry.attempts * (processor.options.timeout or 0.0)
    said = f"{retry.attempts} attempts within {texts.age_text(longest)}"
    if retry.attempts == 1:
        return subject.yes("none: a message that fails becomes a dead letter at once")
    if min(retry.delay, retry.cap) <= 0:
        return subject.no(
            f"{retry.attempts} attempts with no time in between",
            "Retry(delay=0.1): give what failed the time to recover",
        )
    for topic in processor.topics:
        info = inspection.info(topic)
        kept = None if isinstance(info, str) else info.retention.seconds
        if kept is not None and kept <= longest:
            return subject.no(
                f"{said}, but {topic} keeps messages only for {texts.age_text(kept)}",
                "fewer attempts or a smaller cap, or keep the topic's messages longer",
            )
        window = processor.options.dedup.window
        span = inspection.shortest_time_of(topic, window) if window else None
        if span is not None and span <= longest:
            return subject.no(
                f"{said}, and the last {window:,} messages of a partition of {topic} came within "
                f"{texts.age_text(span)}: a duplicate would be forgotten meanwhile",
                "a larger Dedup(window=...), or fewer attempts",
            )
    return subject.yes(f"{said}, backed off with jitter")
