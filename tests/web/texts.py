"""Brings the dashboard's catalogues (``streams/web/catalogues/*.po``) up to date with its code.

``python -m tests.web.texts`` finds every text in ``streams/web`` (``page._("...")``,
``page.plural("...", "...", n)``, ``mark("...")`` in modules; ``_("...")`` and ``{% trans %}`` in
templates) and writes the catalogues anew, sorted: translations are kept, new texts come without one
and are shown in English, texts that are gone are left out. ``--check`` changes nothing, names what
is missing or gone, and fails if there is any.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from streams.web.rendering import environment
from streams.web.translations import PoEntry, read_po

WEB = Path(__file__).resolve().parents[2] / "streams" / "web"
CATALOGUES = WEB / "catalogues"


class Text(NamedTuple):
    """A text in the code.

    :param plural: how it is for many, of one that counts.
    """

    text: str
    plural: str | None = None


def texts_of_module(source: str) -> Iterator[Text]:
    """The texts of a Python module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        strings = [
            each.value
            for each in node.args
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        if name in ("_", "mark") and strings:
            yield Text(strings[0])
        elif name == "plural" and len(strings) >= 2:
            yield Text(strings[0], strings[1])


def texts_of_template(source: str) -> Iterator[Text]:
    """The texts of a template."""
    extract = environment("en").extract_translations  # type: ignore[attr-defined]
    for _, _, found in extract(source, gettext_functions=("_", "gettext", "ngettext")):
        if found is None:
            continue  # a value, not a text
        if isinstance(found, str):
            yield Text(found)
        else:
            strings = [each for each in found if isinstance(each, str)]
            yield Text(strings[0], strings[1] if len(strings) > 1 else None)


def all_texts() -> list[Text]:
    """All texts, sorted, each once."""
    found: set[Text] = set()
    for path in WEB.rglob("*.py"):
        found.update(texts_of_module(path.read_text(encoding="utf-8")))
    for path in WEB.rglob("*.html"):
        found.update(texts_of_template(path.read_text(encoding="utf-8")))
    counting = {each.text for each in found if each.plural is not None}
    return sorted(each for each in found if each.plural is not None or each.text not in counting)


def quoted(text: str) -> str:
    """A string as gettext writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written(texts: Sequence[Text], known: dict[str, PoEntry], header: str) -> str:
    """A catalogue of these texts."""
    blocks = [f'msgid ""\nmsgstr {quoted(header)}'.replace("\\n", '\\n"\n"').replace('\n""', "")]
    for each in texts:
        entry = known.get(each.text)
        lines = [f"msgid {quoted(each.text)}"]
        if each.plural is None:
            old = entry.translations[0] if entry and entry.plural is None else ""
            lines.append(f"msgstr {quoted(old)}")
        else:
            lines.append(f"msgid_plural {quoted(each.plural)}")
            forms = entry.translations if entry and entry.plural is not None else ("",)
            lines += [f"msgstr[{at}] {quoted(form)}" for at, form in enumerate(forms)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.web.texts", description="Update the catalogues.")
    parser.add_argument("--check", action="store_true", help="change nothing, name what is amiss")
    check = parser.parse_args(argv).check
    texts = all_texts()
    amiss = 0
    for path in sorted(CATALOGUES.glob("*.po")):
        entries = {entry.text: entry for entry in read_po(path.read_text(encoding="utf-8"))}
        header = entries.pop("").translations[0]
        missing = [each.text for each in texts if not all(_translations(entries, each))]
        gone = sorted(set(entries) - {each.text for each in texts})
        for text in missing:
            print(f"{path.name}: not translated: {text!r}")
        for text in gone:
            print(f"{path.name}: not in the code any more: {text!r}")
        amiss += len(missing) + len(gone)
        if not check:
            path.write_text(written(texts, entries, header), encoding="utf-8")
    return 1 if check and amiss else 0


def _translations(entries: dict[str, PoEntry], text: Text) -> tuple[str, ...]:
    entry = entries.get(text.text)
    known = entry is not None and (entry.plural is None) == (text.plural is None)
    return entry.translations if entry is not None and known else ("",)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
