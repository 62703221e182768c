import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace

import grpc
import pytest
from click.testing import CliRunner
from clients.answers import ADA
from twofold import JobState, Retry
from twofold.cli import __main__ as entry
from twofold.cli._app import app
from twofold.testing import job_script

# click 8.1 must be told to keep the two outputs apart; later ones do.
RUNNER = CliRunner(**({"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}))

LINE = {
    "text": ADA,
    "label": "statement",
    "entities": [{"start": 0, "end": 3, "type": "PER", "score": 0.5}, {"start": 11, "end": 16, "type": "LOC", "score": 1.0}],
    "score": 0.75,
    "checkpoint": "first",
}  # fmt: skip


@pytest.fixture
def run(server):
    """Run the command against the fake server; with terminal=True as if a person read along."""

    def run(*args, terminal=False, **kwargs):
        env = {"TWOFOLD_TARGET": server.target, "FORCE_COLOR": "1" if terminal else None, "COLUMNS": "100"}
        return RUNNER.invoke(app, args, env=env, **kwargs)

    return run


@pytest.fixture
def train(tmp_path):
    """Write a small training file."""
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"text": "a", "label": "x"}\n\n{"text": "b\u2028c", "entities": [], "other": 1}\n', encoding="utf-8"
    )
    return path


def lines(result):
    """Return the JSON lines of a result, which must be a success."""
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_predict_arguments(run):
    """Texts as arguments come back as JSON lines in their order."""
    found = lines(run("predict", ADA, "b"))

    assert found[0] == LINE
    assert found[1] == LINE | {"text": "b", "label": "neutral", "entities": [], "score": 1.0}


def test_predict_stdin(run):
    """Without arguments each line of the standard input is a text."""
    assert [one["text"] for one in lines(run("predict", input="a\n\nb c\n"))] == ["a", "", "b c"]


@pytest.mark.parametrize(("head", "null"), [("ner", ["label", "score"]), ("classifier", ["entities"])])
def test_predict_one_head(run, head, null):
    """What was not asked for is null and not empty."""
    (found,) = lines(run("predict", ADA, "--head", head))

    assert [key for key, value in found.items() if value is None] == null


def test_predict_files(run, server, tmp_path):
    """A file is asked in batches of 32, and the output has its lines in its order."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = [f"text {i}" for i in range(100)] + [ADA]
    source.write_text("".join(json.dumps({"text": text, "label": "gold"}) + "\n" for text in texts))

    assert lines(run("predict", "--input", str(source), "--output", str(sink))) == []

    found = [json.loads(line) for line in sink.read_text().splitlines()]
    assert [one["text"] for one in found] == texts
    assert found[-1] == LINE
    assert sorted(len(one.fields["texts"]) for one in server.requests) == [5, 32, 32, 32]


def test_predict_leaves_no_half_file(run, server, tmp_path):
    """A run that fails leaves the old output and nothing else."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "a"}\n' * 100)
    sink.write_text("old")
    server.fail_next(grpc.StatusCode.INVALID_ARGUMENT, message="texts[3] is too long")

    result = run("predict", "--input", str(source), "--output", str(sink))

    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, "Error: texts[3] is too long")
    assert sink.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ('["a"]', 'the line is ["a"]; write {"text": ...}'),
        ('{"label": "x"}', "text is missing; write a string"),
        ('{"text": 5}', "text is 5; write a string"),
        ('{"text": "a", "label": 1}', "label is 1; write a string or null"),
        ('{"text": "a", "entities": {}}', "entities is {}; write a list or null"),
        ('{"text": "a", "entities": [[0, 1]]}', 'entities[0] is [0, 1]; write {"start", "end", "type"}'),
        ('{"text": "a", "entities": [{"start": 0, "end": 1}]}', "entities[0].type is missing; write a string"),
        ('{"text": "a", "entities": [{"start": true, "end": 1, "type": "X"}]}', "entities[0].start is True; write a whole number"),
        ('{"text": "a", "entities": [{"start": 1, "end": 1, "type": "X"}]}', "entities[0] goes from 1 to 1; write 0 <= start < end"),
        ('{"text": "a", "entities": [{"start": 0, "end": 2, "type": "X"}]}', "entities[0] ends at 2, but the text has 1 code points; write end <= 1"),
        ('{"text": "\\ud800"}', "text is '\\ud800', which holds half a surrogate pair; write whole characters"),
    ],
)  # fmt: skip
def test_bad_lines(run, server, tmp_path, line, said):
    """A bad line is named by file, line and field before anything is sent."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")

    result = run("adapt", "--train", str(path), "--head", "ner")

    assert (result.exit_code, result.stderr) == (1, f"Error: {path}:2: {said}\n")
    assert server.requests == []


def test_predict_for_people(run):
    """On a terminal the entities stand in the text in colour, and brackets in a text are no markup."""
    shown = run("predict", ADA, "x [red]", terminal=True).stdout

    assert "[PER]" in shown
    assert "\x1b[" in shown
    assert "x [red]" in shown


def test_embed(run):
    """Embeddings are JSON lines with a vector each."""
    (found,) = lines(run("embed", "a"))

    assert (found["text"], len(found["embedding"]), found["checkpoint"]) == ("a", 4, "first")


def test_adapt_request(run, server, train):
    """The options of adapt reach the server, and the job comes back."""
    (job,) = lines(
        run(
            "--json", "adapt", "--train", str(train), "--dev", str(train), "--head", "ner", "--freeze", "head", "--margin", "0.5",
            "--label-policy", "fixed", "--promote", "manual", "--seed", "3", "--epochs", "2", "--layer-decay", "0.9",
            "--annotates", "PER", "--validate-only", "--max-runtime", "60", "--retained-margin", "2",
        )
    )  # fmt: skip

    fields = server.requests[-1].fields
    assert job["id"] == "job-1"
    assert fields["dataset"]["inline"]["train"] == [{"text": "a", "label": "x"}, {"text": "b\u2028c", "entities": {}}]
    assert fields["protection"] == {"statistical": {"margin": 0.5}}
    assert fields["retained_margin"] == 2
    assert fields["hyperparameters"] == {"epochs": 2, "layer_decay": 0.9}
    assert (fields["freeze"], fields["promote"]) == ("FREEZE_MODE_HEAD", "PROMOTE_POLICY_MANUAL")
    assert (fields["seed"], fields["max_runtime"], fields["validate_only"]) == ("3", "60s", True)


def test_adapt_tells_what_is_next(run, train):
    """A job that is not watched says how to follow it: on a terminal, and beside JSON that goes to a file, but not if JSON was asked for."""
    args = ("adapt", "--train", str(train), "--head", "ner")
    told = "Follow it: twofold jobs watch job-"

    assert told in run(*args, terminal=True).stdout
    redirected, asked = run(*args), run("--json", *args)
    assert told in redirected.stderr
    assert asked.stderr == ""
    assert [json.loads(one.stdout)["id"] for one in (redirected, asked)] == ["job-2", "job-3"]


def test_adapt_reads_several_files(run, server, train, tmp_path):
    """--train may be repeated, and the files may be of different kinds."""
    other = tmp_path / "more.conll"
    other.write_text("Oslo B-city\n")

    run("adapt", "--train", str(train), "--train", str(other), "--head", "ner")

    texts = [one["text"] for one in server.requests[-1].fields["dataset"]["inline"]["train"]]
    assert texts == ["a", "b\u2028c", "Oslo"]


def test_margin_and_exact(run, train):
    """Half a decision about the protection is refused as wrong use."""
    result = run("adapt", "--train", str(train), "--head", "ner", "--exact", "--margin", "1")

    assert result.exit_code == 2
    assert "leave out --margin" in result.stderr


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("rejected", 3), ("failed", 1), ("cancelled", 4)])
def test_watch(run, server, train, *, state, code, terminal):
    """Following a job ends with its reason and a code that says how it ended."""
    server.play_next(replace(job_script(state=state, reason="That is why."), pace=0.002))

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch", terminal=terminal)

    assert result.exit_code == code
    assert "That is why." in result.stdout
    assert state.upper() in result.stdout
    assert "protected task" in result.stdout
    assert "2 annotations do not fit the tokens." in result.stdout
    assert ("\x1b[" in result.stdout) is terminal


def test_a_watch_outlasts_a_restart(run, server, train):
    """A server that is away for longer than a call waits is waited for by whoever follows a job."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", after_events=0, times=Retry().attempts + 1)

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 0, result.stderr


