#!/usr/bin/env python3
"""Brings the dashboard's scripts from npm packages into ``streams/web/static/vendor``, where they
are committed: neither an installation nor a browser fetches them from anywhere. Scripts that only
the tests use (axe-core) go to ``tests/web/browser/vendor``, and do not ship.

``python3 scripts/web_scripts.py`` fetches the packages at the versions below with ``npm pack``,
compares the hash of each with the one that is written here, and writes the files that are used,
their licences, and ``SHA256SUMS``. ``--check`` fetches nothing: it compares the committed files
with ``SHA256SUMS``. npm is needed only to change a version.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "streams" / "web" / "static" / "vendor"
TESTS = ROOT / "tests" / "web" / "browser" / "vendor"

SUMS = "SHA256SUMS"


class NpmPackage(NamedTuple):
    """A package at one version, and the files of it that are used."""

    name: str
    version: str
    integrity: str
    """The hash of its archive, in npm's notation: ``sha512-`` and base64."""
    files: Mapping[str, str]
    """Files within the package, with their names here."""
    folder: Path = VENDOR
    """The destination folder."""


PACKAGES = (
    NpmPackage(
        "htmx.org",
        "4.0.1",
        "sha512-oF7JgXhDW9UXCy/k1ZYFUQgzu/rm19ORWPSPNL91vPluB2PB9+MV55tyQdH/w7o2EAbTYUG5SDW1R60mdkdqGg==",
        {
            "dist/htmx.min.js": "htmx.min.js",
            "LICENSE": "htmx.LICENSE",
        },
    ),
    NpmPackage(
        "uplot",
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        {
            "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
            "dist/uPlot.min.css": "uPlot.min.css",
            "LICENSE": "uPlot.LICENSE",
        },
    ),
    NpmPackage(
        "axe-core",
        "4.14.1",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "axe.min.js", "LICENSE": "axe.LICENSE"},
        TESTS,
    ),
)

FOLDERS = tuple(dict.fromkeys(package.folder for package in PACKAGES))


def fetch(package: NpmPackage, folder: Path) -> dict[str, bytes]:
    """The used files of a package, by their names here.

    :raises SystemExit: its archive has another hash than expected.
    """
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    archive = folder / done.stdout.split()[-1]
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{found}" != package.integrity:
        raise SystemExit(
            f"{package.name} {package.version}: its archive has the hash sha512-{found}, and "
            f"{package.integrity} was expected; nothing was written"
        )
    with tarfile.open(archive) as members:
        files: dict[str, bytes] = {}
        for inside, name in package.files.items():
            member = members.extractfile(f"package/{inside}")
            if member is None:
                raise SystemExit(f"{package.name} {package.version} has no file {inside}")
            # The maps that these comments name are not shipped.
            lines = member.read().splitlines(keepends=True)
            files[name] = b"".join(
                each for each in lines if b"# sourceMappingURL=" not in each[:25]
            )
    return files


def write_all() -> None:
    """Fetch all packages, then write the files that are used."""
    files: dict[Path, dict[str, bytes]] = {folder: {} for folder in FOLDERS}
    with tempfile.TemporaryDirectory() as scratch:
        for package in PACKAGES:
            files[package.folder] |= fetch(package, Path(scratch))
    for folder, found in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (folder / name).write_bytes(data)
        sums = "".join(
            f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in sorted(found)
        )
        (folder / SUMS).write_text(sums, encoding="ascii")


def changed_files(folder: Path) -> list[str]:
    """The committed files that differ from ``SHA256SUMS``, or that it does not name."""
    named: dict[str, str] = {}
    for line in (folder / SUMS).read_text(encoding="ascii").splitlines():
        digest, _, name = line.partition("  ")
        named[name] = digest
    there = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != SUMS
    }
    return sorted(name for name in {*named, *there} if named.get(name) != there.get(name))


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="web_scripts.py", description="Bring the scripts anew.")
    parser.add_argument("--check", action="store_true", help="only compare the committed files")
    if not parser.parse_args(argv).check:
        write_all()
    changed = [name for folder in FOLDERS for name in changed_files(folder)]
    if changed:
        print(f"not what {SUMS} says: {', '.join(changed)}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
