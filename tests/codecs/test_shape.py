"""What a declared type says about its values: fields, tags, None."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from stream_codecs import fields_of, includes_none, tags_of, type_name
from tests.codecs.samples import (
    Cancelled,
    Departed,
    Foreign,
    Item,
    Left,
    Node,
    Pair,
    Point,
    Right,
    Row,
)


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        (Departed, [(Departed, {"tail_number", "carrier", "delay_minutes"})]),
        (
            Departed | Cancelled | None,
            [
                (Departed, {"tail_number", "carrier", "delay_minutes"}),
                (Cancelled, {"tail_number", "carrier"}),
            ],
        ),
        (Point, [(Point, {"x", "y"})]),
        (Pair, [(Pair, {"name", "number"})]),
        (Row, [(Row, {"name", "number"})]),
        (Item | int, [(Item, {"name", "price"}), (int, set())]),
        (bytes, [(bytes, set())]),
        (list[Item], [(list, set())]),
        (None, []),
        (Any, None),
        (object, None),
        (dict[str, int], None),
        (Item | dict[str, int], None),
        (Foreign, None),
        (Foreign | Item, None),
        ("nonsense", None),
    ],
)
def test_fields(type: Any, expected: Any) -> None:
    found = fields_of(type)
    assert (
        found == expected
        if expected is None
        else sorted(found or [], key=repr) == sorted(expected, key=repr)
    )


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        (Departed | None, True),
        (Optional[Departed], True),  # noqa: UP045 - as older code has it
        (None, True),
        (Any, True),
        (object, True),
        (Foreign | Item | None, True),
        (Departed, False),
        (Departed | Cancelled, False),
        (list[None], False),
        (Foreign, False),
        (bytes, False),
        ("nonsense", False),
    ],
)
def test_which_types_include_none(type: Any, expected: bool) -> None:
    assert includes_none(type) is expected


@pytest.mark.parametrize(
    ("type", "expected"),
    [
        (Departed | Cancelled | None, {"departed", "cancelled"}),
        (Departed, {"departed"}),
        (Left | Right, {1, 2}),
        (Departed | int, {"departed"}),
        (Node, set()),
        (list[Departed], set()),
        (Any, set()),
        (Foreign, set()),
    ],
)
def test_tags(type: Any, expected: set[Any]) -> None:
    assert tags_of(type) == expected


class Outer:
    class Inner:
        pass


@pytest.mark.parametrize(
    ("type", "name"),
    [
        (Departed | Cancelled | None, "Departed | Cancelled | None"),
        (None, "None"),
        (list[int], "list[int]"),
        (Any, "Any"),
        (int, "int"),
        (Outer.Inner, "Outer.Inner"),
        ("two\nlines", "'two\\nlines'"),
    ],
)
def test_names(type: Any, name: str) -> None:
    assert type_name(type) == name
