"""``streams views``: what a log says of views, and what is done to them while apps run or not."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from streams import Message, Streams, ViewNotReady
from streams.errors import Unavailable
from streams.eventsourcing.views import inspection, operations
from streams.eventsourcing.views.checkpoints import encode_checkpoint
from streams.log.documents import Checkpoint, DocumentChange, DocumentLog, StoredDocument
from streams.log.sqlite.documents import SqliteDocuments
from streams.log.sqlite.log import SqliteLog
from streams.log.url import open_log
from tests.cli.conftest import Result, Run, Shell, eventually
from tests.eventsourcing.bank import Deposited, accounts, deposit, open_with
from tests.views.bank import Balance, Bank, Holder, fold_balance, fold_holder, owner_of

POISON = 13


def failing(balance: Balance | None, event: Any) -> Balance | None:
    """The view's function before it was mended."""
    if isinstance(event, Deposited) and event.cents == POISON:
        raise ZeroDivisionError("thir\x1bteen")
    return fold_balance(balance, event)


class Desk:
    """A log with accounts and views on them, and the command line beside it."""

    def __init__(self, url: str, run: Run) -> None:
        self.url = url
        self.accounts = f"accounts-{uuid4().hex[:8]}"
        self.name = f"{self.accounts}.balances"
        self.run = run

    def __call__(self, *words: str) -> Result:
        """A command; NAME stands for the view."""
        named = [word.replace("NAME", self.name) for word in words]
        return self.run("views", *named, "--url", self.url)

    @contextmanager
    def app(self, *, fold: Any = fold_balance, **options: Any) -> Iterator[Bank]:
        """An app that runs in the background."""
        bank = Bank(Streams(self.url), self.accounts, fold, **options)
        with bank.app.background():
            yield bank

    def fill(self, count: int = 6, **options: Any) -> None:
        """Accounts, and their balances folded by an app that ends then."""
        with self.app(**options) as bank:
            for number in range(count):
                done = bank.app.wait(bank.accounts.decide(f"a-{number}", open_with, "ada", number))
                bank.app.wait(bank.balances.get(f"a-{number}", wait_for=done, timeout=60))

    def version(self, number: int = 1) -> dict[str, Any]:
        """What ls says of one version."""
        return self.versions()[number]

    def versions(self) -> dict[int, dict[str, Any]]:
        rows = self("ls", "--json").json
        return {row["version"]: row for row in rows if row["view"] == self.name}

    @contextmanager
    def log(self) -> Iterator[Any]:
        log = open_log(self.url)
        assert isinstance(log, DocumentLog)
        try:
            yield log
        finally:
            log.close()


@pytest.fixture
def sqlite(run: Run, shell: Shell) -> Desk:
    return Desk(f"sqlite:////{str(shell.folder / 'bank.db').lstrip('/')}", run)


@pytest.fixture(params=["sqlite", "redis"])
def desk(request: pytest.FixtureRequest, run: Run, shell: Shell) -> Desk:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")  # type: ignore[no-any-return]
    return Desk(request.getfixturevalue(f"{request.param}_url"), run)


