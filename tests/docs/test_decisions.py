import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DECISIONS = sorted((DOCS / "adr").glob("[0-9]*.md"))
EXPERIMENTS = sorted((DOCS / "experiments").glob("[0-9]*.md"))
HEAD = re.compile(r"# (\d+)\. (.+)\n\n- \*\*Status:\*\* (.+)\n- \*\*Date:\*\* (\d{4}-\d\d-\d\d)\n")


def head_of(page: Path) -> tuple[int, str, str, str]:
    """Return the number, title, status and date of a decision."""
    match = HEAD.match(page.read_text(encoding="utf-8"))
    assert match, f"{page.name} must begin with a numbered title, a status and a date"
    number, title, status, date = match.groups()
    return int(number), title, status, date


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem[:4])
def test_form(page: Path) -> None:
    """Every decision has its file's number, a known status and the three sections, in order."""
    number, _, status, _ = head_of(page)
    assert f"{number:04}" == page.name[:4]
    assert re.match(r"accepted$|(amended|superseded) by \[ADR \d+\]", status)
    sections = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in sections if name in {"Context", "Decision", "Consequences"}] == [
        "Context",
        "Decision",
        "Consequences",
    ]


def test_index() -> None:
    """The index lists every decision once, with the title, status and date of its page."""
    index = (DOCS / "adr" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| \[(.+)\]\((\S+)\) \| (.+) \| (\S+) \| .+ \|$", index, re.MULTILINE)
    expected = []
    for page in DECISIONS:
        number, title, status, date = head_of(page)
        expected.append((str(number), title, page.name, status.replace("[ADR ", "["), date))
    assert listed == expected


@pytest.mark.parametrize("page", EXPERIMENTS, ids=lambda page: page.stem[:4])
def test_experiments(page: Path) -> None:
    """An experiment and the decision of the same number link to each other, and the index lists the experiment."""
    (decision,) = (record for record in DECISIONS if record.name[:4] == page.name[:4])
    assert f"(../adr/{decision.name})" in page.read_text(encoding="utf-8")
    assert f"(../experiments/{page.name})" in decision.read_text(encoding="utf-8")
    assert f"({page.name})" in (DOCS / "experiments" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["adr", "experiments"])
def test_links(folder: str) -> None:
    """Every link of a decision or an experiment to another page leads somewhere."""
    for page in (DOCS / folder).glob("*.md"):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
