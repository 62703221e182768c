import json

import pytest


def test_request(run_json, server, train):
    """The options of adapt reach the server, and the job comes back."""
    (job,) = run_json(
        "--json", "adapt", "--train", str(train), "--dev", str(train), "--head", "ner", "--freeze", "head", "--margin", "0.5",
        "--label-policy", "fixed", "--promote", "manual", "--seed", "3", "--epochs", "2", "--layer-decay", "0.9",
        "--annotated-type", "PER", "--validate-only", "--max-runtime", "60", "--retained-margin", "2", "--guard", "false",
        "--base-checkpoint", "first",
    )  # fmt: skip

    fields = server.requests[-1].fields
    assert job["id"] == "job-1"
    assert fields["dataset"]["inline"]["train"] == [{"text": "a", "label": "x"}, {"text": "b\u2028c", "entities": {}}]
    assert fields["dataset"]["annotated_types"] == ["PER"]
    assert fields["base_checkpoint"] == "first"
    assert fields["protection"] == {"statistical": {"margin": 0.5}}
    assert fields["retained_margin"] == 2
    assert fields["hyperparameters"] == {"epochs": 2, "layer_decay": 0.9, "guard": False}
    assert (fields["freeze"], fields["promote"]) == ("FREEZE_MODE_HEAD", "PROMOTE_POLICY_MANUAL")
    assert (fields["seed"], fields["max_runtime"], fields["validate_only"]) == ("3", "60s", True)


def test_the_next_command_is_printed(run, train):
    """A job that is not watched says how to follow it: on a terminal, and on the standard error if the output is redirected, but not with --json."""
    args = ("adapt", "--train", str(train), "--head", "ner")
    message = "Follow it: twofold jobs watch job-"

    assert message in run(*args, terminal=True).stdout
    redirected, as_json = run(*args), run("--json", *args)
    assert message in redirected.stderr
    assert as_json.stderr == ""
    assert [json.loads(result.stdout)["id"] for result in (redirected, as_json)] == ["job-2", "job-3"]


def test_several_files(run, server, train, tmp_path):
    """--train may be repeated, and the files may have different formats."""
    columns = tmp_path / "more.conll"
    columns.write_text("Oslo B-city\n")

    run("adapt", "--train", str(train), "--train", str(columns), "--head", "ner")

    examples = server.requests[-1].fields["dataset"]["inline"]["train"]
    assert [example["text"] for example in examples] == ["a", "b\u2028c", "Oslo"]


def test_margin_with_exact(run, train):
    """Contradictory options for the protection are a usage error."""
    result = run("adapt", "--train", str(train), "--head", "ner", "--exact", "--margin", "1")

    assert result.exit_code == 2
    assert "leave out --margin" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ('["a"]', 'the line is ["a"]; write {"text": ...}'),
        ('{"label": "x"}', "text is missing; write a string"),
        ('{"text": 5}', "text is 5; write a string"),
        ('{"text": "a", "label": 1}', "label is 1; write a string or null"),
        ('{"text": "a", "entities": {}}', "entities is {}; write a list or null"),
        ('{"text": "a", "entities": [[0, 1]]}', 'entities[0] is [0, 1]; write {"start", "end", "type"}'),
        ('{"text": "a", "entities": [{"start": 0, "end": 1}]}', "entities[0].type is missing; write a string"),
        ('{"text": "a", "entities": [{"start": true, "end": 1, "type": "X"}]}', "entities[0].start is True; write an integer"),
        ('{"text": "a", "entities": [{"start": 1, "end": 1, "type": "X"}]}', "entities[0] goes from 1 to 1; write 0 <= start < end"),
        ('{"text": "a", "entities": [{"start": 0, "end": 2, "type": "X"}]}', "entities[0] ends at 2, but the text has 1 code points; write end <= 1"),
        ('{"text": "\\ud800"}', "text is '\\ud800', which contains half a surrogate pair; write complete characters"),
    ],
)  # fmt: skip
def test_bad_lines(run, server, tmp_path, line, message):
    """A bad line is named by file, line and field before anything is sent."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")

    result = run("adapt", "--train", str(path), "--head", "ner")

    assert (result.exit_code, result.stderr) == (1, f"Error: {path}:2: {message}\n")
    assert server.requests == []
