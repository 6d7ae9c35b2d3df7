"""The dedup window: the last ``size`` identities at least, twice as many at most."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from streams.engine.dedup_window import DedupWindow, WindowBudget
from tests.engine.support import runs

identities = st.text("abcdefgh", min_size=1, max_size=1)


@runs(150)
@given(st.integers(1, 5), st.lists(identities | st.lists(identities, min_size=1, max_size=4)))
def test_remembers_the_last_and_nothing_else(size: int, added: list[str | list[str]]) -> None:
    window = DedupWindow(size)
    order: list[str] = []
    for item in added:
        if isinstance(item, str):
            window.add(item)
            order.append(item)
        else:
            if len(set(item)) <= size and window.has_none_of(set(item)):
                window.add_batch(set(item))
            else:
                window.extend(item)
            order.extend(item)
        newest = list(dict.fromkeys(reversed(order)))
        assert all(identity in window for identity in newest[:size])
        remembered = {identity for identity in "abcdefgh" if identity in window}
        assert remembered <= set(order)
        assert len(remembered) <= len(window) <= 2 * size
        assert window.has_none_of(set("abcdefgh") - remembered)
        assert all(not window.has_none_of({identity, "z"}) for identity in remembered)


def test_one_by_one_holds_at_most_twice_its_size() -> None:
    window = DedupWindow(100)
    for number in range(1_000):
        window.add(str(number))
        assert min(number + 1, 100) <= len(window) <= 200
    assert "899" not in window
    assert "900" in window


def test_the_cap_is_shared_by_the_windows_of_a_process() -> None:
    memory = WindowBudget()
    windows = [memory.new_window(10_000, 100_000) for _ in range(3)]
    assert [window.size for window in windows] == [10_000] * 3
    windows += [memory.new_window(10_000, 100_000) for _ in range(7)]
    assert [window.size for window in windows] == [5_000] * 10
    for window in windows:
        window.extend(list(map(str, range(30_000))))
    assert 50_000 <= sum(map(len, windows)) <= 100_000


def test_windows_that_are_gone_leave_their_share_to_the_others() -> None:
    memory = WindowBudget()
    windows = [memory.new_window(10_000, 20_000) for _ in range(5)]
    assert [window.size for window in windows] == [2_000] * 5
    del windows[1:]
    gc.collect()
    windows.append(memory.new_window(3_000, 20_000))
    assert [window.size for window in windows] == [5_000, 3_000]


def test_each_window_keeps_to_the_cap_it_was_made_with() -> None:
    memory = WindowBudget()
    windows = [memory.new_window(10_000, cap) for cap in (100_000, 400, 1)]
    assert [window.size for window in windows] == [10_000, 66, 1]
