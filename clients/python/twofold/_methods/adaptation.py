"""Make jobs, and follow them."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from twofold import _rpcs
from twofold._operations import Failure, Feed, Flow, Item, Open, Receive, Sleep
from twofold._protobuf import enum_number, read, read_event, write
from twofold._retry import Context
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
    Statistical,
    Upload,
)
from twofold.errors import DeadlineExceededError, error_of
from twofold.v1 import adaptation_pb2

INLINE_BYTES = 3_500_000
"""What may travel inside one request; gRPC servers take 4 MiB unless they are told otherwise."""

BATCH_BYTES = 1_000_000
"""About how much of an upload travels in one message."""

UPLOAD_SECONDS = 300.0
"""The default timeout of an upload."""

_PROTECTION = Statistical()
_HYPERPARAMETERS = Hyperparameters()

_FREEZE = adaptation_pb2.DESCRIPTOR.enum_types_by_name["FreezeMode"]
_LABEL_POLICY = adaptation_pb2.DESCRIPTOR.enum_types_by_name["LabelPolicy"]
_MEMORY = adaptation_pb2.DESCRIPTOR.enum_types_by_name["MemoryMode"]
_PROMOTE = adaptation_pb2.DESCRIPTOR.enum_types_by_name["PromotePolicy"]
_HEAD = adaptation_pb2.AdaptRequest.DESCRIPTOR.fields_by_name["head"].enum_type


def adapt(
    context: Context,
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
    Make a job that adapts *head* to examples, or to an upload or its id, and return the job at once.

    Examples that are too many for one request are uploaded first. *max_runtime* is in seconds, *retained_margin* in
    points that the head may lose on its old labels (3.0 if left out), *memory* what the candidate carries for the next
    adaptation (what its base does, if left out), *shadow_share* of live texts that it answers, too, before it is made live
    (what the server is set to, if left out). A call that is retried makes one job, because every call carries a
    request id. Raise InvalidArgumentError, NotFoundError, AlreadyExistsError or OverloadedError.
    """
    request = adaptation_pb2.AdaptRequest(
        head=enum_number(_HEAD, Head(head)),
        freeze=enum_number(_FREEZE, Freeze(freeze)),
        protection=_protection(protection),
        label_policy=enum_number(_LABEL_POLICY, LabelPolicy(label_policy)),
        promote=enum_number(_PROMOTE, PromotePolicy(promote)),
        hyperparameters=write(hyperparameters, adaptation_pb2.Hyperparameters),
        base_checkpoint=base_checkpoint,
        seed=seed,
        request_id=request_id or uuid.uuid4().hex,
        validate_only=validate_only,
        retained_margin=retained_margin,
        shadow_share=shadow_share,
    )
    if memory is not None:
        request.memory = enum_number(_MEMORY, MemoryMode(memory))
    if max_runtime is not None:
        request.max_runtime.FromNanoseconds(round(max_runtime * 1e9))
    request.dataset.CopyFrom((yield from _dataset(context, train, dev, timeout)))
    request.dataset.annotated_types.extend(annotated_types)
    answer = yield from context.call(_rpcs.ADAPT, request, timeout)
    return read(answer.job, Job)


def upload_dataset(
    context: Context,
    train: Iterable[Example],
    dev: Iterable[Example] = (),
    *,
    display_name: str = "",
    timeout: float | None = UPLOAD_SECONDS,
) -> Flow[Upload]:
    """
    Store examples on the server for later calls of adapt.

    Raise InvalidArgumentError that names a bad example; then nothing is kept.
    """
    return (yield from _upload(context, _messages(train), _messages(dev), display_name, timeout))


def job(context: Context, job: Job | str, *, timeout: float | None = None) -> Flow[Job]:
    """Return a job as it is now; raise NotFoundError if there is none."""
    answer = yield from context.call(_rpcs.GET_JOB, adaptation_pb2.GetJobRequest(job_id=_id(job)), timeout)
    return read(answer.job, Job)


def jobs(context: Context, *, page_size: int = 50, timeout: float | None = None) -> Feed[Job]:
    """Iterate over the jobs, newest first; *timeout* is for each page."""
    request = adaptation_pb2.ListJobsRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_JOBS, request, timeout)
        for one in page.jobs:
            yield Item(read(one, Job))
        if not page.next_page_token:
            return
        request = adaptation_pb2.ListJobsRequest(page_size=page_size, page_token=page.next_page_token)


