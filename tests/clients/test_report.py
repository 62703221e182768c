import json

import pytest
from clients.test_cli import RUNNER
from twofold import FailedPreconditionError, NotFoundError, ReportFormat
from twofold.cli import _jobs
from twofold.cli._app import app
from twofold.testing import job_script


@pytest.fixture
def run(server):
    """Run the command against the fake server."""
    return lambda *args, **env: RUNNER.invoke(app, args, env={"TWOFOLD_TARGET": server.target, **env})


@pytest.fixture
def job(server, client):
    """A job that was rejected, for a reason that looks like markup."""
    server.play_next(job_script(state="rejected", reason="<b>Worse</b>"))
    return client.adapt("upload-1" if server.uploads else [], head="ner").id


def test_both_forms(call, job):
    """A job that is over has a page, in which its reason is text, and the same as JSON."""
    page, document = call("report", job), json.loads(call("report", job, format="json"))

    assert page.startswith("<!doctype html>")
    assert "&lt;b&gt;Worse&lt;/b&gt;" in page
    assert (document["job_id"], document["state"], document["reason"]) == (job, "rejected", "<b>Worse</b>")
    assert call("report", job, format=ReportFormat.HTML) == page


def test_no_report(call, server, client):
    """A job that is not there has no report, one that runs has none yet, and there are two forms."""
    server.play_next(job_script(state=None))
    running = client.adapt([], head="ner")

    with pytest.raises(NotFoundError):
        call("report", "nobody")
    with pytest.raises(FailedPreconditionError, match="it has a report when it is over"):
        call("report", running)
    with pytest.raises(ValueError, match="pdf"):
        call("report", running, format="pdf")


def test_the_command_writes_the_page(run, client, job, tmp_path, monkeypatch):
    """The page goes into a file that is named for the job, or where it is told to; the document to the standard output."""
    monkeypatch.chdir(tmp_path)
    page = client.report(job)

    assert json.loads(run("jobs", "report", job).stdout) == {"job": job, "report": f"{job}.html"}
    assert (tmp_path / f"{job}.html").read_text(encoding="utf-8") == page
    assert run("jobs", "report", job, "--out", "other.html").exit_code == 0
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == page
    assert json.loads(run("jobs", "report", job, "--json").stdout)["state"] == "rejected"
    assert run("jobs", "report", job, "--json", "--out", "it.json").exit_code == 0
    assert json.loads((tmp_path / "it.json").read_text())["state"] == "rejected"
    assert run("jobs", "report", job, "--out", "/nowhere/it.html").exit_code == 1


@pytest.mark.parametrize("works", [True, False])
def test_the_command_opens_the_page(run, job, tmp_path, monkeypatch, works):
    """--open shows the file in a browser, and says where the file is if there is none."""
    opened = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_jobs.webbrowser, "open", lambda url: opened.append(url) or works)

    result = run("jobs", "report", job, "--open")

    assert opened == [(tmp_path / f"{job}.html").as_uri()]
    assert result.exit_code == (0 if works else 1)
    assert works or f"the report is in {job}.html" in result.stderr
    assert run("jobs", "report", job, "--open", "--json").exit_code == 2


def test_the_command_says_what_is_wrong(run, tmp_path, monkeypatch):
    """A job that is not there is one line on the standard error, and no file."""
    monkeypatch.chdir(tmp_path)
    result = run("jobs", "report", "../nobody")

    assert result.exit_code == 1
    assert "nobody" in result.stderr
    assert list(tmp_path.iterdir()) == []
