"""Bytes may be set while a snapshot is being taken; what it says must be readable, and true."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from streams.engine.progress import Progress, decode
from tests.engine.support import batch, runs


class Settling(bytearray):
    """Bytes that handlers in other threads set before and after somebody looks at them."""

    meanwhile: Callable[[Settling], None] = staticmethod(lambda _: None)

    def find(self, *args: int) -> int:  # type: ignore[override]
        self.meanwhile(self)
        found = super().find(*args)
        self.meanwhile(self)
        return found

    def count(self, *args: int) -> int:  # type: ignore[override]
        self.meanwhile(self)
        return super().count(*args)


def test_a_message_settled_during_a_snapshot_joins_its_neighbours() -> None:
    def the_next(done: Settling) -> None:
        at = bytearray.find(done, 0, 1)
        if at >= 0:
            done[at] = 1

    progress = Progress(0, 0)
    segment = progress.add(None, batch(range(10)))
    done = segment.done = Settling(b"\0\1\1\0\1\1\0\1\0\0")
    done.meanwhile = the_next
    snapshot = progress.snapshot()
    floor, settled = decode(snapshot.position, snapshot.progress)
    assert (snapshot.position, floor) == (0, 0)
    assert all(end < start for (_, end), (start, _) in pairwise(settled))


offsets = st.lists(st.sampled_from([1, 1, 1, 5]), min_size=1, max_size=6)


@runs(200)
@given(st.lists(offsets, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_snapshot_says_no_less_than_before_and_no_more_than_after(
    segments: list[list[int]], random: Random
) -> None:
    places: dict[int, tuple[Settling, int]] = {}

    def settled() -> set[int]:
        return {offset for offset, (done, index) in places.items() if done[index]}

    def some(done: Settling) -> None:
        for index in range(len(done)):
            if random.random() < 0.15:
                done[index] = 1

    progress = Progress(0, 0)
    at = 0
    for steps in segments:
        chosen = [at := at + step for step in steps]
        segment = progress.add(None, batch(chosen))
        done = segment.done = Settling(len(chosen))
        some(done)
        done.meanwhile = some
        places.update((offset, (done, index)) for index, offset in enumerate(chosen))
    for _ in range(4):
        before = settled()
        progress.held()
        progress.sweep()
        snapshot = progress.snapshot()
        _, ranges = decode(snapshot.position, snapshot.progress)
        said = {
            offset
            for offset in places
            if offset < snapshot.position or any(low <= offset < high for low, high in ranges)
        }
        assert before <= said <= settled()
