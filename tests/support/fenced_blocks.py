"""The fenced blocks of README.md and docs/: what stands in them, and which of them a reader's shell would run.

The first word behind a fence is its language. ``sh`` and ``python`` are run by tests/docs/test_commands.py; ``sh no-run`` is
for what no test can start, such as another language's package tool.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@dataclass(frozen=True)
class Fence:
    """A block: its language, whether a test runs it, and its lines."""

    language: str
    runs: bool
    body: str


def fences(page: Path) -> list[Fence]:
    """Return the blocks of a page, in order."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Fence(info.partition(" ")[0], info in {"sh", "python"}, body) for info, body in blocks]
