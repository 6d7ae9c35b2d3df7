"""Counting along the way, against counting all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.log.redis.columns import Offsets
from streams.log.redis.keys import entry_id
from streams.log.redis.trail import Trail


@given(
    st.sets(st.integers(1, 60), min_size=1).map(sorted),
    st.lists(st.integers(1, 5), min_size=1),
    st.sets(st.integers(0, 62)).map(sorted),
    st.integers(0, 100),
)
def test_it_counts_what_lies_below(
    offsets: list[int], sizes: list[int], positions: list[int], before: int
) -> None:
    trail = Trail(before)
    batches: list[Offsets] = []
    rest = offsets
    while rest:
        size = sizes[len(batches) % len(sizes)]
        batches.append(Offsets([entry_id(each) for each in rest[:size]]))
        rest = rest[size:]
        trail.add(batches[-1])
    for position in positions:
        expected = before + sum(1 for each in offsets if each < position)
        assert trail.below(position) == expected
    assert trail.total == before + len(offsets)


def test_a_count_that_nothing_tells_is_unknown_until_the_end_is_seen() -> None:
    trail = Trail(None)
    batch = Offsets([b"0-1", b"0-5"])
    trail.add(batch)
    assert trail.below(5) is None
    assert trail.end(10) == 0
    assert trail.below(5) == 9
    assert trail.below(6) == 10


def test_what_was_never_read_shows_at_the_end() -> None:
    trail = Trail(100)
    trail.add(Offsets([b"0-1", b"0-5"]))
    assert trail.end(105) == 3
    assert trail.below(6) == 105
    assert trail.end(105) == 0


def test_a_batch_that_nobody_holds_any_more_is_not_kept_alive() -> None:
    trail = Trail(0)
    trail.add(Offsets([b"0-1", b"0-5"]))
    assert trail.below(3) is None, "inside a batch that is gone"
    assert trail.below(6) == 2
