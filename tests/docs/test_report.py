import re

import msgspec
import pytest
from docs.test_docs import read, rows
from twofold_checkpoint.protocol import events, findings, job
from twofold_server.report import document, rendering

STRUCTS = (
    document.Document,
    job.TrainingRequest,
    findings.Measurement,
    findings.Interval,
    events.Compared,
    document.StageCurves,
    document.LossPoint,
    document.DevPoint,
    document.GuardPoint,
    findings.NameCount,
    findings.Confusion,
    findings.Change,
    findings.Answer,
    document.DatasetFacts,
    document.Note,
    document.PhaseSeconds,
    document.Proofs,
    document.Ancestor,
)


def chapters() -> dict[str, str]:
    """Return the chapters of docs/report-format.md by their headings."""
    parts = re.split(r"^## (.*)\n", read("report-format.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_fields(struct: type[msgspec.Struct]) -> None:
    """docs/report-format.md has every field of report.json, in order, and no other."""
    documented = [cells[0].strip("`") for cells in rows(chapters()[struct.__name__])]
    assert documented == list(struct.__struct_encode_fields__)


def test_everything_is_described() -> None:
    """docs/report-format.md has a chapter for every struct of a report, and no other."""
    held = {
        value.__name__
        for module in (document, findings)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
    }
    elsewhere = {"Struct", "Branch", "Entity", "Span", "Score", "Hyperparameters", "Findings"}
    assert set(chapters()) == {struct.__name__ for struct in STRUCTS} == held - elsewhere


def test_verdicts() -> None:
    """docs/report.md explains the verdict words of a report."""
    for word in ("PASS", "REJECTED", "INCONCLUSIVE", "FAILED"):
        assert f"*{word}*" in read("report.md")
    assert rendering.POLICY.startswith("default-src 'none'")
