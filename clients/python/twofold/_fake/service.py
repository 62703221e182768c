"""The procedures of a fake server: one method each, protobuf messages in and out."""

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from twofold._fake.aliases import FakeAliases
from twofold._fake.failures import failed_precondition, invalid_argument, not_found
from twofold._fake.jobs import JobScript, ScriptedJob
from twofold._fake.reports import make_report
from twofold._protobuf import enum_from_proto, event_to_proto, from_proto, to_proto
from twofold._types.checkpoints import Checkpoint, Promotion
from twofold._types.examples import Example
from twofold._types.inference import Embedding, Embeddings, Head, LabelScore, Model, Prediction, Predictions
from twofold._types.job_events import JobEvent
from twofold._types.jobs import Freeze, Job, JobState, PromotePolicy, Upload
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2

PredictionSource: TypeAlias = Callable[[str], Prediction] | Mapping[str, Prediction] | None


class FakeService:
    """The state of a fake server and its procedures."""

    def __init__(
        self, *, predictions: PredictionSource, model: Model, checkpoints: Sequence[Checkpoint], script: JobScript
    ) -> None:
        self.scripts: list[JobScript] = []
        self.uploads: dict[str, tuple[tuple[Example, ...], tuple[Example, ...]]] = {}
        self.stopped = False
        self._predictions = predictions
        self._model = model
        self._checkpoints = list(checkpoints)
        self._aliases = FakeAliases()
        self._aliases.move("outside", "The test began.", current=model.checkpoint_id)
        self._deleted: set[str] = set()
        self._script = script
        self._jobs: dict[str, ScriptedJob] = {}
        self._changed = threading.Condition(threading.RLock())

    def stop(self) -> None:
        """End all watches."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def promote_candidates(self) -> None:
        """Promote the candidates of succeeded jobs whose policy is AUTO."""
        with self._changed:
            for scripted in self._jobs.values():
                job = scripted.current()
                succeeded = job.state is JobState.SUCCEEDED and job.candidate_checkpoint_id
                if succeeded and job.promote is PromotePolicy.AUTO and not scripted.promoted:
                    self._promote(job.candidate_checkpoint_id, job.id, "The gate passed it.")
                    scripted.promoted = True

    def predict(self, request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
        """Return one prediction for each text, with the requested heads."""
        if not request.texts:
            raise invalid_argument("texts is empty; send at least one")
        current = self._aliases["current"]
        heads = set(request.heads) or {inference_pb2.HEAD_CLASSIFIER, inference_pb2.HEAD_NER}
        predictions = []
        for text in request.texts:
            prediction = replace(self._predict_text(text), checkpoint_id=current)
            if inference_pb2.HEAD_CLASSIFIER not in heads:
                prediction = replace(prediction, label="", labels=())
            if inference_pb2.HEAD_NER not in heads:
                prediction = replace(prediction, entities=())
            predictions.append(prediction)
        response = Predictions(predictions=tuple(predictions), checkpoint_id=current)
        return to_proto(response, inference_pb2.PredictResponse)

    def predict_stream(
        self,
        requests: Iterator[inference_pb2.PredictStreamRequest],
        is_active: Callable[[], bool],
    ) -> Iterator[inference_pb2.PredictStreamResponse]:
        """Answer each request before reading the next one."""
        for message in requests:
            if not is_active():
                return
            yield inference_pb2.PredictStreamResponse(response=self.predict(message.request))

    def embed(self, request: inference_pb2.EmbedRequest) -> inference_pb2.EmbedResponse:
        """Return one vector for each text that depends only on the text."""
        current = self._aliases["current"]
        embeddings = tuple(
            Embedding(
                pooled=tuple(zlib.crc32(f"{i} {text}".encode()) / 2**32 for i in range(self._model.hidden_size)),
                checkpoint_id=current,
            )
            for text in request.texts
        )
        return to_proto(Embeddings(embeddings=embeddings, checkpoint_id=current), inference_pb2.EmbedResponse)

    def get_model(self, _: inference_pb2.GetModelRequest) -> inference_pb2.GetModelResponse:
        """Describe the live checkpoint."""
        return to_proto(replace(self._model, checkpoint_id=self._aliases["current"]), inference_pb2.GetModelResponse)

    def adapt(self, request: adaptation_pb2.AdaptRequest) -> adaptation_pb2.AdaptResponse:
        """Create a job that follows the next script, or return the job with the same request id."""
        if request.dataset.upload_id and request.dataset.upload_id not in self.uploads:
            raise not_found("upload", request.dataset.upload_id)
        with self._changed:
            for scripted in self._jobs.values():
                if request.request_id and scripted.initial.request_id == request.request_id:
                    return adaptation_pb2.AdaptResponse(job=to_proto(scripted.current(), adaptation_pb2.Job))
            script = self.scripts.pop(0) if self.scripts else self._script
            settings: dict[str, Any] = {
                name: enum_from_proto(request.DESCRIPTOR.fields_by_name[name].enum_type, getattr(request, name), kind)
                for name, kind in (("head", Head), ("freeze", Freeze), ("promote", PromotePolicy))
            }
            job = Job(
                id=f"job-{len(self._jobs) + 1}",
                create_time=datetime.now(UTC),
                base_checkpoint_id=self._aliases["current"],
                request_id=request.request_id,
                report=script.report,
                **settings,
            )
            scripted = self._jobs[job.id] = ScriptedJob(job, script, time.monotonic())
            return adaptation_pb2.AdaptResponse(job=to_proto(scripted.current(), adaptation_pb2.Job))

    def upload_dataset(
        self, requests: Sequence[adaptation_pb2.UploadDatasetRequest]
    ) -> adaptation_pb2.UploadDatasetResponse:
        """Store the examples."""
        train = tuple(from_proto(example, Example) for request in requests for example in request.train.examples)
        dev = tuple(from_proto(example, Example) for request in requests for example in request.dev.examples)
        upload = Upload(upload_id=f"upload-{len(self.uploads) + 1}", train_examples=len(train), dev_examples=len(dev))
        self.uploads[upload.upload_id] = (train, dev)
        return to_proto(upload, adaptation_pb2.UploadDatasetResponse)

    def get_job(self, request: adaptation_pb2.GetJobRequest) -> adaptation_pb2.GetJobResponse:
        """Return a job in its current state."""
        return adaptation_pb2.GetJobResponse(job=to_proto(self._job(request.job_id).current(), adaptation_pb2.Job))

    def list_jobs(self, request: adaptation_pb2.ListJobsRequest) -> adaptation_pb2.ListJobsResponse:
        """Return a page of jobs."""
        page, token = _paginate(list(reversed(self._jobs.values())), request)
        jobs = [to_proto(scripted.current(), adaptation_pb2.Job) for scripted in page]
        return adaptation_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    def watch_job(
        self, request: adaptation_pb2.WatchJobRequest, is_active: Callable[[], bool]
    ) -> Iterator[adaptation_pb2.WatchJobResponse]:
        """Send the events of a job as they occur, until the last one."""
        scripted = self._job(request.job_id)
        last_sent = request.after_sequence
        while is_active() and not self.stopped:
            with self._changed:
                unsent = [event for event in scripted.events() if event.sequence > last_sent]
                if not unsent and not scripted.current().is_over:
                    self._changed.wait(min(scripted.script.interval or 0.1, 0.1))
            for event in unsent:
                last_sent = event.sequence
                yield adaptation_pb2.WatchJobResponse(event=event_to_proto(event))
            job = scripted.current()
            if job.is_over and last_sent >= job.last_sequence:
                return

    def cancel_job(self, request: adaptation_pb2.CancelJobRequest) -> adaptation_pb2.CancelJobResponse:
        """Cancel a job that has not ended."""
        with self._changed:
            scripted = self._job(request.job_id)
            job = scripted.current()
            if job.is_over:
                raise failed_precondition(f"job {job.id!r} is already {job.state}", "JOB_OVER")
            scripted.script = replace(scripted.script, events=tuple(scripted.events()), interval=0.0)
            scripted.cancellation = JobEvent(
                sequence=job.last_sequence + 1, message="Cancelled by the caller.", payload=JobState.CANCELLED
            )
            self._changed.notify_all()
            return adaptation_pb2.CancelJobResponse(job=to_proto(scripted.current(), adaptation_pb2.Job))

    def get_report(self, request: adaptation_pb2.GetReportRequest) -> adaptation_pb2.GetReportResponse:
        """Return the report of a job that has ended."""
        job = self._job(request.job_id).current()
        if not job.is_over:
            message = f"job {job.id!r} is {job.state}; its report is available when it has ended"
            raise failed_precondition(message, "WRONG_STATE")
        return make_report(job, as_json=request.format == adaptation_pb2.REPORT_FORMAT_JSON)

    def get_checkpoint(self, request: checkpoints_pb2.GetCheckpointRequest) -> checkpoints_pb2.GetCheckpointResponse:
        """Return a checkpoint by id or alias."""
        checkpoint = self._checkpoint(request.checkpoint or "current")
        return checkpoints_pb2.GetCheckpointResponse(checkpoint=to_proto(checkpoint, checkpoints_pb2.Checkpoint))

    def list_checkpoints(
        self, request: checkpoints_pb2.ListCheckpointsRequest
    ) -> checkpoints_pb2.ListCheckpointsResponse:
        """Return a page of checkpoints."""
        newest_first = [self._checkpoint(checkpoint.id) for checkpoint in reversed(self._stored())]
        page, token = _paginate(newest_first, request)
        checkpoints = [to_proto(checkpoint, checkpoints_pb2.Checkpoint) for checkpoint in page]
        return checkpoints_pb2.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)

    def promote_checkpoint(
        self, request: checkpoints_pb2.PromoteCheckpointRequest
    ) -> checkpoints_pb2.PromoteCheckpointResponse:
        """Make a checkpoint live."""
        promotion = self._promote(request.checkpoint, "anonymous", "PromoteCheckpoint was called.")
        return to_proto(promotion, checkpoints_pb2.PromoteCheckpointResponse)

    def roll_back(self, _: checkpoints_pb2.RollBackRequest) -> checkpoints_pb2.RollBackResponse:
        """Make the previous checkpoint live."""
        if "previous" not in self._aliases:
            raise failed_precondition("there is no previous checkpoint", "NO_PREVIOUS_CHECKPOINT")
        promotion = self._promote("previous", "anonymous", "RollBack was called.")
        return to_proto(promotion, checkpoints_pb2.RollBackResponse)

    def delete_checkpoint(
        self, request: checkpoints_pb2.DeleteCheckpointRequest
    ) -> checkpoints_pb2.DeleteCheckpointResponse:
        """Delete a checkpoint that no alias names and no job needs."""
        checkpoint_id = self._checkpoint(request.checkpoint_id, aliases={}).id
        running = [job for job in (scripted.current() for scripted in self._jobs.values()) if not job.is_over]
        uses = [f"it is {alias!r}" for alias, named in self._aliases.items() if named == checkpoint_id]
        uses += [f"job {job.id!r} builds on it" for job in running if job.base_checkpoint_id == checkpoint_id]
        if uses:
            raise failed_precondition(f"checkpoint {checkpoint_id!r} is in use: {uses[0]}", "CHECKPOINT_IN_USE")
        self._deleted.add(checkpoint_id)
        return checkpoints_pb2.DeleteCheckpointResponse()

    def list_alias_changes(
        self, request: checkpoints_pb2.ListAliasChangesRequest
    ) -> checkpoints_pb2.ListAliasChangesResponse:
        """Return a page of alias changes."""
        page, token = _paginate(self._aliases.changes[::-1], request)
        changes = [to_proto(change, checkpoints_pb2.AliasChange) for change in page]
        return checkpoints_pb2.ListAliasChangesResponse(changes=changes, next_page_token=token)

    def _predict_text(self, text: str) -> Prediction:
        if callable(self._predictions):
            prediction = self._predictions(text)
        else:
            prediction = (self._predictions or {}).get(text, Prediction(label=self._model.labels[0]))
        if prediction.label and not prediction.labels:
            return replace(prediction, labels=(LabelScore(label=prediction.label, score=1.0),))
        return prediction

    def _promote(self, name: str, actor: str, reason: str) -> Promotion:
        checkpoint_id, replaced_id = self._checkpoint(name).id, self._aliases["current"]
        if checkpoint_id != replaced_id:
            self._aliases.move(actor, reason, current=checkpoint_id, previous=replaced_id)
        return Promotion(checkpoint=self._checkpoint(checkpoint_id), replaced_id=replaced_id, swap_seconds=0.01)

    def _stored(self) -> list[Checkpoint]:
        """Return the initial checkpoints and those that jobs have published."""
        jobs = [scripted.current() for scripted in self._jobs.values()]
        published = [
            Checkpoint(id=job.candidate_checkpoint_id, parent_id=job.base_checkpoint_id, job_id=job.id)
            for job in jobs
            if job.candidate_checkpoint_id
        ]
        return [checkpoint for checkpoint in self._checkpoints + published if checkpoint.id not in self._deleted]

    def _checkpoint(self, name: str, aliases: Mapping[str, str] | None = None) -> Checkpoint:
        checkpoint_id = (self._aliases if aliases is None else aliases).get(name, name)
        for checkpoint in self._stored():
            if checkpoint.id == checkpoint_id:
                names = tuple(alias for alias, named in self._aliases.items() if named == checkpoint_id)
                return replace(checkpoint, aliases=names)
        raise not_found("checkpoint", name)

    def _job(self, job_id: str) -> ScriptedJob:
        if job_id not in self._jobs:
            raise not_found("job", job_id)
        return self._jobs[job_id]


def _paginate(values: list[Any], request: Any) -> tuple[list[Any], str]:
    """Return the requested page and the token of the next one."""
    start = int(request.page_token or 0)
    end = start + (request.page_size or 50)
    return values[start:end], str(end) if end < len(values) else ""
