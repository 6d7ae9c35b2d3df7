"""Each promise broken on purpose, in the code itself: the test that proves it has to fail.

A mutation is a change of a few characters, in each log's own way of keeping the promise: on Kafka
that is a rule, which is put to the test without a broker. The test is one of the suite's, run as it
is. Where code has moved, so that a change does not apply any more,
the mutation itself fails and is to be thought about anew.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha1
from typing import Any

import pytest

from streams.eventsourcing.runtime import AggregateRuntime
from streams.eventsourcing.state_type import StateType
from streams.log import events as log_events
from streams.log.events import (
    Appended,
    AppendOutcome,
    Base,
    EventAppend,
    EventLog,
    OnEventsAppended,
)
from streams.log.kafka.arbitration import Arbiter
from streams.log.kafka.event_snapshots import EventSnapshots
from streams.log.kafka.snapshot_index import SnapshotIndex
from streams.log.memory import events as memory_events
from streams.log.redis import client as redis_client
from streams.log.redis import lua
from streams.log.redis.keys import PartitionKeys
from streams.log.sqlite import events as sqlite_events
from tests.conformance import test_event_log as log_tests
from tests.conformance.logs import Case
from tests.conformance.stage import Stage
from tests.conformance.world import World
from tests.eventsourcing import test_decide, test_evolution
from tests.eventsourcing.bank import Overdrawn
from tests.log import test_kafka_arbitration as arbitration_tests

pytestmark = pytest.mark.anyio

FAILED = (AssertionError, pytest.fail.Exception)

Patch = pytest.MonkeyPatch


# -- how code is changed ---------------------------------------------------------------------------


def change(patch: Patch, owner: Any, name: str, old: str, new: str) -> Any:
    """Write a function anew, with a piece of its source exchanged; the new function."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has changed: {old!r} is not there once"
    namespace = dict(vars(sys.modules[function.__module__]))
    code = f"from __future__ import annotations\n{source.replace(old, new)}"
    exec(compile(code, f"<mutated {name}>", "exec"), namespace)
    patch.setattr(owner, name, namespace[name])
    return namespace[name]


def change_script(patch: Patch, name: str, old: str, new: str) -> None:
    """The same in one of Redis' scripts."""
    load_script = lua.load_script

    def load(wanted: str) -> lua.Script:
        script = load_script(wanted)
        if wanted != name:
            return script
        assert script.text.count(old.encode()) == 1, f"{name}.lua has changed: {old!r}"
        text = script.text.replace(old.encode(), new.encode())
        sha = sha1(text, usedforsecurity=False).hexdigest().encode()
        return replace(script, text=text, sha=sha)

    patch.setattr(redis_client, "load_script", load)


def change_judge(patch: Patch, old: str, new: str) -> None:
    """The same in the decision that memory and SQLite share."""
    judge = change(patch, log_events, "judge", old, new)
    for module in (memory_events, sqlite_events):
        patch.setattr(module, "judge", judge)


# -- the check is loosened -------------------------------------------------------------------------


def compare_versions_alone(patch: Patch, log: str) -> None:
    """Whoever has the right number may append, on whatever history."""
    change_judge(patch, "if head.base == base:", "if head.base.version == base.version:")
    if log == "redis":
        old = "version ~= base_version or last_id ~= base_id"
        change_script(patch, "append_events", old, "version ~= base_version")


@pytest.mark.needs("checks_appends")
def test_red_if_versions_alone_are_compared(case: Case, world: World, monkeypatch: Patch) -> None:
    compare_versions_alone(monkeypatch, case.name)
    with pytest.raises(FAILED):
        log_tests.test_a_base_that_the_history_does_not_have_is_not_a_conflict(world)


def accept_losers(patch: Patch, log: str) -> None:
    """An append counts although its base has passed."""
    if log == "memory":
        old = "if isinstance(verdict, Refused):"
        change(patch, memory_events.EventIndex, "append", old, "if (verdict := 'append') == '':")
    if log == "sqlite":
        old = "verdict = judge(append, history)"
        change(patch, sqlite_events.Events, "_write", old, "verdict = 'append'")
    if log == "redis":
        old = "version ~= base_version or last_id ~= base_id"
        change_script(patch, "append_events", old, "false")


@pytest.mark.needs("checks_appends")
def test_red_if_losers_count(case: Case, world: World, monkeypatch: Patch) -> None:
    accept_losers(monkeypatch, case.name)
    with pytest.raises(FAILED):
        log_tests.test_an_append_on_a_base_that_has_passed_is_refused(world)


