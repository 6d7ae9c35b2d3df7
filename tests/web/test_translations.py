"""Texts in the visitor's language."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.web import Dashboard
from streams.web.translations import Catalogue, PoEntry, choose_language, read_po
from tests.conformance.stage import Stage
from tests.web import texts
from tests.web.visiting import visit

PO = r"""
# A translator's comment
msgid ""
msgstr ""
"Language: ja\n"

#: streams/web/page.py
msgid "Groups"
msgstr "グループ"

msgid "a \"quoted\""
"\nline"
msgstr "「引用」\n行"

msgid "%(number)s member"
msgid_plural "%(number)s members"
msgstr[0] "%(number)s 名"

#, fuzzy
msgid "Unsure"
msgstr "不確か"

msgid "Missing"
msgstr ""
"""


def test_a_catalogue_is_read() -> None:
    entries = list(read_po(PO))
    assert entries[1] == PoEntry("Groups", None, ("グループ",))
    assert entries[2] == PoEntry('a "quoted"\nline', None, ("「引用」\n行",))
    found = Catalogue("ja", PO)
    assert found.gettext("Groups") == "グループ"
    assert found.ngettext("%(number)s member", "%(number)s members", 7) == "%(number)s 名"
    for text in ("Unsure", "Missing", "Unknown", ""):
        assert found.gettext(text) == text
    assert found.ngettext("one", "many", 1) == "one"
    assert found.ngettext("one", "many", 2) == "many"


def test_every_text_is_translated_and_none_is_left_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert texts.main(["--check"]) == 0, capsys.readouterr().out


def test_a_text_that_is_missing_or_left_over_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "CATALOGUES", tmp_path)
    monkeypatch.setattr(texts, "all_texts", lambda: [texts.Text("Groups"), texts.Text("New")])
    (tmp_path / "ja.po").write_text(PO, encoding="utf-8")
    assert texts.main(["--check"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "ja.po: not translated: 'New'" in said
    assert "ja.po: not in the code any more: 'Missing'" in said
    assert "Groups" not in "".join(said)
    assert (tmp_path / "ja.po").read_text(encoding="utf-8") == PO


@pytest.mark.parametrize(
    ("asked", "accept", "language"),
    [
        (None, "", "en"),
        (None, "ja", "ja"),
        (None, "ja-JP,ja;q=0.9,en;q=0.8", "ja"),
        (None, "en-US,en;q=0.9,ja;q=0.8", "en"),
        (None, "fr, ja;q=0.3, en;q=0.2", "ja"),
        (None, "fr", "en"),
        (None, "ja;q=0, en;q=0.1", "en"),
        (None, "ja;q=x;;,=," + "a," * 5_000, "en"),
        ("ja", "en", "ja"),
        ("en", "ja", "en"),
        ("../../etc", "ja", "ja"),
        ("xx", "", "en"),
    ],
)
def test_a_language_is_chosen(asked: str | None, accept: str, language: str) -> None:
    assert choose_language(asked, accept) == language


async def test_a_language_that_was_asked_for_stays(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        seen = await visitor.get("/topics?lang=ja&q=x", headers={"accept-language": "en"})
        assert '<html lang="ja">' in seen.html
        assert seen.link("English") == "?q=x&lang=en"
        home = next(href for text, href in seen.links if text == "streams")
        assert home == "/?lang=ja"
        assert '<html lang="en">' in (await visitor.get("/")).html
        answer = await visitor.get("/", headers={"accept-language": "ja"})
        assert '<html lang="ja">' in answer.html
        assert "accept-language" in answer.response.headers["vary"]
