"""What ``streams doctor`` looks at: an app's declarations, its log as it is, and who watches it.

Nothing is written and nothing is created. A check says what it saw, never what it hopes: what the
log, a login or an address does not tell is *unknown*, with the way to know it.
"""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli import output
from streams.cli.dead.topics import dead_ls_arguments
from streams.errors import LogError, NotFound

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.cli.prometheus import PrometheusClient
    from streams.config import Retention
    from streams.log.protocol import DurabilityFact, Log, TopicInfo
    from streams.processor import Processor
    from streams.topic import Topic

SAMPLE_SIZE = 200
"""Messages of a partition that are looked at: its last ones."""

MAX_PARTITIONS = 32
"""Partitions of a topic that are looked at."""

WEEK = 7 * 86_400.0
"""Seconds that somebody needs to see a dead letter and do something about it."""


class Verdict(StrEnum):
    """What a check found."""

    yes = "yes"
    no = "no"
    unknown = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One item of the checklist, for one thing.

    :param subject: what was looked at.
    :param reason: what was seen.
    :param advice: what to do about it; may be said of what is well, too.
    """

    item: str
    subject: str
    verdict: Verdict
    reason: str
    advice: str = ""


class SampledMessage(NamedTuple):
    """One message of a sample."""

    partition: int
    key: bytes | None
    id: str | None


class AppInspection:
    """An app and its log, looked at.

    :param log: None: it could not be opened, and ``open_error`` says why.
    """

    def __init__(
        self, app: Streams, log: Log | None, open_error: str, prometheus: PrometheusClient
    ) -> None:
        self.app = app
        self.log = log
        self.open_error = open_error
        self.prometheus = prometheus
        self._infos: dict[str, TopicInfo | str] = {}
        self._samples: dict[str, list[SampledMessage]] = {}

    def command(self, words: str) -> str:
        """A command of ours on the app's log, as it can be given to a shell: with the log's URL,
        unless the environment names that log already. A URL with a secret in it is not shown."""
        from streams.log.url import URL_VARIABLE, redact

        url = self.app.url
        if os.environ.get(URL_VARIABLE) == url:
            return f"streams {words}"
        return f"streams {words} --url {shlex.quote(url) if redact(url) == url else 'URL'}"

    @cached_property
    def _helper_processors(self) -> list[Processor[..., Any]]:
        """What works for other processors is the toolkit's, and not the app's to set."""
        return [helper for each in self.app.processors for helper in each.helpers]

    @cached_property
    def processors(self) -> list[Processor[..., Any]]:
        """What the app declares."""
        return [each for each in self.app.processors if each not in self._helper_processors]

    @cached_property
    def topics(self) -> dict[str, Topic[Any]]:
        """What the app declares or reads, by name."""
        helper_topics = {topic for helper in self._helper_processors for topic in helper.topics}
        found = {
            name: topic for name, topic in self.app.topics.items() if name not in helper_topics
        }
        for processor in self.processors:
            for topic in processor.options.topics:
                if topic.name not in found and hasattr(topic, "partitions"):
                    found[topic.name] = topic  # type: ignore[assignment]  # a topic of a pattern
        return found

    def info(self, topic: str) -> TopicInfo | str:
        """A topic's facts, or why there are none."""
        if topic not in self._infos:
            self._infos[topic] = self._read_info(topic)
        return self._infos[topic]

    def _read_info(self, topic: str) -> TopicInfo | str:
        if self.log is None:
            return self.open_error
        try:
            return self.log.topic(topic)
        except NotFound:
            return "the log has no such topic yet"
        except LogError as error:
            return str(error)

    def sample(self, topic: str) -> list[SampledMessage]:
        """The last messages of each partition; nothing where there are none."""
        if topic not in self._samples:
            self._samples[topic] = list(self._read_sample(topic))
        return self._samples[topic]

    def _read_sample(self, topic: str) -> Iterator[SampledMessage]:
        info = self.info(topic)
        if self.log is None or isinstance(info, str):
            return
        for partition in range(min(info.partitions, MAX_PARTITIONS)):
            first, end = self.log.watermarks(topic, partition)
            start = max(first, self.log.offset_before(topic, partition, end, SAMPLE_SIZE))
            if start >= end:
                continue
            with closing(self.log.reader(topic, partition, start, end)) as reader:
                while (batch := reader.read(SAMPLE_SIZE)) is not None:
                    for key, id in zip(batch.keys, batch.ids, strict=True):
                        yield SampledMessage(partition, key, id)

    def shortest_time_of(self, topic: str, count: int) -> float | None:
        """Seconds in which the last ``count`` messages of a partition came, where they came
        fastest; None where no partition has more."""
        info = self.info(topic)
        if self.log is None or isinstance(info, str):
            return None
        found: list[float] = []
        for partition in range(min(info.partitions, MAX_PARTITIONS)):
            _, end = self.log.watermarks(topic, partition)
            start = self.log.offset_before(topic, partition, end, count)
            if self.log.offset_before(topic, partition, start, 1) >= start:
                continue  # it is the first there is: there are hardly so many
            last = self.log.offset_before(topic, partition, end, 1)
            times = [_record_time(self.log, topic, partition, each, end) for each in (start, last)]
            if times[0] is not None and times[1] is not None:
                found.append(max(0.0, times[1] - times[0]))
        return min(found, default=None)


