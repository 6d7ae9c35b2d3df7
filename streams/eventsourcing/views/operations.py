"""What people who operate views do to them, by the log alone: promote, rebuild, drop, retry.

The app's code is not needed. Each of these is decided in the registry, so that it is known to all
processes, and can be done again after it was interrupted anywhere: what is done already is found
done.

* **Rebuild** says first that the version is being cleared: from then on nothing serves from it.
  Processes that run hear of that within a second (:data:`HEARD_AFTER`), which is waited for. Then
  the documents of each partition are deleted, and whoever writes them is fenced. At last the
  registry says how far the new ones have to come, and whoever folds begins anew.
  Of a keyed version, the keyed topic is deleted before them and written again from the sources: it
  may have been trimmed, the sources made anew, or their events be others in the code of today. So
  nobody may run it meanwhile.
* **Drop** deletes the documents, the keyed topic and the groups, and forgets the version at last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from streams.app import Streams
from streams.cancellation import run_in_thread
from streams.errors import NotFound, StreamsError
from streams.eventsourcing.views.family import HEARD_AFTER, PROMOTION_LAG, wait_until
from streams.eventsourcing.views.inspection import VersionInspector
from streams.eventsourcing.views.registry import (
    KnownView,
    KnownViewVersion,
    ViewRegistry,
    drop,
    goal_texts,
    promote,
    rebuild,
)
from streams.eventsourcing.views.tracker import VersionTracker
from streams.log.floor import floor_group


class ViewOperationRefused(StreamsError):
    """What was asked for would do harm; the text says which, and what to do instead."""


def _do_nothing() -> None:
    pass


class ViewOperator:
    """Changes the versions of one view. Made by :func:`connected_operator`."""

    def __init__(self, app: Streams, registry: ViewRegistry, name: str) -> None:
        self._app = app
        self._registry = registry
        self.name = name

    async def load(self) -> KnownView:
        """What the registry says."""
        return await self._registry.load(self.name)

    async def _version(self, number: int) -> tuple[KnownView, VersionInspector]:
        view = await self.load()
        known = view.find_version(number)
        if known is None:
            raise NotFound(f"view {self.name!r} has no version {number}")
        return view, VersionInspector(self._app.log, self.name, view, known)

    async def promote(self, number: int, *, force: bool = False) -> bool:
        """Have a version serve; False: it did already.

        :param force: also if it has not come as far as it has to.
        :raises ViewOperationRefused: it cannot serve.
        """
        view, inspector = await self._version(number)
        known = inspector.known
        if view.promoted > number:
            raise ViewOperationRefused(
                f"view {self.name!r}: version {view.promoted} serves, and what was promoted stays "
                f"so: no version before it can be promoted again"
            )
        if view.promoted == number:
            return False
        if known.is_clearing:
            raise ViewOperationRefused(self._interrupted(known))
        if not force and not await self._comes_as_far(inspector):
            share = (await run_in_thread(inspector.tracker.progress)).share
            done = "" if share is None else f" ({share:.0%} of its events are folded)"
            compared = f"as version {view.promoted}" if view.promoted else "as its goal"
            raise ViewOperationRefused(
                f"view {self.name!r}: version {number} has not come as far {compared}{done}: "
                "readers would see older documents; wait, or give --force"
            )
        decided = await self._registry.decide(self.name, promote, number, known.builds)
        return bool(decided.events)

    async def _comes_as_far(self, inspector: VersionInspector) -> bool:
        """It has folded what the version that serves has now, or has in a moment."""
        deadline = time.monotonic() + PROMOTION_LAG
        try:
            goal = await run_in_thread(inspector.goal_coverage)
            await wait_until(goal.is_reached, deadline)
        except TimeoutError:
            return False
        return True

    async def rebuild(
        self,
        number: int,
        *,
        heard_after: float | None = None,
        on_cleared: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Delete a version's documents, so that whoever runs it makes them anew.

        :param heard_after: seconds to wait until processes know that it does not serve; None:
            :data:`HEARD_AFTER`.
        :returns: how many partitions were cleared.
        :raises ViewOperationRefused: it is keyed, and is run: its events are to be written again
            by key from the sources, which cannot be done beside that.
        """
        _, inspector = await self._version(number)
        collection, tracker = inspector.collection, inspector.tracker
        store, is_keyed = tracker.store, inspector.known.is_keyed
        if is_keyed:
            await self._check_nobody_runs(inspector)
        goal = goal_texts(await run_in_thread(inspector.tracker.source_ends))
        await self._registry.decide(self.name, rebuild, number, goal, True)
        count = await run_in_thread(inspector.tracker.partitions)
        if count:
            await asyncio.sleep(HEARD_AFTER if heard_after is None else heard_after)
        if is_keyed:  # before the documents: nobody is to fold what is deleted
            await self._check_nobody_runs(inspector)
            await self._delete_keyed_topic(tracker)
        for partition in range(count):
            await run_in_thread(store.clear, collection, partition)
            on_cleared(partition + 1, count)
        goal = goal_texts(await run_in_thread(inspector.tracker.source_ends))
        await self._registry.decide(self.name, rebuild, number, goal, False)
        return count

    async def _check_nobody_runs(self, inspector: VersionInspector) -> None:
        """:raises ViewOperationRefused: somebody does."""
        members = await run_in_thread(inspector.members)
        if members:
            number = inspector.known.version
            raise ViewOperationRefused(
                f"view {self.name!r}: version {number} is run by {', '.join(members[:5])}, and its "
                f"keyed topic {inspector.tracker.keyed_topic} is written again from the sources: "
                "stop the processes that declare it and run this again, or declare version "
                f"{number + 1} beside it, which is built while this one serves"
            )

    async def _delete_keyed_topic(self, tracker: VersionTracker) -> None:
        """Have whoever writes events by key begin anew. The floor goes last: until then nobody
        takes what is left of the topic for all of it."""
        log, topic = self._app.log, tracker.keyed_topic
        await _delete_all(
            partial(log.delete_group, topic),
            partial(log.delete_group, tracker.collection),
            partial(log.delete_topic, topic),
            partial(log.delete_group, floor_group(topic)),
        )

    def _interrupted(self, known: KnownViewVersion) -> str:
        return (
            f"view {self.name!r}: the documents of version {known.version} are being deleted, or "
            f"that was interrupted: streams views rebuild {self.name} --version {known.version} "
            "finishes it"
        )

    async def check_drop(self, number: int, *, force: bool = False) -> None:
        """See that a version can be dropped.

        :param force: also while it serves.
        :raises ViewOperationRefused: it cannot.
        """
        view, inspector = await self._version(number)
        members = await run_in_thread(inspector.members)
        if members:
            raise ViewOperationRefused(
                f"view {self.name!r}: version {number} is run by {', '.join(members[:5])}: stop "
                "the processes that declare it first (one that was killed is gone when its lease "
                "has run out)"
            )
        if view.promoted == number and not force:
            raise ViewOperationRefused(
                f"view {self.name!r}: version {number} serves: promote another one first, or give "
                "--force"
            )

    async def drop(self, number: int, *, force: bool = False) -> None:
        """Delete a version's documents, its keyed topic and its groups, and forget it.

        :raises ViewOperationRefused: it is run, or serves.
        """
        await self.check_drop(number, force=force)
        _, inspector = await self._version(number)
        log, tracker = self._app.log, inspector.tracker
        deletions: list[Callable[[], Any]] = [
            partial(log.delete_group, group) for group in inspector.groups
        ]
        if inspector.known.is_keyed:
            deletions.append(partial(log.delete_topic, tracker.keyed_topic))
            deletions.append(partial(log.delete_group, floor_group(tracker.keyed_topic)))
        deletions.append(partial(tracker.store.delete, inspector.collection))
        await _delete_all(*deletions)
        await self._registry.decide(self.name, drop, number)

    async def retry(
        self,
        number: int,
        key: bytes,
        timeout: float,  # noqa: ASYNC109 - whether it was done is the answer
        while_waiting: Callable[[], None] = _do_nothing,
    ) -> bool | None:
        """Have a document that stands still folded on by whoever runs the version.

        :returns: whether it stands still no more; None: nobody did it in time. It is done as soon
            as somebody runs.
        :raises NotFound: there is no such document.
        """
        _, inspector = await self._version(number)
        found = await run_in_thread(inspector.find_document, key)
        if found is None:
            raise NotFound(f"view {self.name!r}: version {number} has no document of this key")
        partition, document = found
        if not document.failure:
            return True
        if not await self._registry.retry(
            self.name, number, partition, key, timeout, while_waiting
        ):
            return None
        found = await run_in_thread(inspector.find_document, key)
        return found is None or not found[1].failure


async def _delete_all(*deletions: Callable[[], Any]) -> None:
    """Delete these in turn; what is not there was deleted before this was interrupted, or never
    made."""
    for delete in deletions:
        try:
            await run_in_thread(delete)
        except NotFound:
            continue


@asynccontextmanager
async def connected_operator(
    url: str, name: str, config: Mapping[str, Any] | None = None
) -> AsyncIterator[ViewOperator]:
    """What changes a view on a log.

    :param config: settings of the log's driver.
    :raises LogError: the log cannot be reached.
    """
    app = Streams(url, config=config)
    registry = ViewRegistry(app)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.connected())
        yield ViewOperator(app, registry, name)
