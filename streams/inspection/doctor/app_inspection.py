"""What ``streams doctor`` looks at: an app's declarations and its log as it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.errors import LogError, NotFound, Unavailable
from streams.log.range_reader import read_batches, read_first

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.eventsourcing import Aggregate, ProcessManager, View
    from streams.inspection.doctor.prometheus import PrometheusClient
    from streams.log.protocol import Log, TopicInfo
    from streams.outbox import Outbox
    from streams.processor import Processor
    from streams.projections import Projection
    from streams.topic import Topic

SAMPLE_SIZE = 200
"""Messages of a partition that are looked at: its last ones."""

MAX_PARTITIONS = 32
"""Partitions of a topic that are looked at."""

MAX_UNANSWERED = 5
"""Things that the log need not answer about, before it is taken for one that answers nothing."""


class CheckVerdict(StrEnum):
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
    verdict: CheckVerdict
    reason: str
    advice: str = ""


class Subject(NamedTuple):
    """What an item of the checklist is about: makes its findings."""

    item: str
    name: str

    def yes(self, reason: str, advice: str = "") -> Finding:
        """The finding that the item is fulfilled."""
        return Finding(*self, CheckVerdict.yes, reason, advice)

    def no(self, reason: str, advice: str) -> Finding:
        """The finding that the item is not fulfilled."""
        return Finding(*self, CheckVerdict.no, reason, advice)

    def unknown(self, reason: str, advice: str) -> Finding:
        """The finding that the item could not be checked."""
        return Finding(*self, CheckVerdict.unknown, reason, advice)


class MessageTexts:
    """How findings name what is in messages; a subclass may hide it."""

    def key(self, topic: str, data: bytes) -> str:
        """A key."""
        return data.decode("utf-8", "backslashreplace")

    def error(self, topic: str, text: str) -> str:
        """What was raised because of a message."""
        return text


class SampledMessage(NamedTuple):
    """One message of a sample."""

    partition: int
    key: bytes | None
    id: str | None


class AppInspection:
    """An app and its log, looked at.

    :param log: None: it could not be opened, and ``open_error`` says why.
    :param target: how the command line names the app.
    :param texts: how findings name what is in messages.
    """

    def __init__(
        self,
        app: Streams,
        log: Log | None,
        open_error: str,
        prometheus: PrometheusClient,
        target: str = "MODULE:APP",
        texts: MessageTexts | None = None,
    ) -> None:
        self.app = app
        self.target = target
        self.texts = MessageTexts() if texts is None else texts
        self.log = log
        self.open_error = open_error
        self.prometheus = prometheus
        self._infos: dict[str, TopicInfo | str] = {}
        self._samples: dict[str, list[SampledMessage]] = {}
        self._unanswered = 0
        """Things that the log did not answer about."""

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
        """Processors of the toolkit that work for the app's, and have no options of their own."""
        return [helper for each in self.app.processors for helper in each.helpers]

    @cached_property
    def processors(self) -> list[Processor[..., Any]]:
        """What the app declares, without those of views, which have no options of their own."""
        views = {group for each in self.views for group in each.declared.groups}
        return [
            each
            for each in self.app.processors
            if each not in self._helper_processors and each.group not in views
        ]

    @cached_property
    def topics(self) -> dict[str, Topic[Any]]:
        """What the app declares or reads, by name."""
        others = {topic for helper in self._helper_processors for topic in helper.topics}
        others.update(group for each in self.views for group in each.declared.groups)
        found = {name: topic for name, topic in self.app.topics.items() if name not in others}
        for processor in self.processors:
            for topic in processor.options.topics:
                if topic.name not in found and hasattr(topic, "partitions"):
                    found[topic.name] = topic  # type: ignore[assignment]  # a topic of a pattern
        return found

    @cached_property
    def aggregates(self) -> dict[str, Aggregate[Any, Any]]:
        """What the app declares, by the name of the event topic."""
        from streams.eventsourcing import Aggregate

        declared = (each for each in self.app.aggregates.values() if isinstance(each, Aggregate))
        return {each.events.name: each for each in declared}

    @cached_property
    def views(self) -> list[View[Any]]:
        """The versions of views that the app declares."""
        from streams.eventsourcing import View

        return [each for each in self.app.views.values() if isinstance(each, View)]

    @cached_property
    def managers(self) -> list[ProcessManager[Any]]:
        """The process managers that the app declares."""
        from streams.eventsourcing import ProcessManager

        return [each for each in self.app.managers.values() if isinstance(each, ProcessManager)]

    @cached_property
    def projections(self) -> dict[str, list[Projection]]:
        """The versions of SQL projections that the app declares, by projection."""
        found: dict[str, list[Projection]] = {}
        for each in self.app.projections:
            found.setdefault(each.name, []).append(each)
        return found

    @cached_property
    def outboxes(self) -> list[Outbox]:
        """The outboxes that the app declares."""
        from streams.outbox import Outbox

        return [each for each in self.app.outboxes.values() if isinstance(each, Outbox)]

    def look_at(self, subject: Subject, findings: Iterator[Finding]) -> Iterator[Finding]:
        """What is found of one thing, and where the log does not answer about it, that: there are
        others to look at.

        :raises Unavailable: it did not answer about :data:`MAX_UNANSWERED` things before: each may
            be waited for for long.
        """
        try:
            yield from findings
        except LogError as error:
            if isinstance(error, Unavailable):
                self._unanswered += 1
                if self._unanswered > MAX_UNANSWERED:
                    raise
            yield subject.unknown(str(error), "ask again")

    def info(self, topic: str) -> TopicInfo | str:
        """A topic's facts, or why there are none."""
        if topic not in self._infos:
            self._infos[topic] = self._read_info(topic)
        return self._infos[topic]

    def _read_info(self, topic: str) -> TopicInfo | str:
        if self.log is None:
            return self.open_error
        try:
            return self.log.describe_topic(topic)
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
            for batch in read_batches(self.log, topic, partition, start, end, SAMPLE_SIZE):
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
            batches = [read_first(self.log, topic, partition, each, end) for each in (start, last)]
            if batches[0] is not None and batches[1] is not None:
                found.append(max(0.0, batches[1].time(0) - batches[0].time(0)))
        return min(found, default=None)
