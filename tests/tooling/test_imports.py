"""What import-linter's contracts cannot say of imports."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "streams"


def imports_the_package(source: str) -> bool:
    """Whether a module imports a name of ``streams`` itself, which has those of all layers."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "streams":
            if any(alias.name not in modules for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and "streams" in (alias.name for alias in node.names):
            return True
    return False


def test_no_module_imports_the_whole_package() -> None:
    """It would be a circle, which "No circles" does not see: that is about siblings."""
    modules = [path for path in PACKAGE.rglob("*.py") if imports_the_package(path.read_text())]
    assert [str(path.relative_to(PACKAGE)) for path in modules] == []


def test_what_that_is() -> None:
    assert imports_the_package("def f():\n    from streams import __version__\n")
    assert imports_the_package("import streams")
    for source in ("from streams.errors import LogError", "import streams.text"):
        assert not imports_the_package(source)
    assert not imports_the_package("from streams import wire")
