r"""Templates: Jinja2 with the filters and functions that every screen needs.

Everything that a template shows is text: it is escaped for HTML, and characters that could control
a terminal or hide in a line (control characters, bidirectional controls, lone surrogates) are
written as escapes (``\x1b``) first, by :func:`_finalize`, which no template can bypass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import BytecodeCache, Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.bccache import Bucket
from jinja2.runtime import Context
from markupsafe import Markup
from typing_extensions import override

from streams.text import escape, printable_text
from streams.web.forms import HEX
from streams.web.redaction import Shown
from streams.web.translations import LANGUAGES, catalogue
from streams.wire import iso_time

DASH = "\N{EN DASH}"
"""Shown for a missing or unknown value."""

CUT_AT = 300
"""The characters of a value or an error that a list shows."""


def _finalize(found: Any) -> Any:
    if isinstance(found, Markup):  # also a translated text, with its values
        return Markup(escape(str(found), keep_lines=True))  # noqa: S704 - it was markup before
    if isinstance(found, str):
        return escape(printable_text(found), keep_lines=True)
    return DASH if found is None else found


def is_text(data: bytes) -> bool:
    """Whether a form returns these bytes unchanged: they are UTF-8, and neither the page would
    escape nor a browser change a part of them."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    return "\r" not in text and escape(printable_text(text), keep_lines=True) == text


def hidden_field(name: str, text: object) -> Markup:
    """A hidden field of a form whose text comes back unchanged: if a page would escape or a browser
    change it, it is written in hexadecimal digits (:func:`streams.web.forms.parse_fields` reads
    them)."""
    written = str(text)
    data = written.encode("utf-8", "surrogateescape")
    if not is_text(data) or "\n" in written:
        name, written = HEX + name, data.hex()
    return Markup('<input type="hidden" name="{}" value="{}">').format(name, written)


def count(found: int | None) -> str:
    """A number of items, with thousands separators; a dash if it is not known."""
    return DASH if found is None else f"{found:,}"


def rate(found: float | None) -> str:
    """A rate per second; a dash if it is not known."""
    if found is None or not math.isfinite(found):
        return DASH
    return f"{found:,.0f}" if found >= 10 or found == 0 else f"{found:.2g}"


def percent(share: float | None) -> str:
    """A share of all; 100% is shown only if none is missing."""
    if share is None:
        return DASH
    return "100%" if share >= 1.0 else f"{min(share, 0.999):.1%}"


def size(found: int | None) -> str:
    """A size in bytes, with a suitable unit."""
    if found is None:
        return DASH
    value, unit = float(found), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"


def age(seconds: float | None) -> str:
    """A duration, roughly: ``3.2 s``, ``5 min``, ``2 h``, ``4 d``."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    for unit, length in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s"


def moment(seconds: float | None) -> Markup | str:
    """A time, in UTC, as an element that programs can read, too; a script shows how long ago
    it is."""
    if seconds is None:
        return DASH
    written = iso_time(seconds)
    shown = written.replace("T", " ").replace("Z", " UTC")
    return Markup('<time datetime="{}">{}</time>').format(written, shown)


def cut(text: str, length: int = CUT_AT) -> str:
    """The beginning of a long text, on one line."""
    text = text[: length + 1].replace("\n", "\u21b5").replace("\r", "")
    return text if len(text) <= length else f"{text[:length]}…"


def sparkline(points: Sequence[float | None], width: int = 120, height: int = 24) -> Markup:
    """A line through these numbers, from 0 to their maximum, without axes; hidden from screen
    readers, as the number is beside it."""
    known = [each for each in points if each is not None]
    if len(known) < 2:
        return Markup("")
    top = max(known) or 1.0
    step = width / max(1, len(points) - 1)
    drawn = " ".join(
        f"{index * step:.1f},{height - 1 - (height - 2) * each / top:.1f}"
        for index, each in enumerate(points)
        if each is not None
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" aria-hidden="true" '
        'focusable="false"><polyline points="{}"/></svg>'
    ).format(width, height, width, height, drawn)


def path_part(text: str) -> str:
    """Text as a part of an address."""
    return quote(text, safe="", errors="surrogateescape")


@pass_context
def payload(context: Context, shown: Shown, length: int = CUT_AT) -> Markup | str:
    """A part of a message in a list: truncated, or a word if it is hidden or missing."""
    if shown.hidden:
        return Markup('<span class="hidden-payload">{}</span>').format(
            catalogue(context["language"]).gettext("not shown")
        )
    if shown.data is None:
        return DASH
    text = shown.data[: 4 * length + 4].decode("utf-8", "backslashreplace")
    return Markup('<code class="payload">{}</code>').format(escape(cut(text, length)))


class _TemplateCache(BytecodeCache):
    """Compiled templates, which are the same in each language."""

    def __init__(self) -> None:
        self._codes: dict[str, bytes] = {}

    @override
    def load_bytecode(self, bucket: Bucket) -> None:
        found = self._codes.get(bucket.key)
        if found is not None:
            bucket.bytecode_from_string(found)

    @override
    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key] = bucket.bytecode_to_string()


_compiled = _TemplateCache()


@cache
def compile_templates() -> None:
    """Compile them before the first visit, which takes half a second, once per process. Python
    compiles one in up to 30 ms in which no other thread runs, not even the one that serves the
    service that the dashboard is mounted in."""
    for language in LANGUAGES:
        found = environment(language)
        for name in found.list_templates():
            found.get_template(name)


@cache
def environment(language: str) -> Environment:
    """Templates whose texts are in a language."""
    found = Environment(
        loader=PackageLoader("streams.web", "templates"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
        auto_reload=False,
        bytecode_cache=_compiled,
    )
    found.install_gettext_translations(catalogue(language), newstyle=True)  # type: ignore[attr-defined]
    filters: Mapping[str, Any] = {
        "count": count,
        "rate": rate,
        "percent": percent,
        "size": size,
        "age": age,
        "moment": moment,
        "cut": cut,
        "sparkline": sparkline,
        "path_part": path_part,
        "payload": payload,
    }
    shared: dict[str, Any] = found.globals
    found.filters.update(filters)
    shared |= {"now": time.time, "hidden_field": hidden_field}
    return found
