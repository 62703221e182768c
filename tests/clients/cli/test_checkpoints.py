import re
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
from clients.samples import PREDICTIONS
from twofold import Checkpoint, Head, Score
from twofold.testing import FakeServer

CHECKPOINT = Checkpoint(
    id="first",
    parent_id="root",
    create_time=datetime(2026, 1, 1, 12, tzinfo=UTC),
    backbone="all-MiniLM-L6-v2",
    labels=("neutral", "question"),
    entity_types=("LOC", "PER"),
    scores=(Score(head=Head.NER, metric="f1", value=0.925, examples=40),),
    size_bytes=90_500_000,
    job_id="job-0",
)


@pytest.fixture
def server():
    """Run a fake server whose checkpoint has a value in every field."""
    with FakeServer(PREDICTIONS, checkpoints=[CHECKPOINT]) as running:
        yield running


def test_list_promote_and_roll_back(run, run_json, train):
    """Checkpoints are listed with the current one marked, promoted and rolled back."""
    run("adapt", "--train", str(train), "--head", "ner")

    assert [checkpoint["id"] for checkpoint in run_json("checkpoints", "list")] == ["job-1-candidate", "first"]
    assert run_json("roll-back")[0]["checkpoint"]["id"] == "first"
    assert run_json("promote", "job-1-candidate")[0]["replaced_id"] == "first"
    assert run("promote", "job-1-candidate", terminal=True).stdout == "job-1-candidate is already live.\n"
    marked = [line for line in run("checkpoints", "list", terminal=True).stdout.splitlines() if "●" in line]
    assert len(marked) == 1
    assert "job-1-candidate" in marked[0]


def test_top_level_commands(run, run_json, train):
    """`promote` and `roll-back` are the same commands at the top and below `checkpoints`."""
    run("adapt", "--train", str(train), "--head", "ner")

    assert run_json("checkpoints", "roll-back")[0]["checkpoint"]["id"] == "first"
    assert run_json("checkpoints", "promote", "job-1-candidate")[0]["replaced_id"] == "first"


@pytest.mark.parametrize("args", [(), ("current",), ("first",)])
def test_show(run_json, args):
    """A checkpoint is shown by id or alias, the current one by default, as GetCheckpoint returns it."""
    (shown,) = run_json("checkpoints", "show", *args)

    expected = asdict(CHECKPOINT) | {"create_time": "2026-01-01T12:00:00+00:00", "aliases": ["current"]}
    expected |= {key: list(expected[key]) for key in ("labels", "entity_types", "scores")}
    assert shown == expected


def test_show_on_a_terminal(run):
    """On a terminal every field of the checkpoint has a line."""
    output = re.sub(r"\x1b\[[\d;]*m", "", run("checkpoints", "show", terminal=True).stdout)

    lines = dict(re.split(r" {2,}", line.rstrip(), maxsplit=1) for line in output.splitlines())
    assert lines.pop("created").startswith("202")
    assert lines == {
        "id": "first",
        "aliases": "current",
        "parent": "root",
        "job": "job-0",
        "backbone": "all-MiniLM-L6-v2",
        "size": "90.5 MB",
        "score": "ner f1 92.5 (40 examples)",
        "labels": "neutral, question",
        "entity types": "LOC, PER",
    }


def test_show_of_no_checkpoint(run):
    """A checkpoint that does not exist is an error that says how to list them."""
    result = run("checkpoints", "show", "nope")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: there is no checkpoint 'nope'\nNext: List the checkpoints: twofold checkpoints list\n"
    )


def test_delete(run, run_json, train):
    """A checkpoint is deleted by its id; one that is in use is kept, and the error says why."""
    for _ in range(2):
        run("adapt", "--train", str(train), "--head", "ner", "--promote", "manual")

    assert run_json("checkpoints", "delete", "job-1-candidate") == [{"deleted": "job-1-candidate"}]
    assert run("checkpoints", "delete", "job-2-candidate", terminal=True).stdout == "Deleted job-2-candidate.\n"
    refused = run("checkpoints", "delete", "first")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[0] == "Error: checkpoint 'first' is in use: it is 'current'"
    assert [checkpoint["id"] for checkpoint in run_json("checkpoints", "list")] == ["first"]


def test_history(run, run_json):
    """The moves of the aliases are listed, newest first."""
    (change,) = run_json("checkpoints", "history")

    assert (change["alias"], change["from_id"], change["to_id"]) == ("current", "", "first")
    assert "current" in run("checkpoints", "history", terminal=True).stdout
