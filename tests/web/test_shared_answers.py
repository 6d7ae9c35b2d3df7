"""Answers that visitors share for some seconds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from streams.errors import Unavailable
from streams.web import shared_answers
from streams.web.log_source import NoAnswer
from streams.web.shared_answers import SharedAnswers
from tests.conformance.stage import PATIENCE
from tests.web.gates import Gate


def test_what_is_fresh_is_kept_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers, "MAX_ANSWERS", 10)
    answers, asked = SharedAnswers(), Gate(lambda: 7)
    asked.open()
    for _ in range(3):
        assert answers.get("wanted", PATIENCE, asked) == 7
        for number in range(20):
            answers.get(("old", number), -1.0, lambda: None)
    for number in range(50):  # those that are kept for the shortest time go first
        answers.get(("short", number), PATIENCE / 2, lambda: None)
    answers.get("wanted", PATIENCE, asked)
    assert asked.calls == 1
    assert len(answers) == 10


def test_visitors_at_the_same_moment_ask_once() -> None:
    answers, asked = SharedAnswers(), Gate(lambda: 7)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(answers.get, "key", PATIENCE, asked) for _ in range(4)]
        asked.entered()
        asked.open()
        assert [each.result(PATIENCE) for each in found] == [7] * 4
    assert asked.calls == 1


def test_what_was_asked_before_a_change_is_no_answer_after_it() -> None:
    answers, there = SharedAnswers(), [1]
    asked = Gate(lambda: there[0], after=True)
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(answers.get, "key", PATIENCE, asked)
        asked.entered()
        there[0] = 2
        answers.expire()
        asked.open()
        assert before.result(PATIENCE) == 1
    assert answers.get("key", PATIENCE, asked) == 2


def test_a_failure_is_told_to_those_who_waited_and_not_kept() -> None:
    def fail() -> int:
        raise Unavailable("gone")

    answers = SharedAnswers()
    with pytest.raises(Unavailable):
        answers.get("key", PATIENCE, fail)
    assert answers.get("key", PATIENCE, lambda: 3) == 3


def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers, "PATIENCE", 0.01)
    answers, asked = SharedAnswers(), Gate(lambda: 7)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answers.get, "key", PATIENCE, asked)
        asked.entered()
        with pytest.raises(NoAnswer):
            answers.get("key", PATIENCE, asked)
        asked.open()
        assert first.result() == 7
    assert answers.get("key", PATIENCE, asked) == 7
