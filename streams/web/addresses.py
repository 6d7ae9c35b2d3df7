"""The topics and groups that addresses name: read from the path or query, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import InvalidValue
from streams.log.names import is_valid_name
from streams.text import printable_text

if TYPE_CHECKING:
    from streams.web.page import Page

MAX_NAME = 1_000
"""The longest name of a group, in characters (other clients choose any names)."""


def topic_of(page: Page) -> str:
    """The topic that an address names (``{topic}`` in its path, else ``topic=``).

    :raises InvalidValue: it cannot be a topic's name.
    """
    given = page.request.path_params.get("topic")
    name = page.fields.text("topic") if given is None else str(given)
    if not is_valid_name(name):
        raise InvalidValue(page._("There is no such topic."))
    return name


def group_of(page: Page) -> str:
    """The group that an address or a form names (``group=``).

    :raises InvalidValue: it names none, or its name is not text.
    """
    name = page.fields.raw("group")
    if not name or len(name) > MAX_NAME or printable_text(name) != name:
        raise InvalidValue(page._("There is no such group."))
    return name
