"""Versions of a view: one is built while another serves, and takes over without a step back."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, ConfigError, ProcessorDied, Streams, View, ViewNotReady, ViewTimeout
from streams.eventsourcing.views import family as view_family
from streams.eventsourcing.views import inline_subscription, operations
from streams.eventsourcing.views.operations import ViewOperationRefused, connected_operator
from streams.eventsourcing.views.registry import (
    KnownView,
    KnownViewVersion,
    VersionDeclared,
    declare,
    drop,
)
from streams.eventsourcing.views.tracker import Coverage
from streams.eventsourcing.views.version import goal_of
from streams.log.names import partition_for
from streams.log.protocol import Log, TopicPartition
from tests.conformance.stage import PATIENCE, Stage
from tests.eventsourcing.bank import (
    Account,
    Closed,
    Deposited,
    Opened,
    Withdrawn,
    accounts,
    deposit,
)
from tests.eventsourcing.bank import evolve as evolve_account
from tests.views.bank import Balance, Bank, fold_holder, owner_of, unique

pytestmark = pytest.mark.anyio

OTHER = "d"
"""An account in another partition than those that are called a, b and c."""
assert partition_for(OTHER.encode(), "", 2) != partition_for(b"a", "", 2)


class Total(Struct, frozen=True):
    """What version 2 of the balances keeps."""

    tenths: int = 0


def fold_total(total: Total | None, event: Any) -> Total:
    return Total((total.tenths if total else 0) + 10 * getattr(event, "cents", 0))


def second_version(bank: Bank, **options: Any) -> View[Total]:
    return bank.accounts.view("balances", Total, version=2, **options)(fold_total)


async def decide_on(bank: Bank) -> None:
    """Deposit a cent again and again."""
    while True:
        await bank.accounts.decide("a", deposit, 1)
        await asyncio.sleep(0.001)


async def test_a_version_is_built_while_the_one_before_serves(stage: Stage) -> None:
    """Under load, in a process beside the old one: no read fails, and none steps back."""
    name = unique()
    old = Bank(stage.app(), name)
    async with old.app:
        for number in range(60):
            await old.accounts.decide(f"a-{number % 3}", deposit, number)
        done = await old.accounts.decide("a-0", deposit, 1)
        await old.balances.get("a-0", wait_for=done)
        load = asyncio.create_task(decide_on(old))
        new = Bank(stage.app(), name)
        second = second_version(new)
        last, served = 0, set[str]()
        async with new.app:
            while "Total" not in served or last < 30:
                # While the second is built the first serves here, so that is what is given.
                found: Any = await second.get("a")
                if found is None:
                    continue
                cents = found.cents if isinstance(found, Balance) else found.tenths // 10
                assert cents >= last
                last = cents
                served.add(type(found).__name__)
                # The process that knows only the first version is served on.
                assert not isinstance(await old.balances.get("a"), Total)
            load.cancel()
            with suppress(asyncio.CancelledError):
                await load
            done = await new.accounts.decide("a", deposit, 1)
            assert await second.get("a", wait_for=done) == Total(10 * done.state.cents)
            assert await old.balances.get("a", wait_for=done) == Balance(
                "", done.state.cents, done.version
            )
            health = new.app.health()
            assert {each.serving for each in health.views.values()} == {2}
            assert health.ok
    again = Bank(stage.app(), name)
    async with again.app:  # version 1 alone is declared: it goes on to be advanced and to serve
        done = await again.accounts.decide("a", deposit, 1)
        found = await again.balances.get("a", wait_for=done)
        assert found is not None
        assert found.cents == done.state.cents


class Held:
    """Version 2 alone, whose function waits at deposits of certain amounts."""

    def __init__(
        self, app: Streams, name: str, monkeypatch: pytest.MonkeyPatch, **options: Any
    ) -> None:
        self.app = app
        self.totals: View[Total] = accounts(app, name).view(
            "balances", Total, version=2, **options
        )(self.fold)
        self.goals: list[dict[TopicPartition, int]] = []
        """What it had to reach in order to serve, each time that was asked."""
        self._held: set[int] = set()
        self._arrived: set[int] = set()
        self._changed = threading.Condition()
        # A goal counts that is reached when it is taken, however quick or slow the machine is.
        monkeypatch.setattr(view_family, "PROMOTION_LAG", 0.0)
        monkeypatch.setattr(view_family, "goal_of", self._goal_of)
        # What it is held at is in no batch with what comes before it.
        monkeypatch.setattr(inline_subscription, "POLL_LIMIT", 1)

    def fold(self, total: Total | None, event: Deposited) -> Total:
        with self._changed:
            self._arrived.add(event.cents)
            assert self._changed.wait_for(lambda: event.cents not in self._held, PATIENCE)
        return fold_total(total, event)

    def hold(self, *cents: int) -> None:
        with self._changed:
            self._arrived.clear()
            self._held = set(cents)
            self._changed.notify_all()

    def _goal_of(
        self, log: Log, name: str, view: KnownView, known: KnownViewVersion
    ) -> dict[TopicPartition, int]:
        goal = goal_of(log, name, view, known)
        if known.version == 2:
            self.goals.append(goal)
        return goal

    @property
    def serves(self) -> bool:
        known = self.totals._family.known
        version = known.find_version(2)
        return known.promoted == 2 and version is not None and not version.is_building

    async def is_built_under_load(self, stage: Stage, old: Bank, cents: int) -> None:
        """It is held at its first event, for so long that it comes to its goal when version 1 has
        long folded further. It serves once it has that, too."""
        key = "a"  # of another partition it might have folded nothing when it is held again
        await stage.until(lambda: bool(self.goals) and 1 in self._arrived, "it is being built")
        for _ in range(5):
            done = await old.accounts.decide(key, deposit, cents)
        await old.balances.get(key, wait_for=done)
        self.hold(cents)
        await stage.until(lambda: len(self.goals) > 1 or self.serves, "its goal is reached")
        assert not self.serves
        self.hold()
        await stage.until(lambda: self.serves, "it serves")
        reads = Bank(stage.app(), old.accounts.name)
        second: View[Any] = second_version(reads)
        async with reads.app.connected():  # and has read nothing yet
            first = reads.balances._version
            before = await asyncio.to_thread(first.read, reads.app.log, key.encode())
            assert await second.get(key) == Total(10 * before.document.cents)


async def test_what_is_written_while_a_version_is_built_is_in_it_when_it_serves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is built first, and when it is made anew while the one before it serves."""
    name = unique()
    old, new = Bank(stage.app(), name), Held(stage.app(), name, monkeypatch)
    new.hold(1, 2)
    async with old.app, connected_operator(stage.url, old.balances.name) as operator:
        done = await old.accounts.decide("a", deposit, 1)
        await old.balances.get("a", wait_for=done)
        async with new.app:
            try:
                await new.is_built_under_load(stage, old, 2)
                new.goals.clear()
                new.hold(1, 3)
                await operator.rebuild(2, heard_after=0.0)
                await new.is_built_under_load(stage, old, 3)
            finally:
                new.hold()