@pytest.fixture(autouse=True)
def heard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads beside these tests, but where they say so."""
    monkeypatch.setattr(operations, "HEARD_AFTER", 0.0)


def test_versions_are_listed(desk: Desk) -> None:
    desk.fill()
    row = desk.version()
    assert (row["state"], row["serves"], row["processes"]) == ("serving", True, 0)
    assert (row["partitions"], row["documents"], row["stopped"]) == (2, 6, 0)
    assert (row["folded"], row["total"], row["share"]) == (12, 12, 1.0)
    assert (row["rate"], row["left_seconds"]) == (None, None)
    plain = desk("ls")
    assert plain.err == ""
    assert plain.out.splitlines()[0].split()[:5] == [
        "VIEW",
        "VERSION",
        "STATE",
        "PROCESSES",
        "DOCUMENTS",
    ]
    (line,) = [line for line in plain.out.splitlines() if line.startswith(desk.name)]
    assert line.split()[:8] == [desk.name, "1", "serving", "-", "6", "-", "100%", "-"] or (
        line.split()[:7] == [desk.name, "1", "serving", "0", "6", "0", "100%"]
    )


def test_on_kafka_too(kafka_url: str, run: Run) -> None:
    """The same commands; each reads the collection's topic first, so there are few of them."""
    desk = Desk(kafka_url, run)
    desk.fill()
    with desk.app() as bank:
        bank.app.wait(bank.balances.ready(60))
        row = desk.version()
        assert (row["state"], row["documents"], row["share"]) == ("serving", 6, 1.0)
        assert row["processes"] == 1
        refused = desk("drop", "NAME", "--version", "1", "--yes", "--force")
        assert "stop the processes that declare it first" in refused.err
        assert desk("rebuild", "NAME", "--version", "1", "--yes", "--wait").status == 0
        bank.app.wait(bank.balances.ready(60))
        assert bank.app.wait(bank.balances.get("a-3")) == Balance("ada", 3, 1)
    assert desk("drop", "NAME", "--version", "1", "--yes", "--force").status == 0
    assert desk.versions() == {}
    with desk.log() as log:
        assert f"{desk.name}.v1" not in [each.name for each in log.documents.list()]


def test_who_runs_a_version_is_counted_and_shown(desk: Desk) -> None:
    desk.fill()
    with desk.app():
        eventually(lambda: desk.version()["processes"] == 1)
        shown = desk("show", "NAME", "--json").json
        (version,) = shown["versions"]
        eventually(
            lambda: all(
                each["owner"]
                for each in desk("show", "NAME", "--json").json["versions"][0]["places"]
            )
        )
    assert (shown["view"], shown["promoted"]) == (desk.name, 1)
    assert version["topics"] == [f"{desk.accounts}.events"]
    assert version["keyed_topic"] is None
    assert version["groups"] == [f"{desk.name}.v1"]
    assert [each["partition"] for each in version["places"]] == [0, 1]
    assert [each["lag"] for each in version["places"]] == [0, 0]
    plain = desk("show", "NAME")
    assert plain.out.splitlines()[0] == f"{desk.name}: version 1 serves"
    assert f"version 1 of {desk.accounts}.events" in plain.out


def read_on(bank: Bank, key: str) -> None:
    """Read a document until that raises: what serves is remembered for a moment."""

    def is_over() -> bool:
        bank.app.wait(bank.balances.get(key))
        return False

    eventually(is_over)


def fold_keyed(desk: Desk) -> None:
    """A version that is folded by way of its keyed topic, with one document."""
    app = Streams(desk.url)
    ledger = accounts(app, desk.accounts)
    holders: Any = ledger.view("balances", Balance, key=owner_of)(
        lambda balance, event: Balance("x", 1, 1)
    )
    with app.background():
        done = app.wait(ledger.decide("a", open_with, "ada", 5))
        app.wait(holders.get("ada", wait_for=done, timeout=60))


def test_a_keyed_version_shows_what_it_goes_through(sqlite: Desk) -> None:
    fold_keyed(sqlite)
    (version,) = sqlite("show", "NAME", "--json").json["versions"]
    assert version["keyed_topic"] == f"{sqlite.name}.v1.keyed"
    assert version["groups"] == [f"{sqlite.name}.v1", f"{sqlite.name}.v1.keyed"]
    assert {each["topic"] for each in version["places"]} == {version["keyed_topic"]}
    assert f", through {version['keyed_topic']}" in sqlite("show", "NAME").out
    assert sqlite("drop", "NAME", "--version", "1", "--yes", "--force").status == 0
    with sqlite.log() as log:
        assert version["keyed_topic"] not in [each.name for each in log.describe_topics()]
        assert not [each for each in log.list_groups() if each.startswith(f"{sqlite.name}.v1")]
        assert not [each for each in log.documents.list() if each.name.startswith(sqlite.name)]


