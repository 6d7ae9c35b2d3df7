"""Which versions of each view there are, and which one is promoted: known to all processes.

The registry is an aggregate of its own, in the topic ``__streams.views.events``, with a view's name
as its ID. So what processes do at the same time is decided in one order, on every log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from streams.app import Streams
from streams.errors import ConfigError, InvalidValue
from streams.eventsourcing.definition import CONFLICT_RETRY, AggregateDefinition, DecisionOptions
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.results import Decided
from streams.eventsourcing.runtime import AggregateRuntime
from streams.eventsourcing.state_cache import Cache
from streams.eventsourcing.state_type import StateType
from streams.eventsourcing.views.checkpoints import parse_offset, parse_source
from streams.log.protocol import TopicPartition

NAME = "__streams.views"
TOPIC = f"{NAME}.events"

MAX_RETRIES = 1_000
"""Requests to fold a document on that wait at once, at most."""


class VersionDeclared(msgspec.Struct, frozen=True, tag="declared"):
    """A version was declared for the first time.

    :param shape: the fingerprint of its documents.
    :param topics: that it reads.
    :param is_keyed: its events are written again by the keys of its documents.
    :param goal: where they ended then, by ``topic/partition``, offsets as text: once it has folded
        so far it can serve, if no version served before.
    """

    version: int
    shape: str
    topics: tuple[str, ...]
    is_keyed: bool
    goal: dict[str, str]


class VersionPromoted(msgspec.Struct, frozen=True, tag="promoted"):
    """From now on this version serves, wherever it is declared."""

    version: int


class RebuildStarted(msgspec.Struct, frozen=True, tag="rebuilding"):
    """The documents of a version were deleted, and are rebuilt.

    :param goal: as in :class:`VersionDeclared`.
    :param is_clearing: they are being deleted at this moment; the same without it follows.
    """

    version: int
    shape: str
    goal: dict[str, str]
    is_clearing: bool = False


class RebuildFinished(msgspec.Struct, frozen=True, tag="rebuilt"):
    """A rebuilt version has reached its goal."""

    version: int


class VersionDropped(msgspec.Struct, frozen=True, tag="dropped"):
    """A version and its documents were deleted."""

    version: int


class RetryRequested(msgspec.Struct, frozen=True, tag="retry_asked"):
    """A stopped document is to be retried.

    :param id: of the request.
    """

    version: int
    partition: int
    key: bytes
    id: str

    def asks_the_same(self, other: RetryRequested) -> bool:
        """It is about the same document."""
        return (self.version, self.key) == (other.version, other.key)


class RetryFinished(msgspec.Struct, frozen=True, tag="retry_done"):
    """A requested retry was carried out.

    :param goes_on: the document is not stopped any more.
    """

    id: str
    goes_on: bool


RegistryEvent = (
    VersionDeclared
    | VersionPromoted
    | RebuildStarted
    | RebuildFinished
    | VersionDropped
    | RetryRequested
    | RetryFinished
)


class KnownViewVersion(msgspec.Struct, frozen=True):
    """One version of a view.

    :param is_building: it has not reached its goal, and cannot serve.
    :param is_clearing: its documents are being deleted, to be made anew.
    :param builds: counts the times that its documents are made anew. Whoever has seen that they
        have reached the goal says of which time that is.
    """

    version: int
    shape: str
    topics: tuple[str, ...]
    is_keyed: bool
    goal: dict[str, str]
    is_building: bool = True
    is_clearing: bool = False
    builds: int = 0


class KnownView(msgspec.Struct, frozen=True):
    """What is known of a view.

    :param promoted: the version that serves; 0: none yet.
    """

    versions: tuple[KnownViewVersion, ...] = ()
    promoted: int = 0
    retries: tuple[RetryRequested, ...] = ()

    def find_version(self, number: int) -> KnownViewVersion | None:
        """One of its versions."""
        return next((each for each in self.versions if each.version == number), None)

    def before(self, number: int) -> KnownViewVersion | None:
        """The version that serves for as long as this one does not; None: there is none."""
        ready = [
            each
            for each in self.versions
            if each.version < number and each.version <= self.promoted and not each.is_building
        ]
        return max(ready, key=lambda each: each.version, default=None)


def evolve(view: KnownView, event: RegistryEvent) -> KnownView:
    """A view after an event."""
    replace = msgspec.structs.replace
    match event:
        case VersionDeclared(version, shape, topics, is_keyed, goal):
            if not _is_sound(topics, is_keyed, goal):
                return view
            known = KnownViewVersion(version, shape, topics, is_keyed, goal)
            others = [each for each in view.versions if each.version != version]
            versions = sorted([*others, known], key=lambda each: each.version)
            return replace(view, versions=tuple(versions))
        case VersionPromoted(version):
            return replace(_with_version(view, version, is_building=False), promoted=version)
        case RebuildStarted(version, shape, goal, is_clearing):
            before = view.find_version(version)
            if before is None or not _is_sound(before.topics, before.is_keyed, goal):
                return view
            changes = {"shape": shape, "goal": goal, "is_clearing": is_clearing}
            return _with_version(
                view, version, is_building=True, builds=before.builds + 1, **changes
            )
        case RebuildFinished(version):
            return _with_version(view, version, is_building=False)
        case VersionDropped(version):
            left = tuple(each for each in view.versions if each.version != version)
            retries = tuple(each for each in view.retries if each.version != version)
            promoted = 0 if view.promoted == version else view.promoted
            return KnownView(left, promoted, retries)
        case RetryRequested():
            return replace(view, retries=(*view.retries, event))
        case RetryFinished(id):
            return replace(view, retries=tuple(each for each in view.retries if each.id != id))


def _is_sound(topics: tuple[str, ...], is_keyed: bool, goal: dict[str, str]) -> bool:
    """Whether a process can have declared this: who may write to the log may write anything."""
    if not topics or (len(topics) > 1 and not is_keyed):
        return False
    try:
        goal_positions(goal)
    except ValueError:
        return False
    return True


def goal_positions(goal: Mapping[str, str]) -> dict[TopicPartition, int]:
    """A goal, by source partition.

    :raises ValueError: it is none.
    """
    return {parse_source(name): parse_offset(offset) for name, offset in goal.items()}


def goal_texts(positions: Mapping[TopicPartition, int]) -> dict[str, str]:
    """A goal as it is stored."""
    return {f"{topic}/{partition}": str(end) for (topic, partition), end in positions.items()}


def _with_version(view: KnownView, version: int, **changes: Any) -> KnownView:
    return msgspec.structs.replace(
        view,
        versions=tuple(
            msgspec.structs.replace(each, **changes) if each.version == version else each
            for each in view.versions
        ),
    )


# -- decisions ------------------------------------------------------------------------------------


def declare(view: KnownView, name: str, declared: VersionDeclared) -> VersionDeclared | None:
    """A version is declared by a process.

    :raises ConfigError: with documents of another shape, or other topics, than before.
    """
    known = view.find_version(declared.version)
    if known is None:
        return declared
    check_declaration(name, known, declared.shape, declared.topics, declared.is_keyed)
    return None


def check_declaration(
    name: str, known: KnownViewVersion, shape: str, topics: tuple[str, ...], is_keyed: bool
) -> None:
    """See that a version is declared as it was first.

    :raises ConfigError: it is not.
    """
    version = known.version
    advice = (
        f"give the new one version={version + 1} (and keep version {version} declared while it is "
        f"built), or delete the old documents: streams views drop {name} --version {version}"
    )
    if known.shape != shape:
        raise ConfigError(
            f"view {name!r}: version {version} has documents of another shape in the log: {advice}"
        )
    if known.topics != topics:
        raise ConfigError(
            f"view {name!r}: version {version} is made of {', '.join(known.topics)} in the log, "
            f"not of {', '.join(topics)}: {advice}"
        )
    if known.is_keyed != is_keyed:
        was = "with key=" if known.is_keyed else "without key="
        raise ConfigError(f"view {name!r}: version {version} was declared {was}: {advice}")


def promote(view: KnownView, version: int, builds: int | None = None) -> VersionPromoted | None:
    """A version is to serve; nothing where a later one does, or this one.

    :param builds: of the time that it was seen to have come far enough; None: whatever it has.
    """
    known = view.find_version(version)
    if known is None or version <= view.promoted or not _is_current(known, builds):
        return None
    return VersionPromoted(version)


def finish_rebuild(
    view: KnownView, version: int, builds: int | None = None
) -> RebuildFinished | None:
    """A version has reached its goal again."""
    known = view.find_version(version)
    if known is None or not known.is_building or not _is_current(known, builds):
        return None
    return RebuildFinished(version)


def _is_current(known: KnownViewVersion, builds: int | None) -> bool:
    return not known.is_clearing and builds in (None, known.builds)


def rebuild(
    view: KnownView, version: int, goal: dict[str, str], clearing: bool
) -> RebuildStarted | None:
    """The documents of a version are to be made anew."""
    known = view.find_version(version)
    return None if known is None else RebuildStarted(version, known.shape, goal, clearing)


def drop(view: KnownView, version: int) -> VersionDropped | None:
    """A version is to be forgotten."""
    return VersionDropped(version) if view.find_version(version) is not None else None


def ask_retry(view: KnownView, request: RetryRequested) -> RetryRequested | None:
    """A document is to be folded on; nothing where that is asked for already."""
    if any(each.asks_the_same(request) for each in view.retries):
        return None
    return request if len(view.retries) < MAX_RETRIES else None


def end_retry(view: KnownView, id: str, goes_on: bool) -> RetryFinished | None:
    """A request was carried out."""
    return RetryFinished(id, goes_on) if any(each.id == id for each in view.retries) else None


# -- the registry ---------------------------------------------------------------------------------


def _pass_over(event: bytes) -> None:
    """What a later release may write, and this one does not know, changes nothing here."""


def registry_codec() -> EventCodec[RegistryEvent]:
    """How the registry's events are written."""
    codec: EventCodec[RegistryEvent] = EventCodec(NAME, RegistryEvent, None)
    codec.add_upcast(bytes, _pass_over)
    return codec


