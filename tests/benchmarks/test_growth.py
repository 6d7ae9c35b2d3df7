"""Everything whose cost could grow with history is measured, and what it reads is counted."""

from __future__ import annotations

from pathlib import Path

from benchmarks.growth import CALLS, WAITING, Measured, Taken, markdown, measure, rows

SHORT, LONG = 100, 1_000


def test_everything_is_measured_on_each_history(tmp_path: Path) -> None:
    found = {
        row.what: row.records
        for row in measure("sqlite", f"sqlite:///{tmp_path}/log.db", (SHORT, LONG), 1)
    }
    assert found["streams saga list"][LONG] >= 2 * LONG, "all of it"
    assert found["streams dead ls"] == {SHORT: WAITING, LONG: WAITING}
    assert found["streams dead show, by ID"] == {SHORT: WAITING, LONG: WAITING}
    for what in ("saga.execute(id=...)", "saga.status(id)", "delays.publish"):
        assert max(found[what].values()) < CALLS


def test_ratios_are_those_of_one_turn() -> None:
    def measured(seconds: float, records: int) -> Measured:
        return {"look": Taken(seconds, seconds / 2, records)}

    turns = [
        {10: measured(1.0, 5), 1_000: measured(2.0, 5)},
        {10: measured(4.0, 5), 1_000: measured(4.0, 7)},
        {10: measured(2.0, 5), 1_000: measured(6.0, 7)},
    ]
    (row,) = rows("sqlite", turns)
    assert (row.ratio, row.spread, row.cpu_ratio) == (2.0, (1.0, 3.0), 2.0)
    assert (row.seconds, row.records) == ({10: 2.0, 1_000: 4.0}, {10: 5, 1_000: 7})
    head, _, line = markdown([row]).strip().split("\n")
    assert "1,000: ms" in head
    assert "| sqlite | look | 2000 | 4000 | 2 | 1-3 |" in line
