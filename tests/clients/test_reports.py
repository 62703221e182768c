import json

import pytest
from twofold import FailedPreconditionError, NotFoundError, ReportFormat
from twofold.testing import job_script


@pytest.fixture
def job(server, client):
    """Create a job that is rejected for a reason that looks like markup."""
    server.play_next(job_script(state="rejected", reason="<b>Worse</b>"))
    return client.adapt("upload-1" if server.uploads else [], head="ner").id


def test_both_formats(call, job):
    """A finished job has a page, in which its reason is escaped, and a JSON document."""
    page, document = call("report", job), json.loads(call("report", job, format="json"))

    assert page.startswith("<!doctype html>")
    assert "&lt;b&gt;Worse&lt;/b&gt;" in page
    assert (document["job_id"], document["state"], document["reason"]) == (job, "rejected", "<b>Worse</b>")
    assert call("report", job, format=ReportFormat.HTML) == page


def test_no_report(call, server, client):
    """An unknown job and a running job have no report, and an unknown format is refused."""
    server.play_next(job_script(state=None))
    running = client.adapt([], head="ner")

    with pytest.raises(NotFoundError):
        call("report", "nobody")
    with pytest.raises(FailedPreconditionError, match="its report is available when it has ended"):
        call("report", running)
    with pytest.raises(ValueError, match="pdf"):
        call("report", running, format="pdf")
