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

from streams.cli import show
from streams.cli.letter_topics import arguments
from streams.errors import LogError, NotFound

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.cli.watchers import Watchers
    from streams.config import Retention
    from streams.log.protocol import Fact, Log, TopicInfo
    from streams.processor import Processor
    from streams.topic import Topic

SAMPLE = 200
"""Messages of a partition that are looked at: its last ones."""

WIDE = 32
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

    :param of: what was looked at.
    :param why: what was seen.
    :param do: what to do about it; may be said of what is well, too.
    """

    item: str
    of: str
    verdict: Verdict
    why: str
    do: str = ""


class Seen(NamedTuple):
    """One message of a sample."""

    partition: int
    key: bytes | None
    id: str | None


class View:
    """An app and its log, looked at.

    :param log: None: it could not be opened, and ``trouble`` says why.
    """

    def __init__(self, app: Streams, log: Log | None, trouble: str, watchers: Watchers) -> None:
        self.app = app
        self.log = log
        self.trouble = trouble
        self.watchers = watchers
        self._infos: dict[str, TopicInfo | str] = {}
        self._samples: dict[str, list[Seen]] = {}

    def command(self, words: str) -> str:
        """A command of ours on the app's log, as it can be given to a shell: with the log's URL,
        unless the environment names that log already. A URL with a secret in it is not shown."""
        from streams.log.url import VARIABLE, redact

        url = self.app.url
        if os.environ.get(VARIABLE) == url:
            return f"streams {words}"
        return f"streams {words} --url {shlex.quote(url) if redact(url) == url else 'URL'}"

    @cached_property
    def _helpers(self) -> list[Processor[..., Any]]:
        """What works for other processors is the toolkit's, and not the app's to set."""
        return [helper for each in self.app.processors for helper in each.companions]

    @cached_property
    def processors(self) -> list[Processor[..., Any]]:
        """What the app declares."""
        return [each for each in self.app.processors if each not in self._helpers]

    @cached_property
    def topics(self) -> dict[str, Topic[Any]]:
        """What the app declares or reads, by name."""
        theirs = {topic for helper in self._helpers for topic in helper.topics}
        found = {name: topic for name, topic in self.app.topics.items() if name not in theirs}
        for processor in self.processors:
            for topic in processor.options.topics:
                if topic.name not in found and hasattr(topic, "partitions"):
                    found[topic.name] = topic  # type: ignore[assignment]  # a topic of a pattern
        return found

    def info(self, topic: str) -> TopicInfo | str:
        """A topic's facts, or why there are none."""
        if topic not in self._infos:
            self._infos[topic] = self._ask(topic)
        return self._infos[topic]

    def _ask(self, topic: str) -> TopicInfo | str:
        if self.log is None:
            return self.trouble
        try:
            return self.log.topic(topic)
        except NotFound:
            return "the log has no such topic yet"
        except LogError as error:
            return str(error)

    def sample(self, topic: str) -> list[Seen]:
        """The last messages of each partition; nothing where there are none."""
        if topic not in self._samples:
            self._samples[topic] = list(self._sampled(topic))
        return self._samples[topic]

    def _sampled(self, topic: str) -> Iterator[Seen]:
        info = self.info(topic)
        if self.log is None or isinstance(info, str):
            return
        for partition in range(min(info.partitions, WIDE)):
            first, end = self.log.bounds(topic, partition)
            start = max(first, self.log.back(topic, partition, end, SAMPLE))
            if start >= end:
                continue
            with closing(self.log.reader(topic, partition, start, end)) as reader:
                while (batch := reader.read(SAMPLE)) is not None:
                    for key, id in zip(batch.keys, batch.ids, strict=True):
                        yield Seen(partition, key, id)

    def span(self, topic: str, count: int) -> float | None:
        """Seconds in which the last ``count`` messages of a partition came, where they came
        fastest; None where no partition has more."""
        info = self.info(topic)
        if self.log is None or isinstance(info, str):
            return None
        found: list[float] = []
        for partition in range(min(info.partitions, WIDE)):
            _, end = self.log.bounds(topic, partition)
            start = self.log.back(topic, partition, end, count)
            if self.log.back(topic, partition, start, 1) >= start:
                continue  # it is the first there is: there are hardly so many
            last = self.log.back(topic, partition, end, 1)
            times = [_time(self.log, topic, partition, each, end) for each in (start, last)]
            if times[0] is not None and times[1] is not None:
                found.append(max(0.0, times[1] - times[0]))
        return min(found, default=None)


