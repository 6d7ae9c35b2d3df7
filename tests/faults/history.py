"""What happened, as every process wrote it down, and a checker that looks for broken promises.

Each life (one start of one process) appends one line an event to a file of its own, by a single
``write``, so a ``kill -9`` loses nothing that had happened. Times are ``CLOCK_MONOTONIC``, which
all processes of a machine share. An effect is written *after* what it stands for, and a commit
after the log acknowledged it, so the checker never blames for what may just not be written yet.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

Place = tuple[str, int]
"""Topic and partition."""


class Sent(msgspec.Struct, tag="sent", array_like=True, frozen=True):
    """A publish was acknowledged."""

    at: float
    topic: str
    partition: int
    offset: int
    key: str | None
    id: str


class Started(msgspec.Struct, tag="started", array_like=True, frozen=True):
    """A handler began."""

    at: float
    topic: str
    partition: int
    offset: int
    key: str | None
    id: str
    attempt: int


class Effect(msgspec.Struct, tag="effect", array_like=True, frozen=True):
    """A handler did what it is there for, and is about to return."""

    at: float
    topic: str
    partition: int
    offset: int
    key: str | None
    id: str


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """A handler is about to raise."""

    at: float
    topic: str
    partition: int
    offset: int
    key: str | None
    id: str


class Owned(msgspec.Struct, tag="owned", array_like=True, frozen=True):
    """A partition was assigned."""

    at: float
    topic: str
    partition: int
    epoch: int


class Commit(msgspec.Struct, tag="commit", array_like=True, frozen=True):
    """A commit was acknowledged; ``asked`` is when it was sent off."""

    at: float
    asked: float
    topic: str
    partition: int
    epoch: int
    position: int
    settled: tuple[tuple[int, int], ...]


class Stalled(msgspec.Struct, tag="stalled", array_like=True, frozen=True):
    """The process stood still for so many seconds, though nobody froze it."""

    at: float
    seconds: float


Event = Sent | Started | Effect | Failed | Owned | Commit | Stalled

_KINDS: dict[str, type[Any]] = {
    "sent": Sent, "started": Started, "effect": Effect, "failed": Failed, "owned": Owned,
    "commit": Commit, "stalled": Stalled,
}  # fmt: skip


def _encode(event: Event) -> bytes:
    # The standard library's: Redis' offsets have 128 bits, which faster encoders refuse.
    return json.dumps([event.__struct_config__.tag, *msgspec.structs.astuple(event)]).encode()


def _decode(line: bytes) -> Event:
    kind, *fields = json.loads(line)
    event: Event = _KINDS[kind](*fields)
    return event


class Recorder:
    """Writes one life's events."""

    def __init__(self, folder: Path) -> None:
        name = f"{time.monotonic_ns()}-{os.getpid()}.jsonl"
        self._file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, event: Event) -> None:
        """Append one event; it is safe from ``kill -9`` when this returns."""
        os.write(self._file, _encode(event) + b"\n")


class Life:
    """The events of one start of one process, in order."""

    def __init__(self, name: str, events: Iterable[Event]) -> None:
        self.name = name
        self.events = list(events)


def read(folder: Path) -> list[Life]:
    """All lives in a folder, by their start. A line cut off by a kill did not happen."""
    lives = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda each: int(each.name.split("-")[0])):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lives.append(Life(path.stem, map(_decode, whole.splitlines())))
    return lives


class Tail:
    """Follows a history while it is written: how many different messages had an effect, and which
    lives own partitions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._at: dict[Path, int] = {}
        self.ids: set[str] = set()
        self._owners: dict[Place, tuple[float, Path]] = {}

    def owners(self, topic: str) -> int:
        """How many lives were the last to be assigned one of the topic's partitions."""
        self.count()
        return len({life for (name, _), (_, life) in self._owners.items() if name == topic})

    def owned_by(self, topic: str) -> dict[int, tuple[str, float]]:
        """The life that each of a topic's partitions was assigned to last, and when."""
        self.count()
        return {
            partition: (life.stem, at)
            for (name, partition), (at, life) in self._owners.items()
            if name == topic
        }

    def count(self) -> int:
        """How many different messages had an effect."""
        for path in self._folder.glob("*.jsonl"):
            at = self._at.get(path, 0)
            with path.open("rb") as file:
                file.seek(at)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._at[path] = at + whole
            for line in data[:whole].splitlines():
                if line.startswith(b'["effect"'):
                    event = _decode(line)
                    if isinstance(event, Effect):
                        self.ids.add(event.id)
                elif line.startswith(b'["owned"'):
                    event = _decode(line)
                    if isinstance(event, Owned):
                        place = (event.topic, event.partition)
                        last = self._owners.get(place, (0.0, path))
                        self._owners[place] = max(last, (event.at, path))
        return len(self.ids)


