"""JSON and MessagePack: what fits goes there and back, everything else is one typed error."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Any

import msgspec
import pytest

from stream_codecs import (
    BindError,
    Codec,
    DecodeError,
    EncodeError,
    Json,
    MessagePack,
    UnknownTag,
)
from tests.codecs.samples import (
    Access,
    Bounded,
    Cancelled,
    Checked,
    Departed,
    Diverted,
    Everything,
    Foreign,
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
    Strict,
)

BOTH = pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "msgpack"])
DEPARTED = Departed("N14228", "UA", 2)
ID = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")
MOMENT = datetime.datetime(2013, 1, 1, 10, 15, tzinfo=datetime.timezone.utc)


@BOTH
@pytest.mark.parametrize(
    ("type", "value"),
    [
        (Departed, DEPARTED),
        (Departed | Cancelled, Cancelled(None, "AA")),
        (Departed | None, None),
        (Left | Right, Right(5)),
        (Order, Order(ID, [Item("a", 1.5)], Status.PAID, {"EUR": 2.0})),
        (Node, Node(1, Node(2), [Node(3), Node(4, children=[Node()])])),
        (
            Everything,
            Everything(
                True, 1, 0.5, "ü", b"\0", MOMENT, MOMENT.date(), ID, decimal.Decimal("1.10"),
                Status.OPEN, 3, None, None, [Item("a", 1.0)], ["a", None], {"a": 1.0},
            ),
        ),
        (Refined, Refined("abc", {"a": [1, None]})),
        (Bounded, Bounded(0)),
        (Access, Access.READ | Access.WRITE),
        (Checked, Checked(1)),
        (Point, Point(1, 2.5)),
        (Pair, Pair("a", 1)),
        (Row, {"name": "a"}),
        (int, 2**63),
        (str, "text"),
        (bytes, b"\xff\x00"),
        (list[int], [1, 2]),
        (dict[str, Any], {"a": 1}),
        (tuple[int, str], (1, "a")),
        (Any, {"a": [1, "b", None, True, 1.5]}),
        (object, [1]),
    ],
)  # fmt: skip
def test_what_fits_comes_back(codec: Codec, type: Any, value: Any) -> None:
    bound = codec.bind(type, topic="t")
    assert bound.decode(bound.encode(value)) == value


@BOTH
def test_unknown_fields_are_passed_over(codec: Codec) -> None:
    data = codec.bind(Any, topic="t").encode(
        {"type": "cancelled", "tail_number": None, "carrier": "UA", "later": {"x": [1]}}
    )
    assert codec.bind(Departed | Cancelled, topic="t").decode(data) == Cancelled(None, "UA")


@pytest.mark.parametrize(
    ("type", "data", "reason", "path", "offset"),
    [
        (Order, b'{"items": []}', "object missing required field 'id'", "$", None),
        (Order, b'{"items": [{"name": "a"}]}', "object missing required field 'price'",
         "$.items[0]", None),
        (list[Item], b'[{"name":"a","price":1},{"name":"a","price":"1"}]',
         "expected 'float', got 'str'", "$[1].price", None),
        (dict[str, int], b'{"a": "b"}', "expected 'int', got 'str'", "$[...]", None),
        (dict[int, int], b'{"a": 1}', "expected 'int', got 'str'", "key in $", None),
        (Departed | Cancelled, b'{"carrier": "UA"}', "object missing required field 'type'", "$",
         None),
        (Departed, b'[1]', "expected 'object', got 'array'", "$", None),
        (Departed, b"null", "expected 'object', got 'null'", "$", None),
        (int, b"1.5", "expected 'int', got 'float'", "$", None),
        (uuid.UUID, b'"x"', "invalid UUID", "$", None),
        (Status, b'"s3cret"', "a value that the type does not have", "$", None),
        (Status, b'"s3cret - at `$.s3cret`"', "a value that the type does not have", "$", None),
        (Strict, b'{"number": 1, "s3cret": 2}', "a field that the type forbids", None, None),
        (list[Checked], b'[{"number": -5}]', "refused by the type's own check (ValueError)",
         "$[0]", None),
        (Checked, b'{"number": 0}', "refused by Checked (KeyError)", None, None),
        (Departed, b"", "empty", None, None),
        (Departed, b'{"type": "departed"', "ends too early", None, 19),
        (Departed, b'{"type": "departed" x', "malformed JSON: expected ',' or '}'", None, 20),
        (Departed, b"\xff", "malformed JSON: invalid character", None, 0),
        (str, b'["ok", "\xff"]', "expected 'str', got 'array'", "$", None),
        (list[str], b'["ok", "\xff"]', "text that is not UTF-8", None, 8),
        (float, b"NaN", "malformed JSON: invalid character", None, 0),
        (float, b"1e999", "number out of range", "$", None),
        (int, b"9" * 5000, "integer value out of range", "$", None),
        (int, b"1 2", "malformed JSON: trailing characters", None, 2),
        (Any, b"", "empty", None, None),
        (Any, b'{"a": 1', "malformed JSON: unexpected end of data", None, 7),
        (Any, '["é", s3cret]'.encode(),
         "malformed JSON: unexpected character, expected a JSON value", None, 7),
        (Any, b'["ok", "\xff"]', "text that is not UTF-8", None, 8),
    ],
)  # fmt: skip
def test_poison_json_says_what_and_where(
    type: Any, data: bytes, reason: str, path: str | None, offset: int | None
) -> None:
    with pytest.raises(DecodeError) as info:
        Json().bind(type, topic="orders").decode(data)
    error = info.value
    assert (error.reason, error.path, error.offset) == (reason, path, offset)
    assert error.data is data
    assert (error.codec, error.topic, error.role) == ("json", "orders", "value")
    assert str(error).startswith(f"orders value: {reason}")
    assert not isinstance(error, UnknownTag)


@pytest.mark.parametrize(
    ("type", "data", "reason", "path", "offset"),
    [
        (list[Item], b"\x91\x81\xa4name\xa1a", "object missing required field 'price'", "$[0]",
         None),
        (Pair, b"\x92\xa1a\xa1b", "expected 'int', got 'str'", "$[1]", None),
        (int, b"", "empty", None, None),
        (str, b"\xa5abc", "ends too early", None, 4),
        (list[int], b"\xdd\xff\xff\xff\xff\x01", "ends too early", None, 6),
        (int, b"\xc1", "malformed MessagePack: invalid opcode", None, 0),
        (int, b"\x01\x01", "malformed MessagePack: trailing characters", None, 1),
        (Any, b"\x81\x80\x01", "malformed MessagePack: map keys must be hashable", None, 3),
        (str, b"\xa1\xff", "text that is not UTF-8", None, 1),
    ],
)  # fmt: skip
def test_poison_messagepack_says_what_and_where(
    type: Any, data: bytes, reason: str, path: str | None, offset: int | None
) -> None:
    with pytest.raises(DecodeError) as info:
        MessagePack().bind(type, topic="t").decode(data)
    assert (info.value.reason, info.value.path, info.value.offset) == (reason, path, offset)
    assert info.value.data is data


@BOTH
@pytest.mark.parametrize(
    ("type", "document", "tag"),
    [
        (Departed | Cancelled, {"type": "diverted", "carrier": "UA"}, "diverted"),
        (Departed | Cancelled, {"carrier": 5, "deep": [{"type": "departed"}], "type": "x"}, "x"),
        (Departed, {"type": "cancelled"}, "cancelled"),
        (Departed | None, {"type": "cancelled"}, "cancelled"),
        (Left | Right, [3, 1], 3),
    ],
)
def test_an_unknown_tag_is_told_apart(codec: Codec, type: Any, document: Any, tag: Any) -> None:
    bound = codec.bind(type, topic="t")
    data = codec.bind(Any, topic="t").encode(document)
    with pytest.raises(UnknownTag, match=r"t value: a tag that .* does not have at \$") as info:
        bound.decode(data)
    assert info.value.tag == tag
    assert info.value.data is data
    explained = bound.explain(data, msgspec.ValidationError("as the bare decoder raises it"))
    assert isinstance(explained, UnknownTag)


@BOTH
@pytest.mark.parametrize(
    ("type", "document"),
    [
        (Departed | Cancelled, {"type": 5}),
        (Departed | Cancelled, {"type": ["departed"]}),
        (Departed | Cancelled, {"type": "departed", "tail_number": None, "carrier": 5}),
        (Left | Right, ["3", 1]),
        (list[Departed | Cancelled], [{"type": "diverted"}]),
        (Node, {"type": "x", "value": "y"}),
    ],
)
def test_other_failures_are_not_unknown_tags(codec: Codec, type: Any, document: Any) -> None:
    data = codec.bind(Any, topic="t").encode(document)
    with pytest.raises(DecodeError) as info:
        codec.bind(type, topic="t").decode(data)
    assert not isinstance(info.value, UnknownTag)


def test_a_broken_document_of_an_unknown_tag_is_poison_not_passed_over() -> None:
    with pytest.raises(DecodeError) as info:
        Json().bind(Departed | Cancelled, topic="t").decode(b'{"type": "diverted", "carrier": ')
    assert not isinstance(info.value, UnknownTag)


@BOTH
@pytest.mark.parametrize(
    ("type", "value", "reason", "path"),
    [
        (Departed | Cancelled, Diverted("N1", "UA"), "expected Departed | Cancelled, got Diverted",
         None),
        (Departed | Cancelled, object(), "expected Departed | Cancelled, got object", None),
        (Departed | Cancelled, None, "expected Departed | Cancelled, got None", None),
        (Departed, {"type": "departed", "tail_number": None, "carrier": "", "delay_minutes": 1},
         "expected Departed, got dict", None),
        (Departed, Departed("N1", "UA", "2"),  # type: ignore[arg-type]
         "does not fit Departed: expected 'int', got 'str'", "$.delay_minutes"),
        (Departed, Departed("N1", "UA", 2.5),  # type: ignore[arg-type]
         "does not fit Departed: expected 'int', got 'float'", "$.delay_minutes"),
        (Departed, Departed(None, None, 2),  # type: ignore[arg-type]
         "does not fit Departed: expected 'str', got", "$.carrier"),
        (Order, Order(ID, [Item("a", 1.0), Item("b", "c")], Status.OPEN),  # type: ignore[arg-type]
         "does not fit Order: expected 'float', got 'str'", "$.items[1].price"),
        (Refined, Refined("long", 1), "does not fit Refined: expected 'str' of length <= 3",
         "$.short"),
        (Bounded, Bounded(-1), "does not fit Bounded: expected 'int' >= 0", "$.count"),
        (int, True, "does not fit int: expected 'int', got 'bool'", "$"),
        (int, "1", "expected int, got str", None),
        (datetime.datetime, "2013-01-01T00:00:00Z", "expected datetime, got str", None),
        (Status, "open", "expected Status, got str", None),
        (list[int], [1, "2"], "does not fit list[int]: expected 'int', got 'str'", "$[1]"),
        (list[int], "12", "expected list[int], got str", None),
        (list[int], (1, 2), None, None),
        (Row, {"number": 1}, "does not fit Row: object missing required field 'name'", "$"),
        (str, "\ud800", "str holds text that is not UTF-8 (a lone surrogate)", None),
        (Any, object(), "object cannot be encoded", None),
        (Refined, Refined("a", Foreign()),
         "Refined cannot be encoded: Encoding objects of type Foreign is unsupported", None),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(
    codec: Codec, type: Any, value: Any, reason: str | None, path: str | None
) -> None:
    bound = codec.bind(type, topic="orders")
    if reason is None:
        assert bound.decode(bound.encode(value)) in (value, [1, 2])
        return
    with pytest.raises(EncodeError) as info:
        bound.encode(value)
    assert info.value.reason.startswith(reason)
    assert info.value.path == path
    assert str(info.value).startswith(f"orders value: {reason}")


NAN = float("nan")


@pytest.mark.parametrize(
    ("type", "value"),
    [
        (float, NAN),
        (float | None, NAN),
        (Item, Item("a", float("inf"))),
        (Point, Point(1, float("-inf"))),
        (dict[str, float], {"a": NAN}),
        (Refined, Refined("a", {"deep": [None, {"x": NAN}]})),
        (Any, [1.0, None, NAN]),
        (Any, {"a": Item("a", NAN)}),
    ],
)
def test_json_cannot_say_nan_and_does_not_make_it_null(type: Any, value: Any) -> None:
    with pytest.raises(EncodeError, match="NaN or an infinity, which JSON cannot say"):
        Json().bind(type, topic="t").encode(value)
    MessagePack().bind(type, topic="t").encode(value)


def test_null_itself_can_be_said() -> None:
    bound = Json().bind(Any, topic="t")
    # The bytes of an infinity as MessagePack writes it, in a text: looks like one, is none.
    value = {"a": None, "b": 1.5, "c": "\u02cb\x7f\U000f0000".encode("utf-8").hex(), "d": "null"}
    assert bound.decode(bound.encode(value)) == value
    assert Json().bind(dict[str, bytes | None], topic="t").encode({"a": None, "b": b"\xcb\x7f\xf0"})


def test_untyped_json_takes_what_msgspec_knows() -> None:
    bound = Json().bind(Any, topic="t")
    data = bound.encode([DEPARTED, Point(1), {1}, decimal.Decimal("1.10"), ID, MOMENT])
    assert bound.decode(data) == [
        {"type": "departed", "tail_number": "N14228", "carrier": "UA", "delay_minutes": 2},
        {"x": 1, "y": 0.0},
        [1],
        "1.10",
        str(ID),
        "2013-01-01T10:15:00+00:00",
    ]


@BOTH
def test_what_is_too_large_for_the_reader_is_not_written(codec: Any) -> None:
    small = type(codec)(max_size=100).bind(list[str], topic="t")
    assert small.decode(small.encode(["x" * 90])) == ["x" * 90]
    with pytest.raises(EncodeError, match="bytes; at most 100 are allowed"):
        small.encode(["x" * 100])
    data = codec.bind(list[str], topic="t").encode(["x" * 100])
    with pytest.raises(DecodeError, match="bytes; at most 100 are allowed"):
        small.decode(data)


@BOTH
def test_what_is_too_deep_for_the_reader_is_not_written(codec: Any) -> None:
    node = Node()
    for _ in range(400):
        node = Node(next=node)
    assert codec.bind(Node, topic="t").encode(node)
    with pytest.raises(EncodeError, match="nested deeper than 300 levels"):
        type(codec)(max_depth=300).bind(Node, topic="t").encode(node)
    node.children.append(node)
    with pytest.raises(EncodeError, match="nested too deeply, or contains itself"):
        codec.bind(Node, topic="t").encode(node)


@BOTH
@pytest.mark.parametrize(
    ("type", "reason"),
    [
        (Foreign, "msgspec does not know Foreign; use a Struct"),
        (list[Foreign], "msgspec does not know Foreign"),
        (dict[str, Foreign | None], "msgspec does not know Foreign"),
        (Departed | dict[str, int], "more than one dict-like type"),
        (Point | Node, "cannot use the type Point | Node: "),
        ("Departed", "cannot use the type"),
        (5, "cannot use the type 5"),
    ],
)
def test_a_type_that_cannot_work_is_refused_when_bound(
    codec: Codec, type: Any, reason: str
) -> None:
    with pytest.raises(BindError) as info:
        codec.bind(type, topic="t")
    assert reason in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("codec", [Json, MessagePack])
@pytest.mark.parametrize("limit", [{"max_size": 0}, {"max_depth": 0}, {"max_depth": 901}])
def test_bounds_that_make_no_sense(codec: Any, limit: dict[str, int]) -> None:
    with pytest.raises(BindError, match=r"(Json|MessagePack)\(max_(size|depth)="):
        codec(**limit)
