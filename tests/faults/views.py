"""Views whose documents tell of what they were folded from, processes that fold them, and the
plain fold that both are held against.

A document is a chain: how many events, and a checksum over their IDs in their order. So an event
that is left out, folded twice or in another order makes another document.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from streams import Streams, View
from streams.errors import NotFound, OutcomeUnknown, Unavailable
from streams.eventsourcing import Aggregate
from streams.eventsourcing.views import keyed_topic
from streams.eventsourcing.views.checkpoints import decode_checkpoint
from streams.log.documents import DocumentLog
from streams.log.names import partition_for
from streams.log.protocol import Log
from streams.log.redis import retention
from streams.message import Message
from tests.faults.decider import AGGREGATES, Account, AccountEvent, account_name, declare

GROUPS = 7


class Chain(msgspec.Struct, frozen=True):
    """What was folded, in order."""

    count: int = 0
    sum: int = 0

    def then(self, what: str) -> Chain:
        return Chain(self.count + 1, crc32(what.encode(), self.sum))


class Chains(msgspec.Struct, frozen=True):
    """A chain for each partition of the source."""

    by_partition: tuple[Chain, ...] = ()

    def then(self, partition: int, what: str) -> Chains:
        found = list(self.by_partition)
        found += [Chain()] * (partition + 1 - len(found))
        found[partition] = found[partition].then(what)
        return Chains(tuple(found))


def event_name(event: AccountEvent) -> str:
    return f"{event.decision}/{event.index}"


def fold_account(chain: Chain | None, event: AccountEvent) -> Chain:
    """The direct view: a document an account."""
    return (chain or Chain()).then(event_name(event))


def fold_group(
    chains: Chains | None, event: AccountEvent, message: Message[AccountEvent]
) -> Chains:
    """The keyed view: documents whose events stand in all partitions."""
    return (chains or Chains()).then(message.partition, message.id)


def groups_of(event: AccountEvent) -> list[str]:
    """Two documents that an event changes; some events change none."""
    first = crc32(event_name(event).encode()) % (GROUPS + 1)
    return [f"group-{each % GROUPS}" for each in (first, first + 3)] if first < GROUPS else []


@dataclass
class Views:
    """An app with accounts and their views, as each process has them."""

    app: Streams
    accounts: Aggregate[AccountEvent, Account]
    by_account: View[Chain]
    by_group: View[Chains]


def declare_views(url: str, name: str) -> Views:
    app = Streams(url)
    accounts = declare(app, name)
    by_account: View[Chain] = View(app, f"{name}.direct", Chain, fold_account, accounts.events)
    by_group: View[Chains] = View(
        app, f"{name}.groups", Chains, fold_group, accounts.events, key=groups_of
    )
    return Views(app, accounts, by_account, by_group)


async def enter(stack: AsyncExitStack, app: Any, stopping: Callable[[], bool]) -> bool:
    """Enter an app as soon as its log can be reached; False if it is to stop before that."""
    while not stopping():
        try:
            await stack.enter_async_context(app)
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return True
    return False


async def fold_until(url: str, name: str, stopping: Callable[[], bool]) -> None:
    """Fold the views until it is to stop."""
    async with AsyncExitStack() as stack:
        if await enter(stack, declare_views(url, name).app, stopping):
            while not stopping():  # noqa: ASYNC110 - a signal, told to any thread
                await asyncio.sleep(0.02)


async def decide_until(
    url: str, name: str, pause: float, tell: Any, stopping: Callable[[], bool]
) -> None:
    """Deposit into one account after the other; ``tell`` (a pipe) learns of each: the account, how
    many events it has, and the token of what was decided."""
    views, number = declare_views(url, name), 0
    async with AsyncExitStack() as stack:
        if not await enter(stack, views.app.connected(), stopping):
            return
        while not stopping():
            number += 1
            account = account_name(number * 17 % AGGREGATES)
            amounts = [1] * (1 + number % 3)
            call = f"{os.getpid()}-{number}"
            try:
                done = await views.accounts.decide(account, Account.deposit, amounts, call)
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.05)
                continue
            if tell is not None:
                tell.send((account, done.version, str(done)))
            await asyncio.sleep(pause)


def run_process(work: Callable[..., Any], *given: Any) -> None:
    """Work in a process of its own: SIGTERM stops it, and so does its parent's end."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is folded of the keyed topic is deleted all the time.
    keyed_topic.KEPT, keyed_topic.FLOOR_INTERVAL, retention.TRIM_INTERVAL = 100, 0.05, 0.1
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(work(*given, stopping.is_set))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- what they are held against --------------------------------------------------------------------


