"""Runs of results that are taken out while more is added."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from streams.config import Retry
from streams.engine.deferring_dispatcher import DeferringDispatcher
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch, Progress
from streams.log.protocol import Assignment
from streams.message import Batch, Record
from streams.processing.pending_outputs import AnyEntry, PendingOutputs

SIZE = 40


def fetched_batch(assignment: Assignment) -> FetchedBatch:
    state = PartitionState(assignment, Progress(0, 0), None)
    batch = Batch(
        "a",
        0,
        list(range(SIZE)),
        [None] * SIZE,
        [b"v"] * SIZE,
        [f"m{each}" for each in range(SIZE)],
        assignment=assignment,
    )
    return FetchedBatch(state, batch)


def records(index: int, count: int) -> list[tuple[str, Record]]:
    return [("b", Record(b"%d" % index, None, f"m{index}/{each}")) for each in range(count)]


def ids_of(entries: Sequence[AnyEntry]) -> list[str]:
    return [record.id for entry in entries for _, record in entry.outgoing]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 4)),
        st.tuples(st.just("single"), st.integers(1, 4)),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.sampled_from(["store", "refuse", "put back singly"]), st.integers(1, 9)),
    ),
    max_size=SIZE,
)


@given(actions=ACTIONS)
def test_everything_is_stored_once_and_in_order(actions: list[tuple[str, int]]) -> None:
    """Whatever is taken, put back and added meanwhile; and what is held is counted."""
    assignment = Assignment("a", 0, 0, None)
    fetched = fetched_batch(assignment)
    stored_records = 0

    def count(number: int) -> None:
        nonlocal stored_records
        stored_records += number

    outputs = PendingOutputs(1 << 20, count)
    run = None
    added: list[str] = []
    stored: list[str] = []
    index = waiting = 0
    for act, number in actions:
        if act == "run":
            run = run or outputs.begin_run(fetched)
            if number:
                run.add(index, records(index, number))
                waiting += 1
            added += [record.id for _, record in records(index, number)]
            index += 1
        elif act in ("single", "end"):
            if run is not None:
                outputs.end_run(run)
                run = None
            if act == "single":
                delivery = Delivery(fetched, index, None, fetched.ids[index])
                outputs.append(delivery, records(index, number))
                added += [record.id for _, record in records(index, number)]
                index += 1
                waiting += 1
        else:
            taken, is_all = outputs.take_entries([assignment], [assignment], number)
            found = ids_of(taken)
            assert found == added[len(stored) : len(stored) + len(found)]
            assert len(found) <= number or sum(each.messages for each in taken) == 1
            assert is_all == (len(stored) + len(found) == len(added))
            for entry in taken:
                _, start, stop = entry.settled_range
                assert 0 <= start < stop <= index
            if act == "store":
                stored += found
                waiting -= sum(each.messages for each in taken)
            elif act == "refuse":
                outputs.put_back(taken)
            else:
                outputs.put_back([each for entry in taken for each in entry.single_entries()])
        assert len(outputs) == waiting
        assert outputs.bytes == 0 if not waiting else outputs.bytes > 0
    taken, is_all = outputs.take_entries([assignment], [assignment], 10_000)
    assert is_all
    assert stored + ids_of(taken) == added
    assert len(outputs) == outputs.bytes == 0


def test_what_is_of_a_partition_that_is_not_owned_is_dropped() -> None:
    """Also what is added to its run after that."""
    lost, kept = Assignment("a", 0, 0, None), Assignment("a", 1, 0, None)
    outputs = PendingOutputs(1 << 20, lambda count: None)
    first, second = fetched_batch(kept), fetched_batch(lost)
    run = outputs.begin_run(first)
    run.add(0, records(0, 1))
    outputs.end_run(run)
    run = outputs.begin_run(second)
    run.add(1, records(1, 1))
    assert outputs.take_entries([kept], [], 10) == ([], True)
    run.add(2, records(2, 1))
    outputs.end_run(run)
    taken, _ = outputs.take_entries([kept], [kept], 10)
    assert ids_of(taken) == ["m0/0"]
    assert len(outputs) == outputs.bytes == 0


def test_a_batch_of_which_nothing_comes_is_not_kept() -> None:
    outputs = PendingOutputs(1 << 20, lambda count: None)
    outputs.end_run(outputs.begin_run(fetched_batch(Assignment("a", 0, 0, None))))
    assert not outputs._entries


def test_what_was_taken_in_goes_on_although_outputs_are_full() -> None:
    """Those that wait may wait for it to be settled."""
    dispatcher = DeferringDispatcher(Retry(delay=1, cap=1), lambda delivery: False)
    fetched = fetched_batch(Assignment("a", 0, 0, None))
    dispatcher.assign(fetched.state)
    dispatcher.offer(fetched)
    failed = dispatcher.take_next(0.0)
    assert failed is not None
    assert dispatcher.mark_failed(failed, ValueError(), 0.0, 1.0) is None
    dispatcher.is_full = True
    assert dispatcher.take_next(0.5) is None
    dispatcher.release_due(2.0)
    again = dispatcher.take_next(2.0)
    assert again is not None
    assert (again.index, again.attempt) == (failed.index, 2)
    assert dispatcher.take_next(2.0) is None
