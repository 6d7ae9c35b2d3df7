"""``streams aggregates``: what stands in a log's histories, and what an app's code makes of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import DecisionRefused, Streams
from streams.eventsourcing import Aggregate, Snapshot
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, EventLog, HistoryRequest, StoredSnapshot
from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import Run, Shell, eventually
from tests.eventsourcing.bank import (
    Account,
    AccountEvent,
    Closed,
    Deposited,
    Opened,
    Overdrawn,
    Withdrawn,
    evolve,
)

BANK = """
from streams import Streams
from streams.eventsourcing import Aggregate, Snapshot
from tests.eventsourcing.bank import Account, AccountEvent, Closed, Opened, evolve

app = Streams()
accounts = Aggregate(
    app, "NAME", AccountEvent, Account, evolve, partitions=3, final=Closed,
    snapshot=Snapshot(every=2),
)
"""

OLDER = """
from msgspec import Struct

from streams import Streams
from streams.eventsourcing import Aggregate
from tests.eventsourcing.bank import Account, Deposited, Opened, evolve

app = Streams()
accounts = Aggregate(app, "NAME", Opened | Deposited, Account, evolve, partitions=3)
"""


class Bank:
    """Accounts on one log, and the command line beside them."""

    def __init__(self, url: str, folder: Path, run: Run) -> None:
        self.url = url
        self.folder = folder
        self.name = f"accounts-{uuid4().hex[:8]}"
        self.topic = f"{self.name}.events"
        self._run = run

    def write(self, text: str, module: str) -> None:
        (self.folder / f"{module}.py").write_text(text.replace("NAME", self.name))

    def __call__(self, *words: str) -> Any:
        """A command; NAME and APP stand for the aggregate and the app of the first tests."""
        named = [word.replace("NAME", self.name) for word in words]
        return self._run("aggregates", *named, "--url", self.url)

    def work(self, act: Callable[[Aggregate[Any, Account]], Coroutine[Any, Any, None]]) -> None:
        """Do something with the aggregate in an app that runs."""

        async def enter() -> None:
            app = Streams(self.url)
            accounts: Aggregate[Any, Account] = Aggregate(
                app, self.name, AccountEvent, Account, evolve, partitions=3, final=Closed,
                snapshot=Snapshot(every=2),
            )  # fmt: skip
            async with app:
                await act(accounts)

        asyncio.run(enter())

    def log(self) -> Any:
        log = open_log(self.url)
        assert isinstance(log, EventLog)
        return log


LOGS = ["sqlite", "redis", "kafka"]


@pytest.fixture(params=LOGS)
def bank(request: pytest.FixtureRequest, run: Run, shell: Shell) -> Bank:
    if request.param == "sqlite":
        url = f"sqlite:////{str(shell.folder / 'bank.db').lstrip('/')}"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    found = Bank(url, shell.folder, run)
    found.write(BANK, "bank")
    found.write(OLDER, "older")
    return found


async def some_accounts(accounts: Aggregate[Any, Account]) -> None:
    await accounts.append("a-1", [Opened("ada"), Deposited(500)], expected="new")
    await accounts.with_options(cause="wish", headers={"by": "eve"}).append(
        "a-1", [Withdrawn(100), Deposited(7)], expected="any"
    )
    await accounts.append("a-2", Opened("bob"), expected="new")
    await accounts.append("b-1", [Opened("carl"), Closed()], expected="new")
    await accounts.append("ü", Deposited(1), expected="new")


@pytest.fixture
def filled(bank: Bank) -> Bank:
    bank.work(some_accounts)
    return bank


def mine(rows: list[dict[str, Any]], bank: Bank) -> dict[str, Any]:
    (found,) = [row for row in rows if row["aggregate"] == bank.name]
    return found


def test_a_log_says_how_much_its_event_topics_hold(filled: Bank) -> None:
    found = mine(filled("ls", "--json").json, filled)
    assert (found["topic"], found["partitions"]) == (filled.topic, 3)
    assert (found["aggregates"], found["events"], found["causes"]) == (4, 8, 1)
    assert found["cause_bytes"] > 0
    by_app = filled("ls", "bank:app", "--json").json
    assert [each["aggregate"] for each in by_app] == [filled.name]
    assert by_app[0]["events"] == 8
    plain = filled("ls", "bank:app")
    assert plain.out.splitlines()[0].split()[:3] == ["AGGREGATE", "PARTITIONS", "AGGREGATES"]
    assert plain.err == ""


def test_snapshots_are_counted_by_fingerprint(filled: Bank) -> None:
    found = filled("ls", "bank:app", "--json").json[0]
    assert found["snapshots"] == {found["fingerprint"]: 2}
    assert f"{found['fingerprint']}: 2 (this code)" in filled("ls", "bank:app").out
    assert filled("ls", "older:app", "--json").json[0]["fingerprint"] is None


def test_ids_are_listed_in_order_and_page_by_page(filled: Bank) -> None:
    found = filled("ls", "NAME", "--json").json
    assert found == [
        {"id": "a-1", "version": 4, "closed": False},
        {"id": "a-2", "version": 1, "closed": False},
        {"id": "b-1", "version": 2, "closed": True},
        {"id": "ü", "version": 1, "closed": False},
    ]
    assert filled("ls", "bank:app", "NAME", "--json").json == found

    first = filled("ls", "NAME", "-n", "2", "--json")
    assert [each["id"] for each in first.json] == ["a-1", "a-2"]
    assert first.err == "there are more: -n 0 lists all, --after a-2 continues\n"
    rest = filled("ls", "NAME", "-n", "2", "--after", "a-2", "--json")
    assert [each["id"] for each in rest.json] == ["b-1", "ü"]
    assert rest.err == ""

    for prefix, ids in (("a", ["a-1", "a-2"]), ("a-1", ["a-1"]), ("c", []), ("ü", ["ü"])):
        assert [each["id"] for each in filled("ls", "NAME", "--prefix", prefix, "--json").json] == (
            ids
        )
    behind = filled("ls", "NAME", "--prefix", "a", "--after", "a-1", "--json").json
    assert [each["id"] for each in behind] == ["a-2"]
    plain = filled("ls", "NAME").out.splitlines()
    assert plain[0].split() == ["ID", "VERSION", "CLOSED"]
    assert plain[3].split() == ["b-1", "2", "yes"]


def test_many_ids_are_listed_over_pages_of_the_log(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.cli import aggregates
    from streams.cli.aggregates import lists

    async def act(accounts: Aggregate[Any, Account]) -> None:
        for number in range(25):
            await accounts.append(f"n{number:02}", Deposited(1), expected="new")

    bank.work(act)
    monkeypatch.setattr(aggregates, "PAGE", 2)
    monkeypatch.setattr(lists, "CHECK_SIZE", 3)
    ids = [f"n{number:02}" for number in range(25)]
    assert [each["id"] for each in bank("ls", "NAME", "-n", "0", "--json").json] == ids
    assert [each["id"] for each in bank("ls", "NAME", "--prefix", "n1", "--json").json] == ids[
        10:20
    ]
    assert bank("ls", "bank:app", "NAME", "--undecodable", "--json").json == []


def test_an_aggregate_is_shown_with_its_state(filled: Bank) -> None:
    found = filled("show", "bank:app", "NAME", "a-1", "--json").json
    assert (found["aggregate"], found["id"], found["topic"]) == (filled.name, "a-1", filled.topic)
    assert (found["version"], found["closed"], found["stopped"]) == (4, False, None)
    assert (found["state"], found["state_version"]) == ({"owner": "ada", "cents": 407}, 4)
    assert found["last"]["version"] == 4
    assert found["last"]["position"].startswith(f"{filled.topic}/{found['partition']}/")
    assert found["last"]["time"].endswith("Z")
    assert "events" not in found

    closed = filled("show", "bank:app", "NAME", "b-1")
    assert closed.out.splitlines()[0] == f"{filled.name} b-1: version 2, closed"
    assert '{"owner":"carl","cents":0}' in closed.out

    raw = filled("show", "NAME", "a-1", "--json").json
    assert raw["version"] == 4
    assert raw["last"] == found["last"]
    assert not {"state", "stopped", "events"} & set(raw)


def test_an_aggregate_that_has_only_refused_a_command(filled: Bank) -> None:
    log = filled.log()
    outcomes: list[Any] = []
    record = Record(None, b"shy", "refusal-1")
    append = make_append(b"shy", NO_HISTORY, [record], cause="no", is_refusal=True)
    log.append_events(filled.topic, [append], outcomes.extend)
    eventually(lambda: outcomes)
    log.close()
    assert "shy" in [each["id"] for each in filled("ls", "NAME", "--json").json]
    found = filled("show", "bank:app", "NAME", "shy", "--events", "--json").json
    assert (found["version"], found["last"], found["events"]) == (0, None, [])
    (refused,) = found["refusals"]
    assert (refused["version"], refused["cause"], refused["error"]) == (0, "no", None)
    plain = filled("show", "NAME", "shy", "--events").out.splitlines()
    assert plain[-1].endswith("(refused at version 0)")
    assert found["state"] == {"owner": "", "cents": 0}
    assert filled("show", "NAME", "shy").out.startswith(f"{filled.name} shy: version 0\n")


@pytest.mark.everywhere
def test_an_id_with_a_nul_is_written_with_escapes(bank: Bank) -> None:
    async def act(accounts: Aggregate[Any, Account]) -> None:
        for id in ("a", "a\0b", "a\0c", "b"):
            await accounts.append(id, Deposited(1), expected="new")

    bank.work(act)
    for words in (["NAME"], ["bank:app", "NAME"]):
        found = bank("show", *words, r"a\x00b", "--escapes", "--events", "--json").json
        assert (found["id"], found["version"], len(found["events"])) == ("a\0b", 1, 1)
    assert "there is no such aggregate" in bank("show", "NAME", r"a\x00b").err
    few = bank("ls", "NAME", "-n", "2", "--json")
    assert [each["id"] for each in few.json] == ["a", "a\0b"]
    assert few.err == "there are more: -n 0 lists all, --after 'a\\x00b' --escapes continues\n"
    rest = bank("ls", "NAME", "--after", r"a\x00b", "--escapes", "--json").json
    assert [each["id"] for each in rest] == ["a\0c", "b"]
    some = bank("ls", "NAME", "--prefix", r"a\x00", "--escapes", "--json").json
    assert [each["id"] for each in some] == ["a\0b", "a\0c"]


async def some_refusals(accounts: Aggregate[Any, Account]) -> None:
    for number, cents in enumerate((9_000, 8_000)):  # a-1 is at version 4
        step = accounts.with_options(cause=f"too-much-{number}", refusals=Overdrawn)
        with suppress(DecisionRefused):
            await step.decide("a-1", Account.withdraw, cents)
    await accounts.append("a-1", Deposited(1), expected=4)
    step = accounts.with_options(cause="again", refusals=Overdrawn)
    with suppress(DecisionRefused):
        await step.decide("a-1", Account.withdraw, 9_000)


@pytest.mark.everywhere
def test_stored_refusals_are_listed_among_the_events(filled: Bank) -> None:
    filled.work(some_refusals)
    wanted = [
        (4, "too-much-0", "Overdrawn"), (4, "too-much-1", "Overdrawn"), (5, "again", "Overdrawn")
    ]  # fmt: skip

    def shown(*words: str) -> tuple[list[int], list[tuple[int, str, str]]]:
        found = filled("show", *words, "--events", "--json").json
        return (
            [each["version"] for each in found["events"]],
            [(each["version"], each["cause"], each["error"]) for each in found["refusals"]],
        )

    assert shown("NAME", "a-1") == ([1, 2, 3, 4, 5], wanted)
    assert shown("bank:app", "NAME", "a-1") == ([1, 2, 3, 4, 5], wanted)
    assert shown("NAME", "a-1", "--at", "4") == ([1, 2, 3, 4], wanted[:2])
    assert shown("NAME", "a-1", "--at", "3") == ([1, 2, 3], [])
    assert shown("NAME", "a-1", "-n", "1") == ([5], wanted[2:])
    assert shown("NAME", "a-1", "-n", "2") == ([4, 5], wanted[1:])
    assert shown("NAME", "a-1", "-n", "0") == ([1, 2, 3, 4, 5], wanted)
    assert shown("NAME", "a-2") == ([1], [])
    assert shown("NAME", "a-1", "--at", "2001-01-01T00:00Z") == ([], [])
    assert shown("NAME", "a-1", "--at", "2999-01-01T00:00Z", "-n", "2") == ([4, 5], wanted[1:])
    assert "refusals" not in filled("show", "NAME", "a-1", "--json").json

    every = filled("show", "NAME", "a-1", "--events", "--json").json["refusals"]
    assert [each["time"] for each in every] == sorted(each["time"] for each in every)
    log = filled.log()
    for each in every:
        partition, _, offset = each["position"].removeprefix(f"{filled.topic}/").partition("/")
        at = log.parse_offset(offset)
        batch = log.raw_reader(filled.topic, int(partition), at, at + 1).read(1)
        assert batch.id(0) == each["id"]
    log.close()

    plain = filled("show", "bank:app", "NAME", "a-1", "--events").out.splitlines()[-8:]
    assert [line.split()[0] for line in plain] == ["1", "2", "3", "4", "-", "-", "5", "-"]
    assert plain[4].split()[3:] == ["too-much-0", "(refused", "at", "version", "4:", "Overdrawn)"]
    assert "again" in plain[-1]
    assert plain[-1].endswith("(refused at version 5: Overdrawn)")


def test_an_aggregate_is_shown_as_it_was(filled: Bank) -> None:
    first = filled("show", "bank:app", "NAME", "a-1", "--at", "1", "--json").json
    assert (first["version"], first["state_version"], first["state"]["cents"]) == (4, 1, 0)
    assert first["last"]["version"] == 1
    assert filled("show", "bank:app", "NAME", "a-1", "--at", "3", "--json").json["state"] == {
        "owner": "ada",
        "cents": 400,
    }
    before = filled("show", "bank:app", "NAME", "a-1", "--at", "2001-01-01T00:00Z", "--json").json
    assert (before["state_version"], before["state"]["owner"], before["last"]) == (0, "", None)
    later = filled("show", "bank:app", "NAME", "a-1", "--at", "2999-01-01T00:00Z", "--json").json
    assert later["state_version"] == 4
    ago = filled("show", "bank:app", "NAME", "a-1", "--at", "90d", "--json").json
    assert ago["state_version"] == 0
    times = filled("show", "NAME", "a-1", "--events", "--json").json["events"]
    at = filled("show", "bank:app", "NAME", "a-1", "--at", times[1]["time"], "--events", "--json")
    assert len(at.json["events"]) == at.json["state_version"]

    far = filled("show", "bank:app", "NAME", "a-1", "--at", "9")
    assert (far.status, far.out) == (1, "")
    assert f"{filled.name} 'a-1': it has 4 versions, and none is 9" in far.err
    for wrong in ("soon", "-1", "9" * 40, "2013-01-05"):
        bad = filled("show", "NAME", "a-1", "--at", wrong)
        assert bad.status == 2, bad
        assert bad.err.count("\n") == 1


def test_events_are_shown_as_the_code_reads_them_and_as_they_are_stored(filled: Bank) -> None:
    found = filled("show", "bank:app", "NAME", "a-1", "--events", "--json").json["events"]
    assert [each["version"] for each in found] == [1, 2, 3, 4]
    assert [each["type"] for each in found] == ["Opened", "Deposited", "Withdrawn", "Deposited"]
    assert [each["cause"] for each in found] == [None, None, "wish", "wish"]
    assert [each["event"] for each in found][1:3] == [
        {"type": "deposited", "cents": 500},
        {"type": "withdrawn", "cents": 100},
    ]
    assert found[2]["headers"] == {"by": "eve"}
    assert found[0]["append"] == found[1]["append"] == found[0]["id"] != found[2]["append"]
    raw = filled("show", "NAME", "a-1", "--events", "--json").json["events"]
    assert [each["value"] for each in raw] == [each["event"] for each in found]
    assert [each["position"] for each in raw] == [each["position"] for each in found]
    last = filled("show", "NAME", "a-1", "--events", "-n", "2", "--json").json["events"]
    assert last == raw[2:]
    plain = filled("show", "bank:app", "NAME", "a-1", "--events").out.splitlines()
    assert plain[-1].endswith('Deposited {"type":"deposited","cents":7}')
    assert "wish" in plain[-1]


def test_what_cannot_be_decoded_is_listed_and_shown_as_it_is_stored(filled: Bank) -> None:
    listed = filled("ls", "older:app", "NAME", "--undecodable", "--json").json
    assert [(each["id"], each["version"]) for each in listed] == [("a-1", 3), ("b-1", 2)]
    assert listed[0]["why"].startswith("event 3 cannot be decoded: ")
    assert filled("ls", "bank:app", "NAME", "--undecodable", "--json").json == []
    assert filled("ls", "older:app", "--undecodable", "--json").json[0]["undecodable"] == 2
    one = filled("ls", "older:app", "NAME", "--undecodable", "-n", "1", "--json")
    assert [each["id"] for each in one.json] == ["a-1"]
    assert "--after a-1 continues" in one.err
    few = filled("ls", "older:app", "NAME", "--undecodable", "--scan", "1")
    assert f"{filled.name}: only 1 aggregates were checked" in few.err
    assert "a-1" in few.out
    assert "b-1" not in few.out

    shown = filled("show", "older:app", "NAME", "a-1", "--events", "--json").json
    assert (shown["version"], shown["state_version"]) == (4, 2)
    assert shown["stopped"]["version"] == 3
    assert shown["state"] == {"owner": "ada", "cents": 500}
    assert shown["events"][2]["value"] == {"type": "withdrawn", "cents": 100}
    assert "a tag that" in shown["events"][2]["why"]
    assert shown["events"][3]["event"] == {"type": "deposited", "cents": 7}
    plain = filled("show", "older:app", "NAME", "a-1", "--events")
    assert plain.status == 0
    assert "stopped" in plain.out
    assert "(cannot be decoded: " in plain.out


def test_what_upcasts_make_of_an_event_is_shown(filled: Bank) -> None:
    filled.write(
        """
