"""Keys (of aggregates, of documents) in addresses and forms: as text, or if they are not UTF-8,
as hexadecimal digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import InvalidValue

if TYPE_CHECKING:
    from streams.web.page import Page
    from streams.web.redaction import Shown

MAX_KEY = 8 << 10
"""The longest key, in bytes."""


def key_behind(page: Page, topic: str) -> bytes | None:
    """The key after which a page of a list begins (``after=``, which :func:`behind` wrote); None:
    at the first. A visitor can only name a key that he sees unredacted: with others he could find
    out a hidden one's place by trying.

    :param topic: the topic of the keys.
    :raises InvalidValue: it is not a key, or may not be seen.
    """
    written = page.fields.text("after")
    if not written or not page.payloads.allowed:
        return None
    try:
        found = bytes.fromhex(written[: 2 * MAX_KEY])
    except ValueError:
        raise InvalidValue(page._("hex= must be hexadecimal digits.")) from None
    if page.payloads.key(topic, found).data != found:
        raise InvalidValue(page._("This page's address cannot be read."))
    return found


def behind(page: Page, topic: str, last: bytes) -> str:
    """The address of the page after a key; empty if the visitor does not see that key."""
    return page.here(after=last.hex()) if page.payloads.key(topic, last).data == last else ""


def key_fields(key: bytes) -> dict[str, str]:
    """The fields that name a key."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return {"hex": key.hex()}
    # A browser changes line breaks in a form, and other control characters are invisible.
    return {"key": text} if text and text.isprintable() else {"hex": key.hex()}


def visible_key_fields(key: bytes, shown: Shown) -> dict[str, str]:
    """The same; nothing if the visitor does not see the key itself."""
    return key_fields(key) if shown.data == key else {}


def key_of(page: Page) -> bytes:
    """The key that an address or a form names (``key=`` or ``hex=``).

    :raises InvalidValue: it names no key.
    """
    written = page.fields.text("hex")
    if written:
        try:
            found = bytes.fromhex(written[: 2 * MAX_KEY])
        except ValueError:
            raise InvalidValue(page._("hex= must be hexadecimal digits.")) from None
    else:
        found = page.fields.raw("key").encode("utf-8", "surrogateescape")
    if not found or len(found) > MAX_KEY:
        raise InvalidValue(page._("The key is missing."))
    return found
