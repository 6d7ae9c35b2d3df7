"""Long lists in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from streams.web.page import Page

T = TypeVar("T")

PAGE_SIZE = 50
"""The number of rows of a page."""


class Paged(NamedTuple, Generic[T]):
    """One page of a list.

    :param rows: the rows on it.
    :param text: the range of rows and their total, translated.
    :param before: the address of the page before; empty: there is none.
    :param after: the address of the next page; empty: there is none.
    """

    rows: Sequence[T]
    text: str
    before: str
    after: str


def paged(page: Page, rows: Sequence[T], size: int = PAGE_SIZE) -> Paged[T]:
    """The page of a list that the address asks for (``?page=``, from 1)."""
    pages = max(1, -(-len(rows) // size))
    number = min(page.fields.number("page", 1, low=1), pages)
    start = (number - 1) * size
    shown = rows[start : start + size]
    text = page._(
        "%(first)s to %(last)s of %(all)s",
        first=f"{start + 1 if shown else 0:,}",
        last=f"{start + len(shown):,}",
        all=f"{len(rows):,}",
    )
    return Paged(
        shown,
        text,
        page.here(page=str(number - 1)) if number > 1 else "",
        page.here(page=str(number + 1)) if number < pages else "",
    )
