"""The fenced blocks of README.md and docs/, and which of them tests run.

The info string starts with the language. tests/docs/test_commands.py runs ``sh`` and ``python`` blocks; ``sh no-run`` marks blocks
that no test can run, such as those that need another language's package manager.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Fence:
    """A block: its language, whether a test runs it, and its text."""

    language: str
    runs: bool
    body: str


def fences(page: Path) -> list[Fence]:
    """Return the blocks of a page, in order."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Fence(info.partition(" ")[0], info in {"sh", "python"}, body) for info, body in blocks]
