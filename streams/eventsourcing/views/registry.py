"""Which versions of each view there are, and which one is promoted: known to all processes.

The registry is an aggregate of its own, in the topic ``__streams.views.events``, with a view's name
as its ID. So what processes do at the same time is decided in one order, on every log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streams.app import Streams
from streams.errors import ConfigError
from streams.eventsourcing.definition import CONFLICT_RETRY, Definition, Options
from streams.eventsourcing.event_codec import EventCodec
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.results import Decided
from streams.eventsourcing.runtime import AggregateRuntime
from streams.eventsourcing.state_cache import Cache
from streams.eventsourcing.state_type import StateType

NAME = "__streams.views"
TOPIC = f"{NAME}.events"

MAX_RETRIES = 1_000
"""Requests to fold a document on that wait at once, at most."""


class Declared(msgspec.Struct, frozen=True, tag="declared"):
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


class Promoted(msgspec.Struct, frozen=True, tag="promoted"):
    """From now on this version serves, wherever it is declared."""

    version: int


class Rebuilding(msgspec.Struct, frozen=True, tag="rebuilding"):
    """The documents of a version were deleted, and are made anew.

    :param goal: as in :class:`Declared`.
    """

    version: int
    shape: str
    goal: dict[str, str]


class Rebuilt(msgspec.Struct, frozen=True, tag="rebuilt"):
    """A version that was made anew has reached its goal."""

    version: int


class Dropped(msgspec.Struct, frozen=True, tag="dropped"):
    """A version and its documents were deleted."""

    version: int


class RetryAsked(msgspec.Struct, frozen=True, tag="retry_asked"):
    """A document that stands still is to be folded on.

    :param id: of the request.
    """

    version: int
    partition: int
    key: bytes
    id: str

    def asks_the_same(self, other: RetryAsked) -> bool:
        """It is about the same document."""
        return (self.version, self.key) == (other.version, other.key)


class RetryDone(msgspec.Struct, frozen=True, tag="retry_done"):
    """That was carried out.

    :param goes_on: the document stands still no more.
    """

    id: str
    goes_on: bool


RegistryEvent = Declared | Promoted | Rebuilding | Rebuilt | Dropped | RetryAsked | RetryDone


class KnownVersion(msgspec.Struct, frozen=True):
    """One version of a view.

    :param is_building: it has not reached its goal, and cannot serve.
    """

    version: int
    shape: str
    topics: tuple[str, ...]
    is_keyed: bool
    goal: dict[str, str]
    is_building: bool = True


class KnownView(msgspec.Struct, frozen=True):
    """What is known of a view.

    :param promoted: the version that serves; 0: none yet.
    """

    versions: tuple[KnownVersion, ...] = ()
    promoted: int = 0
    retries: tuple[RetryAsked, ...] = ()

    def version(self, number: int) -> KnownVersion | None:
        """One of its versions."""
        return next((each for each in self.versions if each.version == number), None)


def evolve(view: KnownView, event: RegistryEvent) -> KnownView:
    """A view after an event."""
    replace = msgspec.structs.replace
    match event:
        case Declared(version, shape, topics, is_keyed, goal):
            known = KnownVersion(version, shape, topics, is_keyed, goal)
            others = [each for each in view.versions if each.version != version]
            versions = sorted([*others, known], key=lambda each: each.version)
            return replace(view, versions=tuple(versions))
        case Promoted(version):
            return replace(_with(view, version, is_building=False), promoted=version)
        case Rebuilding(version, shape, goal):
            return _with(view, version, shape=shape, goal=goal, is_building=True)
        case Rebuilt(version):
            return _with(view, version, is_building=False)
        case Dropped(version):
            left = tuple(each for each in view.versions if each.version != version)
            retries = tuple(each for each in view.retries if each.version != version)
            promoted = 0 if view.promoted == version else view.promoted
            return KnownView(left, promoted, retries)
        case RetryAsked():
            return replace(view, retries=(*view.retries, event))
        case RetryDone(id):
            return replace(view, retries=tuple(each for each in view.retries if each.id != id))


def _with(view: KnownView, version: int, **changes: Any) -> KnownView:
    return msgspec.structs.replace(
        view,
        versions=tuple(
            msgspec.structs.replace(each, **changes) if each.version == version else each
            for each in view.versions
        ),
    )


# -- decisions ------------------------------------------------------------------------------------


def declare(view: KnownView, name: str, declared: Declared) -> Declared | None:
    """A version is declared by a process.

    :raises ConfigError: with documents of another shape, or other topics, than before.
    """
    known = view.version(declared.version)
    if known is None:
        return declared
    check_declaration(name, known, declared.shape, declared.topics, declared.is_keyed)
    return None


def check_declaration(
    name: str, known: KnownVersion, shape: str, topics: tuple[str, ...], is_keyed: bool
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


def promote(view: KnownView, version: int) -> Promoted | None:
    """A version is to serve; nothing where a later one does, or this one."""
    known = view.version(version)
    return Promoted(version) if known is not None and version > view.promoted else None


def finish_rebuild(view: KnownView, version: int) -> Rebuilt | None:
    """A version has reached its goal again."""
    known = view.version(version)
    return Rebuilt(version) if known is not None and known.is_building else None


def ask_retry(view: KnownView, request: RetryAsked) -> RetryAsked | None:
    """A document is to be folded on; nothing where that is asked for already."""
    if any(each.asks_the_same(request) for each in view.retries):
        return None
    return request if len(view.retries) < MAX_RETRIES else None


def end_retry(view: KnownView, id: str, goes_on: bool) -> RetryDone | None:
    """A request was carried out."""
    return RetryDone(id, goes_on) if any(each.id == id for each in view.retries) else None


# -- the registry ---------------------------------------------------------------------------------


def _pass_over(event: bytes) -> None:
    """What a later release may write, and this one does not know, changes nothing here."""


class ViewRegistry:
    """The registry in an app: one for all of its views."""

    def __init__(self, app: Streams) -> None:
        codec: EventCodec[RegistryEvent] = EventCodec(NAME, RegistryEvent, None)
        codec.add_upcast(bytes, _pass_over)
        self._topic: EventTopic[RegistryEvent] = EventTopic(app, NAME, codec, 1)
        self._runtime = AggregateRuntime(
            Definition(
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
        options = Options(cause=False, retry=CONFLICT_RETRY)

        def decide(state: KnownView) -> Sequence[RegistryEvent]:
            found = decision(state, *given)
            return () if found is None else (found,)

        return await self._runtime.decide(view, decide, options)