def _record_time(log: Log, topic: str, partition: int, position: int, end: int) -> float | None:
    """When the log took what stands at a position."""
    with closing(log.reader(topic, partition, position, end)) as reader:
        batch = reader.read(1)
    return None if batch is None else batch.time(0)


def run_checks(inspection: AppInspection) -> Iterator[Finding]:
    """Every item of the checklist, in its order."""
    for item, check in CHECKS:
        try:
            yield from check(inspection)
        except LogError as error:
            yield Finding(item, "the log", Verdict.unknown, str(error), "ask again")


# -- the items -------------------------------------------------------------------------------------


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
        why = f"{without_id} of its last {output.count_text(len(sample), 'message')} have no ID"
        if without_id:
            yield Finding(
                "idempotent", f"topic {name}", Verdict.no, why,
                "its producers must set the header ce_id, or name the field: app.topic(..., id=)",
            )  # fmt: skip
        else:
            why = f"each of its last {output.count_text(len(sample), 'message')} has an ID"
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
            item, of, Verdict.yes, f"{output.count_text(waiting, 'letter')} in {name}",
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
    brokers = ",".join(f"{host}:{port or 9092}" for host, port in parse(inspection.app.url).hosts)
    return (
        f"kafka-configs.sh --bootstrap-server {brokers} --alter --topic {name} "
        f"--add-config {setting}={size}"
    )


def _count_waiting(inspection: AppInspection, name: str) -> int:
    """Dead letters that nobody has dealt with, as far as the log can count."""
    from streams.patterns.deadletters.redriving import resolved_offsets

    log, info = inspection.log, inspection.info(name)
    if log is None or isinstance(info, str):
        return 0
    waiting = 0
    for partition, done in resolved_offsets(log, name, info.partitions).items():
        first, _ = log.watermarks(name, partition)
        waiting += log.lag(name, partition, max(first, done.position)) or 0
        for low, high in done.ranges:
            waiting -= (log.lag(name, partition, low) or 0) - (log.lag(name, partition, high) or 0)
    return waiting


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


