"""What stands on a page: its blocks, its links, and what it says between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PASTED = ("sh", "python", "yaml")
"""Blocks that a test runs; a file whose name is in the first line is written instead."""
SHOWN = ("console", "text")
"""Blocks that none runs: commands that need more than a laptop, and what is no command."""

_FENCE = re.compile(r"^```(?P<kind>\S*)$(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"# (\S+\.(?:py|yaml))\b")
_SLOW = re.compile(r"<!-- slow -->\s*\Z")
_MATERIALS = re.compile(r"^<!-- materials: (.*?) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    kind: str
    text: str
    where: str
    """Page and line, for messages."""
    above: str
    """What the page says from the last block or heading to this one."""

    @property
    def slow(self) -> bool:
        return bool(_SLOW.search(self.above))

    @property
    def file(self) -> str | None:
        """The file that the block is, where its first line names one."""
        named = _NAMED.match(self.text) if self.kind in ("python", "yaml") else None
        return named[1] if named else None

    @property
    def commands(self) -> list[str]:
        """The lines of a shell's block, those that end in a backslash joined to the next; without comments."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = [re.sub(r"(^|\s)#(\s.*)?$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line]


@dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        inside = self.path.is_relative_to(PROJECT)
        return self.path.relative_to(PROJECT).as_posix() if inside else self.path.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        found, end = [], 0
        for fence in _FENCE.finditer(self.text):
            line = self.text.count("\n", 0, fence.start()) + 1
            above = re.split(r"^#+ .*$", self.text[end : fence.start()], flags=re.MULTILINE)[-1]
            found.append(Block(fence["kind"], fence["text"].lstrip("\n"), f"{self.name}:{line}", above))
            end = fence.end()
        return found

    @cached_property
    def prose(self) -> str:
        """The page without its blocks, and on one line where a paragraph has several."""
        return _FENCE.sub("", self.text)

    @property
    def materials(self) -> list[str]:
        return [name.strip() for names in _MATERIALS.findall(self.text) for name in names.split(",")]

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    @property
    def code(self) -> list[str]:
        """What stands in backticks, between the blocks."""
        return _CODE.findall(re.sub(r"(?<=\S)\n *(?=\S)", " ", self.prose))

    @property
    def anchors(self) -> set[str]:
        """What a link to a heading of this page may end in."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def pages() -> list[Page]:
    """Every page of the project, but for the list of changes."""
    folders = [PROJECT, *(PROJECT / name for name in ("docs", "sweeps", "cluster"))]
    found = [path for folder in folders for path in sorted(folder.glob("*.md"))]
    return [Page(path) for path in found if path.name != "CHANGELOG.md"]
