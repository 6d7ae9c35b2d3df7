"""Keys (of aggregates, of documents) in addresses and forms: as text, or where they are no UTF-8,
as hexadecimal digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import InvalidValue

if TYPE_CHECKING:
    from streams.web.page import Page
    from streams.web.redaction import Shown

MAX_KEY = 8 << 10
"""Bytes of a key, at most."""


def key_fields(key: bytes) -> dict[str, str]:
    """The fields that name a key."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return {"hex": key.hex()}
    # A browser changes line breaks in a form, and nobody sees other control characters.
    return {"key": text} if text and text.isprintable() else {"hex": key.hex()}


def visible_key_fields(key: bytes, shown: Shown) -> dict[str, str]:
    """The same; nothing where the visitor does not see the key itself."""
    return key_fields(key) if shown.data == key else {}


def key_of(page: Page) -> bytes:
    """The key that an address or a form names (``key=`` or ``hex=``).

    :raises InvalidValue: it names none.
    """
    written = page.fields.text("hex")
    if written:
        try:
            found = bytes.fromhex(written[: 2 * MAX_KEY])
        except ValueError:
            raise InvalidValue(page._("hex= is to be hexadecimal digits.")) from None
    else:
        found = page.fields.raw("key").encode("utf-8", "surrogateescape")
    if not found or len(found) > MAX_KEY:
        raise InvalidValue(page._("Which one? Its key is missing."))
    return found
