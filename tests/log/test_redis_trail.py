"""Counting along the way, against counting all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.log.redis.batch import EntryIdOffsets
from streams.log.redis.keys import entry_id
from streams.log.redis.lag_counter import LagCounter


@given(
    st.sets(st.integers(1, 60), min_size=1).map(sorted),
    st.lists(st.integers(1, 5), min_size=1),
    st.sets(st.integers(0, 62)).map(sorted),
    st.integers(0, 100),
)
def test_it_counts_what_lies_below(
    offsets: list[int], sizes: list[int], positions: list[int], before: int
) -> None:
    trail = LagCounter(before)
    batches: list[EntryIdOffsets] = []
    rest = offsets
    while rest:
        size = sizes[len(batches) % len(sizes)]
        batches.append(EntryIdOffsets([entry_id(each) for each in rest[:size]]))
        rest = rest[size:]
        trail.add_batch(batches[-1])
    for position in positions:
        expected = before + sum(1 for each in offsets if each < position)
        assert trail.entries_below(position) == expected
    assert trail.entries_read == before + len(offsets)


def test_a_count_that_nothing_tells_is_unknown_until_the_end_is_seen() -> None:
    trail = LagCounter(None)
    batch = EntryIdOffsets([b"0-1", b"0-5"])
    trail.add_batch(batch)
    assert trail.entries_below(5) is None
    assert trail.recount_at_end(10) == 0
    assert trail.entries_below(5) == 9
    assert trail.entries_below(6) == 10


def test_what_was_never_read_shows_at_the_end() -> None:
    trail = LagCounter(100)
    trail.add_batch(EntryIdOffsets([b"0-1", b"0-5"]))
    assert trail.recount_at_end(105) == 3
    assert trail.entries_below(6) == 105
    assert trail.recount_at_end(105) == 0


def test_a_batch_that_nobody_holds_any_more_is_not_kept_alive() -> None:
    trail = LagCounter(0)
    trail.add_batch(EntryIdOffsets([b"0-1", b"0-5"]))
    assert trail.entries_below(3) is None, "inside a batch that is gone"
    assert trail.entries_below(6) == 2