async def test_where_nobody_runs_the_version_before_its_checkpoint_is_the_goal(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came later is in neither of the two, and is not waited for."""
    name = unique()
    old = Bank(stage.app(), name)
    built = second_version(old, promote=False)
    async with old.app:
        first = await old.accounts.decide("a", deposit, 1)
        await stage.until(
            lambda: (known := built._family.known.find_version(2)) and not known.is_building,
            "built",
        )
    old = Bank(stage.app(), name)
    async with old.app:  # goes on alone, and ends
        done = await old.accounts.decide(OTHER, deposit, 5)
        await old.balances.get("a", wait_for=first)
        await old.balances.get(OTHER, wait_for=done)
        tracker = old.balances._version.tracker(old.app.log)
        folded = await asyncio.to_thread(tracker.source_positions)
    async with old.app.connected():
        done = await old.accounts.decide("a", deposit, 1)
    new = Held(stage.app(), name, monkeypatch)
    async with new.app:
        await new.totals.ready()
        assert new.serves
        assert new.goals[0] == folded
        assert await new.totals.get(OTHER) == Total(50)
        assert await new.totals.get("a", wait_for=done) == Total(20)


async def test_one_that_is_promoted_by_hand_may_be_behind_by_what_it_folds_in_a_moment(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a version under load there is always something to be folded."""
    name = unique()
    old = Bank(Streams(memory_url), name)
    new = Held(Streams(memory_url), name, monkeypatch, promote=False)
    new.hold(1)
    monkeypatch.setattr(operations, "PROMOTION_LAG", PATIENCE)
    found: list[bool] = []
    is_reached = Coverage.is_reached

    def note(coverage: Coverage) -> bool:
        found.append(is_reached(coverage))
        return found[-1]

    async with old.app, connected_operator(memory_url, old.balances.name) as operator:
        done = await old.accounts.decide("a", deposit, 1)
        await old.balances.get("a", wait_for=done)
        async with new.app:
            try:
                while not new.goals:  # noqa: ASYNC110 - it is told by a thread
                    await asyncio.sleep(0.005)
                monkeypatch.setattr(Coverage, "is_reached", note)
                promoting = asyncio.create_task(operator.promote(2))
                while len(found) < 20 and not promoting.done():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)
                new.hold()
                assert await promoting
            finally:
                new.hold()
            assert await new.totals.get("a") == Total(10)


