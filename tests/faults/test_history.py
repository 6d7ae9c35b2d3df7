"""The checker must see what is wrong: a sound history, and each anomaly planted in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.history import (
    Commit,
    Effect,
    Event,
    Failed,
    Life,
    Owned,
    Recorder,
    Report,
    Sent,
    Started,
    check,
    covers,
    late_effects,
    read,
)

T = "t"


def sent(offset: int, key: str = "k", id: str | None = None) -> Sent:
    return Sent(0.0, T, 0, offset, key, id or f"m{offset}")


def started(at: float, offset: int, key: str = "k", attempt: int = 1) -> Started:
    return Started(at, T, 0, offset, key, f"m{offset}", attempt)


def effect(at: float, offset: int, key: str = "k") -> Effect:
    return Effect(at, T, 0, offset, key, f"m{offset}")


def commit(at: float, position: int, *settled: tuple[int, int], epoch: int = 1) -> Commit:
    return Commit(at, at - 0.1, T, 0, epoch, position, settled)


def handled(at: float, offset: int, key: str = "k") -> list[Event]:
    return [started(at, offset, key), effect(at + 0.5, offset, key)]


def sound() -> dict[str, list[Event]]:
    """Two lives: the first is killed after a commit at 2, with message 2 handled."""
    return {
        "publisher": [sent(0), sent(1), sent(2), sent(3, "other"), sent(4)],
        "first": [
            Owned(1.0, T, 0, 1),
            *handled(2, 0),
            *handled(3, 1),
            commit(4, 2),
            *handled(5, 2),
            *handled(6, 3, "other"),
        ],
        "second": [
            Owned(10.0, T, 0, 2),
            *handled(11, 2),
            *handled(12, 3, "other"),
            *handled(13, 4),
            commit(14, 5, epoch=2),
        ],
    }


def judge(history: dict[str, list[Event]], *exempt: str) -> Report:
    return check([Life(name, events) for name, events in history.items()], exempt=exempt)


def test_a_sound_history_has_no_anomaly() -> None:
    report = judge(sound())
    assert report.anomalies == []
    assert (report.sent, report.handled, report.redelivered) == (5, 5, 2)


def lose(history: dict[str, list[Event]]) -> None:
    history["publisher"].append(sent(9))


def handle_after_commit(history: dict[str, list[Event]]) -> None:
    history["second"][1:1] = handled(10.2, 1)


def handle_twice_in_one_life(history: dict[str, list[Event]]) -> None:
    history["second"] += handled(20, 4)


def handle_although_in_settled_set(history: dict[str, list[Event]]) -> None:
    history["first"].append(commit(8, 2, (3, 4)))


def disorder(history: dict[str, list[Event]]) -> None:
    history["first"][1:5] = [*handled(2, 1), *handled(3, 0)]


def disorder_across_lives(history: dict[str, list[Event]]) -> None:
    history["first"] = [Owned(1.0, T, 0, 1), *handled(2, 0), commit(2.9, 1), *handled(5, 2)]
    history["second"][1:1] = handled(10.2, 1)


def overlap(history: dict[str, list[Event]]) -> None:
    history["first"][1:5] = [started(2, 0), started(2.1, 1), effect(2.2, 0), effect(2.3, 1)]


def commit_past_effect(history: dict[str, list[Event]]) -> None:
    history["first"][5] = commit(4, 3)


def settle_past_effect(history: dict[str, list[Event]]) -> None:
    history["first"][5] = commit(4, 2, (4, 5))


def go_backwards(history: dict[str, list[Event]]) -> None:
    history["second"].append(commit(15, 4, epoch=2))


def start_when_fenced(history: dict[str, list[Event]]) -> None:
    history["first"] += handled(10.4, 3, "other")


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lose, "lost"),
        (handle_after_commit, "duplicated"),
        (handle_twice_in_one_life, "duplicated"),
        (handle_although_in_settled_set, "duplicated"),
        (disorder, "order"),
        (disorder_across_lives, "order"),
        (overlap, "overlap"),
        (commit_past_effect, "past_effect"),
        (settle_past_effect, "past_effect"),
        (go_backwards, "backwards"),
        (start_when_fenced, "fenced"),
    ],
)
def test_each_anomaly_is_seen(plant: Callable[[dict[str, list[Event]]], None], kind: str) -> None:
    history = sound()
    plant(history)
    assert getattr(judge(history), kind)


def test_a_frozen_life_may_end_what_it_had_begun() -> None:
    history = sound()
    history["first"] += [started(9, 4)]
    history["frozen"] = [effect(30, 4)]
    start_when_fenced(history)
    assert judge(history).fenced
    assert not judge(history, "first").fenced


def test_what_a_frozen_life_writes_down_late_accuses_nobody_else() -> None:
    history = sound()
    history["second"] += handled(21, 5)
    history["publisher"] += [sent(5)]
    history["frozen"] = [Owned(20, T, 0, 1)]
    assert judge(history).fenced
    assert judge(history, "frozen").anomalies == []


def test_late_effects_of_a_frozen_life_are_counted_and_its_late_commits_say_nothing() -> None:
    history = sound()
    start_when_fenced(history)
    history["first"] += [commit(90, 1)]
    assert judge(history).backwards
    assert not judge(history, "first").backwards
    lives = [Life(name, events) for name, events in history.items()]
    assert late_effects(lives, "second") == {}
    before = sum(late_effects(lives, "first").values())
    history["first"] += [effect(91, 4)]
    lives = [Life(name, events) for name, events in history.items()]
    assert sum(late_effects(lives, "first").values()) == before + 1


def test_a_failed_attempt_is_no_effect() -> None:
    history = sound()
    history["first"][1:3] = [
        started(2, 0),
        Failed(2.1, T, 0, 0, "k", "m0"),
        started(2.2, 0, attempt=2),
        effect(2.3, 0),
    ]
    assert judge(history).anomalies == []


@pytest.mark.parametrize(
    ("offset", "covered"), [(4, True), (5, False), (7, True), (8, True), (9, False), (12, True)]
)
def test_coverage(offset: int, covered: bool) -> None:
    assert covers(commit(1, 5, (7, 9), (12, 13)), offset) is covered


def test_what_a_kill_cut_off_did_not_happen(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write(sent(1))
    recorder.write(effect(2, 1))
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'["effect",3.0,"t",0,2,"k"')
    (life,) = read(tmp_path)
    assert life.events == [sent(1), effect(2, 1)]