@dataclass
class Report:
    """What the checker found. Every list holds sentences; all empty: every promise was kept."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    """Handled again although an acknowledged commit said it was settled, or within one life."""
    order: list[str] = field(default_factory=list)
    overlap: list[str] = field(default_factory=list)
    """Two handlers of one key at once."""
    past_effect: list[str] = field(default_factory=list)
    """A commit that covers a message whose handler had not finished."""
    backwards: list[str] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)
    """A handler that began after somebody else had taken the partition."""
    sent: int = 0
    handled: int = 0
    redelivered: int = 0
    """Effects beyond the first of their message."""
    lives: int = 0

    @property
    def anomalies(self) -> list[str]:
        """Everything that is wrong, each with its kind."""
        kinds = ["lost", "duplicated", "order", "overlap", "past_effect", "backwards", "fenced"]
        return [f"{kind}: {text}" for kind in kinds for text in getattr(self, kind)]


def covers(commit: Commit, offset: int) -> bool:
    """Whether a commit says that this offset is settled."""
    if offset < commit.position:
        return True
    at = bisect_right([start for start, _ in commit.settled], offset) - 1
    return at >= 0 and offset < commit.settled[at][1]


def check(lives: list[Life], *, exempt: Iterable[str] = ()) -> Report:
    """Look for every anomaly.

    :param exempt: lives that were frozen or cut off (also by the machine, see :class:`Stalled`,
        which are found here): handlers that were already running when
        they lost a partition may end late and beside the new owner's; and a commit that such a
        life wrote down after somebody else had taken the partition says nothing (it may have
        been answered long before).
    """
    report = Report(lives=len(lives))
    late = {
        *exempt,
        *(life.name for life in lives if any(isinstance(each, Stalled) for each in life.events)),
    }
    sent: dict[tuple[str, int, int], Sent] = {}
    effects: list[tuple[Effect, Life]] = []
    commits: dict[Place, list[Commit]] = defaultdict(list)
    doubtful: list[tuple[Commit, str]] = []
    owners: dict[Place, list[tuple[float, int, str]]] = defaultdict(list)
    starts: list[tuple[Started, Life]] = []
    for life in lives:
        for event in life.events:
            if isinstance(event, Sent):
                sent[event.topic, event.partition, event.offset] = event
            elif isinstance(event, Effect):
                effects.append((event, life))
            elif isinstance(event, Commit) and life.name in late:
                doubtful.append((event, life.name))
            elif isinstance(event, Commit):
                commits[event.topic, event.partition].append(event)
            elif isinstance(event, Owned):
                where = (event.topic, event.partition)
                owners[where].append((event.at, event.epoch, life.name))
            elif isinstance(event, Started):
                starts.append((event, life))
    for each in owners.values():
        each.sort()
    for commit, name in doubtful:
        where = (commit.topic, commit.partition)
        if holder(owners[where], commit.at) == name:
            commits[where].append(commit)
    effects.sort(key=lambda each: each[0].at)
    starts.sort(key=lambda each: each[0].at)
    report.sent = len({each.id for each in sent.values()})
    first: dict[str, float] = {}
    for effect, _ in effects:
        if effect.id in first:
            report.redelivered += 1
        first.setdefault(effect.id, effect.at)
    report.handled = len(first)
    report.lost += [f"{each.id} at {place(each)}" for each in sent.values() if each.id not in first]
    _duplicates(report, starts, commits)
    _order(report, lives, effects)
    _overlaps(report, lives, late)
    _commits(report, commits, sent, first)
    _fences(report, starts, owners, late)
    return report


def place(event: Any) -> str:
    """Where an event's message stands."""
    return f"{event.topic}/{event.partition}/{event.offset}"


def _duplicates(
    report: Report, starts: list[tuple[Started, Life]], commits: dict[Place, list[Commit]]
) -> None:
    by_partition: dict[Place, list[tuple[Started, Life]]] = defaultdict(list)
    for start, life in starts:
        by_partition[start.topic, start.partition].append((start, life))
    for where, begun in by_partition.items():
        acknowledged = sorted(commits[where], key=lambda commit: commit.at)
        at = 0
        latest: Commit | None = None  # coverage only grows (``backwards`` checks that)
        for start, life in begun:
            while at < len(acknowledged) and acknowledged[at].at < start.at:
                latest = acknowledged[at]
                at += 1
            if latest is not None and covers(latest, start.offset):
                report.duplicated.append(
                    f"{place(start)} was begun by {life.name} after a commit at position "
                    f"{latest.position} had covered it"
                )
    for life in {id(life): life for _, life in starts}.values():
        done: dict[str, int] = {}
        epochs: dict[Place, int] = defaultdict(int)
        for event in life.events:
            if isinstance(event, Owned):
                epochs[event.topic, event.partition] += 1
            elif isinstance(event, Started):
                epoch = epochs[event.topic, event.partition]
                if done.get(event.id) == epoch:
                    report.duplicated.append(f"{place(event)} twice in one life of {life.name}")
            elif isinstance(event, Effect):
                done[event.id] = epochs[event.topic, event.partition]


