import json
import os
import subprocess
import sys

import grpc
import pytest
from clients.samples import TEXT

RECORD = {
    "text": TEXT,
    "label": "statement",
    "entities": [{"start": 0, "end": 3, "type": "PER", "score": 0.5}, {"start": 11, "end": 16, "type": "LOC", "score": 1.0}],
    "score": 0.75,
    "checkpoint": "first",
}  # fmt: skip


def test_texts_as_arguments(run_json):
    """Texts as arguments come back as JSON lines in their order."""
    records = run_json("predict", TEXT, "b")

    assert records[0] == RECORD
    assert records[1] == RECORD | {"text": "b", "label": "neutral", "entities": [], "score": 1.0}


def test_texts_from_the_standard_input(run_json):
    """Without arguments each line of the standard input is a text."""
    assert [record["text"] for record in run_json("predict", input="a\n\nb c\n")] == ["a", "", "b c"]


@pytest.mark.parametrize(("head", "null"), [("ner", ["label", "score"]), ("classifier", ["entities"])])
def test_one_head(run_json, head, null):
    """The results of a head that was not requested are null and not empty."""
    (record,) = run_json("predict", TEXT, "--head", head)

    assert [key for key, value in record.items() if value is None] == null


def test_top_labels(run_json):
    """With --top-labels the labels come with their scores, best first."""
    (record,) = run_json("predict", TEXT, "--top-labels", "2")

    assert record["labels"] == [{"label": "statement", "score": 0.75}, {"label": "question", "score": 0.25}]


def test_files(run_json, server, tmp_path):
    """The texts of a file are sent in batches of 32, and the output keeps their order."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [f"text {i}" for i in range(100)] + [TEXT]
    source.write_text("".join(json.dumps({"text": text, "label": "gold"}) + "\n" for text in texts))

    assert run_json("predict", "--input", str(source), "--output", str(output)) == []

    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["text"] for record in records] == texts
    assert records[-1] == RECORD
    assert sorted(len(request.fields["texts"]) for request in server.requests) == [5, 32, 32, 32]


def test_a_failed_run_keeps_the_old_output(run, server, tmp_path):
    """A run that fails leaves the old output and no partial file."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n' * 100)
    output.write_text("old")
    server.fail_next(grpc.StatusCode.INVALID_ARGUMENT, message="texts[3] is too long")

    result = run("predict", "--input", str(source), "--output", str(output))

    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, "Error: texts[3] is too long")
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_on_a_terminal(run):
    """On a terminal the entities are coloured, and brackets in a text are not markup."""
    output = run("predict", TEXT, "x [red]", terminal=True).stdout

    assert "[PER]" in output
    assert "\x1b[" in output
    assert "x [red]" in output


def test_embed(run_json):
    """Embeddings are JSON lines with a vector each."""
    (record,) = run_json("embed", "a")

    assert (record["text"], len(record["embedding"]), record["checkpoint"]) == ("a", 4, "first")


def test_in_a_process(server):
    """The command runs in its own process, as users run it."""
    env = os.environ | {"TWOFOLD_TARGET": server.target}
    command = [sys.executable, "-W", "error", "-m", "twofold.cli", "predict", TEXT]

    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == RECORD
