"""Input from a visitor: the fields of a form or of an address, with bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from streams.errors import InvalidValue

MAX_BODY = 4 << 20
"""The largest form, in bytes."""

MAX_FIELDS = 2_000
"""The most fields of a form or of an address."""

HEX = "hex:"
"""The prefix of the names of fields whose text is the UTF-8 in hexadecimal digits."""


class FormTooLarge(Exception):
    """A form is larger than :data:`MAX_BODY`."""


class Fields:
    """The fields of a form or of an address (text, names may repeat)."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._last = dict(pairs)

    def text(self, name: str, default: str = "") -> str:
        """A field's text without surrounding whitespace; if there are several, the last."""
        return self._last.get(name, default).strip()

    def raw(self, name: str, default: str = "") -> str:
        """A field's text as it was sent."""
        return self._last.get(name, default)

    def all(self, name: str) -> list[str]:
        """All fields of a name."""
        return [value for each, value in self.pairs if each == name]

    def flag(self, name: str) -> bool:
        """Whether a box is ticked."""
        return self._last.get(name, "") not in ("", "0", "no", "false")

    def number(self, name: str, default: int, *, low: int = 0, high: int = 10**9) -> int:
        """A whole number.

        :raises InvalidValue: it is not a number, or is not from ``low`` to ``high``.
        """
        written = self.text(name)
        if not written:
            return default
        digits = written.replace(",", "").replace("_", "")
        if len(digits) > 18 or not digits.isascii() or not digits.isdigit():
            raise InvalidValue(f"{name}: {written[:40]!r} is not a whole number")
        found = int(digits)
        if not low <= found <= high:
            raise InvalidValue(f"{name}: from {low:,} to {high:,}, not {found:,}")
        return found

    def optional_number(self, name: str, *, high: int = 10**9) -> int | None:
        """A whole number, None if the field is empty.

        :raises InvalidValue: it is not a number.
        """
        return self.number(name, 0, high=high) if self.text(name) else None

    def __contains__(self, name: str) -> bool:
        return name in self._last

    def with_(self, changes: Mapping[str, str]) -> list[tuple[str, str]]:
        """The same fields, with replacements for those of the same names; empty ones are left
        out."""
        kept = [(name, value) for name, value in self.pairs if name not in changes and value]
        return kept + [(name, value) for name, value in changes.items() if value]


def parse_fields(data: bytes) -> Fields:
    """Fields as browsers encode them.

    :raises InvalidValue: they are not encoded like that, or too many.
    """
    try:
        text = data.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="surrogateescape"
        )
        return Fields([_plain(*pair) for pair in pairs])
    except (UnicodeDecodeError, ValueError):
        raise InvalidValue("the fields cannot be read") from None


def _plain(name: str, text: str) -> tuple[str, str]:
    """A field with its name and text decoded.

    :raises ValueError: it is not a field.
    """
    if not name.startswith(HEX):
        return name, text
    return name.removeprefix(HEX), bytes.fromhex(text).decode("utf-8", "surrogateescape")


async def read_form(request: Request) -> Fields:
    """The fields of a form.

    :raises InvalidValue: it is not a form.
    :raises FormTooLarge: it is larger than :data:`MAX_BODY`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise InvalidValue("a form is sent as application/x-www-form-urlencoded")
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                raise FormTooLarge
    except ClientDisconnect:
        raise InvalidValue("the form was not received completely") from None
    if data and not kind:
        raise InvalidValue("the form has no content type")
    return parse_fields(bytes(data))
