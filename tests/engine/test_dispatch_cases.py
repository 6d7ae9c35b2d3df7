"""The dispatcher, case by case: what the machine of ``test_dispatch.py`` can only find by luck."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streams.config import Retry
from streams.engine.dedup_window import DedupWindow
from streams.engine.dispatcher import Delivery, Dispatcher, PartitionState
from streams.engine.progress import FetchedBatch, Progress
from streams.errors import Reject
from tests.engine.model import Ownership
from tests.engine.support import batch

ERROR = RuntimeError("no")


class Case:
    """One dispatcher, one partition, and messages named by key and ID: ``"a1"`` is ID a1, key a.

    A ``-`` for a key means none, and an ID of ``?`` a message that carries none.
    """

    def __init__(self, *, dedup: bool = True, attempts: int = 3, in_order: bool = True) -> None:
        self.dispatcher = Dispatcher(Retry(attempts=attempts, delay=1.0, in_order=in_order))
        self.dedup = dedup
        self.owned = self.assign()

    def assign(self, generation: int = 0) -> PartitionState:
        window = DedupWindow(100) if self.dedup else None
        self.owned = PartitionState(Ownership(0), Progress(0, 0, generation=generation), window)
        self.dispatcher.assign(self.owned)
        self.end = 0
        return self.owned

    def again(self, generation: int = 0) -> PartitionState:
        """The partition leaves and comes back at once, from its beginning."""
        self.dispatcher.revoke(self.owned)
        return self.assign(generation)

    def offer(self, *names: str) -> FetchedBatch:
        keys = [None if name[0] == "-" else name[0].encode() for name in names]
        ids = [None if name[1:] == "?" else name for name in names]
        segment = self.owned.progress.add(
            self.owned, batch(range(self.end, self.end + len(names)), keys, ids)
        )
        self.end += len(names)
        self.dispatcher.offer(segment)
        return segment

    def take(self, now: float = 0.0) -> Delivery | None:
        self.dispatcher.release_due(now)
        return self.dispatcher.take_next(now)

    def take_one(self, now: float = 0.0) -> Delivery:
        work = self.take(now)
        assert work is not None
        return work

    def take_batch(self, limit: int = 10, now: float = 0.0) -> list[Delivery]:
        self.dispatcher.release_due(now)
        return self.dispatcher.take_batch(now, limit)

    def fail(self, work: Delivery, now: float = 0.0, random: float = 0.9) -> Delivery | None:
        return self.dispatcher.mark_failed(work, ERROR, now, random)


def places(works: Sequence[Delivery | None]) -> list[int]:
    """The offsets of works."""
    return [work.fetched.batch.offsets[work.index] for work in works if work is not None]


def all_taken(case: Case, now: float = 0.0) -> list[Delivery]:
    works = []
    while (work := case.take(now)) is not None:
        works.append(work)
    return works


# -- one by one


def test_a_key_waits_for_its_message_and_others_do_not() -> None:
    case = Case()
    case.offer("a1", "a2", "b3", "-4", "-5")
    works = all_taken(case)
    assert places(works) == [0, 2, 3, 4]
    case.dispatcher.mark_settled(works[0])
    assert places([case.take()]) == [1]


def test_what_waited_comes_before_what_was_not_looked_at() -> None:
    case = Case()
    case.offer("a1", "a2", "b3", "c4")
    first, _ = case.take_one(), case.take_one()
    case.dispatcher.mark_settled(first)
    assert places(all_taken(case)) == [1, 3]


def test_a_duplicate_in_flight_waits_for_the_outcome_of_the_first() -> None:
    case = Case()
    segment = case.offer("a1", "a1")
    first = case.take_one()
    assert case.take() is None
    assert segment.settled == bytes([0, 0])
    case.dispatcher.mark_settled(first)
    assert segment.settled == bytes([1, 1])
    assert case.dispatcher.counts.duplicates == 1


def test_a_failed_message_is_not_swallowed_by_its_own_redelivery() -> None:
    case = Case(attempts=2)
    segment = case.offer("a1", "a1")
    assert case.fail(case.take_one()) is None
    assert case.take(0.5) is None
    retry = case.take_one(1.0)
    assert retry.attempt == 2
    assert segment.settled == bytes([0, 0])


def test_keyless_duplicates_wait_for_each_other_too() -> None:
    case = Case()
    segment = case.offer("-1", "-1", "-2")
    works = all_taken(case)
    assert places(works) == [0, 2]
    case.dispatcher.mark_settled(works[0])
    assert segment.settled == bytes([1, 1, 0])


def test_without_key_and_id_nothing_waits() -> None:
    case = Case()
    case.offer("-?", "-?", "-?")
    assert places(all_taken(case)) == [0, 1, 2]


def test_without_dedup_a_duplicate_is_handled_in_its_turn() -> None:
    case = Case(dedup=False)
    case.offer("a1", "a1")
    case.dispatcher.mark_settled(case.take_one())
    assert places([case.take()]) == [1]


def test_a_key_queue_stays_busy_until_the_dead_letter_is_written() -> None:
    case = Case(attempts=1)
    segment = case.offer("a1", "a2")
    rejected = case.fail(case.take_one())
    assert rejected is not None
    assert case.take() is None
    case.dispatcher.deliver_at(rejected, 5.0)
    assert case.take(4.0) is None
    again = case.take_one(5.0)
    assert again.reason == rejected.reason
    assert segment.settled == bytes([0, 0])
    case.dispatcher.mark_settled(again)
    assert segment.settled == bytes([1, 0])
    assert places([case.take(5.0)]) == [1]


def test_nothing_starts_once_ownership_is_not_certain() -> None:
    case = Case()
    case.offer("a1", "a2")
    case.owned.assignment.valid_until = 10.0
    case.dispatcher.mark_settled(case.take_one(9.9))
    assert case.take(10.0) is None  # neither what is ready
    case.offer("b3")
    assert case.take(10.0) is None
    assert case.dispatcher.take_fast_batch(10.0) is None
    assert case.take_batch(5, 10.0) == []
    case.owned.assignment.valid_until = 20.0
    assert places(all_taken(case, 10.0)) == [1, 2]


def test_what_waits_is_named_soonest_first() -> None:
    case = Case()
    case.offer("a1", "b2", "-3")
    works = all_taken(case)
    for work, random in zip(works, (0.9, 0.1, 0.5), strict=True):
        case.fail(work, random=random)
    assert case.dispatcher.waiting == 3
    assert case.dispatcher.next_due == 0.1
    assert case.dispatcher.waiting_keys(2) == [("orders", 0, b"b", 2), ("orders", 0, "-3", 2)]


# -- out of order


def test_out_of_order_later_messages_of_the_key_go_first() -> None:
    case = Case(in_order=False)
    case.offer("a1", "a2")
    case.fail(case.take_one())
    assert places([case.take()]) == [1]


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_out_of_order_duplicates_still_wait(early: bool, batches: bool) -> None:
    """Whether the duplicate was queued when the first failed, or came later."""
    case = Case(in_order=False)
    first = case.offer("a1", "a1", "a2") if early else case.offer("a1")
    works = case.take_batch(1) if batches else [case.take_one()]
    assert case.fail(works[0]) is None
    second = first if early else case.offer("a1", "a2")
    found = case.take_batch() if batches else all_taken(case)
    assert places(found) == [2]
    for work in found:
        case.dispatcher.mark_settled(work)
    retry = case.take_one(1.0)
    assert places([retry]) == [0]
    case.dispatcher.mark_settled(retry)
    assert all(first.settled)
    assert all(second.settled)
    assert case.dispatcher.counts.duplicates == 1
    assert not case.owned.in_flight


def test_out_of_order_a_key_is_still_handled_one_at_a_time() -> None:
    case = Case(in_order=False)
    case.offer("a1", "a2", "a3", "a4", "a5")
    works = case.take_batch(3)
    assert case.dispatcher.mark_batch_failed(works, {0: ERROR, 1: ERROR}, 0.0, 0.9) == []
    assert places(all_taken(case)) == [3]
    assert places(all_taken(case, 1.0)) == [0, 1]


# -- partitions that leave and come back


def test_a_key_that_still_runs_waits_when_its_partition_comes_back() -> None:
    case = Case()
    case.offer("a?", "a?", "b?")
    running = case.take_one()
    case.again()
    case.offer("a?", "a?", "b?")
    assert places(all_taken(case)) == [2]
    case.dispatcher.mark_settled(running)
    assert places(all_taken(case)) == [0]


def test_what_an_outlived_handler_settles_is_not_handled_again() -> None:
    case = Case()
    case.offer("a1", "a2")
    running = case.take_one()
    case.again()
    segment = case.offer("a1", "a2")
    assert case.take() is None
    case.dispatcher.mark_settled(running)
    assert segment.settled == bytes([1, 0])
    assert places([case.take()]) == [1]


@pytest.mark.parametrize("fast", [False, True])
def test_what_an_outlived_handler_settles_is_handled_again_after_a_reset(fast: bool) -> None:
    """Its key waits all the same."""
    case = Case()
    segment = case.offer("a1", "a2")
    running = None if fast else case.take_one()
    if fast:
        assert case.dispatcher.take_fast_batch(0.0) is segment
    case.again(generation=1)
    again = case.offer("a1", "a2")
    if running is None:
        case.dispatcher.finish_fast_run(segment, 1)
    else:
        assert case.take() is None
        case.dispatcher.mark_settled(running)
    assert again.settled == bytes([0, 0])
    assert places([case.take()]) == [0]


def test_a_fence_outlasts_several_assignments_and_is_taken_down() -> None:
    case = Case()
    case.offer("a1")
    running = case.take_one()
    for _ in range(3):
        case.again()
        case.offer("a1", "b2")
        (other,) = all_taken(case)
        assert places([other]) == [1]
        case.dispatcher.mark_settled(other)
    case.dispatcher.revoke(case.owned)
    assert case.dispatcher._outlived
    case.dispatcher.abandon(running)
    assert not case.dispatcher._outlived
    case.assign()
    case.offer("a1")
    assert places(all_taken(case)) == [0]


def test_waiting_and_ready_messages_leave_no_fence() -> None:
    case = Case()
    case.offer("a1", "a2", "b3", "b4")
    case.fail(case.take_one())
    case.dispatcher.mark_settled(case.take_one())
    case.dispatcher.revoke(case.owned)
    assert not case.dispatcher._outlived
    assert case.dispatcher.next_due is None
    assert not case.dispatcher.has_backlog
    case.assign()
    case.offer("a1", "a2", "b3", "b4")
    assert places(all_taken(case)) == [0, 2]


def test_revoking_again_does_not_reach_into_the_next_assignment() -> None:
    case = Case()
    case.offer("a1")
    running, old = case.take_one(), case.owned
    case.again()
    case.offer("a1", "a2")
    assert case.take() is None
    case.dispatcher.revoke(old)
    case.dispatcher.abandon(running)
    assert places(all_taken(case)) == [0]


def test_what_is_offered_for_a_partition_that_left_is_never_given_out() -> None:
    case = Case()
    case.dispatcher.revoke(case.owned)
    case.offer("a1", "b2")
    case.owned.assignment.valid_until = float("-inf")
    case.assign()
    case.offer("c1")
    assert places(all_taken(case)) == [0]
    assert not case.dispatcher.has_backlog


@pytest.mark.parametrize("ending", ["abandon", "split", "batch_failed", "done_batch"])
def test_a_batch_that_outlived_its_partition_frees_a_key_once(ending: str) -> None:
    case = Case()
    case.offer("a?", "a?")
    works = case.take_batch()
    assert places(works) == [0, 1]
    case.again()
    case.offer("a?", "a?", "a?")
    assert case.take() is None
    if ending == "abandon":
        for work in reversed(works):
            case.dispatcher.abandon(work)
    elif ending == "split":
        case.dispatcher.split_batch(works)
    elif ending == "batch_failed":
        case.dispatcher.mark_batch_failed(works, {0: ERROR}, 0.0, 0.5)
    else:
        case.dispatcher.mark_batch_settled(works)
    found = all_taken(case)
    assert places(found) == [0]
    case.dispatcher.mark_settled(found[0])
    assert places(all_taken(case)) == [1]


def test_the_fast_path_that_outlived_its_partition_counts_as_seen() -> None:
    case = Case()
    segment = case.offer("a1", "b2", "c3")
    assert case.dispatcher.take_fast_batch(0.0) is segment
    case.again()
    segment.settled[:2] = b"\1\1"
    case.dispatcher.finish_fast_run(segment, 2)
    case.offer("a1", "b2", "c3")
    assert places(all_taken(case)) == [2]


# -- batches


def test_a_batch_holds_a_key_in_order_and_an_identity_once() -> None:
    case = Case()
    case.offer("a1", "a2", "b3", "a1", "a4")
    works = case.take_batch()
    assert places(works) == [0, 1, 2]
    assert case.take_batch() == []
    case.dispatcher.mark_batch_settled(works)
    assert places(case.take_batch()) == [4]
    assert case.dispatcher.counts.duplicates == 1


def test_a_key_is_in_one_batch_at_a_time() -> None:
    case = Case()
    case.offer("a1", "a2", "a3", "b4")
    first = case.take_batch(2)
    assert places(first) == [0, 1]
    assert places(case.take_batch(2)) == [3]
    case.dispatcher.mark_batch_settled(first)
    assert places(case.take_batch(2)) == [2]


def test_a_batch_that_failed_is_run_again_one_by_one_in_order() -> None:
    case = Case()
    case.offer("a1", "b2", "a3", "c4")
    case.dispatcher.split_batch(case.take_batch(3))
    works = [case.take_batch(), case.take_batch(), case.take_batch()]
    assert list(map(places, works)) == [[0], [1], [3]]
    assert [work.attempt for (work,) in works] == [1, 1, 1], "splitting uses no attempts"
    case.dispatcher.mark_batch_settled(works[0])
    assert places(case.take_batch()) == [2]


def test_of_two_failures_of_a_key_the_second_waits_behind_the_first() -> None:
    case = Case()
    case.offer("a1", "a2", "a3", "b4", "a5")
    works = case.take_batch(4)
    assert case.dispatcher.mark_batch_failed(works, {0: ERROR, 2: ERROR}, 0.0, 0.9) == []
    assert case.take_batch() == []
    (first,) = case.take_batch(now=1.0)
    assert (places([first]), first.attempt) == ([0], 2)
    case.dispatcher.mark_settled(first)
    (second,) = case.take_batch(now=1.0)
    assert (places([second]), second.attempt) == ([2], 2)
    case.dispatcher.mark_settled(second)
    assert places(case.take_batch(now=1.0)) == [4]


@pytest.mark.parametrize(
    ("attempts", "error", "final"), [(1, ERROR, ()), (3, Reject(), ()), (3, ERROR, (0, 1))]
)
def test_of_two_dead_letters_of_a_key_the_second_is_written_behind_the_first(
    attempts: int, error: Exception, final: Sequence[int]
) -> None:
    case = Case(attempts=attempts)
    segment = case.offer("a1", "a2", "a3")
    works = case.take_batch(2)
    rejections = case.dispatcher.mark_batch_failed(works, {0: error, 1: error}, 0.0, 0.9, final)
    assert places(rejections) == [0]
    assert case.take() is None
    case.dispatcher.mark_settled(rejections[0])
    second = case.take_one()
    assert places([second]) == [1]
    assert second.reason is not None
    assert case.take() is None
    case.dispatcher.mark_settled(second)
    assert segment.settled == bytes([1, 1, 0])
    assert places([case.take()]) == [2]


def test_a_dead_letter_behind_a_retry_does_not_free_the_key() -> None:
    case = Case()
    case.offer("a1", "a2", "a3")
    works = case.take_batch(2)
    assert case.dispatcher.mark_batch_failed(works, {0: ERROR, 1: ERROR}, 0.0, 0.9, {1}) == []
    assert case.take() is None
    case.dispatcher.mark_settled(case.take_one(1.0))
    rejected = case.take_one(1.0)
    assert rejected.reason is not None
    assert case.take(1.0) is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_cancelled_batch_gives_a_key_back_one_at_a_time(order: int) -> None:
    case = Case()
    case.offer("a1", "b2", "a3", "a4")
    works = case.take_batch(3)
    for work in works[::order]:
        case.dispatcher.abandon(work)
    taken = all_taken(case)
    assert sorted(places(taken)) == [0, 1]
    case.dispatcher.mark_settled(next(work for work in taken if work.ordering_key == b"a"))
    assert places(all_taken(case)) == [2]


# -- the fast path


def test_the_fast_path_is_given_only_where_nothing_is_in_the_way() -> None:
    case = Case()
    case.offer("z0")
    case.dispatcher.mark_settled(case.take_one())
    for names in (("a1", "a1"), ("b2", "z0"), ("c3", "-?")):
        case.offer(*names)
        assert case.dispatcher.take_fast_batch(0.0) is None, names
        for work in all_taken(case):
            case.dispatcher.mark_settled(work)
    case.offer("d4")
    case.dispatcher.paused = True
    assert case.dispatcher.take_fast_batch(0.0) is None
    case.dispatcher.paused = False
    segment = case.dispatcher.take_fast_batch(0.0)
    assert segment is not None
    case.dispatcher.finish_fast_run(segment, 0)
    busy = case.take_one()
    case.offer("e5")
    assert case.dispatcher.take_fast_batch(0.0) is None
    case.dispatcher.mark_settled(busy)


def test_a_restored_segment_does_not_take_the_fast_path() -> None:
    case = Case()
    case.owned.progress = Progress(0, 0, [(1, 2)])
    case.offer("a1", "b2", "c3")
    assert case.dispatcher.take_fast_batch(0.0) is None
    assert places(all_taken(case)) == [0, 2]


def test_what_the_fast_path_leaves_is_taken_one_by_one() -> None:
    case = Case()
    segment = case.offer("a1", "b2", "a3", "c4")
    assert case.dispatcher.take_fast_batch(0.0) is segment
    segment.settled[0] = 1
    (work,) = case.dispatcher.interrupt_fast_run(segment, 1, 2)
    assert places([work]) == [1]
    assert places(all_taken(case)) == [2, 3]
    case.offer("a1")
    case.dispatcher.mark_settled(work)
    assert case.take() is None
    assert case.dispatcher.counts.handled == 2


def test_the_fast_path_is_seen_by_what_comes_after_it() -> None:
    case = Case()
    segment = case.offer("a1", "b2")
    assert case.dispatcher.take_fast_batch(0.0) is segment
    segment.settled[:] = b"\1\1"
    case.dispatcher.finish_fast_run(segment, 2)
    late = case.offer("b2", "c3")
    assert case.dispatcher.take_fast_batch(0.0) is None
    assert places(all_taken(case)) == [3]
    assert late.settled == bytes([1, 0])


# -- what comes back another way


def inserted(case: Case, *names: str) -> FetchedBatch:
    """Messages that come back, at offsets that no other message of the case has."""
    offsets = range(100, 100 + len(names))
    segment = FetchedBatch(
        case.owned, batch(offsets, [name[0].encode() for name in names], [*names])
    )
    case.dispatcher.push_returned(segment)
    return segment


def test_what_comes_back_goes_before_what_waits_in_its_key_queue_in_order_and_alone() -> None:
    case = Case()
    case.offer("a1", "a2", "b3")
    first = case.take_one()
    assert places([case.take()]) == [2]
    inserted(case, "a7", "c8", "a9")
    assert places(all_taken(case)) == [101]
    for place in (100, 102, 1):
        case.dispatcher.mark_settled(first)
        (first,) = case.take_batch()
        assert places([first]) == [place]
    case.dispatcher.mark_settled(first)
    assert case.take() is None


def test_what_comes_back_is_no_duplicate_and_no_part_of_its_partitions_progress() -> None:
    case = Case()
    case.offer("a1")
    case.dispatcher.mark_settled(case.take_one())
    segment = inserted(case, "a1")
    work = case.take_one()
    assert work.fetched is segment
    assert case.owned.progress.snapshot().position == 1
    case.dispatcher.mark_settled(work)
    assert case.owned.progress.snapshot().position == 1
    assert case.owned.in_flight == {}


def test_what_comes_back_is_forgotten_with_its_partition() -> None:
    case = Case()
    case.offer("a1")
    running = case.take_one()
    former = case.owned
    inserted(case, "a2", "b3")
    case.again()
    case.dispatcher.push_returned(FetchedBatch(former, batch(range(100, 101), [b"c"], ["c4"])))
    assert case.take() is None
    case.offer("a5", "b6", "c7")
    assert places(all_taken(case)) == [1, 2]
    case.dispatcher.mark_settled(running)
    assert places(all_taken(case)) == [0]
