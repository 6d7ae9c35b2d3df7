"""Pydantic models as types: there and back as Pydantic has it, and errors that name the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, RootModel, field_validator

from stream_codecs import (
    BindError,
    DecodeError,
    EncodeError,
    Json,
    MessagePack,
    UnknownTag,
    Zstd,
    default_codec,
    fields_of,
    includes_none,
    tags_of,
)

T = TypeVar("T")


class Item(BaseModel):
    sku: str
    price: Decimal = Field(gt=0)


class Order(BaseModel):
    order_id: str
    items: list[Item] = []
    at: datetime | None = None
    notes: dict[str, int] = {}
    weight: float | None = None


class Paid(BaseModel):
    kind: Literal["paid"] = "paid"
    cents: int


class Refused(BaseModel):
    kind: Literal["refused"] = "refused"
    why: str


class Aliased(BaseModel):
    model_config = ConfigDict(extra="forbid")
    total: int = Field(alias="totalCents")


class Torn(BaseModel):
    """Written under one name, read under another: no reader could read what it writes."""

    total: int = Field(validation_alias=AliasChoices("sum", "amount"), serialization_alias="total")


class Checked(BaseModel):
    code: str

    @field_validator("code")
    @classmethod
    def no_secret(cls, code: str) -> str:
        if "s3cret" in code:
            raise ValueError(f"{code} is refused")
        return code


class Page(BaseModel, Generic[T]):
    entries: list[T]


class Names(RootModel[list[str]]):
    pass


@dataclass
class Around:
    order: Order


Payment = Annotated[Paid | Refused, Field(discriminator="kind")]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ORDER = Order(order_id="o-1", items=[Item(sku="a", price=Decimal("1.50"))], at=MOMENT)


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (Order, ORDER),
        (Order | None, ORDER),
        (list[Order], [ORDER, ORDER]),
        (dict[str, Paid], {"x": Paid(cents=3)}),
        (Payment, Refused(why="no")),
        (Paid | Refused, Paid(cents=3)),
        (Aliased, Aliased(totalCents=5)),
        (Page[Paid], Page[Paid](entries=[Paid(cents=1)])),
        (Names, Names(["a", "b"])),
        (Around, Around(ORDER)),
    ],
)
def test_there_and_back(type: Any, value: Any) -> None:
    for codec in (default_codec(type), Json(), Zstd(Json())):
        bound = codec.bind(type, topic="orders")
        data = bound.encode(value)
        assert bound.decode(data) == value
        assert bound.encode_many([value, value]) == [data, data]
        assert bound.decode_many([data, None]) == [value, None]
    assert Json().bind(type, topic="orders").content_type == "application/json"


ORDERS = Json().bind(Order, topic="orders")


@given(
    st.builds(
        Order,
        order_id=st.text(),
        items=st.lists(
            st.builds(Item, sku=st.text(), price=st.decimals(1, 10**6, places=2, allow_nan=False)),
            max_size=3,
        ),
        notes=st.dictionaries(st.text(), st.integers(), max_size=3),
        weight=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_whatever_fits_the_model_goes_there_and_back(order: Order) -> None:
    assert ORDERS.decode(ORDERS.encode(order)) == order


@given(
    st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ).map(msgspec.json.encode)
)
def test_whatever_comes_is_a_model_or_one_typed_error(data: bytes) -> None:
    (found,) = ORDERS.decode_many([data])
    if isinstance(found, DecodeError):
        assert found.data == data
        assert "\n" not in str(found)
    else:
        assert isinstance(found, Order)


@pytest.mark.parametrize(
    ("type", "data", "said"),
    [
        (Order, b'{"items": []}', "field required at $.order_id"),
        (Order, b'{"order_id": 5}', "input should be a valid string at $.order_id"),
        (
            Order,
            b'{"order_id": "x", "items": [{"sku": "a", "price": "-1"}]}',
            "input should be greater than 0 at $.items[0].price",
        ),
        (Order, b'{"order_id": "x", "notes": {"s3cret": "y"}}', "at $.notes[...]"),
        (Aliased, b'{"totalCents": 1, "s3cret": 2}', "extra inputs are not permitted at $[...]"),
        (Checked, b'{"code": "s3cret"}', "refused by the type's own check (ValueError) at $.code"),
        (Order, b'{"order_id": ', "malformed JSON: EOF"),
        (Order, b"", "empty"),
        (Order, b"\xff", "malformed JSON"),
        (Order, b'{"items": [1, 2]}', "and 2 more"),
        (Order, b"[" * 100_000, "nested deeper"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_and_quotes_nothing(type: Any, data: bytes, said: str) -> None:
    bound = Json().bind(type, topic="orders")
    with pytest.raises(DecodeError) as caught:
        bound.decode(data)
    error = caught.value
    assert said in str(error)
    assert "s3cret" not in repr(error) + str(error)
    assert error.data == data
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_tag_that_the_union_does_not_have() -> None:
    bound = Json().bind(Payment, topic="payments")
    with pytest.raises(UnknownTag) as caught:
        bound.decode(b'{"kind": "s3cret"}')
    assert caught.value.tag == "s3cret"
    assert "s3cret" not in str(caught.value)
    with pytest.raises(DecodeError, match="unable to extract tag"):
        bound.decode(b"{}")


@pytest.mark.parametrize(
    ("type", "value", "said"),
    [
        (Order, Paid(cents=1), "expected Order, got Paid"),
        (Order, {"order_id": "x"}, "expected Order, got dict"),
        (Order, None, "expected Order, got None"),
        (Payment, ORDER, "expected Paid | Refused, got Order"),
        (
            Order, Order.model_construct(order_id=5),
            "does not fit Order: input should be a valid string at $.order_id",
        ),
        (Paid, Paid.model_construct(cents="5"), "input should be a valid integer at $.cents"),
        (Torn, Torn.model_validate({"sum": 3}), "does not fit Torn: field required"),
        (Order, Order(order_id="x", weight=math.nan), "NaN or an infinity"),
        (Order, Order(order_id="\ud800"), "Order cannot be encoded"),
        (Checked, Checked.model_construct(code="s3cret"), "refused by the type's own check"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_not_written(type: Any, value: Any, said: str) -> None:
    bound = Json().bind(type, topic="orders")
    with pytest.raises(EncodeError) as caught:
        bound.encode(value)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(EncodeError):
        bound.encode_many([value])


def test_a_large_document_is_refused_before_it_is_decoded_and_before_it_is_written() -> None:
    bound = Json(max_size=100).bind(Order, topic="orders")
    with pytest.raises(DecodeError, match="at most 100"):
        bound.decode(b'{"order_id": "' + b"x" * 100 + b'"}')
    with pytest.raises(EncodeError, match="at most 100"):
        bound.encode(Order(order_id="x" * 100))


def test_what_a_topic_asks_of_its_type() -> None:
    assert fields_of(Order) == [(Order, {"order_id", "items", "at", "notes", "weight"})]
    assert fields_of(Payment) == [(Paid, {"kind", "cents"}), (Refused, {"kind", "why"})]
    assert tags_of(Payment) == {"paid", "refused"}
    assert tags_of(Paid | Refused) == frozenset()
    assert includes_none(Order | None)
    assert not includes_none(Payment)


class Mixed(msgspec.Struct):
    order: Order


def test_what_cannot_be_bound_says_what_to_do() -> None:
    with pytest.raises(BindError, match=r"Pydantic models travel as JSON; use Json\(\)"):
        MessagePack().bind(Order, topic="orders")
    with pytest.raises(BindError, match="cannot use the type Mixed"):
        Json().bind(Mixed, topic="orders")
