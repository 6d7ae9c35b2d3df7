"""What docstrings and documents refer to exists: classes, methods, modules, files, tests."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("streams", "codecs/stream_codecs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?\.?)([\w.\s]+)`")
NODE = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
PATH = re.compile(r"(?<![\w/.-])(?:streams|codecs|tests|benchmarks|scripts|docs)/[\w./-]*\w\b")


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "codecs" if "stream_codecs" in path.parts else ROOT)
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def names_in(node: ast.AST) -> Iterator[str]:
    """What a module or a class binds, in blocks and methods, too: more than its own names."""
    for each in ast.walk(node):
        if isinstance(each, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield each.name
        elif isinstance(each, ast.alias):
            yield (each.asname or each.name).partition(".")[0]
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store):
            yield each.attr


@cache
def modules() -> dict[str, frozenset[str]]:
    """The names of each module."""
    return {module_name(path): frozenset(names_in(tree_of(path))) for path in FILES}


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for path in FILES:
        for each in ast.walk(tree_of(path)):
            if isinstance(each, ast.ClassDef):
                found.setdefault(each.name, []).append(each)
    return found


@cache
def members(name: str) -> frozenset[str]:
    """The members of all classes of this name, and of their bases."""
    found = set(dir(getattr(builtins, name, object)))
    for each in classes().get(name, ()):
        found.update(names_in(each))
        for base in each.bases:
            plain = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            found |= members(plain) if plain != name else set()
    return frozenset(found)


def exists(target: str, module: str, enclosing: str) -> bool:
    """Whether a reference in this module, and perhaps in this class, resolves."""
    owner, _, name = target.rpartition(".")
    if target in modules() or name in modules().get(owner, ()):
        return True
    if not owner and (name in modules()[module] | members(enclosing) or hasattr(builtins, name)):
        return True
    last = owner.rpartition(".")[2]
    if last in classes():
        return name in members(last)
    first, *rest = target.split(".")
    if first in ("streams", "stream_codecs"):
        return False
    try:
        found: object = importlib.import_module(first)
    except ImportError:
        return False
    for part in rest:
        found = getattr(found, part, None)
    return found is not None


def unresolved(path: Path) -> Iterator[str]:
    source, module = path.read_text(), module_name(path)
    spans = [each for each in ast.walk(tree_of(path)) if isinstance(each, ast.ClassDef)]
    for found in ROLE.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        around = [each for each in spans if each.lineno <= line <= (each.end_lineno or 0)]
        enclosing = max(around, key=lambda each: each.lineno).name if around else ""
        target = found[2]
        if found[1].endswith("."):  # a module beside this one
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            target = f"{package}.{target}"
        if not exists(target, module, enclosing):
            yield f"{path.relative_to(ROOT)}:{line}: {found[0]}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_docstrings_refer_to(folder: str) -> None:
    own = [path for path in FILES if path.is_relative_to(ROOT / folder)]
    assert [each for path in own for each in unresolved(path)] == []


def gone_from(document: Path) -> Iterator[str]:
    text = document.read_text()
    yield from (path for path in PATH.findall(text) if not (ROOT / path).exists())
    for path, name in NODE.findall(text):
        definition = re.compile(rf"^ *(?:async def|def|class) {name}\b", re.MULTILINE)
        if name and definition.search((ROOT / path).read_text()) is None:
            yield f"{path}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_a_document_names(document: Path) -> None:
    assert [*gone_from(document)] == []


def test_a_reference_that_does_not_resolve(tmp_path: Path) -> None:
    here = "streams.log.kafka.offsets"
    assert exists("to_driver", here, "")
    assert exists("membership_lost", here, "OffsetCommits")
    assert exists("streams.Aggregate.decide", here, "")
    assert exists("streams.log.kafka.consumer", here, "")
    assert exists("pathlib.Path.exists", here, "")
    assert not exists("membership_lost", "streams.log.kafka.settings", "Settings")
    assert not exists("streams.Aggregate.resolve", here, "")
    assert not exists("streams.log.kafka.offset", here, "")
    document = tmp_path / "page.md"
    document.write_text(
        "`streams/log/kafka/offset.py`; `tests/tooling/test_references.py::test_gone`"
    )
    assert [*gone_from(document)] == [
        "streams/log/kafka/offset.py",
        "tests/tooling/test_references.py::test_gone",
    ]
