import json

import pytest
from twofold.cli import _jobs
from twofold.testing import job_script


def test_jobs(run, run_json, server, train):
    """Jobs are listed, shown, watched and cancelled."""
    server.play_next(job_script(state=None))
    run("adapt", "--train", str(train), "--head", "ner")
    run("adapt", "--train", str(train), "--head", "ner")

    assert [job["id"] for job in run_json("jobs", "list")] == ["job-2", "job-1"]
    assert [job["id"] for job in run_json("jobs", "list", "--limit", "1")] == ["job-2"]
    assert run_json("jobs", "show", "job-2")[0]["report"]["verdict"] == "pass"
    assert run_json("jobs", "cancel", "job-1")[0]["state"] == "cancelled"
    assert run("jobs", "watch", "job-1").exit_code == 4
    assert (
        run("jobs", "show", "nope").stderr == "Error: there is no job 'nope'\nNext: List the jobs: twofold jobs list\n"
    )
    assert "succeeded" in run("jobs", "list", terminal=True).stdout
    assert "PASS" in run("jobs", "show", "job-2", terminal=True).stdout


@pytest.mark.parametrize("name", ["jobs show", "jobs watch", "jobs report"])
def test_the_newest_job(run, train, monkeypatch, name):
    """Without an id the newest job is meant; if there is none, the error says how to create one."""
    monkeypatch.chdir(train.parent)

    result = run(*name.split())
    assert result.exit_code == 1
    assert "there are no jobs yet; create one: twofold adapt" in result.stderr

    for _ in range(2):
        assert run("adapt", "--train", str(train), "--head", "ner").exit_code == 0
    result = run(*name.split(), "--json")
    assert (result.exit_code, '"job-2"' in result.stdout, '"job-1"' in result.stdout) == (0, True, False)


@pytest.fixture
def job(server, client):
    """Create a job that is rejected."""
    server.play_next(job_script(state="rejected"))
    return client.adapt([], head="ner").id


def test_report_files(run, client, job, tmp_path, monkeypatch):
    """The page is written to a file named after the job, or to --output; the JSON document to the standard output."""
    monkeypatch.chdir(tmp_path)
    page = client.report(job)

    assert json.loads(run("jobs", "report", job).stdout) == {"job": job, "report": f"{job}.html"}
    assert (tmp_path / f"{job}.html").read_text(encoding="utf-8") == page
    assert run("jobs", "report", job, "--output", "other.html").exit_code == 0
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == page
    assert json.loads(run("jobs", "report", job, "--json").stdout)["state"] == "rejected"
    assert run("jobs", "report", job, "--json", "--output", "report.json").exit_code == 0
    assert json.loads((tmp_path / "report.json").read_text())["state"] == "rejected"
    assert run("jobs", "report", job, "--output", "/nowhere/report.html").exit_code == 1


@pytest.mark.parametrize("works", [True, False])
def test_report_in_a_browser(run, job, tmp_path, monkeypatch, works):
    """--open shows the file in a browser, and says where the file is if there is none."""
    opened = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_jobs.webbrowser, "open", lambda url: opened.append(url) or works)

    result = run("jobs", "report", job, "--open")

    assert opened == [(tmp_path / f"{job}.html").as_uri()]
    assert result.exit_code == (0 if works else 1)
    assert works or f"the report is in {job}.html" in result.stderr
    assert run("jobs", "report", job, "--open", "--json").exit_code == 2


def test_report_of_no_job(run, tmp_path, monkeypatch):
    """A job that does not exist is an error on the standard error, and no file is written."""
    monkeypatch.chdir(tmp_path)
    result = run("jobs", "report", "../nobody")

    assert result.exit_code == 1
    assert "nobody" in result.stderr
    assert list(tmp_path.iterdir()) == []
