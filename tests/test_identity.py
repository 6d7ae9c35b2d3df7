"""What deduplication compares, and the IDs of results that follow from it."""

from __future__ import annotations

import pytest

from streams.derived_records import ResultRule
from streams.message import FIRST_POSITION, ID, REDRIVE, SOURCE, Batch, Headers, identity_of

BEFORE: list[tuple[str, Headers]] = [
    ("m", []),
    ("m", [(SOURCE, b"s")]),
    ("m", [(REDRIVE, b"1")]),
    ("m", [(SOURCE, b"s"), (REDRIVE, b"1")]),
    ("a\0b\0c", []),
    ("a\0b\0c", [(SOURCE, b"s")]),
    ("a\0b\0d", [(REDRIVE, b"1")]),
]
"""Messages that are all different: their IDs, and their headers before any reset."""


def identity(id: str, headers: Headers) -> str | None:
    return identity_of([(ID, id.encode()), *headers])


def test_messages_that_differ_have_different_identities_after_each_reset() -> None:
    generations: list[Headers] = [[], [(FIRST_POSITION, b"7")], [(FIRST_POSITION, b"8")]]
    found = [identity(id, [*headers, *more]) for id, headers in BEFORE for more in generations]
    assert len(set(found)) == 3 * len(BEFORE)


@pytest.mark.parametrize(("id", "headers"), BEFORE)
def test_the_ids_of_results_are_the_same_after_a_reset(id: str, headers: Headers) -> None:
    assert prefix(id, [*headers, (FIRST_POSITION, b"7")]) == prefix(id, headers)


def test_results_of_messages_that_differ_have_different_ids() -> None:
    assert len({prefix(id, headers) for id, headers in BEFORE}) == len(BEFORE)


def prefix(id: str, headers: Headers) -> str:
    known = identity(id, headers)
    batch = Batch("t", 0, [0], [None], [b""], [known], [headers])
    return ResultRule("g", several=False).id_prefix(batch, 0, known)
