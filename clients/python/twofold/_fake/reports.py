"""The reports of a fake server: the state and the reason of a job."""

import html
import json

from twofold._types.jobs import Job
from twofold.v1 import adaptation_pb2


def make_report(job: Job, *, as_json: bool) -> adaptation_pb2.GetReportResponse:
    """Return the report of a job that has ended."""
    if as_json:
        document = {"format": 1, "job_id": job.id, "state": str(job.state), "reason": job.reason}
        content, media_type = json.dumps(document), "application/json"
    else:
        state = job.state.upper()
        title, reason = html.escape(f"{state} · {job.id}"), html.escape(job.reason)
        content = f"<!doctype html>\n<title>{title}</title>\n<h1>{state}</h1>\n<p>{reason}</p>\n"
        media_type = "text/html; charset=utf-8"
    return adaptation_pb2.GetReportResponse(content=content.encode(), media_type=media_type)
