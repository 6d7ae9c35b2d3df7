"""Bytes may be set while a snapshot is being taken; what it says must be readable, and true."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from streams.engine.progress import Progress, decode_progress
from tests.engine.support import batch, runs


class Settling(bytearray):
    """Bytes that handlers in other threads set while somebody looks at them."""

    meanwhile: Callable[[Settling, int], None] = staticmethod(lambda *_: None)
    """Called with what was found, between finding it and saying so."""

    def find(self, *args: int) -> int:  # type: ignore[override]
        found = super().find(*args)
        self.meanwhile(self, found)
        return found

    def count(self, *args: int) -> int:  # type: ignore[override]
        found = super().count(*args)
        self.meanwhile(self, 0)
        return found


def test_a_message_settled_during_a_snapshot_joins_its_neighbours() -> None:
    def that_one(done: Settling, found: int) -> None:
        if found > 0:
            done[found] = 1

    progress = Progress(0, 0)
    segment = progress.add(None, batch(range(10)))
    done = segment.settled = Settling(b"\0\1\1\0\1\1\0\1\0\0")
    done.meanwhile = that_one
    assert progress.settled_ranges() == [(1, 10)]
    assert done.count(1) == 9


offsets = st.lists(st.sampled_from([1, 1, 1, 500]), min_size=1, max_size=6)


@runs(200)
@given(st.lists(offsets, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_snapshot_says_no_less_than_before_and_no_more_than_after(
    segments: list[list[int]], random: Random
) -> None:
    places: dict[int, tuple[Settling, int]] = {}

    def settled() -> set[int]:
        return {offset for offset, (done, index) in places.items() if done[index]}

    def some(done: Settling, found: int) -> None:
        for index in range(len(done)):
            if random.random() < (0.5 if index == found else 0.1):
                done[index] = 1

    progress = Progress(0, 0)
    at = 0
    for steps in segments:
        chosen = [at := at + step for step in steps]
        segment = progress.add(None, batch(chosen))
        done = segment.settled = Settling(len(chosen))
        some(done, -1)
        done.meanwhile = some
        places.update((offset, (done, index)) for index, offset in enumerate(chosen))
    for _ in range(4):
        before = settled()
        progress.unsettled()
        progress.release_settled()
        snapshot = progress.snapshot()
        _, ranges = decode_progress(snapshot.position, snapshot.progress)
        said = {
            offset
            for offset in places
            if offset < snapshot.position or any(low <= offset < high for low, high in ranges)
        }
        assert before <= said <= settled()