def _time(log: Log, topic: str, partition: int, position: int, end: int) -> float | None:
    """When the log took what stands at a position."""
    with closing(log.reader(topic, partition, position, end)) as reader:
        batch = reader.read(1)
    return None if batch is None else batch.time(0)


def look(view: View) -> Iterator[Finding]:
    """Every item of the checklist, in its order."""
    for item, check in CHECKS:
        try:
            yield from check(view)
        except LogError as error:
            yield Finding(item, "the log", Verdict.unknown, str(error), "ask again")


# -- the items -------------------------------------------------------------------------------------


def persisted(view: View) -> Iterator[Finding]:
    """What was acknowledged survives: the process, the power, one machine."""
    if view.log is None:
        yield Finding(
            "persisted", "the log", Verdict.no, view.trouble, "see that it can be reached"
        )
        return
    for topic in view.topics:
        of = f"topic {topic}"
        try:
            facts = view.log.durability(topic)
        except NotFound:
            yield Finding(
                "persisted", of, Verdict.unknown, "the log has no such topic yet",
                f"create it ({view.command(f'topics create {topic}')}, or run the app once), and "
                "ask again",
            )  # fmt: skip
            continue
        info = view.info(topic)
        declared = view.topics[topic].partitions
        if not isinstance(info, str) and declared is not None and info.partitions != declared:
            yield Finding(
                "persisted", of, Verdict.no,
                f"it has {info.partitions} partitions, and is declared with {declared}",
                f"declare partitions={info.partitions}, or leave it out",
            )  # fmt: skip
        yield _persisted(of, facts)


def _persisted(of: str, facts: Sequence[Fact]) -> Finding:
    poor = [fact for fact in facts if fact.enough is False]
    open_ = [fact for fact in facts if fact.enough is None]
    verdict = Verdict.no if poor else Verdict.unknown if open_ else Verdict.yes
    telling = poor or open_ or facts
    why = ", ".join(f"{fact.name} {fact.value}" for fact in telling)
    told = [*poor, *open_] or [fact for fact in facts if fact.advice]
    return Finding("persisted", of, verdict, why, "; ".join(each.advice for each in told))


def idempotent(view: View) -> Iterator[Finding]:
    """A message that comes twice is handled once."""
    for processor in view.processors:
        yield _window(view, processor)
    for name, topic in view.topics.items():
        sample = view.sample(name)
        if not sample or topic._id_in_value:
            how = "IDs are read from the value" if topic._id_in_value else "publish() makes the IDs"
            yield Finding("idempotent", f"topic {name}", Verdict.yes, how)
            continue
        bare = sum(seen.id is None for seen in sample)
        why = f"{bare} of its last {show.number(len(sample), 'message')} have no ID"
        if bare:
            yield Finding(
                "idempotent", f"topic {name}", Verdict.no, why,
                "its producers must set the header ce_id, or name the field: app.topic(..., id=)",
            )  # fmt: skip
        else:
            why = f"each of its last {show.number(len(sample), 'message')} has an ID"
            yield Finding("idempotent", f"topic {name}", Verdict.yes, why)


def _window(view: View, processor: Processor[..., Any]) -> Finding:
    dedup, of = processor.options.dedup, f"processor {processor.name}"
    if not dedup.window:
        return Finding(
            "idempotent", of, Verdict.no, "Dedup(window=0): duplicates are handled again",
            "leave dedup out, or see that its effects can happen twice",
        )  # fmt: skip
    infos = [view.info(topic) for topic in processor.topics]
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


def dead_letters(view: View) -> Iterator[Finding]:
    """What cannot be handled is kept, and somebody has the time to see it."""
    for processor in view.processors:
        letters = processor.options.dead_letters
        for topic in processor.topics:
            name = letters.name(topic, processor.group)
            yield _letters(view, processor, topic, name)