async def test_a_version_alone_is_not_ready_before_it_has_come_as_far(stage: Stage) -> None:
    name = unique()
    old = Bank(stage.app(), name)
    async with old.app:
        done = await old.accounts.decide("a", deposit, 5)
        await old.balances.get("a", wait_for=done)
    app = stage.app()
    alone = Bank(app, name, fold_total, version=2, promote=False)
    async with app:
        with pytest.raises(ViewNotReady, match=r"version 2 is (not built yet|being built)"):
            await alone.balances.get("a")
        assert not app.health().ready


async def test_what_is_not_ready_says_what_is_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a version that is built here, and of one that was dropped while another serves."""

    async def not_yet(version: Any) -> None:
        """Until its processor has begun, the registry knows nothing of a version."""

    name = unique()
    old = Bank(stage.app(), name)
    with monkeypatch.context() as patch:
        patch.setattr(old.balances._family, "_declare_version", not_yet)
        async with old.app:
            begun = "version 1 is being built, which this process has just begun; wait for it with"
            with pytest.raises(ViewNotReady, match=begun):
                await old.balances.get("a")
    async with old.app:
        await old.balances.ready()
        second = second_version(new := Bank(stage.app(), name))
        async with new.app:
            await second.ready()
            await stage.until(lambda: second.health().serving == 2, "version 2 serves")
    reads = Bank(stage.app(), name)
    async with reads.app.connected(), connected_operator(stage.url, second.name) as operator:
        assert await reads.balances.get("a") is None
        while True:
            try:
                await operator.drop(1)
                break
            except ViewOperationRefused as error:  # on Kafka a member may take a while to leave
                if "is run by" not in str(error):
                    raise
        dropped = "version 2 serves, and this process does not declare it: declare it here"
        with pytest.raises(ViewNotReady, match=dropped):
            await reads.balances.get("a")
    alone = Bank(stage.app(), name, fold_total, version=3)
    async with alone.app.connected():
        serves = "version 3 is not built yet: .* has begun; version 2 serves, and this process does"
        with pytest.raises(ViewNotReady, match=serves):
            await alone.balances.get("a")


async def test_a_version_that_is_not_promoted_by_itself_serves_once_it_was(stage: Stage) -> None:
    name = unique()
    bank = Bank(stage.app(), name)
    second = second_version(bank, promote=False)
    async with bank.app:
        done = await bank.accounts.decide("a", deposit, 5)
        assert isinstance(await second.get("a", wait_for=done), Balance)
        family = second._family
        await stage.until(
            lambda: (known := family.known.find_version(2)) is not None and not known.is_building,
            "version 2 is built",
        )
        assert isinstance(await second.get("a"), Balance)
        await second.promote()
        assert await second.get("a") == Total(50)
        await second.promote()
        assert await second.get("a") == Total(50)


async def test_what_is_declared_otherwise_than_it_stands_in_the_log_is_refused(
    sqlite_url: str,
) -> None:
    name = unique()
    bank = Bank(Streams(sqlite_url), name)
    async with bank.app:
        await bank.balances.ready()
    other = Streams(sqlite_url)
    Bank(other, name, fold_total)  # the same shape, whatever the function
    async with other.connected():
        pass

    class Changed(Struct, frozen=True):
        cents: str = ""

    changed = Bank(Streams(sqlite_url), name).accounts
    app = Streams(sqlite_url)
    accounts = Aggregate(
        app, name, Opened | Deposited | Withdrawn | Closed, Account, evolve_account, partitions=2
    )
    accounts.view("balances", Changed)(lambda document, event: document)
    with pytest.raises(ConfigError, match="another shape in the log: give the new one version=2"):
        async with app:
            pass
    assert changed.name == name
    keyed = Streams(sqlite_url)
    Bank(keyed, name, key=lambda event: "all")
    with pytest.raises(ConfigError, match="was declared without key="):
        async with keyed:
            pass


def other_shape(app: Streams, name: str) -> View[Total]:
    """Version 1 of the balances, with documents of another shape."""
    return accounts(app, name).view("balances", Total)(fold_total)


async def test_of_two_that_declare_a_version_otherwise_the_second_does_not_start(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it had looked before the first one declared it. Nothing of it is folded, and a
    process that reads alone does not take the documents for its own."""
    name = unique()
    bank = Bank(stage.app(), name)
    second, reads = other_shape(stage.app(), name), other_shape(stage.app(), name)
    load = second._family._load_view

    async def load_too_early() -> None:
        monkeypatch.setattr(second._family, "_load_view", load)

    monkeypatch.setattr(second._family, "_load_view", load_too_early)
    async with reads.app.connected():  # nobody has declared it yet
        async with bank.app:
            done = await bank.accounts.decide("a", deposit, 5)
            assert await bank.balances.get("a", wait_for=done) == Balance("", 5, 1)
        with pytest.raises(ConfigError, match="documents of another shape in the log"):
            async with second.app:
                pass
        with pytest.raises(ConfigError, match="documents of another shape in the log"):
            await reads.get("a")
    bank = Bank(stage.app(), name)
    async with bank.app:
        done = await bank.accounts.decide("a", deposit, 1)
        assert await bank.balances.get("a", wait_for=done) == Balance("", 6, 2)