from streams import Streams
from streams.eventsourcing import Aggregate
from tests.eventsourcing.bank import Account, Closed, Deposited, Opened, Withdrawn, evolve

app = Streams()
accounts = Aggregate(app, "NAME", Opened | Deposited, Account, evolve, partitions=3)


@accounts.upcast(Withdrawn)
def split(old: Withdrawn) -> list[Deposited]:
    return [Deposited(-old.cents), Deposited(0)]


@accounts.upcast(Closed)
def drop(old: Closed) -> None:
    return None
""",
        "newer",
    )
    found = filled("show", "newer:app", "NAME", "a-1", "--events", "--json").json
    assert (found["version"], found["state"]["cents"]) == (4, 407)
    split = [each for each in found["events"] if each["version"] == 3]
    assert [each["event"]["cents"] for each in split] == [-100, 0]
    assert [each["id"].rpartition("#")[2] for each in split] == ["0", "1"]
    gone = filled("show", "newer:app", "NAME", "b-1", "--events", "--json").json["events"][1]
    assert (gone["event"], gone["version"]) == (None, 2)
    assert "(dropped by upcast)" in filled("show", "newer:app", "NAME", "b-1", "-e").out


def test_code_that_fails_says_where(filled: Bank) -> None:
    filled.write(
        """
