"""The item of the checklist that is about aggregates: their histories are whole, stay whole, and
can be read by this code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.inspection import texts
from streams.inspection.doctor.app_inspection import (
    MAX_PARTITIONS,
    SAMPLE_SIZE,
    AppInspection,
    Finding,
    Subject,
)
from streams.text import error_text

if TYPE_CHECKING:
    from streams.eventsourcing import Aggregate
    from streams.log.protocol import Log, TopicInfo
    from streams.message import Batch


def check_histories(inspection: AppInspection) -> Iterator[Finding]:
    """Events are kept for ever, in as many partitions as are declared; nobody else writes beside
    them; and this code can read them."""
    for aggregate in inspection.aggregates.values():
        subject = Subject("histories", f"aggregate {aggregate.name}")
        yield from inspection.look_at(subject, _check_aggregate(inspection, aggregate))


def _check_aggregate(
    inspection: AppInspection, aggregate: Aggregate[Any, Any]
) -> Iterator[Finding]:
    topic = aggregate.events.name
    subject, info = Subject("histories", f"aggregate {aggregate.name}"), inspection.info(topic)
    log = inspection.log
    if log is None or isinstance(info, str):
        why = info if isinstance(info, str) else inspection.open_error
        yield subject.unknown(why, "run the app once, and ask again")
        return
    yield from _check_topic(inspection, subject, aggregate, info)
    sample = list(_read_sample(log, info))
    foreign = [each for each in sample if not each.is_event]
    if not info.is_event_topic:
        yield subject.no(
            f"topic {topic} holds no histories", "give the aggregate another name, or the topic"
        )
        return
    if foreign:
        yield subject.no(
            f"{len(foreign):,} of its last {texts.plural(len(sample), 'record')} were not "
            f"written by an aggregate, the last at {foreign[-1].position}; they are ignored",
            f"find out what else writes to {topic}, and allow only the apps that decide (an ACL)",
        )
    yield _check_code(inspection, subject, aggregate, [each for each in sample if each.is_event])
    yield from _check_snapshots(inspection, subject, aggregate, log)


def _check_topic(
    inspection: AppInspection, subject: Subject, aggregate: Aggregate[Any, Any], info: TopicInfo
) -> Iterator[Finding]:
    """What the log holds, against what is declared."""
    from streams.config import Retention

    declared = aggregate.events.partitions
    if declared is not None and info.partitions != declared:
        yield subject.no(
            f"topic {info.name} has {info.partitions} partitions, but is declared with {declared}: "
            "keys would get a second history in other ones, so nothing is written",
            f"declare partitions={info.partitions}, or copy the events to a new topic",
        )
    if not info.retention_known:
        yield subject.unknown(
            "this login may not read the topic's settings",
            f"give it DescribeConfigs on {info.name}; check that retention.ms and retention.bytes "
            "are -1 and cleanup.policy is delete",
        )
    elif info.retention != Retention():
        what = "compacts" if info.retention.compacted else "deletes"
        command = inspection.command(f"topics retain {info.name} --for-ever")
        yield subject.no(
            f"topic {info.name} {what} events: {texts.retention_text(info.retention)}",
            f"{command}, before a history loses its beginning",
        )
    else:
        partitions = texts.plural(info.partitions, "partition")
        yield subject.yes(f"its events are kept for ever, in {partitions}")


class _SampledEvent(NamedTuple):
    """One record of an event topic."""

    position: str
    key: bytes
    value: bytes | None
    is_event: bool
    """An append wrote it."""
    is_refusal: bool
    """It is the record of a refused command, which has no value."""


def _read_sample(log: Log, info: TopicInfo) -> Iterator[_SampledEvent]:
    """The last records of each partition, whatever they are."""
    from streams.log.events import EventLog

    for partition in range(min(info.partitions, MAX_PARTITIONS)):
        first, end = log.watermarks(info.name, partition)
        start = max(first, log.offset_before(info.name, partition, end, SAMPLE_SIZE))
        if start >= end:
            continue
        open_reader = log.reader
        if info.is_event_topic and isinstance(log, EventLog):
            open_reader = log.raw_reader
        with closing(open_reader(info.name, partition, start, end)) as reader:
            while (batch := reader.read(SAMPLE_SIZE)) is not None:
                for index in range(len(batch.offsets)):
                    yield _sampled(log, batch, index)


def _sampled(log: Log, batch: Batch, index: int) -> _SampledEvent:
    from streams.log.event_headers import event_header, is_event, parse_event

    header = parse_event(event_header(batch.headers(index)), batch.id(index))
    return _SampledEvent(
        texts.position_text(log, batch, index),
        batch.keys[index] or b"",
        batch.values[index],
        is_event(batch.headers(index)),
        header is not None and header.is_refusal,
    )


def _check_code(
    inspection: AppInspection,
    subject: Subject,
    aggregate: Aggregate[Any, Any],
    sample: Sequence[_SampledEvent],
) -> Finding:
    """Whether this code can read what is stored, as far as a sample shows."""
    from stream_codecs import DecodeError

    if not sample:
        return subject.yes("no event yet")
    for each in reversed(sample):
        if each.is_refusal:
            continue
        try:
            aggregate.definition.codec.decode(each.value)
        except DecodeError as error:
            topic = aggregate.events.name
            key = inspection.texts.key(topic, each.key)
            reason = inspection.texts.error(topic, error_text(error))
            words = f"aggregates ls {inspection.target} {aggregate.name} --undecodable"
            return subject.no(
                f"this code cannot decode the event of {key!r} at {each.position}: {reason}",
                f"run newer code, or @{aggregate.name}.upcast(bytes); "
                f"{inspection.command(words)} lists all that are stopped",
            )
    return subject.yes(f"this code decodes its last {texts.plural(len(sample), 'event')}")


def _check_snapshots(
    inspection: AppInspection, subject: Subject, aggregate: Aggregate[Any, Any], log: Log
) -> Iterator[Finding]:
    """Whether there are snapshots that this code does not use."""
    from streams.log.events import ArbitratingLog, EventLog

    if not isinstance(log, EventLog) or isinstance(log, ArbitratingLog):
        return  # the latter would have to read the whole topic first
    kinds = log.event_totals(aggregate.events.name).snapshots
    used = aggregate.definition.fingerprint
    unused = {kind: count for kind, count in kinds.items() if kind != used}
    if unused:
        count = texts.plural(sum(unused.values()), "snapshot")
        words = f"aggregates drop-snapshots {inspection.target} {aggregate.name} --unused"
        yield subject.yes(
            f"{count} of other code: {', '.join(sorted(unused))}",
            f"{inspection.command(words)}, once no such code runs",
        )
    elif kinds:
        yield subject.yes(f"{texts.plural(kinds[used], 'snapshot')}, none of other code")
