"""Editing bytes in the user's editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from streams.cli.command_errors import CommandFailed, UsageError
from streams.cli.options import argument_bytes


def replacement_value(value: str | None, file: Path | None) -> bytes | None:
    """The value of ``--value`` or ``--file``; None if neither was given.

    :raises UsageError: both were given.
    """
    if value is not None and file is not None:
        raise UsageError("streams dead edit takes --value or --file, not both")
    if value is not None:
        return argument_bytes(value)
    if file == Path("-"):
        return sys.stdin.buffer.read()
    return None if file is None else file.read_bytes()


def editor_command() -> list[str]:
    """The user's editor, as a command.

    :raises UsageError: none is set, or it cannot be read.
    """
    name = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        words = shlex.split(name)
    except ValueError as error:
        raise UsageError(f"EDITOR={name!r}: {error}") from None
    if not words:
        problem = "streams dead edit needs --value, --file, or EDITOR in the environment"
        raise UsageError(problem)
    return words


def edit_in_editor(data: bytes, command: list[str]) -> bytes:
    """The bytes after they were edited.

    Some editors end a file with a line break that it did not have: that is removed
    again.

    :raises CommandFailed: the editor failed, or nothing was changed.
    """
    editor = f"the editor {command[0]!r}"
    with tempfile.TemporaryDirectory(prefix="streams-") as folder:  # only for its owner
        path = Path(folder, "letter.json" if data[:1] in (b"{", b"[") else "letter.txt")
        path.write_bytes(data)
        try:
            status = subprocess.run([*command, str(path)], check=False).returncode
        except OSError as error:
            raise CommandFailed(f"{editor} cannot be run: {error.strerror}") from None
        if status != 0:
            raise CommandFailed(f"{editor} exited with status {status}: nothing was changed")
        found = path.read_bytes()
    if not data.endswith(b"\n"):
        found = found.removesuffix(b"\n").removesuffix(b"\r")
    if found == data:
        raise CommandFailed("the value was not changed in the editor: the dead letter is kept")
    return found
