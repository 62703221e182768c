"""AdaptationService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from twofold.v1 import adaptation_pb2 as pb
from twofold.v1.adaptation_pb2_grpc import AdaptationServiceServicer

from twofold_server.adaptation.runner import JobRunner
from twofold_server.adaptation.uploads import ExampleBatch, Header, Uploads
from twofold_server.api.wire.adaptation import read_adapt, read_upload
from twofold_server.api.wire.jobs import MEDIA_TYPES, read_report_format, write_event, write_job
from twofold_server.api.wire.pagination import page_size, parse_page_token
from twofold_server.errors import InvalidRequestError, Violation
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.audit import annotate
from twofold_server.report.reporter import Reporter


class AdaptationServicer(AdaptationServiceServicer):
    """Submits jobs and reports on them."""

    def __init__(self, runner: JobRunner, jobs: JobRepository, reporter: Reporter, uploads: Uploads) -> None:
        self._jobs = jobs
        self._reporter = reporter
        self._runner = runner
        self._uploads = uploads

    async def Adapt(self, request: pb.AdaptRequest, context: Any) -> pb.AdaptResponse:  # noqa: ARG002, N802
        """Submit a job and return it at once."""
        spec, inline = await asyncio.to_thread(read_adapt, request)
        job = await self._runner.submit(spec, inline)
        annotate(job=job.id, checkpoint=job.base)
        return pb.AdaptResponse(job=write_job(job))

    async def UploadDataset(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.UploadDatasetRequest],
        context: Any,  # noqa: ARG002
    ) -> pb.UploadDatasetResponse:
        """Store a data set that is too large for one request."""
        upload = await self._uploads.receive(_read_in_thread(request_iterator))
        examples = upload.contents.examples
        return pb.UploadDatasetResponse(
            upload_id=upload.id, train_examples=examples["train"], dev_examples=examples["dev"]
        )

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:  # noqa: ARG002, N802
        """Return one job."""
        return pb.GetJobResponse(job=write_job(await self._jobs.get(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:  # noqa: ARG002, N802
        """Return a page of jobs, newest first."""
        jobs, next_row = await self._jobs.page(page_size(request.page_size), parse_page_token(request.page_token))
        token = "" if next_row is None else str(next_row)
        return pb.ListJobsResponse(jobs=[write_job(job) for job in jobs], next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:  # noqa: ARG002, N802
        """Stream all events of a job, past events first, until it ends."""
        after = request.after_sequence
        if after < 0:
            raise InvalidRequestError(Violation("after_sequence", f"{after} is negative; use 0 for all events"))
        async for record in self._jobs.watch(request.job_id, after):
            yield pb.WatchJobResponse(event=write_event(record))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:  # noqa: ARG002, N802
        """Stop a job and return it once it has stopped."""
        annotate(job=request.job_id)
        return pb.CancelJobResponse(job=write_job(await self._runner.cancel(request.job_id)))

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> pb.GetReportResponse:  # noqa: ARG002, N802
        """Return the report of a finished job."""
        report_format = read_report_format(request.format)
        content = await self._reporter.read(request.job_id, report_format)
        return pb.GetReportResponse(content=content, media_type=MEDIA_TYPES[report_format])


async def _read_in_thread(
    messages: AsyncIterator[pb.UploadDatasetRequest],
) -> AsyncGenerator[Header | ExampleBatch, None]:
    async for message in messages:
        yield await asyncio.to_thread(read_upload, message)
