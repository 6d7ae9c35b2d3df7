"""Views as users declare and read them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, overload

from typing_extensions import TypeVar

from stream_codecs import Codec
from streams.app import Streams
from streams.cancellation import run_in_thread
from streams.config import Dedup
from streams.decoding import Source
from streams.errors import InvalidValue, NotFound
from streams.eventsourcing.results import Decided
from streams.eventsourcing.views.checkpoint_check import REMEDY
from streams.eventsourcing.views.definition import KeyFunction, define_view
from streams.eventsourcing.views.errors import ViewTimeout
from streams.eventsourcing.views.family import ViewFamily, wait_until
from streams.eventsourcing.views.known_coverage import KnownCoverage
from streams.eventsourcing.views.registry import ViewRegistry
from streams.eventsourcing.views.tracker import Coverage, FoldingProgress
from streams.eventsourcing.views.version import ViewVersion, key_bytes
from streams.health import ViewBacklog, ViewHealth, ViewStats
from streams.log.documents import Checkpoint, end_of_prefix
from streams.log.names import partition_for
from streams.log.protocol import TopicPartition
from streams.message import Message, Position, text
from streams.numbers import is_int

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")

Keys = str | Sequence[str] | None
"""Which documents an event changes."""

Fold = Callable[[D | None, E], D | None] | Callable[[D | None, E, Message[E]], D | None]
"""A view's function: the document after an event, of the one before and the event; it may take the
message as a third."""

WaitFor = Decided[Any, Any] | Position | Message[Any] | str
"""What a reader waits for: a decision, the position of a message, or one of them as text."""

MAX_SCAN = 10_000
"""Documents that one scan returns, at most."""


class ReadyVersion(NamedTuple):
    """The version to read, and what is known of its documents.

    :param version: that serves.
    :param partitions: of its documents; None: the log was not asked.
    :param covered: what this process knows to be folded of it, where that helps.
    :param coverage: what the log was asked; None: nothing.
    """

    version: ViewVersion
    partitions: int | None
    covered: KnownCoverage | None
    coverage: Coverage | None


class View(Generic[D]):
    """Documents by key, folded from the events of one topic or several.

    :param name: of the view. With the version it is the name of its group.
    :param document: the type of its documents; frozen.
    :param fold: the document after an event, of the document before (None: there is none) and the
        event; it may take the message as a third. None: there is no document any more. It must not
        do anything else.
    :param topics: that it reads, from the beginning.
    :param key: which document an event changes, or several, or None; left out, the one of its
        message's key, which takes a single topic.
    :param version: a view that changes gets a new one, which is built beside the old.
    :param codec: of the documents; JSON unless said otherwise.
    :param promote: serve from this version as soon as it has come far enough; False: only once
        ``streams views promote`` says so.
    :param dedup: its window says within how many messages of a partition a message counts once
        that was published twice; ``Dedup(window=0)``: each is folded. The cap has no meaning here.
        An aggregate's events need none.
    :raises ConfigError: a declaration that cannot work.
    """

    # fmt: off
    # Of one topic, two, three, and more: the events' types are known up to there.
    @overload
    def __init__(
        self, app: Streams, name: str, document: type[D], fold: Fold[D, A], a: Source[A], /, *,
        key: Callable[[A], Keys] | None = None,
        version: int = 1, codec: Codec | None = None, promote: bool = True,
        dedup: Dedup = ...,
    ) -> None: ...
    @overload
    def __init__(
        self, app: Streams, name: str, document: type[D], fold: Fold[D, A | B],
        a: Source[A], b: Source[B], /, *, key: Callable[[A | B], Keys] | None = None,
        version: int = 1, codec: Codec | None = None, promote: bool = True,
        dedup: Dedup = ...,
    ) -> None: ...
    @overload
    def __init__(
        self, app: Streams, name: str, document: type[D], fold: Fold[D, A | B | C],
        a: Source[A], b: Source[B], c: Source[C], /, *,
        key: Callable[[A | B | C], Keys] | None = None,
        version: int = 1, codec: Codec | None = None, promote: bool = True,
        dedup: Dedup = ...,
    ) -> None: ...
    @overload
    def __init__(
        self, app: Streams, name: str, document: type[D], fold: Callable[..., D | None],
        a: Source[Any], b: Source[Any], c: Source[Any], d: Source[Any], /, *topics: Source[Any],
        key: Callable[[Any], Keys] | None = None,
        version: int = 1, codec: Codec | None = None, promote: bool = True,
        dedup: Dedup = ...,
    ) -> None: ...
    # fmt: on

    def __init__(
        self,
        app: Streams,
        name: str,
        document: type[D],
        fold: Callable[..., D | None],
        /,
        *topics: Source[Any],
        key: KeyFunction | None = None,
        version: int = 1,
        codec: Codec | None = None,
        promote: bool = True,
        dedup: Dedup = Dedup(),
    ) -> None:
        definition = define_view(app, name, document, fold, topics, key, version, codec, dedup)
        self.app = app
        self.name = name
        self.version = version
        self._definition = definition
        self._family = family_of(app, name)
        self._version: ViewVersion = self._family.add(definition, promotes=promote)
        app.views[definition.collection] = self

    def __repr__(self) -> str:
        return f"<View {self.name!r} version {self.version}>"

    def __call__(self, *given: Any) -> D | None:
        """Call the function, as the plain function it is."""
        found: D | None = self._definition.fold(*given)
        return found

    # -- reading

    async def get(
        self,
        key: str,
        *,
        wait_for: WaitFor | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 - the error says what was waited for
    ) -> D | None:
        """A document; None: there is none.

        :param wait_for: read at least up to there: what a decision came to, the position of a
            message, or either as text (a token from another process).
        :param timeout: seconds to wait, at most.
        :raises ViewNotReady: no version that this process declares can serve yet.
        :raises DocumentStopped: it stands still, where the view's function failed.
        :raises ViewTimeout: what was waited for is not folded in time.
        :raises InvalidValue: ``wait_for`` is no place in the view's topics.
        :raises Unavailable: the log cannot be reached.
        """
        encoded = key_bytes(self._definition.where, key)
        deadline = time.monotonic() + timeout
        while True:
            ready = await self._wait_ready([encoded], wait_for, deadline)
            version = ready.version
            found = await self._in_thread(version.read, self.app.log, encoded, ready.partitions)
            if self._is_confirmed(ready, {found.partition: found.checkpoint}):
                break
        positions = version.source_positions(found.partition, found.checkpoint)
        self._family.note_served(version, positions)
        document: D | None = found.document
        return document

    async def get_many(
        self,
        keys: Iterable[str],
        *,
        wait_for: WaitFor | None = None,
        timeout: float = 10.0,  # noqa: ASYNC109 - as above
    ) -> dict[str, D]:
        """Documents by key; those that there are. Each is read as :meth:`get` reads it."""
        encoded = [key_bytes(self._definition.where, key) for key in keys]
        deadline = time.monotonic() + timeout
        while True:
            ready = await self._wait_ready(encoded, wait_for, deadline)
            version = ready.version
            found = await self._in_thread(
                version.read_many, self.app.log, encoded, ready.partitions
            )
            if self._is_confirmed(ready, found.checkpoints):
                break
        self._family.note_served(version, found.positions)
        return {text(key): document for key, document in found.documents}

    async def scan(
        self, prefix: str = "", *, limit: int = 100, start: str = ""
    ) -> list[tuple[str, D]]:
        """Keys and documents in the order of their keys (of their UTF-8 bytes), without those that
        stand still.

        :param prefix: only of keys that begin with it.
        :param limit: how many, at most; to go on, give the last one's key with a NUL behind it as
            ``start``.
        :param start: only of keys from this one on.
        """
        where = self._definition.where
        if not is_int(limit, 1, MAX_SCAN):
            raise InvalidValue(
                f"{where}: limit={limit!r}: must be an integer from 1 to {MAX_SCAN:,}"
            )
        first = key_bytes(where, prefix)
        end = end_of_prefix(first)
        first = max(first, key_bytes(where, start))
        version = (await self._wait_ready((), None, time.monotonic() + 10.0)).version
        another = len(self._family.versions) > 1  # may take over, and must not be behind this
        scan = partial(version.scan, with_positions=another)
        found = await self._in_thread(scan, self.app.log, first, end, limit)
        self._family.note_served(version, found.positions)
        return [(text(key), document) for key, document in found.documents]

    async def watch(self, key: str) -> AsyncIterator[D | None]:
        """A document as it is, and then each time that it has changed; without an end.

        Of changes that follow each other faster than they are read, the last is given.

        :raises DocumentStopped: it stands still.
        """
        pause, last, is_first = 0.002, None, True
        while True:
            document = await self.get(key)
            if is_first or document != last:
                pause, last, is_first = 0.002, document, False
                yield document
                continue
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 1.5)

    async def retry(
        self,
        key: str,
        *,
        timeout: float = 30.0,  # noqa: ASYNC109 - as above
    ) -> bool:
        """Have a document of this version that stands still folded on, by whichever process folds
        its partition, once the view's function was mended.

        :returns: whether it stands still no more.
        :raises ViewTimeout: no process did so in time; it is done as soon as one runs.
        :raises InvalidValue: there are too many such requests.
        """
        encoded = key_bytes(self._definition.where, key)
        found = await self._in_thread(self._version.read_stored, self.app.log, encoded)
        if found.document is None or not found.document.failure:
            return True
        if not await self._family.retry(self.version, found.partition, encoded, timeout):
            raise ViewTimeout(
                f"view {self.name!r}: no process that declares version {self.version} has folded "
                f"document {key!r} on in time: it is done as soon as one runs"
            )
        found = await self._in_thread(self._version.read_stored, self.app.log, encoded)
        return found.document is None or not found.document.failure

    async def promote(self) -> None:
        """Let this version serve from now on, everywhere and for good, however far it has come.
        Nothing happens where it, or a later one, does so already.

        :raises ViewNotReady: no process has begun to build it.
        """
        await self._family.promote(self.version)

    async def ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        """Wait until the view can be read.

        :param timeout: seconds to wait, at most; None: for as long as it takes.
        :raises ViewNotReady: it cannot, by then.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        await self._family.serving_by(deadline)

    def describe_pending_work(self) -> str:
        """What keeps it from being read although it is to be, in words; empty when nothing does
        (any thread)."""
        return self._family.describe_pending_work(self.version)

    async def progress(self) -> FoldingProgress:
        """How much of its topics this version has folded, whoever folds them."""
        return await self._family.progress(self.version)

    def health(self) -> ViewHealth:
        """How it is, as this process sees it."""
        return self._family.health(self.version)

    def stats(self) -> ViewStats:
        """Figures of this version in this process."""
        return self._family.stats(self.version)

    def backlog(self) -> ViewBacklog:
        """What the log says of this version, whoever folds it; blocks.

        :raises NotRunning: the app is not entered.
        :raises LogError: the log does not answer.
        """
        return self._family.backlog(self.version)

    @property
    def declared(self) -> ViewVersion:
        """This version, for what looks at it without running the app."""
        return self._version

    async def _wait_ready(
        self, keys: Sequence[bytes], wait_for: WaitFor | None, deadline: float
    ) -> ReadyVersion:
        """The version that serves, once it has folded what is waited for.

        :param keys: of the documents that are to be read.
        """
        count: int | None = None
        covered: KnownCoverage | None = None
        coverage: Coverage | None = None
        family = self._family
        positions = {} if wait_for is None else self._wanted_positions(wait_for)
        for topic, partition in positions:
            # Any client may send a token: nothing is waited for that cannot come.
            count = await family.partition_count(topic, partition)
            if not 0 <= partition < count:
                has = f"has partitions 0 to {count - 1}" if count else "does not exist"
                raise InvalidValue(
                    f"view {self.name!r}: wait_for={topic}/{partition}: topic {topic!r} {has}"
                )
        version = await (family.serving_by(deadline) if positions else family.serving())
        try:
            await family.catch_up(deadline)
            if positions:
                tracker = version.tracker(self.app.log)
                partitions: set[int] | None = None
                if version.definition.is_keyed:
                    covered = family.known_coverage(version.definition.version)
                    if count := await run_in_thread(tracker.partitions) or None:
                        partitions = {partition_for(key, "", count) for key in keys}
                        if covered.covers(positions, partitions):
                            return ReadyVersion(version, count, covered, None)
                coverage = Coverage(tracker, positions, partitions)
                await wait_until(coverage.is_reached, deadline)
        except TimeoutError:
            replaced = await self._in_thread(version.tracker(self.app.log).replaced_topic)
            if replaced:
                raise ViewTimeout(
                    f"view {self.name!r}: the documents of version {version.definition.version} "
                    f"are made of a topic {replaced!r} that was deleted, and go on no more: "
                    f"{REMEDY}"
                ) from None
            shown = ", ".join(f"{topic}/{number}" for topic, number in positions)
            raise ViewTimeout(
                f"view {self.name!r}: version {version.definition.version} has not folded in time "
                f"what was waited for{f' in {shown}' if shown else ''}: is a process running that "
                "declares it?"
            ) from None
        return ReadyVersion(version, count, covered, coverage)

    def _is_confirmed(
        self, ready: ReadyVersion, checkpoints: Mapping[int, Checkpoint | None]
    ) -> bool:
        """Whether documents were read that have what is waited for; False: the log must be asked,
        as what this process knew may be of documents that were deleted.

        :param checkpoints: with which they were read, by partition.
        """
        version, _, covered, coverage = ready
        if covered is None:  # nothing was known, nor is to be
            return True
        is_current = self._family.is_current(version.definition.version, covered)
        for partition, checkpoint in checkpoints.items():
            position = 0 if checkpoint is None else checkpoint.position
            sources = version.source_positions(partition, checkpoint)
            if coverage is None:
                if not is_current or not covered.includes_checkpoint(partition, position, sources):
                    covered.clear()
                    return False
            elif is_current and position >= coverage.keyed_ends.get(partition, position + 1):
                covered.extend(partition, position, sources, coverage.written)
        return True

    def _wanted_positions(self, wait_for: WaitFor) -> Mapping[TopicPartition, int]:
        """Up to where the sources have to be folded."""
        found: Position | None
        if isinstance(wait_for, Decided):
            found = wait_for.last
        elif isinstance(wait_for, Message):
            found = wait_for.position
        elif isinstance(wait_for, str):
            found = Position.parse(wait_for) if wait_for else None
        elif isinstance(wait_for, Position):
            found = wait_for
        else:
            raise InvalidValue(
                f"view {self.name!r}: wait_for={wait_for!r}: what decide() returned, a position, a "
                "message, or one of them as text"
            )
        if found is None:
            return {}
        names = self._definition.topics
        if found.topic not in names:
            raise InvalidValue(
                f"view {self.name!r}: wait_for={str(found)!r}: it reads {', '.join(names)}"
            )
        return {(found.topic, found.partition): int(found.offset) + 1}

    async def _in_thread(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return await run_in_thread(function, *given)
        except NotFound as error:
            raise await self._family.documents_missing(error) from error


def family_of(app: Streams, name: str) -> ViewFamily:
    """The family of a view in an app; made with the first of its versions."""
    registry: ViewRegistry | None = None
    for each in app.resources:
        if isinstance(each, ViewFamily):
            registry = each.registry
            if each.name == name:
                return each
    family = ViewFamily(app, name, registry or ViewRegistry(app))
    app.add_resource(family)
    return family