class ViewRegistry:
    """The registry in an app: one for all of its views."""

    def __init__(self, app: Streams) -> None:
        codec = registry_codec()
        self._topic: EventTopic[RegistryEvent] = EventTopic(app, NAME, codec, 1)
        self._runtime = AggregateRuntime(
            AggregateDefinition(
                app,
                NAME,
                self._topic,
                codec,
                StateType(NAME, KnownView, None, None),
                evolve,
                None,
                None,
                "",
                Cache(),
            )
        )
        app.add_resource(self._runtime)

    async def load(self, view: str) -> KnownView:
        """What is known of a view.

        :raises LogError: it cannot be read.
        """
        found: KnownView = (await self._runtime.load(view, None)).state
        return found

    async def decide(
        self, view: str, decision: Callable[..., RegistryEvent | None], *given: Any
    ) -> Decided[KnownView, RegistryEvent]:
        """Take a decision upon a view.

        :raises ConfigError: it refuses.
        :raises LogError: the log cannot be reached.
        """
        options = DecisionOptions(cause=False, retry=CONFLICT_RETRY)

        def decide(state: KnownView) -> Sequence[RegistryEvent]:
            found = decision(state, *given)
            return () if found is None else (found,)

        return await self._runtime.decide(view, decide, options)

    async def retry(
        self,
        view: str,
        version: int,
        partition: int,
        key: bytes,
        timeout: float,  # noqa: ASYNC109 - whether it was done is the answer
        while_waiting: Callable[[], None] = lambda: None,
    ) -> bool:
        """Have whoever folds a document fold it on; whether that was done in time.

        :raises InvalidValue: there are too many such requests.
        """
        deadline = time.monotonic() + timeout
        request = RetryRequested(version, partition, key, uuid4().hex)
        known = (await self.decide(view, ask_retry, request)).state
        asked = next((each for each in known.retries if each.asks_the_same(request)), None)
        if asked is None:
            raise InvalidValue(
                f"view {view!r}: {MAX_RETRIES} documents wait to be folded on; wait for those"
            )
        pause = 0.005
        while any(each.id == asked.id for each in known.retries):
            if time.monotonic() >= deadline:
                return False
            while_waiting()
            await asyncio.sleep(pause)
            pause = min(0.2, 2 * pause)
            known = await self.load(view)
        return True
