"""Run a page in the working directory: ``python -m tests.docs.run PAGE``.

Its blocks run in their order, Python in one namespace. Every page but the README goes on from the
README's quickstart: ``flights.py`` is there, and its names are.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import CodeType
from typing import Any

from tests.docs.blocks import PYTHON, ROOT, SHELL, Block, blocks, commands

PATIENCE = 120.0


def main(page: Path) -> None:
    scope: dict[str, Any] = {"__name__": "__page__"}
    sys.path.insert(0, os.getcwd())
    if page.name != "README.md":
        quickstart = next(each for each in blocks(ROOT / "README.md") if "file" in each.marks)
        Path("flights.py").write_text(quickstart.text, encoding="utf-8")
        exec("from flights import *", scope)
    environment = {**os.environ, "PORT": "0"}  # a server's, where a page starts one: any free one
    for block in blocks(page):
        code = compiled(block) if block.language in PYTHON else None
        if "not run" in block.marks:
            continue
        say(f"--- {block.place}\n")
        if "file" in block.marks:
            Path(block.marks["file"]).write_text(block.text, encoding="utf-8")
        elif code is not None and code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, scope))
        elif code is not None:
            exec(code, scope)
        elif block.language in SHELL:
            shell(block, environment)


def compiled(block: Block) -> CodeType:
    """The code, with the page's own line numbers; ``await`` may stand at its top."""
    code: CodeType = compile(
        "\n" * block.line + block.text, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    return code


def shell(block: Block, environment: dict[str, str]) -> None:
    """Run those commands that are Python's or ours; the others are the reader's own."""
    lines = commands(block)
    for number, line in enumerate(lines, 1):
        say(f"$ {line}\n")
        words = shlex.split(line)
        if words[0] == "export":
            for word in words[1:]:
                name, _, value = word.partition("=")
                environment[name] = value
            continue
        if words[0] == "streams":
            words[:1] = [sys.executable, "-m", "streams.cli"]
        elif words[0] == "python":
            words[0] = sys.executable
        elif words[0] in ("pytest", "uvicorn"):
            port = ["--port", "0"] if words[0] == "uvicorn" else []  # any that is free
            words = [sys.executable, "-m", *words, *port]
        else:
            continue
        if "until" in block.marks and number == len(lines):
            until(block.marks["until"], words, environment)
        else:
            subprocess.run(words, env=environment, check=True, timeout=PATIENCE)


def until(text: str, words: list[str], environment: dict[str, str]) -> None:
    """Run a command until it has printed a text, and end it as Ctrl-C does."""
    seen = False
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        for line in process.stdout:
            say(line)
            if text in line and not seen:
                seen = True
                process.send_signal(signal.SIGINT)
        guard.cancel()
    status = process.returncode
    # uvicorn ends by the signal itself, once it has shut down; what is ours ends well.
    fine = (0, -signal.SIGINT) if "uvicorn" in words else (0,)
    if not seen or status not in fine:
        raise SystemExit(f"{words} ended with status {status}, {text!r} seen: {seen}")


def say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
