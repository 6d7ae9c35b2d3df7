"""The map at the head of a package names each of its modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in (ROOT / "streams").rglob("__init__.py"))
LOGS = sorted(path.parent for path in (ROOT / "streams" / "log").glob("*/__init__.py"))

ENOUGH = 1 / 3
"""Of a package's modules, if its head names so many: that is a map."""


def modules_of(package: Path) -> set[str]:
    """The modules and packages in a package."""
    files = {path.stem for path in package.glob("*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    return {name for name in files | packages if not name.startswith("__")}


def named_in(text: str) -> set[str]:
    """What a docstring names as code or as a module."""
    modules = re.findall(r":mod:`~?(?:[\w.]*\.)?(\w+)`", text)
    return {*modules, *re.findall(r"``(\w+)``", text)}


def head_of(package: Path) -> str:
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_a_log_has_a_map(log: Path) -> None:
    assert modules_of(log) - named_in(head_of(log)) == set()


def test_a_map_leaves_nothing_out() -> None:
    maps = 0
    for package in PACKAGES:
        modules, named = modules_of(package), named_in(head_of(package))
        if len(modules & named) > max(1, ENOUGH * len(modules)):
            maps += 1
            assert modules - named == set(), package.relative_to(ROOT)
    assert maps > 12


def test_what_is_named() -> None:
    text = "``one``, :mod:`a.b.two`, :mod:`~a.b.three` and :mod:`.four`; five, ``a.six``"
    assert named_in(text) == {"one", "two", "three", "four"}
