"""What stands in the repository's own files can be relied on."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import environment
import pins as pins_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


WHERE = "import streams, stream_codecs as s; print(streams.__file__, s.__file__, sep='\\n')"


PIN = re.compile(r"([\w.-]+)==(\S+)( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+")


def pins(extras: list[str]) -> dict[str, str]:
    """What is installed with these extras: a version by name."""
    text = environment.select_pins((ROOT / environment.PINS).read_text(), extras)
    return {canonicalize_name(pin[1]): pin[2] for pin in PIN.finditer(text)}


def closure(requirements: list[Requirement]) -> set[str]:
    """The names of everything these bring, as it is installed here."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [(item, "") for item in requirements]
    while queue:
        item, extra = queue.pop()
        if item.marker is not None and not item.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(item.name)
        if (name, frozenset(item.extras)) in seen:
            continue
        seen.add((name, frozenset(item.extras)))
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            queue += [(Requirement(line), one) for one in ("", *item.extras)]
    return found


@pytest.mark.parametrize("extra", ["", "dev"])
def test_everything_that_is_installed_is_pinned(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *environment.BUILD]
    if extra:
        lines += [line for lines in extras.values() for line in lines]
    own = [Requirement(line) for line in lines if not line.startswith(project["name"])]
    pinned = pins([extra])
    assert {name for name in closure(own) if name not in pinned} == set()
    for item in own:
        assert item.specifier.contains(pinned[canonicalize_name(item.name)]), item
    assert ("pytest" in pinned) is bool(extra)


def test_every_pin_has_the_hashes_of_its_files() -> None:
    text = (ROOT / environment.PINS).read_text()
    assert set(PIN.sub("", text).splitlines()) - {"", environment.PACKAGE, environment.DEV} == set(
        pins_script.HEADER.splitlines()
    )


def test_the_pins_name_no_address() -> None:
    for name in (environment.PINS, "pyproject.toml"):
        assert "://" not in (ROOT / name).read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_need_nothing_and_run_on_python_3_8(script: Path) -> None:
    tree = ast.parse(script.read_text(), feature_version=(3, 8))
    own = {path.stem for path in SCRIPTS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names | own, name


def test_the_makefile_only_calls_the_script() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # Not as a part of the make that may be running these tests.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for target in ("setup", "demo", "test", "check", "bench", "faults"):
        done = subprocess.run(
            [make, target, "PYTHON=echo", "ARGS=-k retry"],
            cwd=ROOT, env=env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == f"scripts/dev.py {target} -- -k retry"


def test_what_ci_runs_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources with the backend that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("streams", "codecs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        check=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"streams/py.typed", "stream_codecs/py.typed"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"streams", "stream_codecs"}
    sources = {
        path.relative_to(base).as_posix()
        for base, package in ((ROOT, "streams"), (ROOT / "codecs", "stream_codecs"))
        for path in (base / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= set(names)


def test_the_wheel_works_where_nothing_else_is(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own; its dependencies come from this one, so nothing is fetched."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps",
         "--no-index", str(wheel)],
        check=True,
    )  # fmt: skip
    own = next(venv.glob("lib/python*/site-packages"))
    # A line in a .pth file adds that folder alone, not what the .pth files in it say, such as ours.
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    said = subprocess.run(
        [python, "-I", "-c", WHERE],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert [Path(line).parent for line in said] == [own / "streams", own / "stream_codecs"]
    shown = subprocess.run(
        [venv / "bin" / "streams", "--help"], cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "replay" in shown.stdout


def told() -> list[Path]:
    """What a user reads: pages, and the code that has the messages."""
    folders = ("streams", "codecs/stream_codecs", "examples")
    code = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *code]


def test_nothing_asks_pip_for_the_package_by_a_name_that_is_not_published() -> None:
    bad = re.compile(r"pip install[^\n`]*\bstreams[-_]toolkit")
    assert [path.name for path in told() if bad.search(path.read_text())] == []


def test_nothing_advises_a_file_that_only_a_checkout_has() -> None:
    code = [path for path in told() if path.suffix == ".py"]
    assert [path.name for path in code if "docker compose" in path.read_text()] == []


def test_the_readme_names_every_extra_that_a_service_may_add() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = (ROOT / "README.md").read_text().partition("Extras stand")[2].partition("\n## ")[0]
    for extra in set(project["optional-dependencies"]) - {"dev"}:
        assert f"`{extra}`" in section, extra
    assert "uvicorn" in section


def test_every_log_stands_in_the_contracts_that_name_them_all() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    logs = {f"streams.log.{each.parent.name}" for each in ROOT.glob("streams/log/*/__init__.py")}
    for contract in config["tool"]["importlinter"]["contracts"]:
        for key in ("modules", "forbidden_modules"):
            named = {each for each in contract.get(key, ()) if each in logs}
            assert len(named) <= 1 or named == logs, contract["name"]