def test_a_watch_of_a_server_that_stays_away_says_what_becomes_of_the_job(run, server, train, monkeypatch):
    """It ends with a code of its own, for the job has not failed, and with how to follow it again."""
    monkeypatch.setattr("twofold.cli._jobs.PATIENT", Retry(attempts=2))
    server.fail_next(grpc.StatusCode.UNAVAILABLE, rpc="WatchJob", times=9)

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 5
    assert "The job goes on when the server is back. See it: twofold jobs watch job-1" in result.stderr


def test_watch_in_json(run, server, train):
    """With --json the events and then the job are JSON lines."""
    *events, job = lines(run("--json", "adapt", "--train", str(train), "--head", "ner", "--watch"))

    assert [event["sequence"] for event in events] == list(range(1, 17))
    assert job["state"] == "succeeded"


def test_jobs(run, server, train):
    """Jobs are listed, shown, watched and cancelled."""
    server.play_next(job_script(state=None))
    run("adapt", "--train", str(train), "--head", "ner")
    run("adapt", "--train", str(train), "--head", "ner")

    assert [job["id"] for job in lines(run("jobs"))] == ["job-2", "job-1"]
    assert [job["id"] for job in lines(run("jobs", "--limit", "1"))] == ["job-2"]
    assert lines(run("jobs", "show", "job-2"))[0]["report"]["verdict"] == "pass"
    assert lines(run("jobs", "cancel", "job-1"))[0]["state"] == "cancelled"
    assert run("jobs", "watch", "job-1").exit_code == 4
    assert (
        run("jobs", "show", "nope").stderr == "Error: there is no job 'nope'\nNext: See which there are: twofold jobs\n"
    )
    assert "succeeded" in run("jobs", terminal=True).stdout
    assert "PASS" in run("jobs", "show", "job-2", terminal=True).stdout