from streams import Streams
from streams.eventsourcing import Aggregate
from tests.eventsourcing.bank import Account, AccountEvent

app = Streams()


def fold(account, event):
    if getattr(event, "cents", 0) == 100:
        raise ZeroDivisionError("a hundred")
    return account


accounts = Aggregate(app, "NAME", AccountEvent, Account, fold, partitions=3)
""",
        "wrong",
    )
    shown = filled("show", "wrong:app", "NAME", "a-1", "--json").json
    why = "evolve failed at event 3: ZeroDivisionError: a hundred"
    assert shown["stopped"] == {"version": 3, "why": why}
    assert shown["state_version"] == 2
    (listed,) = filled("ls", "wrong:app", "NAME", "--undecodable", "--json").json
    assert (listed["id"], listed["why"]) == ("a-1", why)


def test_snapshots_are_shown_with_their_age_and_use(filled: Bank) -> None:
    log = filled.log()
    (found,) = log.read_histories(filled.topic, [HistoryRequest(b"a-1", limit=2)])
    second = found.events[1]
    base = NO_HISTORY._replace(version=2, last_id=second.record.id)
    log.write_snapshots(
        filled.topic, [StoredSnapshot(b"a-1", "other-code", base, second.offset, b"{}")]
    )
    log.close()
    shown = filled("show", "bank:app", "NAME", "a-1", "--json").json
    by_kind = {each["fingerprint"]: each for each in shown["snapshots"]}
    other = by_kind.pop("other-code")
    assert (other["version"], other["behind"], other["usable"]) == (2, 2, False)
    assert other["why"].startswith("made by other code")
    assert other["bytes"] == 2
    assert other["time"].endswith("Z")
    (own,) = by_kind.values()
    assert (own["version"], own["behind"], own["usable"], own["why"]) == (4, 0, True, None)
    # What it is shown from is the snapshot, so its last event is the snapshot's.
    assert shown["last"]["version"] == 4
    assert shown["last"] == filled("show", "NAME", "a-1", "-e", "--json").json["last"]
    assert shown["state"]["cents"] == 407
    plain = filled("show", "bank:app", "NAME", "a-1").out
    assert "used by this code" in plain
    assert "of no use: made by other code" in plain
    raw = filled("show", "NAME", "a-1", "--json").json
    assert {each["usable"] for each in raw["snapshots"]} == {None}


def test_a_snapshot_that_cannot_be_read_is_of_no_use_and_in_nobodys_way(filled: Bank) -> None:
    kind = filled("ls", "bank:app", "--json").json[0]["fingerprint"]
    log = filled.log()
    (found,) = log.read_histories(filled.topic, [HistoryRequest(b"a-1")])
    kept = StoredSnapshot(b"a-1", kind, found.head.base, found.events[-1].offset, b"\xff\x00")
    log.write_snapshots(filled.topic, [kept])
    log.close()
    shown = filled("show", "bank:app", "NAME", "a-1", "--json").json
    assert shown["state"] == {"owner": "ada", "cents": 407}
    (snapshot,) = shown["snapshots"]
    assert (snapshot["usable"], snapshot["why"]) == (False, "its state cannot be decoded")


def test_snapshots_are_deleted_and_nothing_else_changes(filled: Bank) -> None:
    before = filled("show", "bank:app", "NAME", "a-1", "--events", "--json").json
    kind = filled("ls", "bank:app", "--json").json[0]["fingerprint"]
    log = filled.log()
    (found,) = log.read_histories(filled.topic, [HistoryRequest(b"a-1")])
    old = [
        StoredSnapshot(b"a-1", each, found.head.base, found.events[-1].offset, b"{}")
        for each in ("old-1", "old-2")
    ]
    log.write_snapshots(filled.topic, old)
    log.close()
    asked = filled("drop-snapshots", "NAME")
    assert asked.status == 2
    assert f"Delete 4 snapshots of {filled.name} (2 of fingerprint {kind}, 1 of" in asked.err
    none = filled("drop-snapshots", "NAME", "-f", "old-3", "--yes")
    assert none.status == 1
    assert "has no snapshots of fingerprint 'old-3'; did you mean 'old-" in none.err
    one = filled("drop-snapshots", "NAME", "-f", "old-1", "--yes", "--json").json
    assert one == {"aggregate": filled.name, "deleted": 1}
    unused = filled("drop-snapshots", "bank:app", "NAME", "--unused", "--yes")
    assert unused.out == f"{filled.name}: 1 snapshot deleted\n"
    assert filled("ls", "bank:app", "--json").json[0]["snapshots"] == {kind: 2}
    assert filled("drop-snapshots", "NAME", "--yes", "--json").json["deleted"] == 2
    assert filled("drop-snapshots", "NAME", "--yes", "--json").json["deleted"] == 0
    after = filled("show", "bank:app", "NAME", "a-1", "--events", "--json").json
    assert after["snapshots"] == []
    assert {**before, "snapshots": []} == after


def test_what_is_not_there_is_named_and_what_is_near(filled: Bank) -> None:
    wrong = filled.name[:-1] + "x"
    for words in (["ls", wrong], ["show", wrong, "a-1"], ["drop-snapshots", wrong]):
        ended = filled(*words)
        assert (ended.status, ended.out) == (1, "")
        assert ended.err == (
            f"streams: the log has no aggregates {wrong!r}; did you mean {filled.name!r}?\n"
        )
    ended = filled("show", "NAME", "a-11")
    assert ended.err == (
        f"streams: {filled.name} 'a-11': there is no such aggregate; did you mean 'a-1'?\n"
    )
    ended = filled("ls", "bank:app", wrong)
    assert ended.err == (
        f"streams: bank:app declares no aggregate {wrong!r}; did you mean {filled.name!r}?\n"
    )
    ended = filled("ls", "bank:ap")
    assert "it has bank:app" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ls NAME --undecodable", "needs an app's code: write MODULE:APP before the name"),
        ("ls --prefix a", "need the name of an aggregate"),
        ("ls a b", "'a' is not an app: streams aggregates ls [MODULE:APP] [NAME]"),
        ("show bank:app NAME", "no ID given; write streams aggregates show bank:app"),
        ("show a b c", "'a' is not an app: streams aggregates show [MODULE:APP] NAME ID"),
        (
            "drop-snapshots bank:app",
            "no aggregate given; write streams aggregates drop-snapshots bank:app NAME",
        ),
        ("drop-snapshots NAME --unused", "--unused needs an app's code"),
        ("drop-snapshots bank:app NAME --unused -f x", "cannot be combined"),
        ("ls .py:x", "an app is written as MODULE:APP"),
    ],
)
def test_a_command_line_that_cannot_be(words: str, said: str, shell: Shell, run: Run) -> None:
    bank = Bank(f"sqlite:////{str(shell.folder / 'bank.db').lstrip('/')}", shell.folder, run)
    bank.write(BANK, "bank")
    ended = bank(*words.split())
    assert (ended.status, ended.out) == (2, ""), ended
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_topic_that_holds_no_histories_and_one_that_is_not_there_yet(bank: Bank) -> None:
    log: Any = open_log(bank.url)
    log.create_topic(bank.topic, 3)
    log.append(bank.topic, [Record(b"1", b"k", "id")], lambda answers: None)
    log.flush(10.0)
    log.close()
    ended = bank("ls", "NAME")
    assert (ended.status, ended.out) == (1, "")
    assert "holds no histories" in ended.err
    rows = bank("ls", "--json")
    assert bank.name not in [each["aggregate"] for each in rows.json]
    named = bank("ls", "bank:app", "--json")
    assert named.json == []
    assert "holds no histories" in named.err


def test_an_aggregate_whose_topic_is_not_there_yet_is_not_made(bank: Bank) -> None:
    open_log(bank.url).close()
    found = bank("ls", "bank:app", "--undecodable", "--json")
    assert found.json[0]["aggregates"] == found.json[0]["undecodable"] == 0
    assert (
        found.err == f"{bank.name}: its topic does not exist yet; the app creates it when it runs\n"
    )
    ended = bank("show", "bank:app", "NAME", "a-1")
    assert (ended.status, ended.out) == (1, "")
    log: Any = open_log(bank.url)
    assert bank.topic not in [info.name for info in log.describe_topics()]
    log.close()


def test_ids_and_causes_of_any_bytes_are_shown(bank: Bank) -> None:
    bank.work(some_accounts)
    log = bank.log()
    outcomes: list[Any] = []
    keys = [b"\xff\x1b[31m", b"a\n", "‮x".encode()]
    for number, key in enumerate(keys):
        record = Record(b"\x00\xff", key, f"id-{number}\x1b", ((("\x1bh"), b"\xff"),))
        append = make_append(key, NO_HISTORY, [record], cause="cause \udcff\x1b")
        log.append_events(bank.topic, [append], outcomes.extend)
    eventually(lambda: len(outcomes) == len(keys))
    log.close()
    assert not [each for each in outcomes if isinstance(each, Exception)]
    listed = bank("ls", "NAME", "--json").json
    odd = {each["id"]: each.get("id_base64") for each in listed}
    assert odd["\\xff\x1b[31m"] == base64.b64encode(keys[0]).decode()
    assert odd["a\n"] is None
    for each in (bank("ls", "NAME"), bank("ls", "bank:app", "NAME", "--undecodable")):
        assert each.status == 0
        assert "\x1b" not in each.out + each.err
    found = bank("show", "bank:app", "NAME", "a\n", "--events", "--json").json
    (event,) = found["events"]
    assert event["base64"] == base64.b64encode(b"\x00\xff").decode()
    assert event["cause"] == "cause \\xff\x1b"
    assert found["stopped"]["version"] == 1
    plain = bank("show", "bank:app", "NAME", "a\n", "--events")
    assert plain.status == 0
    assert "\x1b" not in plain.out + plain.err
