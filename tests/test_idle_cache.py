"""Values that are kept while somebody uses them, and for a while after that."""

from __future__ import annotations

import pytest

from streams.idle_cache import IdleCache


def cache_of(size: int, let_go: list[str]) -> IdleCache[str]:
    return IdleCache(str.upper, size, 3_600.0, let_go.append)


def test_one_that_is_used_is_not_let_go_for_others() -> None:
    let_go: list[str] = []
    cache = cache_of(1, let_go)
    with cache.hold("a") as a:
        assert a == "A"
        assert [cache.get(name) for name in "bcb"] == ["B", "C", "B"]
        assert let_go == ["B", "C"]
        assert list(cache.values_by_name()) == ["a", "b"]
    assert let_go == ["B", "C", "A"]  # of those that nobody uses, the one asked for first
    cache.close()
    assert let_go == ["B", "C", "A", "B"]


def test_one_that_is_used_is_let_go_after_the_cache_was_closed() -> None:
    let_go: list[str] = []
    cache = cache_of(1, let_go)
    with cache.hold("a"):
        cache.close()
        assert let_go == []
        assert cache.get("b") == "B"
        assert let_go == ["B"]
    assert let_go == ["B", "A"]
    assert not cache.values_by_name()


def test_one_that_cannot_be_made_leaves_the_others() -> None:
    cache: IdleCache[int] = IdleCache(int, 2, 3_600.0)
    assert cache.get("1") == 1
    with pytest.raises(ValueError):
        cache.get("x")
    assert list(cache.values_by_name()) == ["1"]
    cache.close()