def _order(report: Report, lives: list[Life], effects: list[tuple[Effect, Life]]) -> None:
    seen: set[str] = set()
    last: dict[tuple[Place, str], int] = {}
    for effect, _ in effects:
        if effect.key is None or effect.id in seen:
            continue
        seen.add(effect.id)
        key = ((effect.topic, effect.partition), effect.key)
        if effect.offset < last.get(key, -1):
            report.order.append(f"{place(effect)} for the first time, after {last[key]}")
        last[key] = max(effect.offset, last.get(key, -1))
    for life in lives:
        latest: dict[tuple[Place, str], int] = {}
        for event in life.events:
            if isinstance(event, Owned):
                where = (event.topic, event.partition)
                latest = {key: offset for key, offset in latest.items() if key[0] != where}
            elif isinstance(event, Effect) and event.key is not None:
                key = ((event.topic, event.partition), event.key)
                if event.offset <= latest.get(key, -1):
                    report.order.append(f"{place(event)} in {life.name}, after {latest[key]}")
                latest[key] = event.offset


def _overlaps(report: Report, lives: list[Life], late: set[str]) -> None:
    spans: dict[tuple[Place, str], list[tuple[float, float, str]]] = defaultdict(list)
    for life in lives:
        open_: dict[tuple[Place, str, int], float] = {}
        for event in life.events:
            if not isinstance(event, (Started, Effect, Failed)) or event.key is None:
                continue
            where = (event.topic, event.partition)
            if isinstance(event, Started):
                open_[where, event.key, event.offset] = event.at
            else:
                began = open_.pop((where, event.key, event.offset), None)
                if began is not None:
                    spans[where, event.key].append((began, event.at, life.name))
    for (where, key), each in spans.items():
        each.sort()
        for (_, end, one), (began, _, other) in pairwise(each):
            if began < end and not {one, other} & late:
                report.overlap.append(f"key {key} of {where[0]}/{where[1]} in {one} and {other}")


def _commits(
    report: Report,
    commits: dict[Place, list[Commit]],
    sent: dict[tuple[str, int, int], Sent],
    first: dict[str, float],
) -> None:
    by_partition: dict[Place, list[Sent]] = defaultdict(list)
    for event in sent.values():
        by_partition[event.topic, event.partition].append(event)
    for where, each in commits.items():
        each.sort(key=lambda commit: commit.at)
        position = -1
        for commit in each:
            if commit.position < position:
                report.backwards.append(
                    f"{where[0]}/{where[1]} from {position} to {commit.position}"
                )
            position = max(position, commit.position)
        messages = sorted(by_partition[where], key=lambda event: event.offset)
        offsets = [event.offset for event in messages]
        checked: set[int] = set()
        for commit in each:
            for low, high in ((0, commit.position), *commit.settled):
                for index in range(_index(offsets, low), _index(offsets, high)):
                    message = messages[index]
                    if message.offset in checked:
                        continue
                    checked.add(message.offset)
                    done = first.get(message.id)
                    if done is None or done > commit.at:
                        report.past_effect.append(
                            f"{place(message)} was covered by a commit at position "
                            f"{commit.position} before it was handled"
                        )


def _index(offsets: list[int], offset: int) -> int:
    return bisect_right(offsets, offset - 1)


def _fences(
    report: Report,
    starts: list[tuple[Started, Life]],
    owners: dict[Place, list[tuple[float, int, str]]],
    late: set[str],
) -> None:
    for start, life in starts:
        owner = holder(owners[start.topic, start.partition], start.at)
        # One that was frozen may write down, once it goes on, what it owned long before.
        if owner not in (None, life.name) and not {owner, life.name} & late:
            report.fenced.append(f"{place(start)} was begun by {life.name}, fenced by then")


def holder(owners: list[tuple[float, int, str]], moment: float) -> str | None:
    """Whose a partition was at a moment; ``owners`` ascend."""
    at = bisect_right(owners, moment, key=lambda each: each[0]) - 1
    return owners[at][2] if at >= 0 else None


def late_effects(lives: list[Life], name: str) -> dict[Place, int]:
    """How many effects one life had in each partition after somebody else had taken it."""
    owners: dict[Place, list[tuple[float, int, str]]] = defaultdict(list)
    found: dict[Place, int] = defaultdict(int)
    for life in lives:
        for event in life.events:
            if isinstance(event, Owned):
                owners[event.topic, event.partition].append((event.at, event.epoch, life.name))
    for each in owners.values():
        each.sort()
    for life in lives:
        if life.name == name:
            for event in life.events:
                if isinstance(event, Effect):
                    where = (event.topic, event.partition)
                    if holder(owners[where], event.at) != name:
                        found[where] += 1
    return dict(found)
