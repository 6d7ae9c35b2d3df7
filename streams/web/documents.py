"""Documents (a state, a context, an event) as a screen shows them: indented, and truncated."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from streams.web.redaction import Shown

MAX_SHOWN = 64 << 10
"""The bytes of a document that are shown."""


def indented_json(data: bytes) -> str | None:
    """JSON with its fields one below the other, and otherwise unchanged: numbers keep their
    digits, and a duplicate name stays. None: it is not JSON."""
    try:
        orjson.loads(data)
        return msgspec.json.format(data, indent=2).decode()
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


def indented_document(document: Any) -> str | None:
    """A document of mappings, lists, texts and numbers as JSON, its fields one below the other.
    None: it is nested too deeply."""
    try:
        return indented_json(msgspec.json.encode(document))
    except RecursionError:
        return None


def pretty(shown: Shown) -> str:
    """A document as text: JSON indented, anything else unchanged, a long one truncated."""
    data = shown.data
    if data is None:
        return ""
    cut = data[:MAX_SHOWN]
    if len(cut) == len(data) and (text := indented_json(data)) is not None:
        return text
    text = cut.decode("utf-8", "backslashreplace")
    return text if len(cut) == len(data) else f"{text}…"