def _letters(view: View, processor: Processor[..., Any], topic: str, name: str) -> Finding:
    item, of = "dead letters", f"processor {processor.name}"
    info = view.info(name)
    if isinstance(info, str):
        if view.log is None:
            return Finding(item, of, Verdict.unknown, f"they go to {name}", "see the log")
        return Finding(item, of, Verdict.yes, f"they go to {name}, made at its first start")
    bound = info.retention
    count = bound.messages or bound.bytes
    if count is not None or (bound.seconds or WEEK) < WEEK:
        kept = (
            f"{count:,} {'of them' if bound.messages else 'bytes of them'}"
            if count is not None
            else f"them {show.age(bound.seconds)}"
        )
        return Finding(
            item, of, Verdict.no, f"{name} keeps {kept}, and then they are gone",
            "keep them for a week at least, better for ever",
        )  # fmt: skip
    theirs, its = _limit(view, name), _limit(view, topic)
    if theirs is not None and its is not None and theirs <= its:
        return Finding(
            item, of, Verdict.no,
            f"{name} takes {theirs:,} bytes, {topic} {its:,}: a letter is larger than its message",
            _widened(view, name, its),
        )  # fmt: skip
    waiting = _waiting(view, name)
    if waiting:
        return Finding(
            item, of, Verdict.yes, f"{show.number(waiting, 'letter')} in {name}",
            view.command(f"dead ls {arguments(processor.group, topic, name)}"),
        )  # fmt: skip
    return Finding(item, of, Verdict.yes, f"they go to {name}; none waits")


def _limit(view: View, topic: str) -> int | None:
    """The largest message that a topic takes, where its log has such a setting."""
    if view.log is None or isinstance(view.info(topic), str):
        return None
    for fact in view.log.durability(topic):
        if fact.name == "max.message.bytes" and fact.value.isdecimal():
            return int(fact.value)
    return None


LETTER = 1 << 16
"""Bytes that a dead letter has more than its message, at most, with room to spare."""


def _widened(view: View, name: str, limit: int) -> str:
    """How to let a dead letter topic (of Kafka) take the letters of messages of this size."""
    from streams.log.url import parse

    setting = "max.message.bytes"
    usual = 0 if view.log is None else int(view.log.capabilities.letters.get(setting, "0"))
    size = max(usual, limit + LETTER)
    brokers = ",".join(f"{host}:{port or 9092}" for host, port in parse(view.app.url).hosts)
    return (
        f"kafka-configs.sh --bootstrap-server {brokers} --alter --topic {name} "
        f"--add-config {setting}={size}"
    )


def _waiting(view: View, name: str) -> int:
    """Dead letters that nobody has dealt with, as far as the log can count."""
    from streams.patterns.deadletters.redriving import dealt

    log, info = view.log, view.info(name)
    if log is None or isinstance(info, str):
        return 0
    waiting = 0
    for partition, done in dealt(log, name, info.partitions).items():
        first, _ = log.bounds(name, partition)
        waiting += log.lag(name, partition, max(first, done.position)) or 0
        for low, high in done.ranges:
            waiting -= (log.lag(name, partition, low) or 0) - (log.lag(name, partition, high) or 0)
    return waiting


def backpressure(view: View) -> Iterator[Finding]:
    """What is held in memory has a bound, and this machine has the memory."""
    processors = view.processors
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


def monitoring(view: View) -> Iterator[Finding]:
    """Somebody can see how it goes."""
    item, of = "monitoring", "metrics"
    names = {processor.name for processor in view.processors}
    if view.watchers.prometheus is not None:
        seen = view.watchers.processors()
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
    elif place := os.environ.get("STREAMS_HTTP"):
        yield Finding(item, of, Verdict.yes, f"streams run serves them on {place} (STREAMS_HTTP)")
    elif view.app._measured:
        yield Finding(item, of, Verdict.yes, "the app registers a MetricsCollector")
    else:
        yield Finding(
            item, of, Verdict.no, "nothing serves this app's metrics",
            "streams run --http 0.0.0.0:9100 (or STREAMS_HTTP), or register MetricsCollector(app)",
        )  # fmt: skip


