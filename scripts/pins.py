#!/usr/bin/env python3
"""Writes ``constraints.txt``: all packages of an installation, pinned, with the hash of every file
that the index offers of each version, for Linux and macOS and Python 3.11 to 3.14.

``python3 scripts/pins.py`` takes the newest versions that pyproject.toml allows; ``--keep`` takes
the versions that are pinned already, for a dependency that is new or gone, or files that were added
to a version. It needs ``uv`` on the PATH, which resolves for all platforms at once; no other
program does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from environment import BUILD, DEV, PACKAGE, PINS, ROOT

SYSTEMS = """
[tool.uv]
environments = ["sys_platform == 'linux'", "sys_platform == 'darwin'"]
"""

ALL_SYSTEMS_MARKER = "sys_platform == 'darwin' or sys_platform == 'linux'"
"""uv's notation of the condition that is true on all of these systems."""

HEADER = """\
# Every distribution that an installation brings, pinned, with the hashes of its files: the same on
# every machine and on Python 3.11 to 3.14. `python3 scripts/dev.py` installs these and nothing
# else; whoever installs the package is bound only by the ranges in pyproject.toml.
# `python3 scripts/pins.py` writes this file.
"""


def resolved(extras: Sequence[str], known: Path | None) -> dict[str, str]:
    """The pins of the package with these extras and of its build backend, by name."""
    with tempfile.TemporaryDirectory() as place:
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        Path(place, "pyproject.toml").write_text(project + SYSTEMS, encoding="utf-8")
        Path(place, "build.in").write_text("\n".join(BUILD), encoding="utf-8")
        command = [
            "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes",
            "--python-version", "3.11", "--no-header", "--no-annotate",
            *(word for extra in extras for word in ("--extra", extra)),
            *(("--constraint", str(known)) if known else ()),
            "pyproject.toml", "build.in",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = {}
    for pin in re.split(r"\n(?=\S)", done.stdout.strip()):
        pin = pin.replace(f" ; {ALL_SYSTEMS_MARKER}", "").replace(
            f" and ({ALL_SYSTEMS_MARKER})", ""
        )
        name = pin.partition("==")[0]  # repeated if one version does not support every Python
        found[name] = f"{found[name]}\n{pin}" if name in found else pin
    return found


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pins.py", description="Write constraints.txt anew.")
    parser.add_argument("--keep", action="store_true", help="keep the versions that are pinned")
    known = ROOT / PINS if parser.parse_args(argv).keep else None
    package = resolved([], known)
    everything = resolved(["dev"], known)
    lines = [HEADER.rstrip()]
    for title, names in (
        (PACKAGE, [name for name in everything if name in package]),
        (DEV, [name for name in everything if name not in package]),
    ):
        lines += ["", title, *(everything[name] for name in names)]
    (ROOT / PINS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
