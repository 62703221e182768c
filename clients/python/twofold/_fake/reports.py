"""The fake server's reports: a job's end and its reason, and none of what a real one shows."""

import html
import json

from twofold._types.jobs import Job
from twofold.v1 import adaptation_pb2


def report_of(job: Job, *, as_json: bool) -> adaptation_pb2.GetReportResponse:
    """Return the report of a job that is over."""
    if as_json:
        document = {"format": 1, "job_id": job.id, "state": str(job.state), "reason": job.reason}
        content, media_type = json.dumps(document), "application/json"
    else:
        title, said = f"{job.state.upper()} · {job.id}", html.escape(job.reason)
        content = f"<!doctype html>\n<title>{html.escape(title)}</title>\n<h1>{job.state.upper()}</h1>\n<p>{said}</p>\n"
        media_type = "text/html; charset=utf-8"
    return adaptation_pb2.GetReportResponse(content=content.encode(), media_type=media_type)