def test_documents_that_stand_still_are_listed_and_folded_on(desk: Desk) -> None:
    with desk.app(fold=failing) as bank:
        for key in ("a", "b", "c"):
            done = bank.app.wait(bank.accounts.decide(key, deposit, 13 if key != "c" else 1))
        bank.app.wait(bank.balances.get("c", wait_for=done, timeout=60))
        eventually(lambda: desk.version()["stopped"] == 2)
    found = desk("stopped", "NAME", "--json").json
    assert sorted(each["key"] for each in found) == ["a", "b"]
    assert {each["why"] for each in found} == {"ZeroDivisionError: thir\\x1bteen"}
    assert all(each["position"].startswith(f"{desk.accounts}.events/") for each in found)
    first = desk("stopped", "NAME", "-n", "1")
    assert first.err == "there are more: -n 0 lists all\n"
    assert "\x1b" not in first.out
    shown = desk("show", "NAME")
    assert "stopped documents: 2" in shown.out
    assert "\x1b" not in shown.out

    late = desk("retry", "NAME", "a", "--timeout", "10ms")
    assert (late.status, late.out) == (1, "")
    assert "no process that runs version 1 has resumed 'a' within 10ms" in late.err
    assert "1 document to be resumed" in desk("show", "NAME").out
    with desk.app(fold=failing):
        again = desk("retry", "NAME", "b")
        assert again.status == 1
        assert "'b' is stopped again: ZeroDivisionError" in again.out
    with desk.app() as bank:
        assert desk("retry", "NAME", "b").out == f"{desk.name}: 'b' is resumed\n"
        done_json = desk("retry", "NAME", "a", "--json").json
        assert done_json["goes_on"] is True
        assert bank.app.wait(bank.balances.get("a")) == Balance("", 13, 1)
    assert desk("retry", "NAME", "c").out == f"{desk.name}: 'c' is not stopped\n"
    missing = desk("retry", "NAME", "d")
    assert (missing.status, missing.err) == (
        1,
        f"streams: {desk.name}: version 1 has no document 'd'\n",
    )
    assert r"has no document 'd\x00'" in desk("retry", "NAME", r"d\x00", "--escapes").err


def test_a_version_is_made_anew_and_nothing_serves_meanwhile(desk: Desk) -> None:
    desk.fill()
    asked = desk("rebuild", "NAME", "--version", "1")
    assert asked.status == 2
    assert f"Delete 6 documents of {desk.name} version 1, to rebuild it?" in asked.err
    assert "Nothing serves from it meanwhile" in asked.err
    folded: list[int] = []
    go_on = threading.Event()

    def slow(balance: Balance | None, event: Any) -> Balance | None:
        assert go_on.wait(60)
        folded.append(1)
        return fold_balance(balance, event)

    with desk.app(fold=slow) as bank:
        eventually(lambda: desk.version()["processes"] == 1)
        done = desk("rebuild", "NAME", "--version", "1", "--yes")
        assert done.out == f"{desk.name}: version 1: 2 partitions cleared\n"
        assert "nothing serves from it until then" in done.err
        row = desk.version()
        assert (row["state"], row["serves"], row["documents"]) == ("building", False, 0)
        with pytest.raises(ViewNotReady, match="version 1 is being built"):
            read_on(bank, "a-0")
        go_on.set()
        bank.app.wait(bank.balances.ready(60))
        assert bank.app.wait(bank.balances.get("a-3")) == Balance("ada", 3, 1)
        built = desk("rebuild", "NAME", "--version", "1", "--yes", "--wait", "--json").json
        assert built == {"view": desk.name, "version": 1, "cleared": 2, "built": True}
        assert desk.version()["documents"] == 6
    assert len(folded) == 24