def test_interrupted_watch(run, train, monkeypatch):
    """Whoever stops watching is told that the job runs on, and how to stop it."""
    monkeypatch.setattr("twofold.cli._jobs.event_line", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    result = run("adapt", "--train", str(train), "--head", "ner", "--watch")

    assert result.exit_code == 130
    assert "twofold jobs cancel job-1" in result.stderr


def test_checkpoints(run, train):
    """Checkpoints are listed with the current one marked, promoted and rolled back."""
    run("adapt", "--train", str(train), "--head", "ner")

    assert [one["id"] for one in lines(run("checkpoints"))] == ["job-1-candidate", "first"]
    assert lines(run("roll-back"))[0]["checkpoint"]["id"] == "first"
    assert lines(run("promote", "job-1-candidate"))[0]["replaced_id"] == "first"
    assert run("promote", "job-1-candidate", terminal=True).stdout == "job-1-candidate answers already.\n"
    marked = [line for line in run("checkpoints", terminal=True).stdout.splitlines() if "●" in line]
    assert len(marked) == 1
    assert "job-1-candidate" in marked[0]


def test_delete(run, train):
    """A checkpoint is deleted by its id, and what is needed stays, with the reason."""
    for _ in range(2):
        run("adapt", "--train", str(train), "--head", "ner", "--promote", "manual")

    assert lines(run("delete", "job-1-candidate")) == [{"deleted": "job-1-candidate"}]
    assert run("delete", "job-2-candidate", terminal=True).stdout == "job-2-candidate is deleted.\n"
    kept = run("delete", "first")
    assert (kept.exit_code, kept.stderr.splitlines()[0]) == (1, "Error: checkpoint 'first' is in use: it is 'current'")
    assert [one["id"] for one in lines(run("checkpoints"))] == ["first"]


def test_model_and_health(run, server):
    """The model is described, and health tells by its exit code, too."""
    assert lines(run("model"))[0]["entity_types"] == ["LOC", "PER"]
    assert "LOC, PER" in run("model", terminal=True).stdout
    assert lines(run("health")) == [{"service": "", "health": "serving"}]
    server.serving = False
    assert run("health").exit_code == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--target", "elsewhere:1", "model"], 2, "give --tls or --ca FILE to encrypt, or --plaintext to send"),
        (["--certificate", __file__, "model"], 2, "--certificate and --key go together; give both or none"),
        (["--tls", "--plaintext", "model"], 2, "exclude each other"),
        (["--ca", "no/such.pem", "model"], 1, "Error: no/such.pem: No such file or directory\n"),
        (["adapt", "--train", "no/such.jsonl", "--head", "ner"], 1, "Error: no/such.jsonl: No such file"),
        (["predict", "a", "--input", "b"], 2, "not both"),
        (["predict", "a", "--head", "parser"], 2, "'parser' is not one of 'classifier', 'ner'"),
        (["predict", "half \udc80"], 1, "Error: the input is not UTF-8"),
        (["roll-back"], 1, "Error: there is no previous checkpoint\n"),
    ],
)
def test_errors(run, args, code, said):
    """An error is one clear line on stderr, and what to do next, with exit code 1, or 2 for wrong use."""
    result = run(*args)

    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""


def test_no_server(run, monkeypatch):
    """A target that does not answer is named."""
    monkeypatch.setattr("twofold._client._RETRY", Retry(attempts=1))

    result = run("--target", "127.0.0.1:1", "--timeout", "2", "model")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 127.0.0.1:1 does not answer:")


def test_server_that_is_not_ready(run, server):
    """A server that says it is not ready is not said to be silent."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, message="no checkpoint is loaded", reason="NOT_READY", times=9)

    assert run("health").exit_code == 0
    assert run("roll-back").stderr.startswith("Error: no checkpoint is loaded\nNext: Wait until it is ready")


def test_missing_extra(monkeypatch, capsys):
    """Without the cli extra the command says how to get it."""
    monkeypatch.setitem(sys.modules, "twofold.cli._app", None)
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "twofold.cli._app")

    with pytest.raises(SystemExit) as ended:
        entry.main()

    assert ended.value.code == 1
    assert capsys.readouterr().err == "twofold: click is not installed; run: pip install 'twofold[cli]'\n"


def test_real_entry_point(server):
    """The command runs in a process of its own, as people run it."""
    env = os.environ | {"TWOFOLD_TARGET": server.target}
    command = [sys.executable, "-W", "error", "-m", "twofold.cli", "predict", ADA]

    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout) == LINE


def test_final_states_have_codes():
    """Every state in which a job ends has an exit code, and no two share one."""
    codes = entry_codes()

    assert set(codes) == {state for state in JobState if state.is_over}
    assert len(set(codes.values())) == len(codes)


def entry_codes():
    """Return the table of exit codes."""
    from twofold.cli._jobs import EXIT_CODES

    return EXIT_CODES