@pytest.mark.parametrize(
    ("old", "new", "proof"),
    [
        (
            "head.base != header.base or ",
            "",
            arbitration_tests.test_the_first_on_a_base_wins,
        ),
        (
            "head.base != header.base",
            "head.base.version != header.base.version",
            arbitration_tests.test_an_append_upon_another_history_never_counts,
        ),
        (
            "if header.is_last:\n            return self._count(key, header, (offset,)",
            "if True:\n            return self._count(key, header, (offset,)",
            arbitration_tests.test_an_append_counts_at_its_last_record_and_not_before,
        ),
        (
            "len(found.offsets) != index",
            "False",
            arbitration_tests.test_what_is_no_append_never_counts,
        ),
        (
            "head.base != header.base or head.is_final",
            "head.base != header.base",
            arbitration_tests.test_nothing_follows_a_final_append,
        ),
    ],
    ids=[
        "a loser counts",
        "versions alone are compared",
        "half of one counts",
        "one with a gap counts",
        "one counts behind the last",
    ],
)
def test_red_if_kafkas_rule_is_another(
    old: str, new: str, proof: Callable[[], None], monkeypatch: Patch
) -> None:
    """The same rule with one condition less."""
    change(monkeypatch, Arbiter, "feed", old, new)
    with pytest.raises(FAILED):
        proof()


# -- appends are not one step ----------------------------------------------------------------------


def append_in_parts(patch: Patch, log: EventLog) -> None:
    """Each event is appended by itself, right behind the one before."""
    append_events = type(log).append_events

    def append(
        self: EventLog, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        outcomes: list[AppendOutcome] = []
        for each in appends:
            offsets: tuple[int, ...] = ()
            base, partition = each.base, -1
            for record in each.records:
                part = each._replace(base=base, records=[record])
                told: list[AppendOutcome] = []
                append_events(self, topic, [part], told.extend)
                (outcome,) = told
                assert isinstance(outcome, Appended), outcome
                partition, offsets = outcome.partition, offsets + outcome.offsets
                base = Base(base.version + 1, record.id)
                time.sleep(0.001)
            outcomes.append(Appended(partition, offsets))
        on_appended(outcomes)

    patch.setattr(type(log), "append_events", append)


@pytest.mark.needs("checks_appends")
def test_red_if_an_append_is_several_steps(case: Case, world: World, monkeypatch: Patch) -> None:
    append_in_parts(monkeypatch, world.log)  # type: ignore[arg-type]
    with pytest.raises(FAILED):
        log_tests.test_nobody_sees_a_part_of_an_append(world)


# -- snapshots -------------------------------------------------------------------------------------


def ignore_fingerprints(patch: Patch, log: str) -> None:
    """A log hands out whatever snapshot it has."""
    if log == "memory":
        index = memory_events.EventIndex
        change(
            patch,
            index,
            "write_snapshots",
            "snapshot.key, snapshot.fingerprint",
            "snapshot.key, ''",
        )
        change(patch, index, "read", "(request.key, request.fingerprint)", "(request.key, '')")
    if log == "sqlite":
        old = " AND s.fingerprint = r.value ->> 4"
        assert old in sqlite_events._SELECT_REQUESTS
        patch.setattr(
            sqlite_events, "_SELECT_REQUESTS", sqlite_events._SELECT_REQUESTS.replace(old, "")
        )
    if log == "kafka":
        any_kind = (
            "next((found for (key, _), found in self._found[partition].items() if key == name[0]), "
            "None)"
        )
        change(patch, SnapshotIndex, "find", "self._found[partition].get(name)", any_kind)
        old = "record.key == record_key(request.key, request.fingerprint)"
        change(patch, EventSnapshots, "fetch", old, "True")
    if log == "redis":
        old = 'fingerprint.encode("utf-8", "surrogateescape")'
        change(patch, PartitionKeys, "snapshots_key", old, "b'any'")


async def test_red_if_a_log_ignores_fingerprints(
    case: Case, stage: Stage, monkeypatch: Patch
) -> None:
    ignore_fingerprints(monkeypatch, case.name)
    with pytest.raises(FAILED):
        await test_evolution.test_a_snapshot_of_other_code_is_not_used(stage)


async def test_red_if_all_code_has_one_fingerprint(
    case: Case, stage: Stage, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(StateType, "fingerprint", lambda self, version: "any")
    with pytest.raises(FAILED):
        await test_evolution.test_a_snapshot_of_other_code_is_not_used(stage)


# -- refusals --------------------------------------------------------------------------------------


async def test_red_if_a_refusal_comes_from_an_old_state(stage: Stage, monkeypatch: Patch) -> None:
    change(monkeypatch, AggregateRuntime, "_decide", "if not events and not is_fresh:", "if False:")
    with pytest.raises((*FAILED, Overdrawn)):
        await test_decide.test_a_refusal_never_comes_from_a_state_that_is_old(stage)
