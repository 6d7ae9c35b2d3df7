"""The predicate for values: what it is sure of, the decoder takes; of the usual it is sure."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import EncodeError, Json, MessagePack
from stream_codecs.type_checks import always_unsure, compile_check
from stream_codecs.type_info import type_info
from tests.codecs.samples import (
    Bounded,
    Cancelled,
    Checked,
    Departed,
    Everything,
    Item,
    Left,
    Node,
    Order,
    Pair,
    Point,
    Refined,
    Right,
    Row,
    Status,
)

moments = st.datetimes() | st.datetimes(timezones=st.just(datetime.timezone.utc))
items = st.builds(Item, st.text(), st.floats(allow_nan=False, allow_infinity=False))
right: dict[str, st.SearchStrategy[Any]] = {
    "flag": st.booleans(),
    "number": st.integers(-(2**63), 2**64 - 1),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "text": st.text(),
    "blob": st.binary(),
    "moment": moments,
    "day": st.dates(),
    "id": st.uuids(),
    "amount": st.decimals(allow_nan=False),
    "status": st.sampled_from(Status),
    "mode": st.sampled_from(["fast", "slow", 3]),
    "maybe": st.none() | st.integers(-5, 5) | st.text(),
    "item": st.none() | items,
    "items": st.lists(items, max_size=3),
    "names": st.lists(st.none() | st.text(), max_size=3),
    "ratios": st.dictionaries(st.text(), st.floats(-1, 1), max_size=3),
}
wrong = st.one_of(
    *right.values(),
    st.sampled_from([math.nan, math.inf, 2**70, 2.0, "\ud800", [2], {1: 1.0}, (1,), {"a": None}]),
    st.sampled_from([[Item("a", math.nan)], Item(1, 2), Item("a", "b"), ["a", 1], {"a": math.inf}]),  # type: ignore[arg-type]
    st.sampled_from([True, 3.0, "medium", Pair("a", 1), object(), msgspec.UNSET]),
)


@given(st.fixed_dictionaries(right))
def test_sure_of_what_is_right(values: dict[str, Any]) -> None:
    value = Everything(**values)
    for codec in (Json(), MessagePack()):
        bound = codec.bind(Everything, topic="t")
        assert bound.decode(bound.encode(value)) == value
    assert compile_check(type_info(Everything), finite=True)(value)


@given(st.fixed_dictionaries(right), st.sampled_from(sorted(right)), wrong)
def test_what_is_written_can_be_read(values: dict[str, Any], field: str, other: Any) -> None:
    value = Everything(**{**values, field: other})
    for codec in (Json(), MessagePack()):
        bound = codec.bind(Everything, topic="t")
        try:
            data = bound.encode(value)
        except EncodeError:
            continue
        bound.decode(data)


@given(wrong)
def test_what_is_written_can_be_read_at_the_root(value: Any) -> None:
    forms: list[Any] = [int, float, str | None, list[float], dict[str, int], Item | None, Pair, Any]
    for form in forms:
        for codec in (Json(), MessagePack()):
            bound = codec.bind(form, topic="t")
            try:
                data = bound.encode(value)
            except EncodeError:
                continue
            bound.decode(data)


SURE = [
    (Departed | Cancelled | None, [Departed("a", "b", 1), Cancelled(None, "b"), None]),
    (Left | Right, [Left(1), Right(2)]),
    (Order, [Order(uuid.UUID(int=1), [Item("a", 1.0)], Status.OPEN, {"a": 1.0}, "x")]),
    (Node, [Node(1, Node(2, None, [Node()]), [])]),
    (Point, [Point(1, 1.0)]),
    (Pair, [Pair("a", 1)]),
    (int | str, [1, "a"]),
    (bool, [True]),
    (Literal["a", 1], ["a", 1]),
    (list[Departed], [[], [Departed("a", "b", 1)]]),
    (dict[str, list[int]], [{}, {"a": [1]}]),
    (Annotated[int, msgspec.Meta(title="a name for the schema, no constraint")], [1]),
    (decimal.Decimal | float, [decimal.Decimal(1), 1.5]),
]


@pytest.mark.parametrize(("type", "values"), SURE)
def test_common_types_need_no_second_look(type: Any, values: list[Any]) -> None:
    fits = compile_check(type_info(type), finite=True)
    assert all(map(fits, values))


class Priced(Item):
    pass


@pytest.mark.parametrize(
    ("type", "values"),
    [
        (Departed | Cancelled, [Departed("a", "b", 1.0), Cancelled(1, "b"), Item("a", 1.0), None]),  # type: ignore[arg-type]
        (Item, [Item("a", math.nan), Item("a", math.inf), Item("a", 1), Priced("a", 1.0)]),
        (Node, [Node(next=Node("x")), Node(children=[Node(), None]), Node(children=(Node(),))]),  # type: ignore[arg-type, list-item]
        (int, [True, 1.0, "1"]),
        (Literal["a", 1], ["b", True, 1.0, 2]),
        (dict[str, int], [{1: 1}, {"a": "b"}, {"a": True}]),
        (list[int], [(1,), [True], [None]]),
        (float, [1]),
    ],
)
def test_not_sure_of_anything_else(type: Any, values: list[Any]) -> None:
    fits = compile_check(type_info(type), finite=True)
    assert fits is not always_unsure
    assert not any(map(fits, values))


@pytest.mark.parametrize(
    "type",
    [
        Refined, Checked, Bounded, Any, list[Any], Row, set[int], Literal["a", None],
        Annotated[list[int], msgspec.Meta(max_length=3)], dict[int, int], Item | set[int],
    ],
)  # fmt: skip
def test_types_that_only_the_decoder_can_judge(type: Any) -> None:
    assert compile_check(type_info(type), finite=True) is always_unsure
