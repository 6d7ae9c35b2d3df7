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


def key_behind(page: Page, topic: str) -> bytes | None:
    """The key behind which a page of a list begins (``after=``, which :func:`behind` wrote); None:
    with the first. A visitor can only name a key that he sees as it is: with others he could find
    out by trying where a hidden one stands.

    :param topic: that the keys are of.
    :raises InvalidValue: it is none, or not to be seen.
    """
    written = page.fields.text("after")
    if not written or not page.payloads.allowed:
        return None
    try:
        found = bytes.fromhex(written[: 2 * MAX_KEY])
    except ValueError:
        raise InvalidValue(page._("hex= is to be hexadecimal digits.")) from None
    if page.payloads.key(topic, found).data != found:
        raise InvalidValue(page._("This page's address cannot be read."))
    return found


def behind(page: Page, topic: str, last: bytes) -> str:
    """The address of the page behind a key; empty where the visitor does not see that key."""
    return page.here(after=last.hex()) if page.payloads.key(topic, last).data == last else ""


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
