"""Work in the background that people wait for: whose run they wait for, and until when."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from streams.errors import StreamsError, Unavailable
from streams.inspection import background, reading_on
from streams.inspection.background import BackgroundRuns
from streams.inspection.reading_on import BackgroundReader, KeptReaders
from streams.log.protocol import Log
from tests.conformance.stage import PATIENCE
from tests.web.gates import Gate


class Work:
    """Finds what is there when it begins."""

    def __init__(self) -> None:
        self.there = 0
        self.found = -1
        self.gate = Gate(self._see, after=True)
        self.runs = BackgroundRuns(self._work, "test-work")

    def _see(self) -> int:
        return self.there

    def _work(self) -> bool:
        found = self.gate()
        if self.runs.is_to_stop:
            return False
        self.found = found
        return True


def in_thread(function: Callable[[], object]) -> Future[object]:
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(function)
    finally:
        pool.shutdown(wait=False)


def wait_for_waiter(work: Work, run: int) -> None:
    """Until somebody waits for this run: what says so is set under the lock with which he waits."""
    began = time.monotonic()
    while work.runs._wanted < run:
        assert time.monotonic() - began < PATIENCE, "nobody waits"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AFTER_CHANGE", PATIENCE)


def test_whoever_comes_later_waits_for_the_run_that_goes_on() -> None:
    work = Work()
    first = in_thread(lambda: work.runs.wait(PATIENCE))
    work.gate.entered()
    assert not work.runs.wait(0.0)
    work.gate.open()
    assert first.result(PATIENCE)
    assert work.gate.calls == 1
    assert work.runs.wait(PATIENCE)  # which is a run of its own
    assert work.gate.calls == 2


def test_after_a_change_a_run_that_began_before_it_is_not_enough() -> None:
    work = Work()
    before = in_thread(lambda: work.runs.wait(PATIENCE))
    work.gate.entered()
    work.there = 1
    work.runs.expire()
    after = in_thread(lambda: work.runs.wait(0.0))  # it waits for longer than that, as it must
    wait_for_waiter(work, 2)
    work.gate.open()
    assert after.result(PATIENCE)
    assert work.found == 1
    assert before.result(PATIENCE)  # it saw the end of a run, too


def test_each_waits_for_the_changes_that_were_before_him() -> None:
    work = Work()
    in_thread(lambda: work.runs.wait(PATIENCE))
    work.gate.entered()
    for there in range(1, 5):
        work.there = there
        work.runs.expire()
    after = in_thread(lambda: work.runs.wait(0.0))
    wait_for_waiter(work, 2)
    work.gate.open()
    assert after.result(PATIENCE)
    assert work.found == 4
    assert work.gate.calls == 2


def test_after_a_change_it_is_waited_for_a_while_and_not_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "AFTER_CHANGE", 0.2)
    work = Work()
    in_thread(lambda: work.runs.wait(0.0))
    work.gate.entered()
    work.runs.expire()
    began = time.monotonic()
    assert not work.runs.wait(0.0)
    assert time.monotonic() - began >= 0.2
    monkeypatch.setattr(background, "AFTER_CHANGE", PATIENCE)
    assert not work.runs.wait(0.0)
    assert time.monotonic() - began < PATIENCE
    work.gate.open()


def test_what_goes_wrong_is_raised_for_those_who_wait_and_the_next_run_is_another() -> None:
    failures: list[Exception] = [Unavailable("gone"), ZeroDivisionError("a bug")]

    def work() -> bool:
        if failures:
            raise failures.pop(0)
        return True

    runs = BackgroundRuns(work, "test-work")
    with pytest.raises(Unavailable, match="gone"):
        runs.wait(PATIENCE)
    with pytest.raises(StreamsError, match="see the log"):  # and not: it is complete
        runs.wait(PATIENCE)
    assert runs.wait(PATIENCE)


def test_closing_lets_go_of_those_who_wait_and_ends_the_thread() -> None:
    work = Work()
    waiting = in_thread(lambda: work.runs.wait(PATIENCE))
    work.gate.entered()
    work.runs.close()
    assert waiting.result(PATIENCE) is False
    work.gate.open()
    assert work.gate.thread is not None
    work.gate.thread.join(PATIENCE)
    assert not work.gate.thread.is_alive()
    assert work.found == -1
    assert not work.runs.wait(PATIENCE)
    assert work.gate.calls == 1


class Reader(BackgroundReader):
    def _forget(self) -> None:
        self.read = 0

    def _read(self, log: Log) -> bool:
        self.read += 1
        return not self._is_to_stop


def no_log() -> Log:
    raise Unavailable("no log")


def test_readers_that_are_let_go_of_read_no_more() -> None:
    kept = KeptReaders(lambda name: Reader(name, no_log), 2)
    first, second = kept.get("a"), kept.get("b")
    assert kept.get("a") is first
    kept.get("c")
    assert not second.read_on(PATIENCE)  # it does not say that all was read
    kept.close()
    assert not first.read_on(PATIENCE)
    assert not kept.get("d").read_on(PATIENCE)


def test_readers_are_forgotten_when_nobody_looks_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading_on, "FORGET_AFTER", 0.05)
    kept = KeptReaders(lambda name: Reader(name, no_log), 5)
    first = kept.get("a")
    began = time.monotonic()
    while not first.is_closed:
        assert time.monotonic() - began < PATIENCE, "it is kept"
        time.sleep(0.01)
    assert kept.get("a") is not first
    kept.close()
