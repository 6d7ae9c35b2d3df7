"""The gate: shuts when a bound is reached, opens at half of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.config import Flow
from streams.engine.flow_gate import FIRST_INTAKE, FlowGate
from tests.engine.support import runs


def gate(messages: int, bytes: int) -> FlowGate:
    """A gate that knows its messages to be a byte each."""
    made = FlowGate(Flow(messages=messages, bytes=bytes), share=1.0)
    made.record_size(100, 100)
    return made


@pytest.mark.parametrize("measure", ["messages", "bytes"])
def test_shuts_at_the_bound_and_opens_at_half(measure: str) -> None:
    def held(count: int) -> tuple[int, int]:
        return (count, 0) if measure == "messages" else (0, count)

    made = gate(100, 100)
    assert made.capacity(*held(99)) > 0
    assert made.capacity(*held(100)) == 0
    assert made.capacity(*held(51)) == 0
    assert made.capacity(*held(50)) > 0
    assert made.capacity(*held(99)) > 0
    assert made.capacity(*held(1_000)) == 0


def test_room_is_what_is_left_of_either_bound() -> None:
    made = gate(100, 50)
    assert made.capacity(0, 0) == 50
    assert made.capacity(70, 10) == 30
    assert made.capacity(10, 45) == 5


def test_the_first_are_few_until_their_size_is_known() -> None:
    made = FlowGate(Flow(messages=10_000, bytes=1_000_000))
    assert made.capacity(0, 0) == FIRST_INTAKE
    made.record_size(FIRST_INTAKE, FIRST_INTAKE * 100_000)
    assert made.capacity(0, 0) == 5  # half of the bytes is the driver's prefetch
    for _ in range(40):
        made.record_size(100, 100)  # they turn out smaller: found out slowly
    assert made.capacity(0, 0) > 1_000


def test_a_message_larger_than_the_bound_is_still_taken_alone() -> None:
    made = FlowGate(Flow(messages=10, bytes=100))
    made.record_size(1, 5_000)
    assert made.capacity(0, 0) == 1
    assert made.capacity(1, 5_000) == 0
    assert made.capacity(0, 0) == 1


@runs(100)
@given(
    st.integers(1, 50),
    st.integers(1, 5_000),
    st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=60), max_size=30),
)
def test_never_more_than_the_bound_of_messages_and_it_opens_again(
    messages: int, bytes: int, polls: list[list[int]]
) -> None:
    made = FlowGate(Flow(messages=messages, bytes=bytes), share=1.0)
    held: list[int] = []
    for sizes in polls:
        room = made.capacity(len(held), sum(held))
        assert (room > 0) or held, "shut, though nothing is held"
        taken = sizes[:room]
        if taken:
            made.record_size(len(taken), sum(taken))
        held += taken
        assert len(held) <= messages
        del held[: len(sizes) // 2]
