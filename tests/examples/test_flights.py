"""The demo: on a small file, on what is no such file, and a verdict that sees what is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from examples.flights.__main__ import DATA
from examples.flights.events import Arrived, Cancelled, Departed, Event
from examples.flights.events import rows as flights
from examples.flights.verdict import Effects, Verdict, judge
from examples.flights.worker import Effect
from streams.log.url import open_log

ROOT = Path(__file__).resolve().parents[2]
ROWS = 400


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the real file, and some that have no departure."""
    path = tmp_path_factory.mktemp("flights") / "small.csv"
    with gzip.open(DATA, "rt", encoding="utf-8", newline="") as whole, path.open("w") as part:
        part.writelines(islice(whole, ROWS + 1))
        part.writelines(islice((line for line in whole if line.split(",")[3] == "NA"), 5))
    return path


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m examples.flights ...``"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
    environment = {k: v for k, v in os.environ.items() if k != "STREAMS_URL"}
    return subprocess.run(
        [sys.executable, "-m", "examples.flights", *arguments],
        cwd=ROOT, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip


def counted(path: Path) -> dict[str, int]:
    """A count of our own, that shares no code with the demo."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    return {
        "flights": len(table),
        "departures": sum(row["dep_time"] not in ("", "NA") for row in table),
        "arrivals": sum(row["arr_time"] not in ("", "NA") for row in table),
        "cancellations": sum(row["dep_time"] in ("", "NA") for row in table),
    }


@pytest.mark.parametrize("url", ["", "memory://"])
def test_a_small_file_gives_the_plain_counts(small: Path, url: str) -> None:
    done = demo("--data", str(small), "--json", *(["--url", url] if url else []))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = counted(small)
    assert expected["cancellations"] >= 5
    assert {name: found[name] for name in expected} == expected
    assert sum(each["flights"] for each in found["carriers"].values()) == expected["flights"]
    assert (found["order_violations"], found["lost"], found["dead_letters"]) == (0, 0, 5)
    assert ("killed the worker" in done.stderr) is (not url)


def test_what_is_kept_can_be_opened_as_it_says(small: Path) -> None:
    done = demo("--data", str(small), "--keep")
    assert done.returncode == 0, done.stderr
    url = re.findall(r"web --url (sqlite://\S+)", done.stdout)[0]
    path = Path(url.removeprefix("sqlite:///"))
    try:
        with closing(open_log(url, mode="ro")) as log:
            assert any(name.startswith("flights-") for name in log.list_topics())
    finally:
        shutil.rmtree(path.parent)
    refused = demo("--data", str(small), "--keep", "--url", "memory://")
    assert refused.returncode == 2
    assert "ends with the process" in refused.stderr


@pytest.mark.parametrize(
    ("server", "setting"),
    # What the killed worker had is not waited for: that would outlast the demo's patience.
    [
        ("kafka", "session.timeout.ms=300000&max.poll.interval.ms=300000"),
        ("redis_server", "lease=3600&socket_timeout=5"),
    ],
)
def test_real_servers_give_the_same_counts(
    small: Path, server: str, setting: str, request: pytest.FixtureRequest
) -> None:
    url = f"{request.getfixturevalue(server).url}?{setting}"
    done = demo("--data", str(small), "--json", "--url", url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = counted(small)
    assert {name: found[name] for name in expected} == expected
    assert sum(each["flights"] for each in found["carriers"].values()) == expected["flights"]
    assert (found["order_violations"], found["lost"], found["dead_letters"]) == (0, 0, 5)
    assert "killed the worker" in done.stderr


def test_a_person_gets_a_table(small: Path) -> None:
    done = demo("--data", str(small), "--url", "memory://")
    assert done.returncode == 0, done.stderr
    assert str(counted(small)["departures"]) in done.stdout


HEADER = (
    "year,month,day,dep_time,dep_delay,arr_time,carrier,flight,tailnum,origin,dest,air_time,"
    "hour,minute,time_hour\n"
)
LINE = "2013,1,1,517,2,830,UA,1545,N14228,EWR,IAH,227,5,15,2013-01-01T10:00:00Z\n"

BAD: list[tuple[str, bytes | None, str]] = [
    ("missing", None, "cannot be read"),
    ("empty", b"", "no column 'year'"),
    ("another", b"name,age\nada,36\n", "is it a flights file?"),
    ("headless", LINE.encode(), "no column 'year'"),
    ("no-rows", HEADER.encode(), "holds no flights"),
    ("mistyped", (HEADER + LINE + LINE.replace("517", "soon")).encode(), "line 3"),
    ("timeless", (HEADER + LINE.replace("2013-01-01T10", "yesterday")).encode(), "line 2"),
    ("short", (HEADER + LINE + "2013,1\n").encode(), "line 3"),
    ("latin", HEADER.encode() + LINE.encode().replace(b"UA", b"\xe9\xe9"), "cannot be read"),
    ("cut", gzip.compress((HEADER + LINE * 1000).encode())[:-20], "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=[each[0] for each in BAD])
def test_what_is_no_flights_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / f"{name}.csv"
    if content is not None:
        path.write_bytes(content)
    done = demo("--data", str(path), "--json", "--url", "memory://")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("flights: ")
    assert str(path) in line
    assert words in line


def test_a_log_that_is_not_there_is_refused_in_one_line(small: Path) -> None:
    done = demo("--data", str(small), "--json", "--url", "sqlite:////no/such/folder/f.db")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("flights: sqlite:////no/such/folder")


def test_what_line_a_row_stands_in(small: Path) -> None:
    assert [row.line for row in islice(flights(small), 3)] == [2, 3, 4]


# -- the verdict

AT = datetime(2013, 1, 1, tzinfo=timezone.utc)
EXPECTED: list[tuple[str, Event]] = [
    ("0", Departed(0, "f0", "N1", "UA", AT, 4)),
    ("1", Departed(1, "f1", "N2", "B6", AT, -2)),
    ("2", Arrived(2, "f0", "N1", "UA", AT, "IAH")),
    ("3", Cancelled(3, "f2", None, "UA", AT)),
    ("4", Departed(4, "f3", "N1", "UA", AT, 8)),
    ("5", Arrived(5, "f3", "N1", "UA", AT, "JFK")),
]


def effects(*sequences: int, life: int = 1) -> list[Effect]:
    """What handling these events in this order leaves behind."""
    found = []
    for sequence in sequences:
        event = EXPECTED[sequence][1]
        delay = event.delay_minutes if isinstance(event, Departed) else 0
        kind = str(event.__struct_config__.tag)
        found.append(Effect(life, sequence, kind, event.carrier, event.tail_number, delay))
    return found


def verdict(found: Sequence[Effect]) -> Verdict:
    return judge(list(found), EXPECTED)


def test_an_orderly_history_has_nothing_to_say() -> None:
    for order in ([0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 4, 5], [3, 0, 2, 4, 5, 1]):  # keys mix freely
        told = verdict(effects(*order))
        assert (told.order_violations, told.lost, told.handled_twice) == (0, 0, 0)
        assert told.handled_at_most == 1
        figures = told.figures
        assert (figures.flights, figures.departures) == (4, 3)
        assert (figures.arrivals, figures.cancellations) == (2, 1)
        assert (figures.mean_delay("UA"), figures.mean_delay("B6")) == (6.0, -2.0)
        assert figures.busiest(1) == [("N1", 2)]


def test_what_a_crash_makes_come_again_is_in_order_and_told() -> None:
    told = verdict([*effects(0, 1, 2), *effects(2, 3, 4, 5, life=2)])
    assert (told.order_violations, told.lost) == (0, 0)
    assert (told.handled_twice, told.handled_at_most) == (1, 2)
    assert told.figures == verdict(effects(0, 1, 2, 3, 4, 5)).figures  # each counts once


ANOMALIES: list[tuple[str, list[Effect], Callable[[Verdict], int]]] = [
    ("lost", effects(0, 1, 2, 3, 5), lambda told: told.lost),
    ("all lost", [], lambda told: told.lost),
    ("twice in one life", effects(0, 1, 2, 2, 3, 4, 5), lambda told: told.order_violations),
    ("told twice", effects(0, 1, 1, 2, 3, 4, 5), lambda told: told.handled_twice),
    ("swapped", effects(0, 1, 4, 2, 3, 5), lambda told: told.order_violations),
    (
        "back over two lives",
        [*effects(0, 1, 4), *effects(2, 3, 5, life=2)],  # 2 came never, then too late
        lambda told: told.order_violations,
    ),
    (
        "again in wrong order",
        [*effects(0, 1, 2, 3, 4), *effects(4, 2, 5, life=2)],
        lambda told: told.order_violations,
    ),
]


@pytest.mark.parametrize(
    ("found", "seen"), [each[1:] for each in ANOMALIES], ids=[each[0] for each in ANOMALIES]
)
def test_a_planted_anomaly_is_seen(found: list[Effect], seen: Callable[[Verdict], int]) -> None:
    assert seen(verdict(found)) > 0


def test_half_a_line_of_a_killed_worker_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "effects"
    lines = [msgspec.json.encode(each) + b"\n" for each in effects(0, 1)]
    path.write_bytes(lines[0] + lines[1][:10])
    reading = Effects(path)
    assert reading.read() == 1
    path.write_bytes(b"".join(lines))
    assert reading.read() == 2
    assert reading.all == effects(0, 1)
