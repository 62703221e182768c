"""Upload data sets, create jobs, follow them, and fetch their reports."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from twofold import _rpcs
from twofold._context import ClientContext
from twofold._operations import Emit, Failure, Flow, OpenStream, Receive, Sleep, StreamFlow
from twofold._protobuf import enum_to_proto, event_from_proto, from_proto, to_proto
from twofold._types.examples import Example
from twofold._types.inference import Head
from twofold._types.job_events import JobEvent
from twofold._types.jobs import (
    Exact,
    Freeze,
    Hyperparameters,
    Job,
    LabelPolicy,
    MemoryMode,
    PromotePolicy,
    ReportFormat,
    Statistical,
    Upload,
)
from twofold.errors import DeadlineExceededError, error_of
from twofold.v1 import adaptation_pb2

INLINE_BYTES = 3_500_000
"""Largest size of inline examples; gRPC servers accept messages of 4 MiB by default."""

BATCH_BYTES = 1_000_000
"""Approximate size of one message of an upload."""

UPLOAD_SECONDS = 300.0
"""Default timeout of an upload."""

_PROTECTION = Statistical()
_HYPERPARAMETERS = Hyperparameters()

_FREEZE = adaptation_pb2.DESCRIPTOR.enum_types_by_name["FreezeMode"]
_LABEL_POLICY = adaptation_pb2.DESCRIPTOR.enum_types_by_name["LabelPolicy"]
_MEMORY = adaptation_pb2.DESCRIPTOR.enum_types_by_name["MemoryMode"]
_PROMOTE = adaptation_pb2.DESCRIPTOR.enum_types_by_name["PromotePolicy"]
_REPORT_FORMAT = adaptation_pb2.DESCRIPTOR.enum_types_by_name["ReportFormat"]
_HEAD = adaptation_pb2.AdaptRequest.DESCRIPTOR.fields_by_name["head"].enum_type


def adapt(
    context: ClientContext,
    train: Iterable[Example] | Upload | str,
    dev: Iterable[Example] = (),
    *,
    head: Head | str,
    freeze: Freeze | str = Freeze.AUTO,
    protection: Exact | Statistical = _PROTECTION,
    label_policy: LabelPolicy | str = LabelPolicy.APPEND,
    retained_margin: float | None = None,
    promote: PromotePolicy | str = PromotePolicy.AUTO,
    shadow_share: float | None = None,
    hyperparameters: Hyperparameters = _HYPERPARAMETERS,
    annotated_types: Iterable[str] = (),
    memory: MemoryMode | str | None = None,
    base_checkpoint: str = "",
    seed: int = 0,
    max_runtime: float | None = None,
    request_id: str | None = None,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Flow[Job]:
    """
    Create a job that adapts *head* to examples, or to an upload or its id, and return the job at once.

    Examples that do not fit into one request are uploaded first. A retried call creates one job, because every call has a
    request id.

    retained_margin  largest accepted loss on the old labels of the head, in points; None means 3.0
    shadow_share     share of live texts that the candidate also answers before it goes live; None means the server's setting
    annotated_types  entity types that the data annotates, even if they do not occur
    memory           what the new checkpoint stores to protect its tasks; None means the mode of the base checkpoint
    max_runtime      seconds after which training stops and the best state so far is judged; None means no limit
    request_id       idempotency key; None means a new one
    validate_only    check the data and plan the training without training

    Raise InvalidArgumentError, NotFoundError, AlreadyExistsError or OverloadedError.
    """
    request = adaptation_pb2.AdaptRequest(
        head=enum_to_proto(_HEAD, Head(head)),
        freeze=enum_to_proto(_FREEZE, Freeze(freeze)),
        protection=_protection(protection),
        label_policy=enum_to_proto(_LABEL_POLICY, LabelPolicy(label_policy)),
        promote=enum_to_proto(_PROMOTE, PromotePolicy(promote)),
        hyperparameters=to_proto(hyperparameters, adaptation_pb2.Hyperparameters),
        base_checkpoint=base_checkpoint,
        seed=seed,
        request_id=request_id or uuid.uuid4().hex,
        validate_only=validate_only,
        retained_margin=retained_margin,
        shadow_share=shadow_share,
    )
    if memory is not None:
        request.memory = enum_to_proto(_MEMORY, MemoryMode(memory))
    if max_runtime is not None:
        request.max_runtime.FromNanoseconds(round(max_runtime * 1e9))
    request.dataset.CopyFrom((yield from _dataset(context, train, dev, timeout)))
    request.dataset.annotated_types.extend(annotated_types)
    response = yield from context.call(_rpcs.ADAPT, request, timeout)
    return from_proto(response.job, Job)


def upload_dataset(
    context: ClientContext,
    train: Iterable[Example],
    dev: Iterable[Example] = (),
    *,
    display_name: str = "",
    timeout: float | None = UPLOAD_SECONDS,
) -> Flow[Upload]:
    """
    Store examples on the server for later calls of adapt.

    Raise InvalidArgumentError that names an invalid example; then nothing is stored.
    """
    return (yield from _upload(context, _to_protos(train), _to_protos(dev), display_name, timeout))


def job(context: ClientContext, job: Job | str, *, timeout: float | None = None) -> Flow[Job]:
    """Return a job in its current state; raise NotFoundError if it does not exist."""
    response = yield from context.call(_rpcs.GET_JOB, adaptation_pb2.GetJobRequest(job_id=_id_of(job)), timeout)
    return from_proto(response.job, Job)


def jobs(context: ClientContext, *, page_size: int = 50, timeout: float | None = None) -> StreamFlow[Job]:
    """Iterate over the jobs, newest first; *timeout* applies to each page."""
    request = adaptation_pb2.ListJobsRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_JOBS, request, timeout)
        for message in page.jobs:
            yield Emit(from_proto(message, Job))
        if not page.next_page_token:
            return
        request = adaptation_pb2.ListJobsRequest(page_size=page_size, page_token=page.next_page_token)


def watch(
    context: ClientContext, job: Job | str, *, after_sequence: int = 0, timeout: float | None = None
) -> StreamFlow[JobEvent]:
    """
    Iterate over the events of a job, past events first, until the job has ended.

    A broken stream is resumed after the last received event; each received event resets the retry policy. *timeout* applies
    to the whole watch; None means no limit. Raise NotFoundError or UnavailableError.
    """
    deadline = None if timeout is None else context.clock() + timeout
    attempts = count()
    while True:
        request = adaptation_pb2.WatchJobRequest(job_id=_id_of(job), after_sequence=after_sequence)
        stream = yield OpenStream(
            _rpcs.WATCH_JOB, request, None if deadline is None else max(0.0, deadline - context.clock())
        )
        try:
            while not isinstance(outcome := (yield Receive(stream)), Failure | None):
                event = event_from_proto(outcome.event)
                after_sequence, attempts = event.sequence, count()
                yield Emit(event)
        finally:
            stream.cancel()
        if outcome is None:
            return
        delay = context.retry.delay(outcome, next(attempts), context.uniform)
        if delay is None or (deadline is not None and context.clock() + delay >= deadline):
            raise error_of(outcome)
        yield Sleep(delay)


def wait(context: ClientContext, job: Job | str, *, timeout: float | None = None) -> Flow[Job]:
    """
    Wait until a job has ended and return it; *timeout* is in seconds, None means no limit.

    Raise DeadlineExceededError if the job takes longer; it continues to run.
    """
    deadline = None if timeout is None else context.clock() + timeout
    last_sequence = 0
    while True:
        remaining = None if deadline is None else max(0.0, deadline - context.clock())
        with suppress(DeadlineExceededError):
            yield from watch(context, job, after_sequence=last_sequence, timeout=remaining)
        # If the server is being stopped, the stream may end before the job does.
        current = yield from _get_job(context, job)
        if current.is_over:
            return current
        last_sequence = current.last_sequence
        if deadline is not None and context.clock() >= deadline:
            raise DeadlineExceededError(f"job {current.id} is still {current.state} after {timeout:g} s")
        yield Sleep(1.0)


def cancel(context: ClientContext, job: Job | str, *, timeout: float | None = 300.0) -> Flow[Job]:
    """Cancel a job and return it once it has stopped; raise FailedPreconditionError if it has already ended."""
    response = yield from context.call(_rpcs.CANCEL_JOB, adaptation_pb2.CancelJobRequest(job_id=_id_of(job)), timeout)
    return from_proto(response.job, Job)


def report(
    context: ClientContext,
    job: Job | str,
    *,
    format: ReportFormat | str = ReportFormat.HTML,  # noqa: A002 - the name in the contract
    timeout: float | None = None,
) -> Flow[str]:
    """
    Return the report of a job that has ended, as a self-contained HTML page or as JSON.

    Raise NotFoundError, or FailedPreconditionError if the job has not ended.
    """
    number = enum_to_proto(_REPORT_FORMAT, ReportFormat(format))
    request = adaptation_pb2.GetReportRequest(job_id=_id_of(job), format=number)
    response = yield from context.call(_rpcs.GET_REPORT, request, timeout)
    return str(response.content, "utf-8")


_get_job = job  # wait() has a parameter with the name of the function.


def _id_of(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _protection(protection: Exact | Statistical) -> adaptation_pb2.Protection:
    if isinstance(protection, Exact):
        return adaptation_pb2.Protection(exact=adaptation_pb2.ExactProtection())
    return adaptation_pb2.Protection(statistical=adaptation_pb2.StatisticalProtection(margin=protection.margin))


def _to_protos(examples: Iterable[Example]) -> list[adaptation_pb2.Example]:
    return [to_proto(example, adaptation_pb2.Example) for example in examples]


def _dataset(
    context: ClientContext, train: Iterable[Example] | Upload | str, dev: Iterable[Example], timeout: float | None
) -> Flow[adaptation_pb2.Dataset]:
    """Return the data set with inline examples if they fit into a request; otherwise upload them."""
    if isinstance(train, str | Upload):
        if tuple(dev):
            raise ValueError("an upload contains its own dev examples; give dev to upload_dataset")
        return adaptation_pb2.Dataset(upload_id=train if isinstance(train, str) else train.upload_id)
    examples = adaptation_pb2.Examples(train=_to_protos(train), dev=_to_protos(dev))
    if examples.ByteSize() <= INLINE_BYTES:
        return adaptation_pb2.Dataset(inline=examples)
    upload = yield from _upload(
        context, examples.train, examples.dev, "", UPLOAD_SECONDS if timeout is None else timeout
    )
    return adaptation_pb2.Dataset(upload_id=upload.upload_id)


def _upload(
    context: ClientContext, train: Iterable[Any], dev: Iterable[Any], display_name: str, timeout: float | None
) -> Flow[Upload]:
    message = adaptation_pb2.UploadDatasetRequest
    # A list and not a generator, so that a retry can send it again.
    requests = [message(header=adaptation_pb2.UploadHeader(display_name=display_name))]
    requests += [message(train=batch) for batch in _batches(train)]
    requests += [message(dev=batch) for batch in _batches(dev)]
    return from_proto((yield from context.call(_rpcs.UPLOAD_DATASET, requests, timeout)), Upload)


def _batches(examples: Iterable[adaptation_pb2.Example]) -> Iterator[adaptation_pb2.ExampleBatch]:
    batch = adaptation_pb2.ExampleBatch()
    size = 0
    for example in examples:
        batch.examples.append(example)
        size += example.ByteSize()
        if size >= BATCH_BYTES:
            yield batch
            batch, size = adaptation_pb2.ExampleBatch(), 0
    if batch.examples:
        yield batch
