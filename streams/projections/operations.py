"""Inspects, promotes and drops projections, for a connected app, which need not run processors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from streams.config import DeadLetters
from streams.databases.sqlite_files import check_file
from streams.errors import ConfigError, InvalidValue, NotFound
from streams.inbox.tables import find_version
from streams.log.protocol import GroupInfo, Log
from streams.projections import tables
from streams.projections.projection import (
    Projection,
    PromotionOutcome,
    find_table,
    group_of,
    run_and_commit,
    scope_numbers,
)
from streams.projections.sessions import CommitRequest, Transactions, Work
from streams.projections.tables import StoredVersion

FORGOTTEN_AT_ONCE = 5_000
"""Rows of the inbox that are deleted in one transaction."""

PAUSE = 0.02
"""Seconds between two of these transactions."""


class VersionProgress(NamedTuple):
    """How many messages of its topics a version has settled; None if that is unknown."""

    handled: int | None
    total: int | None

    @property
    def share(self) -> float | None:
        """The settled share, from 0 to 1."""
        if self.handled is None or self.total is None:
            return None
        return 1.0 if not self.total else min(1.0, self.handled / self.total)


class PartitionPosition(NamedTuple):
    """A version's position in one partition.

    :param position: everything below it is settled; None: nothing yet.
    :param lag: the number of messages from there on; None if that is unknown.
    """

    topic: str
    partition: int
    position: int | None
    lag: int | None


class VersionState(NamedTuple):
    """A version of a projection, with its progress.

    :param declared: the app's code declares it.
    :param processes: the number of processes that run it now.
    """

    name: str
    version: int
    serves: bool
    declared: bool
    state: str
    processes: int
    progress: VersionProgress
    partitions: tuple[PartitionPosition, ...]


class ProjectionState(NamedTuple):
    """A projection of an app.

    :param serving: the version that serves; None: none does yet.
    """

    name: str
    serving: int | None
    versions: tuple[VersionState, ...]


def by_name(declared: Iterable[Projection], name: str | None = None) -> dict[str, list[Projection]]:
    """Declared versions by the names of their projections, the oldest first.

    :raises ConfigError: there are none, or none of this name.
    """
    found: dict[str, list[Projection]] = {}
    for each in sorted(declared, key=lambda each: (each.name, each.version)):
        found.setdefault(each.name, []).append(each)
    if not found:
        raise ConfigError("the app declares no projection: a processor with version=")
    if name is not None:
        if name not in found:
            raise ConfigError(
                f"the app declares no projection {name!r}; it has {', '.join(map(repr, found))}"
            )
        found = {name: found[name]}
    return found


async def inspect_projections(
    log: Log, declared: Iterable[Projection], name: str | None = None
) -> list[ProjectionState]:
    """The projections that an app declares, or one of them.

    :raises ConfigError: there is none of that name.
    :raises NotFound: the tables' SQLite file is not there.
    """
    return [
        await _inspect_projection(log, each, versions)
        for each, versions in by_name(declared, name).items()
    ]


async def _inspect_projection(log: Log, name: str, declared: list[Projection]) -> ProjectionState:
    known = await _known_versions(declared[0].transactions, name)
    topics = {version: tuple(each.goal) for version, each in known.items()}
    topics |= {each.version: each.topics for each in declared}
    serving = max((each.version for each in known.values() if each.serves), default=None)
    ours = {each.version for each in declared}

    def look() -> list[VersionState]:
        return [
            _version_state(log, name, version, serving, version in ours, topics[version])
            for version in sorted(topics)
        ]

    return ProjectionState(name, serving, tuple(await asyncio.to_thread(look)))


async def _known_versions(transactions: Transactions, name: str) -> dict[int, StoredVersion]:
    """:raises NotFound: the database is a SQLite file that is not there."""
    check_file(transactions.database.address())

    def look() -> Work[list[StoredVersion]]:
        if not (yield from find_table(transactions.database)):
            return []
        return (yield from tables.versions_of(name))

    return {each.version: each for each in await transactions.run(look(), reading=True)}


def _version_state(
    log: Log, name: str, version: int, serving: int | None, declared: bool, topics: Iterable[str]
) -> VersionState:
    group = _find_group(log, group_of(name, version))
    partitions = tuple(_partition_states(log, group, topics))
    progress = progress_of(log, partitions)
    if version == serving:
        state = "serves"
    elif serving is not None and version < serving:
        state = "replaced"
    else:
        state = "ready" if progress.share == 1.0 else "building"
    processes = 0 if group is None else len(group.members)
    return VersionState(
        name, version, version == serving, declared, state, processes, progress, partitions
    )


def _find_group(log: Log, group: str) -> GroupInfo | None:
    try:
        return log.describe_group(group)
    except NotFound:
        return None


def _partition_states(
    log: Log, group: GroupInfo | None, topics: Iterable[str]
) -> Iterable[PartitionPosition]:
    for topic in topics:
        positions = {} if group is None else group.committed_in(topic)
        try:
            partitions = log.describe_topic(topic).partitions
        except NotFound:
            continue  # a version that is no longer declared may have read it
        for partition in range(partitions):
            committed = positions.get(partition)
            first = log.watermarks(topic, partition)[0]
            position = None if committed is None else committed.position
            lag = log.lag(topic, partition, first if position is None else position)
            yield PartitionPosition(topic, partition, position, lag)


def progress_of(log: Log, partitions: Iterable[PartitionPosition]) -> VersionProgress:
    """The total progress over these partitions (blocks)."""
    total = lag = 0
    for each in partitions:
        first = log.watermarks(each.topic, each.partition)[0]
        size = log.lag(each.topic, each.partition, first)
        if size is None or each.lag is None:
            return VersionProgress(None, None)
        total += size
        lag += min(each.lag, size)
    return VersionProgress(total - lag, total)


async def promote_version(
    declared: Iterable[Projection], name: str, version: int
) -> PromotionOutcome:
    """Promote a version, if it has handled everything that the serving version has.

    :raises ConfigError: the app does not declare it.
    :raises NotFound: the tables' SQLite file is not there.
    """
    for each in by_name(declared, name)[name]:
        if each.version == version:
            check_file(each.database.address())
            return await each.promote()
    raise ConfigError(
        f"the app does not declare version {version} of projection {name!r}, and what is to be "
        "done when it is promoted (on_promote=) stands in its code"
    )


async def drop_version(log: Log, declared: Iterable[Projection], name: str, version: int) -> None:
    """Drop a version: its group, its rows in the inbox, its row among the versions. The user drops
    its tables. If the call is interrupted, it must be repeated.

    :raises InvalidValue: it serves.
    :raises GroupNotEmpty: processes run it.
    :raises NotFound: there is no such version.
    """
    transactions = by_name(declared, name)[name][0].transactions
    known = await _known_versions(transactions, name)
    found = known.get(version)
    if found is None:
        raise NotFound(f"projection {name!r} has no version {version}")
    if found.serves:
        raise InvalidValue(
            f"version {version} of projection {name!r} serves: promote another first"
        )
    group = group_of(name, version)
    put_back = DeadLetters().retry  # redriven dead letters are in these topics
    topics = [topic for each in found.goal for topic in (each, put_back(each, group))]

    def delete_group() -> None:
        with suppress(NotFound):
            log.delete_group(group)

    def find_scopes() -> list[int]:
        known = set(log.list_topics())
        return scope_numbers(log, group, [topic for topic in topics if topic in known])

    def has_inbox() -> Work[bool]:
        return (yield from find_version(transactions.database.dialect)) is not None

    def forget_portion(scope: int) -> Work[bool]:
        dialect = transactions.database.dialect
        has_more = yield from tables.forget_handled(dialect, scope, FORGOTTEN_AT_ONCE)
        yield CommitRequest()
        return has_more

    await asyncio.to_thread(delete_group)
    scopes = await asyncio.to_thread(find_scopes)
    for scope in scopes if await transactions.run(has_inbox(), reading=True) else ():
        has_more = True
        while has_more:
            has_more = await transactions.run(forget_portion(scope))
            await asyncio.sleep(PAUSE)  # a SQLite file has other writers
    await asyncio.to_thread(delete_group)  # unless somebody has begun to run it meanwhile
    await transactions.run(run_and_commit(tables.delete_version(name, version)))