def test_a_reset_of_its_groups_says_what_to_do_instead(desk: Desk) -> None:
    desk.fill(2)
    group, events = f"{desk.name}.v1", f"{desk.accounts}.events"
    for more in ([], ["--dry-run"], ["--force"], ["--json"]):
        result = desk.run("reset", group, events, "--to", "earliest", *more, "--url", desk.url)
        assert (result.status, result.out) == (2, "")
        assert result.err == (
            f"streams: group {group!r} is one of view {desk.name!r} version 1 and cannot be moved: "
            "it goes on from the checkpoint of its documents, whatever the group's position; to "
            f"rebuild its documents, run streams views rebuild {desk.name} --version 1\n"
        )


def test_no_group_of_a_version_is_deleted_by_itself(sqlite: Desk) -> None:
    """Without the floor, a rebuild would take what is left of the keyed topic for all of it."""
    fold_keyed(sqlite)
    version = f"{sqlite.name}.v1"
    for group in (f"{version}.keyed.floor", f"{version}.keyed", version):
        refused = sqlite.run("groups", "delete", group, "--yes", "--url", sqlite.url)
        assert (refused.status, refused.out) == (2, "")
        assert f"is one of view {sqlite.name!r} version 1 and cannot be deleted" in refused.err
        assert f"streams views rebuild {sqlite.name} --version 1" in refused.err
        with sqlite.log() as log:
            assert group in log.list_groups()
    assert sqlite("drop", "NAME", "--version", "1", "--yes", "--force").status == 0
    # They are anybody's names once the version is gone.
    with sqlite.log() as log:
        log.create_topic("mine", 1)
        log.initialize_offsets(f"{version}.keyed.floor", "mine", {0: 0})
    group = f"{version}.keyed.floor"
    assert sqlite.run("groups", "delete", group, "--yes", "--url", sqlite.url).status == 0


def test_what_is_yet_to_be_folded_is_deleted_by_no_command(sqlite: Desk) -> None:
    fold_keyed(sqlite)
    topic = f"{sqlite.name}.v1.keyed"
    refused = sqlite.run("topics", "delete", topic, "--yes", "--url", sqlite.url)
    assert (refused.status, refused.out) == (2, "")
    assert f"streams views drop {sqlite.name} --version 1" in refused.err
    assert sqlite("drop", "NAME", "--version", "1", "--yes", "--force").status == 0
    # It is anybody's name once nothing is folded from it.
    assert sqlite.run("topics", "create", topic, "--url", sqlite.url).status == 0
    assert sqlite.run("topics", "delete", topic, "--yes", "--url", sqlite.url).status == 0


def test_a_keyed_version_is_made_anew_from_its_sources(sqlite: Desk) -> None:
    def declared() -> Any:
        app = Streams(sqlite.url)
        ledger = accounts(app, sqlite.accounts)
        return app, ledger, ledger.view("balances", Holder, key=owner_of)(fold_holder)

    app, ledger, holders = declared()
    with app.background():
        for number in range(9):
            done = app.wait(ledger.decide(f"a-{number}", open_with, f"o-{number % 2}", 1))
            app.wait(holders.get(f"o-{number % 2}", wait_for=done, timeout=60))
        refused = sqlite("rebuild", "NAME", "--version", "1", "--yes")
        assert refused.status == 1
        assert "stop the processes that declare it" in refused.err
    assert sqlite("rebuild", "NAME", "--version", "1", "--yes").status == 0
    app, ledger, holders = declared()
    with app.background():
        app.wait(holders.ready(60))
        assert app.wait(holders.get("o-0")) == Holder(5)
        done = app.wait(ledger.decide("a-9", open_with, "o-1", 1))
        assert app.wait(holders.get("o-1", wait_for=done, timeout=60)) == Holder(5)


