"""What the fake server does with a request: one method for each procedure, protobuf in and out."""

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

import grpc

from twofold._fake.aliases import FakeAliases
from twofold._fake.failures import not_found
from twofold._fake.jobs import JobScript, Play
from twofold._fake.reports import report_of
from twofold._protobuf import enum_member, read_example, write, write_event
from twofold._types.checkpoints import Checkpoint, Promotion
from twofold._types.examples import Example
from twofold._types.inference import Embedding, Embeddings, Head, LabelScore, Model, Prediction, Predictions
from twofold._types.job_events import JobEvent
from twofold._types.jobs import (
    Freeze,
    Job,
    JobState,
    PromotePolicy,
    Upload,
)
from twofold.errors import FailedPreconditionError, InvalidArgumentError
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2

Answers: TypeAlias = Callable[[str], Prediction] | Mapping[str, Prediction] | None


class Behaviour:
    """The state of a fake server, and what each procedure does to it."""

    def __init__(self, *, answers: Answers, model: Model, checkpoints: Sequence[Checkpoint], script: JobScript) -> None:
        self.scripts: list[JobScript] = []
        self.uploads: dict[str, tuple[tuple[Example, ...], tuple[Example, ...]]] = {}
        self._answers = answers
        self._model = model
        self._checkpoints = list(checkpoints)
        self._aliases = FakeAliases()
        self._aliases.move("outside", "The test began.", current=model.checkpoint_id)
        self._deleted: set[str] = set()
        self._script = script
        self._plays: dict[str, Play] = {}
        self._changed = threading.Condition(threading.RLock())
        self.stopped = False

    def stop(self) -> None:
        """Let the watches that wait end."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def settle(self) -> None:
        """Promote what the jobs that are over were told to promote."""
        with self._changed:
            for play in self._plays.values():
                job = play.now()
                if (
                    job.state is JobState.SUCCEEDED
                    and job.promote is PromotePolicy.AUTO
                    and job.candidate_checkpoint_id
                ):
                    if not play.promoted:
                        self._promote(job.candidate_checkpoint_id, job.id, "The gate passed it.")
                    play.promoted = True

    def predict(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
        """Answer each text, with the heads that were asked for."""
        if not request.texts:
            raise InvalidArgumentError(
                "texts is empty; send at least one", code=grpc.StatusCode.INVALID_ARGUMENT, reason="INVALID_FIELD"
            )
        current = self._aliases["current"]
        heads = set(request.heads) or {inference_pb2.HEAD_CLASSIFIER, inference_pb2.HEAD_NER}
        found = []
        for prediction in map(self._prediction, request.texts):
            one = replace(prediction, checkpoint_id=current)
            if inference_pb2.HEAD_CLASSIFIER not in heads:
                one = replace(one, label="", labels=())
            if inference_pb2.HEAD_NER not in heads:
                one = replace(one, entities=())
            found.append(one)
        return write(Predictions(predictions=tuple(found), checkpoint_id=current), inference_pb2.PredictResponse)

    def predict_stream(
        self,
        requests: Iterator[inference_pb2.PredictStreamRequest],
        is_active: Callable[[], bool],
    ) -> Iterator[inference_pb2.PredictStreamResponse]:
        """Answer each request before the next is read."""
        for one in requests:
            if not is_active():
                return
            yield inference_pb2.PredictStreamResponse(response=self.predict(one.request))

    def _prediction(self, text: str) -> Prediction:
        if callable(self._answers):
            given = self._answers(text)
        else:
            given = (self._answers or {}).get(text, Prediction(label=self._model.labels[0]))
        if given.label and not given.labels:
            given = replace(given, labels=(LabelScore(label=given.label, score=1.0),))
        return given

    def embed(self, request: inference_pb2.EmbedRequest) -> inference_pb2.EmbedResponse:
        """Answer each text with numbers that depend on it alone."""
        size = self._model.hidden_size
        vectors = [tuple(zlib.crc32(f"{i} {text}".encode()) / 2**32 for i in range(size)) for text in request.texts]
        found = tuple(Embedding(pooled=vector, checkpoint_id=self._aliases["current"]) for vector in vectors)
        return write(Embeddings(embeddings=found, checkpoint_id=self._aliases["current"]), inference_pb2.EmbedResponse)

    def get_model(self, _: inference_pb2.GetModelRequest) -> inference_pb2.GetModelResponse:
        """Describe the model."""
        return write(replace(self._model, checkpoint_id=self._aliases["current"]), inference_pb2.GetModelResponse)

    def adapt(self, request: adaptation_pb2.AdaptRequest) -> adaptation_pb2.AdaptResponse:
        """Make a job that plays the next script, or return the one of the same request id."""
        if request.dataset.upload_id and request.dataset.upload_id not in self.uploads:
            raise not_found("upload", request.dataset.upload_id)
        with self._changed:
            known = [p for p in self._plays.values() if request.request_id and p.job.request_id == request.request_id]
            if known:
                return adaptation_pb2.AdaptResponse(job=write(known[0].now(), adaptation_pb2.Job))
            script = self.scripts.pop(0) if self.scripts else self._script
            echoed: dict[str, Any] = {
                name: enum_member(request.DESCRIPTOR.fields_by_name[name].enum_type, getattr(request, name), kind)
                for name, kind in (("head", Head), ("freeze", Freeze), ("promote", PromotePolicy))
            }
            job = Job(
                id=f"job-{len(self._plays) + 1}",
                create_time=datetime.now(UTC),
                base_checkpoint_id=self._aliases["current"],
                request_id=request.request_id,
                report=script.report,
                **echoed,
            )
            play = self._plays[job.id] = Play(job, script, time.monotonic())
            return adaptation_pb2.AdaptResponse(job=write(play.now(), adaptation_pb2.Job))

    def upload_dataset(
        self, requests: Sequence[adaptation_pb2.UploadDatasetRequest]
    ) -> adaptation_pb2.UploadDatasetResponse:
        """Keep the examples."""
        train = tuple(read_example(one) for part in requests for one in part.train.examples)
        dev = tuple(read_example(one) for part in requests for one in part.dev.examples)
        upload_id = f"upload-{len(self.uploads) + 1}"
        self.uploads[upload_id] = (train, dev)
        stored = Upload(upload_id=upload_id, train_examples=len(train), dev_examples=len(dev))
        return write(stored, adaptation_pb2.UploadDatasetResponse)

    def get_job(self, request: adaptation_pb2.GetJobRequest) -> adaptation_pb2.GetJobResponse:
        """Return a job as it is now."""
        return adaptation_pb2.GetJobResponse(job=write(self._play(request.job_id).now(), adaptation_pb2.Job))

    def list_jobs(self, request: adaptation_pb2.ListJobsRequest) -> adaptation_pb2.ListJobsResponse:
        """Return a page of jobs."""
        found, token = _page(list(reversed(self._plays.values())), request)
        jobs = [write(play.now(), adaptation_pb2.Job) for play in found]
        return adaptation_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    def watch_job(
        self, request: adaptation_pb2.WatchJobRequest, is_active: Callable[[], bool]
    ) -> Iterator[adaptation_pb2.WatchJobResponse]:
        """Send the events as they happen, until the last one."""
        play = self._play(request.job_id)
        seen = request.after_sequence
        while is_active() and not self.stopped:
            with self._changed:
                fresh = [event for event in play.events() if event.sequence > seen]
                if not fresh and not play.now().is_over:
                    self._changed.wait(min(play.script.pace or 0.1, 0.1))
            for event in fresh:
                seen = event.sequence
                yield adaptation_pb2.WatchJobResponse(event=write_event(event))
            if play.now().is_over and seen >= play.now().last_sequence:
                return

    def cancel_job(self, request: adaptation_pb2.CancelJobRequest) -> adaptation_pb2.CancelJobResponse:
        """Stop a job that is not over."""
        with self._changed:
            play = self._play(request.job_id)
            job = play.now()
            if job.is_over:
                raise FailedPreconditionError(
                    f"job {job.id!r} is already {job.state}",
                    code=grpc.StatusCode.FAILED_PRECONDITION,
                    reason="JOB_OVER",
                )
            play.script = replace(play.script, events=tuple(play.events()), pace=0.0)
            play.cancelled = JobEvent(
                sequence=job.last_sequence + 1, message="Cancelled by the caller.", payload=JobState.CANCELLED
            )
            self._changed.notify_all()
            return adaptation_pb2.CancelJobResponse(job=write(play.now(), adaptation_pb2.Job))

    def get_report(self, request: adaptation_pb2.GetReportRequest) -> adaptation_pb2.GetReportResponse:
        """Return a page, or a document, with a job's end and its reason."""
        job = self._play(request.job_id).now()
        if not job.is_over:
            raise FailedPreconditionError(
                f"job {job.id!r} is {job.state}; it has a report when it is over",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                reason="WRONG_STATE",
            )
        return report_of(job, as_json=request.format == adaptation_pb2.REPORT_FORMAT_JSON)

    def get_checkpoint(self, request: checkpoints_pb2.GetCheckpointRequest) -> checkpoints_pb2.GetCheckpointResponse:
        """Return a checkpoint by id or alias."""
        found = self._checkpoint(request.checkpoint or "current")
        return checkpoints_pb2.GetCheckpointResponse(checkpoint=write(found, checkpoints_pb2.Checkpoint))

    def list_checkpoints(
        self, request: checkpoints_pb2.ListCheckpointsRequest
    ) -> checkpoints_pb2.ListCheckpointsResponse:
        """Return a page of checkpoints."""
        found, token = _page([self._checkpoint(one.id) for one in reversed(self._stored())], request)
        checkpoints = [write(one, checkpoints_pb2.Checkpoint) for one in found]
        return checkpoints_pb2.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)

    def promote_checkpoint(
        self, request: checkpoints_pb2.PromoteCheckpointRequest
    ) -> checkpoints_pb2.PromoteCheckpointResponse:
        """Let a checkpoint answer."""
        done = self._promote(request.checkpoint, "anonymous", "PromoteCheckpoint was called.")
        return write(done, checkpoints_pb2.PromoteCheckpointResponse)

    def roll_back(self, _: checkpoints_pb2.RollBackRequest) -> checkpoints_pb2.RollBackResponse:
        """Let the previous checkpoint answer."""
        if "previous" not in self._aliases:
            raise FailedPreconditionError(
                "there is no previous checkpoint",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                reason="NO_PREVIOUS_CHECKPOINT",
            )
        return write(self._promote("previous", "anonymous", "RollBack was called."), checkpoints_pb2.RollBackResponse)

    def delete_checkpoint(
        self, request: checkpoints_pb2.DeleteCheckpointRequest
    ) -> checkpoints_pb2.DeleteCheckpointResponse:
        """Forget a checkpoint that no alias names and no job needs."""
        found = self._checkpoint(request.checkpoint_id, aliases={})
        jobs = [job for job in (play.now() for play in self._plays.values()) if not job.is_over]
        needs = [f"it is {alias!r}" for alias, of in self._aliases.items() if of == found.id]
        needs += [f"job {job.id!r} builds on it" for job in jobs if job.base_checkpoint_id == found.id]
        if needs:
            raise FailedPreconditionError(
                f"checkpoint {found.id!r} is in use: {needs[0]}",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                reason="CHECKPOINT_IN_USE",
            )
        self._deleted.add(found.id)
        return checkpoints_pb2.DeleteCheckpointResponse()

    def list_alias_changes(
        self, request: checkpoints_pb2.ListAliasChangesRequest
    ) -> checkpoints_pb2.ListAliasChangesResponse:
        """Return a page of the aliases' moves."""
        found, token = _page(self._aliases.changes[::-1], request)
        changes = [write(one, checkpoints_pb2.AliasChange) for one in found]
        return checkpoints_pb2.ListAliasChangesResponse(changes=changes, next_page_token=token)

    def _promote(self, name: str, who: str, why: str) -> Promotion:
        wanted, replaced = self._checkpoint(name).id, self._aliases["current"]
        if wanted != replaced:
            self._aliases.move(who, why, current=wanted, previous=replaced)
        return Promotion(checkpoint=self._checkpoint(wanted), replaced_id=replaced, swap_seconds=0.01)

    def _stored(self) -> list[Checkpoint]:
        """Return the checkpoints that were given and those that jobs have published."""
        done = [job for job in (play.now() for play in self._plays.values()) if job.candidate_checkpoint_id]
        made = [
            Checkpoint(id=job.candidate_checkpoint_id, parent_id=job.base_checkpoint_id, job_id=job.id) for job in done
        ]
        return [one for one in self._checkpoints + made if one.id not in self._deleted]

    def _checkpoint(self, name: str, aliases: Mapping[str, str] | None = None) -> Checkpoint:
        wanted = (self._aliases if aliases is None else aliases).get(name, name)
        for one in self._stored():
            if one.id == wanted:
                return replace(one, aliases=tuple(alias for alias, of in self._aliases.items() if of == wanted))
        raise not_found("checkpoint", name)

    def _play(self, job_id: str) -> Play:
        if job_id not in self._plays:
            raise not_found("job", job_id)
        return self._plays[job_id]


def _page(everything: list[Any], request: Any) -> tuple[list[Any], str]:
    begin = int(request.page_token or 0)
    end = begin + (request.page_size or 50)
    return everything[begin:end], str(end) if end < len(everything) else ""
