"""The fenced blocks of a page, and what a page says of them in comments that no reader sees.

``<!-- file: NAME -->`` before a block: it is the file of that name.
``<!-- until: TEXT -->`` before a shell block: its last command runs until it has printed TEXT, and
gets a SIGINT then.
``<!-- not run: WHY -->`` before a block: it cannot run here; Python must still compile.
``<!-- setup: CODE -->``: Python that later blocks take for granted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PYTHON = ("python",)
SHELL = ("", "sh", "shell", "bash", "console")
OTHER = ("text", "json", "toml", "yaml", "ini", "sql", "lua", "properties")

_PART = re.compile(
    r"<!--\s*(?P<word>file|until|not run|setup):(?P<said>.*?)-->"
    r"|^(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, or a setup.

    :param line: the page's line before its first.
    :param marks: what is said of it, by word.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line + 1}"


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found: list[Block] = []
    marks: dict[str, str] = {}
    end = 0
    for part in _PART.finditer(source):
        if source[end : part.start()].strip():
            marks = {}  # there is text between the comment and the block
        end = part.end()
        word = part["word"]
        if word == "setup":
            line = source.count("\n", 0, part.start("said"))
            found.append(Block(page.name, line, "python", part["said"], {}))
        elif word:
            marks[word] = part["said"].strip()
        else:
            line = source.count("\n", 0, part.start("text"))
            found.append(Block(page.name, line, part["language"].strip(), part["text"], marks))
            marks = {}
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block, a line each; comments and prompts left out."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line.removeprefix("$ ")).strip()
        if line:
            found.append(line)
    return found