def alerts(view: View) -> Iterator[Finding]:
    """Somebody is told when it does not go well."""
    item, of = "alerts", "Prometheus"
    if view.watchers.prometheus is None:
        yield Finding(
            item, of, Verdict.unknown, "nobody said where Prometheus is",
            "load monitoring/alerts.yml into it, and say --prometheus URL (or STREAMS_PROMETHEUS)",
        )  # fmt: skip
        return
    loaded = view.watchers.alerts()
    if isinstance(loaded, str):
        yield Finding(item, of, Verdict.unknown, loaded, "see that --prometheus is right")
        return
    missing = [name for name in ALERTS if name not in loaded]
    if missing:
        yield Finding(
            item, of, Verdict.no, f"it has no rule {', '.join(missing)}",
            "load monitoring/alerts.yml (rule_files), or rules of these names",
        )  # fmt: skip
    elif isinstance(told := view.watchers.told(), str):
        yield Finding(item, of, Verdict.unknown, told, "see that --prometheus is right")
    elif not told:
        yield Finding(
            item, of, Verdict.no, "it has the rules, and no Alertmanager to tell",
            "set alerting.alertmanagers in its configuration",
        )  # fmt: skip
    else:
        yield Finding(item, of, Verdict.yes, f"{len(ALERTS)} rules, and an Alertmanager to tell")


