"""The error for a database's file that is not there and must not be made: it names the nearest."""

from __future__ import annotations

import os

from streams.errors import NotFound
from streams.text import close_match


def similar_file(path: str) -> str | None:
    """The database in the same folder whose name is most like this one, without its folder."""
    folder, name = os.path.split(path)
    endings = (".db", os.path.splitext(name)[1] or ".db")
    try:
        candidates = sorted(each for each in os.listdir(folder) if each.endswith(endings))
    except OSError:
        return None
    return close_match(name, [each for each in candidates if each != name], cutoff=0.0)


def missing_file(path: str) -> NotFound:
    """The error for a file that does not exist.

    :param path: absolute.
    """
    other = similar_file(path)
    hint = "the folder has no *.db file" if other is None else f"beside it there is {other}"
    return NotFound(f"there is no file {path}; {hint}")