def check_monitoring(inspection: AppInspection) -> Iterator[Finding]:
    """Somebody can see how it goes."""
    item, of = "monitoring", "metrics"
    names = {processor.name for processor in inspection.processors}
    if inspection.prometheus.url is not None:
        seen = inspection.prometheus.processor_names()
        if isinstance(seen, str):
            yield Finding(item, of, Verdict.unknown, seen, "see that --prometheus is right")
        elif missing := sorted(names - seen):
            yield Finding(
                item, of, Verdict.no, f"Prometheus has no figures of {', '.join(missing)}",
                "run with --http, and let Prometheus scrape /metrics there",
            )  # fmt: skip
        else:
            yield Finding(item, of, Verdict.yes, "Prometheus has figures of every processor")
    elif find_spec("prometheus_client") is None:
        yield Finding(
            item, of, Verdict.no, "prometheus-client is not installed",
            "pip install prometheus-client",
        )  # fmt: skip
    elif http_address := os.environ.get("STREAMS_HTTP"):
        yield Finding(
            item, of, Verdict.yes, f"streams run serves them on {http_address} (STREAMS_HTTP)"
        )
    elif inspection.app._timing_enabled:
        yield Finding(item, of, Verdict.yes, "the app registers a MetricsCollector")
    else:
        yield Finding(
            item, of, Verdict.no, "nothing serves this app's metrics",
            "streams run --http 0.0.0.0:9100 (or STREAMS_HTTP), or register MetricsCollector(app)",
        )  # fmt: skip


def check_alerts(inspection: AppInspection) -> Iterator[Finding]:
    """Somebody is told when it does not go well."""
    item, of = "alerts", "Prometheus"
    if inspection.prometheus.url is None:
        yield Finding(
            item, of, Verdict.unknown, "nobody said where Prometheus is",
            "load monitoring/alerts.yml into it, and say --prometheus URL (or STREAMS_PROMETHEUS)",
        )  # fmt: skip
        return
    loaded = inspection.prometheus.alert_names()
    if isinstance(loaded, str):
        yield Finding(item, of, Verdict.unknown, loaded, "see that --prometheus is right")
        return
    missing = [name for name in REQUIRED_ALERTS if name not in loaded]
    if missing:
        yield Finding(
            item, of, Verdict.no, f"it has no rule {', '.join(missing)}",
            "load monitoring/alerts.yml (rule_files), or rules of these names",
        )  # fmt: skip
    elif isinstance(has_alertmanager := inspection.prometheus.has_alertmanager(), str):
        yield Finding(item, of, Verdict.unknown, has_alertmanager, "see that --prometheus is right")
    elif not has_alertmanager:
        yield Finding(
            item, of, Verdict.no, "it has the rules, and no Alertmanager to tell",
            "set alerting.alertmanagers in its configuration",
        )  # fmt: skip
    else:
        yield Finding(
            item, of, Verdict.yes, f"{len(REQUIRED_ALERTS)} rules, and an Alertmanager to tell"
        )


REQUIRED_ALERTS = (
    "StreamsProcessorDead",
    "StreamsLogUnreachable",
    "StreamsLagGrows",
    "StreamsOldestUnsettled",
    "StreamsNoCommits",
    "StreamsDeadLetters",
    "StreamsRetryStorm",
    "StreamsMessagesLost",
)
"""The rules of ``monitoring/alerts.yml`` that everybody needs."""


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
            f"{without_key:,} of its last {output.count_text(len(sample), 'message')} have no key",
            "its producers must set the key that the app declares",
        )  # fmt: skip
    why = (
        f"{output.count_text(len(partitions_of), 'key')} seen, each in one partition"
        if partitions_of
        else "no message yet"
    )
    return Finding("order", of, Verdict.yes, why)


def check_retention(inspection: AppInspection) -> Iterator[Finding]:
    """What is deleted is meant to be, and so is what is kept for ever."""
    for topic in inspection.topics.values():
        yield _check_topic_retention(inspection, topic)
    for processor in inspection.processors:
        letters = processor.options.dead_letters
        names = [
            name(topic, processor.group)
            for topic in processor.topics
            for name in (letters.name, letters.retry)
        ]
        for_ever = [
            name for name in dict.fromkeys(names) if _is_kept_for_ever(inspection.info(name))
        ]
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


CHECKS: Sequence[tuple[str, Callable[[AppInspection], Iterator[Finding]]]] = (
    ("persisted", check_persistence),
    ("idempotent", check_idempotence),
    ("dead letters", check_dead_letters),
    ("backpressure", check_backpressure),
    ("monitoring", check_monitoring),
    ("alerts", check_alerts),
    ("retries", check_retries),
    ("order", check_order),
    ("retention", check_retention),
)