def watch(context: Context, job: Job | str, *, after_sequence: int = 0, timeout: float | None = None) -> Feed[JobEvent]:
    """
    Iterate over a job's events, the past ones first, until the job is over.

    A stream that breaks is taken up again after the last event that came; the retry policy counts only attempts without
    one. *timeout* is for the whole watch; None means no limit. Raise NotFoundError or UnavailableError.
    """
    deadline = None if timeout is None else context.clock() + timeout
    attempts = count()
    while True:
        request = adaptation_pb2.WatchJobRequest(job_id=_id(job), after_sequence=after_sequence)
        stream = yield Open(
            _rpcs.WATCH_JOB, request, None if deadline is None else max(0.0, deadline - context.clock())
        )
        try:
            while not isinstance(outcome := (yield Receive(stream)), Failure | None):
                event = read_event(outcome.event)
                after_sequence, attempts = event.sequence, count()
                yield Item(event)
        finally:
            stream.cancel()
        if outcome is None:
            return
        wait = context.retry.delay(outcome, next(attempts), context.draw)
        if wait is None or (deadline is not None and context.clock() + wait >= deadline):
            raise error_of(outcome)
        yield Sleep(wait)


def wait(context: Context, job: Job | str, *, timeout: float | None = None) -> Flow[Job]:
    """
    Return the job once it is over; *timeout* is in seconds, and None means no limit.

    Raise DeadlineExceededError if the job takes longer; it runs on.
    """
    deadline = None if timeout is None else context.clock() + timeout
    seen = 0
    while True:
        left = None if deadline is None else max(0.0, deadline - context.clock())
        with suppress(DeadlineExceededError):
            yield from watch(context, job, after_sequence=seen, timeout=left)
        # The stream of a server that is being stopped may end before the job does.
        found = yield from _job(context, job)
        if found.is_over:
            return found
        seen = found.last_sequence
        if deadline is not None and context.clock() >= deadline:
            raise DeadlineExceededError(f"job {found.id} is still {found.state} after {timeout:g} s")
        yield Sleep(1.0)


def cancel(context: Context, job: Job | str, *, timeout: float | None = 300.0) -> Flow[Job]:
    """Stop a job and return it once it has stopped; raise FailedPreconditionError if it is already over."""
    answer = yield from context.call(_rpcs.CANCEL_JOB, adaptation_pb2.CancelJobRequest(job_id=_id(job)), timeout)
    return read(answer.job, Job)


_job = job


def _id(job: Job | str) -> str:
    return job if isinstance(job, str) else job.id


def _protection(protection: Exact | Statistical) -> adaptation_pb2.Protection:
    if isinstance(protection, Exact):
        return adaptation_pb2.Protection(exact=adaptation_pb2.ExactProtection())
    return adaptation_pb2.Protection(statistical=adaptation_pb2.StatisticalProtection(margin=protection.margin))


def _messages(examples: Iterable[Example]) -> list[adaptation_pb2.Example]:
    return [write(example, adaptation_pb2.Example) for example in examples]


def _dataset(
    context: Context, train: Iterable[Example] | Upload | str, dev: Iterable[Example], timeout: float | None
) -> Flow[adaptation_pb2.Dataset]:
    """Put the examples into the request if they fit, else upload them."""
    if isinstance(train, str | Upload):
        if tuple(dev):
            raise ValueError("an upload holds its own dev examples; give dev to upload_dataset")
        return adaptation_pb2.Dataset(upload_id=train if isinstance(train, str) else train.upload_id)
    examples = adaptation_pb2.Examples(train=_messages(train), dev=_messages(dev))
    if examples.ByteSize() <= INLINE_BYTES:
        return adaptation_pb2.Dataset(inline=examples)
    upload = yield from _upload(
        context, examples.train, examples.dev, "", UPLOAD_SECONDS if timeout is None else timeout
    )
    return adaptation_pb2.Dataset(upload_id=upload.upload_id)


def _upload(
    context: Context, train: Iterable[Any], dev: Iterable[Any], display_name: str, timeout: float | None
) -> Flow[Upload]:
    part = adaptation_pb2.UploadDatasetRequest
    requests = [part(header=adaptation_pb2.UploadHeader(display_name=display_name))]
    # A list and not a generator: it can be sent again, and it cannot fail half way.
    requests += [part(train=batch) for batch in _batches(train)]
    requests += [part(dev=batch) for batch in _batches(dev)]
    return read((yield from context.call(_rpcs.UPLOAD_DATASET, requests, timeout)), Upload)


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