class Event(NamedTuple):
    """An event as it stands in its topic."""

    partition: int
    offset: int
    account: str
    id: str
    event: AccountEvent


class Look(NamedTuple):
    """The documents of one partition as they were read at one moment, with their checkpoint."""

    collection: str
    partition: int
    documents: dict[str, bytes]
    position: int
    sources: dict[str, tuple[int, int]]


ACCOUNTS = [account_name(number) for number in range(AGGREGATES)]
ALL_GROUPS = [f"group-{number}" for number in range(GROUPS)]


def look_at(log: Log, views: Views) -> Iterator[Look]:
    """Read what stands there: documents and checkpoint of each partition in one read."""
    assert isinstance(log, DocumentLog)
    store = log.documents
    for view, keys in ((views.by_account, ACCOUNTS), (views.by_group, ALL_GROUPS)):
        collection = f"{view.name}.v1"
        try:
            count = store.find(collection).partitions
        except NotFound:
            continue
        for partition in range(count):
            found = store.read(collection, partition, [key.encode() for key in keys])
            documents: dict[str, bytes] = {}
            for key, stored in zip(keys, found.documents, strict=True):
                if stored is not None:
                    assert not stored.failure, f"{collection}: {key} stands still"
                    assert stored.value is not None
                    documents[key] = stored.value
            checkpoint = found.checkpoint
            if checkpoint is None:
                assert not documents
                continue
            sources = decode_checkpoint(checkpoint).sources
            yield Look(collection, partition, documents, checkpoint.position, sources)


async def read_events(views: Views) -> list[Event]:
    """The history, read as whoever reads the topic of events finds it."""
    return [
        Event(
            each.partition,
            views.app.log.parse_offset(str(each.offset)),
            each.key or "",
            each.id,
            each.value,
        )
        async for each in views.accounts.events.read()
    ]


def differences(look: Look, views: Views, history: list[Event], partitions: int) -> list[str]:
    """In what documents differ from the plain fold of the history up to their checkpoint."""
    expected: dict[str, Any] = {}
    is_direct = look.collection == f"{views.by_account.name}.v1"
    if is_direct:
        for each in history:
            if each.partition == look.partition and each.offset < look.position:
                expected[each.account] = fold_account(expected.get(each.account), each.event)
    else:
        chains: defaultdict[str, Chains] = defaultdict(Chains)
        topic = views.accounts.events.name
        for each in history:
            last = look.sources.get(f"{topic}/{each.partition}", (-1, 0))
            for copy, key in enumerate(groups_of(each.event)):
                place = each.offset, copy
                if partition_for(key.encode(), "", partitions) == look.partition and place <= last:
                    chains[key] = chains[key].then(each.partition, each.id)
        expected = dict(chains)
    type_ = Chain if is_direct else Chains
    found = {key: msgspec.json.decode(value, type=type_) for key, value in look.documents.items()}
    return [
        f"{look.collection}/{look.partition} at {look.position}: {key}: {found.get(key)} stands "
        f"there, {expected.get(key)} is the fold"
        for key in sorted({*found, *expected})
        if found.get(key) != expected.get(key)
    ]