async def test_a_process_that_folds_what_was_declared_otherwise_since_ends(
    memory_url: str,
) -> None:
    """It stood still while the version was dropped, and declared by other code."""
    bank = Bank(Streams(memory_url), unique())
    view, registry = bank.balances.name, bank.balances._family.registry
    with pytest.raises(ProcessorDied, match="documents of another shape in the log"):
        async with bank.app:
            await bank.balances.ready()
            known = bank.balances._family.known.find_version(1)
            assert known is not None
            other = VersionDeclared(1, "another", known.topics, known.is_keyed, known.goal)
            while True:
                await registry.decide(view, drop, 1)
                try:
                    await registry.decide(view, declare, view, other)
                    break
                except ConfigError:  # the process was faster, and has declared it anew
                    continue
            async with asyncio.timeout(PATIENCE):
                await asyncio.Event().wait()  # until it is cancelled


async def test_a_documented_type_has_the_same_shape(sqlite_url: str) -> None:
    """Docstrings, names and defaults' descriptions are no part of a document."""
    name = unique()

    def named(documented: bool) -> Any:
        class Found(Struct, frozen=True):
            if documented:
                __doc__ = "What is found."
            cents: int = 0

        return Found

    for documented in (False, True):
        app = Streams(sqlite_url)
        bank = Bank(app, name)
        bank.accounts.view("found", named(documented))(lambda document, event: document)
        async with app:
            await bank.balances.ready()