ALERTS = (
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


def retries(view: View) -> Iterator[Finding]:
    """Attempts end, leave time in between, and end before what they rest on is gone."""
    for processor in view.processors:
        yield _retries(view, processor)


def _retries(view: View, processor: Processor[..., Any]) -> Finding:
    item, of, retry = "retries", f"processor {processor.name}", processor.options.retry
    longest = retry.total + retry.attempts * (processor.options.timeout or 0.0)
    said = f"{retry.attempts} attempts within {_seconds(longest)}"
    if retry.attempts == 1:
        return Finding(item, of, Verdict.yes, "none: what fails is a dead letter at once")
    if min(retry.delay, retry.cap) <= 0:
        return Finding(
            item, of, Verdict.no, f"{retry.attempts} attempts with no time in between",
            "Retry(delay=0.1): give what failed the time to recover",
        )  # fmt: skip
    for topic in processor.topics:
        info = view.info(topic)
        kept = None if isinstance(info, str) else info.retention.seconds
        if kept is not None and kept <= longest:
            return Finding(
                item, of, Verdict.no,
                f"{said}, and {topic} keeps messages for {_seconds(kept)} only",
                "fewer attempts or a smaller cap, or keep the topic's messages longer",
            )  # fmt: skip
        window = processor.options.dedup.window
        span = view.span(topic, window) if window else None
        if span is not None and span <= longest:
            return Finding(
                item, of, Verdict.no,
                f"{said}, and the last {window:,} messages of a partition of {topic} came within "
                f"{_seconds(span)}: a duplicate would be forgotten meanwhile",
                "a larger Dedup(window=...), or fewer attempts",
            )  # fmt: skip
    return Finding(item, of, Verdict.yes, f"{said}, backed off with jitter")


def _seconds(seconds: float) -> str:
    return show.age(seconds) or "0s"


def order(view: View) -> Iterator[Finding]:
    """Messages of a key come in their order."""
    keyed = {name: topic for name, topic in view.topics.items() if topic._key is not None}
    if not keyed:
        yield Finding("order", "the app", Verdict.yes, "no topic declares a key: none is promised")
    for name in keyed:
        yield _placed(view, name)
    for processor in view.processors:
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


def _placed(view: View, topic: str) -> Finding:
    """Whether every message of a key is in one partition, as far as a sample shows."""
    of, sample = f"topic {topic}", view.sample(topic)
    places: defaultdict[bytes, set[int]] = defaultdict(set)
    for seen in sample:
        if seen.key is not None:
            places[seen.key].add(seen.partition)
    torn = sorted(key for key, found in places.items() if len(found) > 1)
    bare = sum(seen.key is None for seen in sample)
    if torn:
        name = show.readable(torn[0]) or ""
        return Finding(
            "order", of, Verdict.no,
            f"key {name} is in partitions {', '.join(map(str, sorted(places[torn[0]])))}"
            + (f", and {len(torn) - 1:,} more keys like it" if len(torn) > 1 else ""),
            "its producers must place keys alike (on Kafka partitioner=murmur2_random), and the "
            "number of partitions must stay",
        )  # fmt: skip
    if bare:
        return Finding(
            "order", of, Verdict.no,
            f"{bare:,} of its last {show.number(len(sample), 'message')} have no key",
            "its producers must set the key that the app declares",
        )  # fmt: skip
    why = (
        f"{show.number(len(places), 'key')} seen, each in one partition"
        if places
        else "no message yet"
    )
    return Finding("order", of, Verdict.yes, why)


def retention(view: View) -> Iterator[Finding]:
    """What is deleted is meant to be, and so is what is kept for ever."""
    for topic in view.topics.values():
        yield _kept(view, topic)
    for processor in view.processors:
        letters = processor.options.dead_letters
        names = [
            name(topic, processor.group)
            for topic in processor.topics
            for name in (letters.name, letters.retry)
        ]
        for_ever = [name for name in dict.fromkeys(names) if _for_ever(view.info(name))]
        if for_ever:
            yield Finding(
                "retention", f"processor {processor.name}", Verdict.yes,
                f"dead letters and their retries are kept for ever: {', '.join(for_ever)}",
                f"{view.command(f'topics retain {for_ever[0]} --keep-for 90d')}, if they need not "
                "be",
            )  # fmt: skip


def _for_ever(info: TopicInfo | str) -> bool:
    from streams.config import Retention

    return not isinstance(info, str) and info.retention_known and info.retention == Retention()


def _kept(view: View, topic: Topic[Any]) -> Finding:
    """How long one topic's messages are kept, and whether somebody said so."""
    item, of, info, declared = "retention", f"topic {topic.name}", view.info(topic.name), None
    for each in view.app._declared:
        if each.name == topic.name and each.retention is not None:
            declared = each.retention
    say = "declare retention=Retention(seconds=...), or retention=Retention() if that is meant"
    if view.log is None:
        return Finding(item, of, Verdict.unknown, view.trouble, "see that it can be reached")
    if not isinstance(info, str) and not info.retention_known:
        return Finding(
            item, of, Verdict.unknown, "this login may not ask for the topic's settings",
            "give it DescribeConfigs on the topic",
        )  # fmt: skip
    if isinstance(info, str):
        if declared is None:
            return Finding(item, of, Verdict.unknown, "not there yet, to be kept for ever", say)
        return Finding(item, of, Verdict.yes, f"not there yet, to be {show.kept(declared)}")
    actual = info.retention
    if declared is None:
        if _for_ever(info):
            return Finding(item, of, Verdict.unknown, "kept for ever, as nobody said so", say)
        return Finding(item, of, Verdict.yes, show.kept(actual))
    if _rounded(actual) == _rounded(declared):
        return Finding(item, of, Verdict.yes, f"{show.kept(actual)}, as declared")
    return Finding(
        item, of, Verdict.no, f"{show.kept(actual)}, and declared to be {show.kept(declared)}",
        f"{view.command(f'topics retain {topic.name} {show.retention_options(declared)}')}, or "
        f"declare retention={actual!r}",
    )  # fmt: skip


def _rounded(retention: Retention) -> Retention:
    """As Kafka has it, in milliseconds."""
    seconds = retention.seconds
    return retention if seconds is None else replace(retention, seconds=round(seconds, 3))


CHECKS: Sequence[tuple[str, Callable[[View], Iterator[Finding]]]] = (
    ("persisted", persisted),
    ("idempotent", idempotent),
    ("dead letters", dead_letters),
    ("backpressure", backpressure),
    ("monitoring", monitoring),
    ("alerts", alerts),
    ("retries", retries),
    ("order", order),
    ("retention", retention),
)
