"""What an address names: read from its parts, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import InvalidValue
from streams.log.names import is_valid_name
from streams.text import printable_text

if TYPE_CHECKING:
    from streams.web.page import Page

MAX_NAME = 1_000
"""Characters of a group's name, at most (others name theirs as they like)."""


def topic_of(page: Page) -> str:
    """The topic that an address names (``{topic}`` in its path, else ``topic=``).

    :raises InvalidValue: it cannot be one.
    """
    given = page.request.path_params.get("topic")
    name = page.fields.text("topic") if given is None else str(given)
    if not is_valid_name(name):
        raise InvalidValue(page._("There is no such topic."))
    return name


def group_of(page: Page) -> str:
    """The group that an address or a form names (``group=``).

    :raises InvalidValue: it names none, or one that is no text.
    """
    name = page.fields.raw("group")
    if not name or len(name) > MAX_NAME or printable_text(name) != name:
        raise InvalidValue(page._("There is no such group."))
    return name