def test_a_view_that_has_folded_what_the_log_lost_is_made_anew(
    sqlite: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    sqlite.fill()
    with sqlite.log() as log:
        for partition in range(2):
            writer = log.documents.claim(f"{sqlite.name}.v1", partition)
            lost = [DocumentChange(b"lost", StoredDocument(b'{"owner":"eve","cents":1,"moves":1}'))]
            writer.write(lost, Checkpoint(1_000, encode_checkpoint((999, "gone"), {})))
            writer.close()
    shown = sqlite("show", "NAME")
    assert shown.status == 0
    assert "its documents were folded up to 1000, and the log ends at" in shown.out
    with sqlite.app() as bank:
        eventually(lambda: "it has lost messages that it had" in caplog.text)
        assert sqlite("rebuild", "NAME", "--version", "1", "--yes", "--wait").status == 0
        bank.app.wait(bank.balances.ready(60))
        assert bank.app.wait(bank.balances.get("a-3")) == Balance("ada", 3, 1)
        assert bank.app.wait(bank.balances.get("lost")) is None


def test_a_rebuild_that_was_interrupted_is_finished_by_another(
    sqlite: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it had done, nobody takes half of the documents for all of them."""
    sqlite.fill()

    cleared: list[int] = []
    store: Any = SqliteDocuments
    clear = store.clear

    def interrupt(self: Any, collection: str, partition: int) -> None:
        if cleared:
            raise Unavailable("cut off")
        cleared.append(partition)
        clear(self, collection, partition)

    with sqlite.app() as bank:
        monkeypatch.setattr(store, "clear", interrupt)
        assert sqlite("rebuild", "NAME", "--version", "1", "--yes").status == 1
        monkeypatch.setattr(store, "clear", clear)
        # Half of the documents are there, and all that write have come to the end: nothing serves.
        row = sqlite.version()
        assert (row["state"], row["serves"]) == ("clearing", False)
        refused = sqlite("promote", "NAME", "--version", "1")
        assert refused.status == 0  # it is promoted, and serves once it is built
        with pytest.raises(ViewNotReady):
            read_on(bank, "a-1")
        assert sqlite("rebuild", "NAME", "--version", "1", "--yes", "--wait").status == 0
        assert bank.app.wait(bank.balances.get("a-1")) == Balance("ada", 1, 1)
    assert sqlite.version()["serves"]


@pytest.mark.parametrize("what", ["rebuild", "drop"])
def test_what_was_interrupted_of_a_keyed_version_is_finished_by_another(
    what: str, sqlite: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keyed topic is deleted by then: who runs the command again, lists the version or reads it
    is told how it is."""
    fold_keyed(sqlite)
    words = [what, "NAME", "--version", "1", "--yes", *(["--force"] if what == "drop" else [])]

    def stop(*given: Any) -> None:
        raise Unavailable("cut off")

    with monkeypatch.context() as patch:
        store: Any = SqliteDocuments
        patch.setattr(store, "clear" if what == "rebuild" else "delete", stop)
        ended = sqlite(*words)
        assert ended.status == 1
        assert "cut off" in ended.err
    with sqlite.log() as log:
        assert f"{sqlite.name}.v1.keyed" not in [each.name for each in log.describe_topics()]
    assert sqlite.version()["share"] == 0.0
    (version,) = sqlite("show", "NAME", "--json").json["versions"]
    assert all("it was deleted" in each["problem"] for each in version["places"])
    if what == "rebuild":

        async def read() -> None:
            app = Streams(sqlite.url)
            holders: Any = accounts(app, sqlite.accounts).view("balances", Balance, key=owner_of)(
                lambda balance, event: balance
            )
            async with app.connected():
                assert (await holders.progress()).share == 0.0
                with pytest.raises(ViewNotReady, match="version 1 is being built, 0% of its"):
                    await holders.get("ada")

        asyncio.run(read())
    assert sqlite(*words).status == 0
    if what == "drop":
        assert sqlite.versions() == {}
    fold_keyed(sqlite)
    assert sqlite.version()["serves"]


def test_a_keyed_version_whose_source_is_gone_is_listed(sqlite: Desk) -> None:
    fold_keyed(sqlite)
    topic = f"{sqlite.accounts}.events"
    assert sqlite.run("topics", "delete", topic, "--yes", "--url", sqlite.url).status == 0
    assert sqlite.version()["documents"] == 1
    assert sqlite("show", "NAME").status == 0


def test_a_version_is_promoted_once_it_has_come_as_far(desk: Desk) -> None:
    desk.fill()
    with desk.app(version=2, promote=False) as bank:
        eventually(lambda: desk.versions().get(2, {}).get("state") == "ready")
        assert [each["version"] for each in desk("show", "NAME", "--json").json["versions"]] == [
            2,
            1,
        ]
        with pytest.raises(ViewNotReady):
            bank.app.wait(bank.balances.get("a-1"))
        done = desk("promote", "NAME", "--version", "2")
        assert done.out == f"{desk.name}: version 2 serves from now on\n"
        bank.app.wait(bank.balances.ready(30))
        assert bank.app.wait(bank.balances.get("a-1")) == Balance("ada", 1, 1)
    assert desk("promote", "NAME", "--version", "2").out == (
        f"{desk.name}: version 2 serves already\n"
    )
    back = desk("promote", "NAME", "--version", "1")
    assert (back.status, back.out) == (1, "")
    assert "version 2 serves, and what was promoted stays so" in back.err
    assert desk.version(2)["serves"]


def test_a_version_that_has_not_come_as_far_is_not_promoted(sqlite: Desk) -> None:
    sqlite.fill()
    with sqlite.app(version=2, promote=False):
        eventually(lambda: sqlite.versions().get(2, {}).get("state") == "ready")
    with sqlite.app() as bank:  # the old one alone goes on
        done = bank.app.wait(bank.accounts.decide("a-1", deposit, 5))
        bank.app.wait(bank.balances.get("a-1", wait_for=done, timeout=60))
    early = sqlite("promote", "NAME", "--version", "2")
    assert (early.status, early.out) == (1, "")
    assert "version 2 has not come as far as version 1 (92% of its events are folded)" in early.err
    forced = sqlite("promote", "NAME", "--version", "2", "--force", "--json").json
    assert forced == {"view": sqlite.name, "version": 2, "promoted": True}


def test_a_version_is_dropped_unless_it_is_run_or_serves(desk: Desk) -> None:
    desk.fill()
    with desk.app():
        eventually(lambda: desk.version()["processes"] == 1)
        run = desk("drop", "NAME", "--version", "1", "--yes", "--force")
        assert (run.status, run.out) == (1, "")
        assert "stop the processes that declare it first" in run.err
    serves = desk("drop", "NAME", "--version", "1", "--yes")
    assert serves.status == 1
    assert "version 1 serves: promote another one first, or give --force" in serves.err
    desk.fill(0, version=2)
    with desk.app(version=2) as bank:
        bank.app.wait(bank.balances.ready(30))
    assert desk.version(2)["serves"]
    asked = desk("drop", "NAME", "--version", "1")
    assert asked.status == 2
    assert f"Delete version 1 of {desk.name} with its 6 documents?" in asked.err
    assert desk("drop", "NAME", "--version", "1", "--yes").out == (
        f"{desk.name}: version 1 dropped\n"
    )
    assert list(desk.versions()) == [2]
    with desk.log() as log:
        collections = [each.name for each in log.documents.list()]
        assert f"{desk.name}.v1" not in collections
        assert f"{desk.name}.v2" in collections
        assert f"{desk.name}.v1" not in log.list_groups()
    gone = desk("drop", "NAME", "--version", "1", "--yes")
    assert gone.err == f"streams: view {desk.name!r} has no version 1; it has 2\n"
    # The events are there, so it can be built again.
    with desk.app() as bank:
        eventually(lambda: 1 in desk.versions() and desk.version(1)["documents"] == 6)


@pytest.mark.parametrize("at", ["delete_group", "documents", "registry"])
def test_a_drop_that_was_interrupted_is_finished_by_another(
    at: str, sqlite: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite.fill()

    def stop(*given: Any, **options: Any) -> Any:
        raise Unavailable("cut off")

    with monkeypatch.context() as patch:
        if at == "delete_group":
            patch.setattr(SqliteLog, "delete_group", stop)
        elif at == "documents":
            store: Any = SqliteDocuments
            patch.setattr(store, "delete", stop)
        else:
            patch.setattr(operations, "drop", stop)
        ended = sqlite("drop", "NAME", "--version", "1", "--yes", "--force")
        assert ended.status == 1
        assert "cut off" in ended.err
    assert sqlite("drop", "NAME", "--version", "1", "--yes", "--force").status == 0
    assert sqlite.versions() == {}
    with sqlite.log() as log:
        assert f"{sqlite.name}.v1" not in [each.name for each in log.documents.list()]


def test_what_is_not_there_is_named_and_what_is_near(desk: Desk) -> None:
    desk.fill(1)
    wrong = desk.name[:-1] + "x"
    for words in (
        ["show", wrong],
        ["stopped", wrong],
        ["promote", wrong, "--version", "1"],
        ["rebuild", wrong, "--version", "1", "--yes"],
        ["drop", wrong, "--version", "1", "--yes"],
        ["retry", wrong, "a"],
    ):
        ended = desk(*words)
        assert (ended.status, ended.out) == (1, ""), words
        assert ended.err == (
            f"streams: the log has no view {wrong!r}; did you mean {desk.name!r}?\n"
        )
    for command in ("promote", "rebuild", "drop"):
        ended = desk(command, "NAME", "--version", "7")
        assert ended.err == f"streams: view {desk.name!r} has no version 7; it has 1\n"


def test_what_is_shown_is_read_once(sqlite: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite.fill(1)
    asked: list[str] = []
    read_view, find = inspection.read_view, SqliteDocuments.find

    def reading(log: Any, name: str) -> Any:
        asked.append("registry")
        return read_view(log, name)

    def finding(store: Any, collection: str) -> Any:
        asked.append("partitions")
        return find(store, collection)

    monkeypatch.setattr(inspection, "read_view", reading)
    monkeypatch.setattr(SqliteDocuments, "find", finding)
    for words in (["show", "NAME"], ["show", "NAME", "--version", "1"], ["stopped", "NAME"]):
        asked.clear()
        assert sqlite(*words).status == 0
        assert sorted(asked) == ["partitions", "registry"], words


def test_a_log_without_views_is_not_given_a_registry(sqlite: Desk) -> None:
    open_log(sqlite.url).close()
    assert sqlite("ls", "--json").json == []
    assert sqlite("show", "NAME").status == 1
    assert sqlite("promote", "NAME", "--version", "1").status == 1
    with sqlite.log() as log:
        assert log.describe_topics() == []


def test_a_file_that_is_not_there_is_not_made(sqlite: Desk, shell: Shell) -> None:
    for words in (["ls"], ["drop", "NAME", "--version", "1", "--yes"]):
        assert sqlite(*words).status == 1
    assert not (shell.folder / "bank.db").exists()


def test_keys_and_failures_of_any_bytes_are_shown(sqlite: Desk) -> None:
    sqlite.fill(1)
    key = b"\xff\x1b]0;v\x07"
    with sqlite.log() as log:
        writer = log.documents.claim(f"{sqlite.name}.v1", 0)
        stopped = StoredDocument(b"{}", b'\xff{"reason": rubbish')
        checkpoint = writer.checkpoint or Checkpoint(0)
        writer.write([DocumentChange(key, stopped)], checkpoint)
        writer.close()
    (found,) = sqlite("stopped", "NAME", "--json").json
    assert found["key_base64"] == base64.b64encode(key).decode()
    assert found["why"] == "what is stored about it cannot be read"
    for words in (["stopped", "NAME"], ["show", "NAME"], ["ls"]):
        ended = sqlite(*words)
        assert ended.status == 0
        assert "\x1b" not in ended.out + ended.err


def test_what_somebody_else_writes_as_the_registry_harms_nobody(sqlite: Desk) -> None:
    from streams.eventsourcing.views import registry
    from streams.log.event_headers import make_append
    from streams.log.events import NO_HISTORY
    from streams.message import Record

    sqlite.fill(1)
    declared = {"type": "declared", "shape": "\x1b", "is_keyed": False, "goal": {}}
    bad = [
        {"version": 3, "topics": []},
        {"version": 4, "topics": ["a"], "goal": {"a/x": "y"}},
        {"version": 5, "topics": ["a", "b"]},
        {"version": 6, "topics": ["a\x1b/\n"]},
    ]
    wrong = [b"\xff\x00", *(json.dumps({**declared, **each}).encode() for each in bad)]
    name = b"evil\x1b\xff"
    with sqlite.log() as log:
        answers: list[Any] = []
        records = [Record(each, name, f"id-{number}") for number, each in enumerate(wrong)]
        log.append_events(registry.TOPIC, [make_append(name, NO_HISTORY, records)], answers.extend)
        eventually(lambda: answers)
    rows = sqlite("ls", "--json")
    assert sqlite.name in [row["view"] for row in rows.json]
    assert not {row["version"] for row in rows.json} & {3, 4, 5}
    plain = sqlite("ls")
    assert plain.status == 0
    assert "\x1b" not in plain.out + plain.err


def test_progress_is_measured_while_a_version_is_behind(
    sqlite: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.cli.views import lists

    monkeypatch.setattr(lists, "RATE_TIME", 0.05)
    sqlite.fill(4)
    go_on = threading.Event()

    def wait(balance: Balance | None, event: Any) -> Balance | None:
        go_on.wait(60)
        return fold_balance(balance, event)

    with sqlite.app(fold=wait, version=2):
        eventually(lambda: sqlite.versions().get(2, {}).get("processes"))
        row = sqlite.version(2)
        assert (row["state"], row["folded"], row["total"]) == ("building", 0, 8)
        assert (row["rate"], row["left_seconds"]) == (0.0, None)
        go_on.set()
        eventually(lambda: sqlite.version(2)["serves"])


@pytest.mark.parametrize("command", ["ls", "show"])
def test_rate_and_time_left_are_told_while_a_version_is_built(
    sqlite: Desk, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One of its two partitions is folded within the second that it is measured over."""
    from streams.cli.views import lists

    monkeypatch.setattr(lists, "RATE_TIME", 0.01)
    sqlite.fill(6)
    now, changed = 0.0, threading.Condition()
    arrived: list[int] = []
    held = {0, 1}

    def wait(balance: Balance | None, event: Any, message: Message[Any]) -> Balance | None:
        with changed:
            if message.partition not in arrived:
                arrived.append(message.partition)
                changed.notify_all()
            assert changed.wait_for(lambda: message.partition not in held, 60)
        return fold_balance(balance, event)

    def sleep(seconds: float) -> None:
        nonlocal now
        with changed:
            held.discard(arrived[0])
            changed.notify_all()
            # By then, what came of the first is written.
            assert changed.wait_for(lambda: len(arrived) == 2, 60)
        now += 1.0

    with sqlite.app(fold=wait, version=2):
        try:
            eventually(lambda: arrived and sqlite.versions().get(2, {}).get("processes"))
            with monkeypatch.context() as patch:
                patch.setattr(lists, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
                found = sqlite(command, *(["NAME"] if command == "show" else []), "--json").json
            rows = found["versions"] if command == "show" else found
            (row,) = [row for row in rows if (row["view"], row["version"]) == (sqlite.name, 2)]
            assert (row["state"], row["total"]) == ("building", 12)
            assert 0 < row["folded"] < 12
            assert row["rate"] == row["folded"]
            assert row["left_seconds"] == round((12 - row["folded"]) / row["rate"], 1)
        finally:
            with changed:
                held.clear()
                changed.notify_all()
