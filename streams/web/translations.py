"""Texts in the visitor's language, from gettext's catalogues in ``catalogues/``.

A text is English in the code and the templates, and is its own key in the catalogues. The files
are read directly (``.po``), so nothing is compiled and a translator's change is seen at the next
start. ``python -m tests.web.texts`` brings them up to date with the code.
"""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from typing_extensions import override

LANGUAGES = {"en": "English", "ja": "日本語"}
"""The available languages by their tags, with their own names. The first is the code's."""

_QUALITY = re.compile(r"\s*;\s*q=(?P<quality>[01](?:\.[0-9]{1,3})?)\s*\Z")


class PoEntry(NamedTuple):
    """A text in a catalogue.

    :param plural: the plural of a text that counts; None for others.
    :param translations: one, or one for each of the language's plural forms; empty if missing.
    """

    text: str
    plural: str | None
    translations: tuple[str, ...]


def read_po(source: str) -> Iterator[PoEntry]:
    """The entries of a catalogue, except those that are marked as uncertain (``fuzzy``) or
    commented out.

    :raises ValueError: a line does not have gettext's format.
    """
    for block in re.split(r"\n\s*\n", source.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        field, fuzzy = "", False
        for line in block.split("\n"):
            line = line.strip()
            if line.startswith("#"):
                fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
            elif line.startswith('"'):
                fields[field] += _string(line)
            elif line:
                field, _, rest = line.partition(" ")
                fields[field] = _string(rest)
        if "msgid" in fields and not (fuzzy and fields["msgid"]):
            translations = tuple(
                text for name, text in fields.items() if name == "msgstr" or name[:7] == "msgstr["
            )
            yield PoEntry(fields["msgid"], fields.get("msgid_plural"), translations)


def _string(written: str) -> str:
    found: object = ast.literal_eval(written.strip())
    if not isinstance(found, str):
        raise ValueError(f"not a string: {written!r}")
    return found


class Catalogue(gettext.NullTranslations):
    """The texts of one language. A missing text stays as it is in the code."""

    def __init__(self, language: str, source: str) -> None:
        super().__init__()
        self.language = language
        self._texts: dict[str, str] = {}
        self._plurals: dict[str, tuple[str, ...]] = {}
        for entry in read_po(source):
            if not entry.text or not all(entry.translations):
                continue
            if entry.plural is None:
                self._texts[entry.text] = entry.translations[0]
            else:
                self._plurals[entry.text] = entry.translations

    @override
    def gettext(self, message: str) -> str:
        return self._texts.get(message, message)

    @override
    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        found = self._plurals.get(msgid1)
        if found is None:
            return msgid1 if n == 1 else msgid2
        # Languages with one form (Japanese) have one; for those with more the rule must be added
        # here.
        return found[0 if n == 1 or len(found) == 1 else 1]


@cache
def catalogue(language: str) -> Catalogue:
    """The texts of one of :data:`LANGUAGES`."""
    if language == "en":
        return Catalogue("en", "")
    place = files("streams.web") / "catalogues" / f"{language}.po"
    return Catalogue(language, place.read_text(encoding="utf-8"))


def choose_language(asked: str | None, accept: str) -> str:
    """The language for a visitor.

    :param asked: ``?lang=``, which has priority if that language exists.
    :param accept: the header ``Accept-Language``.
    """
    if asked in LANGUAGES:
        return asked
    best, best_quality = "en", 0.0
    for part in accept[:1_000].split(","):
        tag, semicolon, rest = part.partition(";")
        match = _QUALITY.match(semicolon + rest) if semicolon else None
        quality = float(match["quality"]) if match else 0.0 if semicolon else 1.0
        language = tag.strip().lower().partition("-")[0]
        if language in LANGUAGES and quality > best_quality:
            best, best_quality = language, quality
    return best


def mark(text: str) -> str:
    """Mark a constant text that is translated when it is shown. Returns it unchanged."""
    return text