def test_wrong_declarations() -> None:
    app = Streams("memory://")
    bank = Bank(app, "accounts")

    class Mutable(Struct):
        cents: int = 0

    async def later(document: Any, event: Any) -> None: ...

    view: Any = bank.accounts.view
    with pytest.raises(ConfigError, match="frozen=True"):
        view("a", Mutable)(lambda document, event: document)
    with pytest.raises(ConfigError, match="cannot be None"):
        view("a", Balance | None)(lambda document, event: document)
    with pytest.raises(ConfigError, match="can be changed in place"):
        view("a", dict)(lambda document, event: document)
    with pytest.raises(ConfigError, match="must be a plain one"):
        view("a", Balance)(later)
    with pytest.raises(ConfigError, match="takes 1 parameters"):
        view("a", Balance)(lambda document: document)
    with pytest.raises(ConfigError, match="takes 4 parameters"):
        view("a", Balance)(lambda a, b, c, d: a)
    with pytest.raises(ConfigError, match="no function"):
        view("a", Balance)("fold")
    with pytest.raises(ConfigError, match=r"version=0: must be a positive integer"):
        view("a", Balance, version=0)(lambda document, event: document)
    with pytest.raises(ConfigError, match="a plain function of the event"):
        view("a", Balance, key="owner")(lambda document, event: document)
    with pytest.raises(ConfigError, match="name"):
        view("a b", Balance)(lambda document, event: document)
    with pytest.raises(ConfigError, match="declared twice"):
        bank.accounts.view("balances", Balance)(lambda document, event: document)
    make: Any = View
    with pytest.raises(ConfigError, match="at least one topic"):
        make(app, "a", Balance, fold_holder)
    with pytest.raises(ConfigError, match="is not a topic"):
        make(app, "a", Balance, fold_holder, "orders")
    with pytest.raises(ConfigError, match="reads a topic twice"):
        make(app, "a", Balance, fold_holder, bank.accounts.events, bank.accounts.events)
    with pytest.raises(ConfigError, match="first argument is an app"):
        make("memory://", "a", Balance, fold_holder, bank.accounts.events)
    assert owner_of(Opened("ada")) == "ada"


@pytest.mark.parametrize("way", ["get", "get in flight", "get_many", "scan"])
async def test_a_version_that_takes_over_has_folded_whatever_was_read(
    memory_url: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it was read, and be it while the version took over: the next read waits for it."""
    name = unique()
    folds, builds, reads = (Bank(Streams(memory_url), name) for _ in range(3))
    built, second = (second_version(each, promote=False) for each in (builds, reads))
    async with folds.app:
        done = await folds.accounts.decide("a", deposit, 5)
        async with builds.app:
            await builds.balances.get("a", wait_for=done)
            family = built._family
            while (  # noqa: ASYNC110 - the log says it
                family.known.find_version(2) is None or (await built.progress()).share != 1.0
            ):
                await asyncio.sleep(0.005)
        # Nobody builds the second version any more: it stays behind the first.
        done = await folds.accounts.decide("a", deposit, 5)
        await folds.balances.get("a", wait_for=done)
        ten: Any = Balance("", 10, 2)
        async with reads.app.connected():
            if way == "get in flight":
                was_read, may_return = threading.Event(), threading.Event()
                first = reads.balances._version
                read = first.read

                def read_slowly(*given: Any) -> Any:
                    found = read(*given)
                    was_read.set()
                    may_return.wait()
                    return found

                monkeypatch.setattr(first, "read", read_slowly)
                reading = asyncio.create_task(second.get("a"))
                await asyncio.to_thread(was_read.wait)
                try:
                    await second.promote()
                    assert await second.get("a") == Total(50)
                finally:
                    may_return.set()
                assert await reading == ten
            elif way == "get":
                assert await second.get("a") == ten
            elif way == "get_many":
                assert await second.get_many(["a"]) == {"a": ten}
            else:
                assert await second.scan() == [("a", ten)]
            await second.promote()
            with pytest.raises(ViewTimeout):
                await second.get("a", timeout=0.3)
