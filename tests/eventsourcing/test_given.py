"""Decisions tested without a log."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from streams import Streams
from streams.eventsourcing import Aggregate
from streams.testing import given
from tests.eventsourcing.bank import (
    Account,
    Deposited,
    Opened,
    Overdrawn,
    Withdrawn,
    accounts,
    deposit,
    nothing,
    open_with,
)

bank: Any = accounts(Streams())


def test_what_holds_passes() -> None:
    given(bank, Opened("ada"), Deposited(500)).when(Account.withdraw, 700).raises(Overdrawn)
    given(bank, Opened("ada"), Deposited(500)).when(Account.withdraw, 500).then(Withdrawn(500))
    given(bank).when(open_with, "ada", cents=5).then(Opened("ada"), Deposited(5))
    given(bank).when(nothing).unchanged()
    assert given(bank, Deposited(2)).when(deposit, 3).state == Account("", 5)
    assert given(bank, Deposited(2)).state == Account("", 2)


def test_what_does_not_hold_says_what_happened_instead() -> None:
    seen = given(bank, Deposited(5))
    with pytest.raises(AssertionError, match=r"withdraw\(3\) upon .*cents=5.* returned .*Withdra"):
        seen.when(Account.withdraw, 3).raises(Overdrawn)
    with pytest.raises(AssertionError, match=r"cents=3.*instead of .*cents=4"):
        seen.when(Account.withdraw, 3).then(Withdrawn(4))
    with pytest.raises(AssertionError, match=r"raised Overdrawn\(9\) instead of returning"):
        seen.when(Account.withdraw, 9).then(Withdrawn(9))
    with pytest.raises(AssertionError, match=r"Overdrawn\(9\) instead of KeyError"):
        seen.when(Account.withdraw, 9).raises(KeyError)
    with pytest.raises(AssertionError, match=r"instead of \[\]"):
        seen.when(deposit, 1).unchanged()


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(TypeError, match="a decision returns"):
        given(bank, 5)
    with pytest.raises(TypeError, match="a decision returns"):
        given(bank).when(lambda state: 5)


class Noted(Struct, tag="noted", frozen=True):
    what: Any


class Notes(Struct, frozen=True):
    last: Any = None


def test_events_that_are_given_are_what_a_log_would_give_back() -> None:
    """A tuple in a field of any type comes back from JSON as a list."""
    notes: Aggregate[Noted, Notes] = Aggregate(
        Streams("memory://"), "notes", Noted, Notes, lambda state, event: Notes(event.what)
    )
    seen = given(notes, Noted((1, 2)))
    seen.when(lambda state: Noted(type(state.last).__name__)).then(Noted("list"))
