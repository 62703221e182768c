"""Fetch the report of a job."""

from twofold import _rpcs
from twofold._operations import Flow
from twofold._protobuf import enum_number
from twofold._retry import Context
from twofold._types.jobs import Job
from twofold._types.report_format import ReportFormat
from twofold.v1 import adaptation_pb2

_FORMAT = adaptation_pb2.DESCRIPTOR.enum_types_by_name["ReportFormat"]


def report(
    context: Context,
    job: Job | str,
    *,
    format: ReportFormat | str = ReportFormat.HTML,  # noqa: A002 - what the contract calls it
    timeout: float | None = None,
) -> Flow[str]:
    """
    Return the report of a job that is over: one HTML page that needs nothing else, or the same as JSON.

    Raise NotFoundError, or FailedPreconditionError if the job is not over.
    """
    wanted = enum_number(_FORMAT, ReportFormat(format))
    job_id = job if isinstance(job, str) else job.id
    request = adaptation_pb2.GetReportRequest(job_id=job_id, format=wanted)
    answer = yield from context.call(_rpcs.GET_REPORT, request, timeout)
    return str(answer.content, "utf-8")
