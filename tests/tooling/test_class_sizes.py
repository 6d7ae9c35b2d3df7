"""A long class says why it is one: its docstring has a sentence that begins with "One class"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "streams").rglob("*.py"), *(ROOT / "codecs").rglob("*.py")]

LIMIT = 400
"""Lines of a class, at most, without a reason."""

REASON = re.compile(r"(?:^|[.:]\s+)One class\b[^.]*\b(?:because|as|:)", re.MULTILINE)


def classes(source: str) -> Iterator[ast.ClassDef]:
    return (each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.ClassDef))


def lines_of(node: ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def unexplained(source: str) -> list[str]:
    """The classes of a module that are too long and do not say why."""
    return [
        node.name
        for node in classes(source)
        if lines_of(node) > LIMIT and not REASON.search(ast.get_docstring(node) or "")
    ]


def test_a_long_class_says_why_it_is_one() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in SOURCES
        if (names := unexplained(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_what_is_a_reason() -> None:
    body = "    x = 1\n" * LIMIT
    assert unexplained(f"class Long:\n{body}") == ["Long"]
    assert unexplained("class Short:\n    x = 1\n") == []
    for said in ("Does it.", "One class.", "Someone has One class because."):
        assert unexplained(f'class Long:\n    """{said}"""\n{body}') == ["Long"]
    for said in ("Does it.\n\n    One class, because it is.", "One class, though long: it is."):
        assert unexplained(f'class Long:\n    """{said}"""\n{body}') == []
