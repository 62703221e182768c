"""
A fake Twofold server in memory, for tests of programs that call Twofold.

It listens on a loopback port and speaks the real protocol, so nothing has to be mocked:

    with FakeServer({"Hi": Prediction(label="greeting")}) as server, Client(server.target) as client:
        assert client.predict("Hi").label == "greeting"
        assert server.requests[-1].fields["texts"] == ["Hi"]
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf import json_format, message_factory, wrappers_pb2

from twofold._fake.failures import ScriptedFailure
from twofold._fake.jobs import JobScript
from twofold._fake.service import FakeService, PredictionSource
from twofold._types.checkpoints import Checkpoint
from twofold._types.inference import Limits, Model
from twofold._types.job_events import (
    JobEvent,
    PhaseEnded,
    Published,
    ScoreMeasured,
    StepProgress,
)
from twofold._types.job_report import JobReport, Verdict
from twofold._types.jobs import JobState
from twofold.errors import FieldViolation, TwofoldError
from twofold.status import METADATA_KEY, encode_status
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2

__all__ = ["FakeServer", "JobScript", "Request", "job_script"]

_MODEL = Model(
    checkpoint_id="first",
    labels=("neutral", "question"),
    entity_types=("LOC", "PER"),
    backbone="fake",
    hidden_size=4,
    max_tokens=128,
    limits=Limits(max_texts=64, max_characters=10_000),
    server_version="fake",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A received request: the name of the RPC, the message as a dict (for a stream a list of them), and the metadata."""

    rpc: str
    fields: Any
    metadata: Mapping[str, str]


class FakeServer:
    """
    A context manager that serves on a loopback port; create one for each test.

    *predictions* is a function of the text or a dict; a text that is not in the dict gets the first label of *model*.
    Offsets are sent unchanged. Each job follows *script*, unless play_next has set another.
    """

    def __init__(
        self,
        predictions: PredictionSource = None,
        *,
        model: Model = _MODEL,
        checkpoints: Sequence[Checkpoint] = (),
        script: JobScript | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.serving = True
        self._failures: list[ScriptedFailure] = []
        self._lock = threading.Lock()
        self._service = FakeService(
            predictions=predictions,
            model=model,
            checkpoints=checkpoints or [Checkpoint(id=model.checkpoint_id, labels=model.labels)],
            script=script or job_script(),
        )
        self._threads: ThreadPoolExecutor
        self._server: Any = None
        self._port = 0

    def __repr__(self) -> str:
        return f"<FakeServer {self.target if self._server else 'stopped'}>"

    def __enter__(self) -> Self:
        self._service.stopped = False
        self._threads = ThreadPoolExecutor(16)
        self._server = grpc.server(self._threads, options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()
        self._server.stop(None).wait()
        self._threads.shutdown(wait=False)
        self._server = None

    @property
    def target(self) -> str:
        """The address to connect to."""
        return f"127.0.0.1:{self._port}"

    @property
    def uploads(self) -> Mapping[str, Any]:
        """The uploads by id; each is (train, dev), two tuples of Example."""
        return self._service.uploads

    def fail_next(
        self,
        code: grpc.StatusCode,
        *,
        message: str = "the test requested this failure",
        reason: str = "FAKE",
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        times: int = 1,
        rpc: str = "",
        after_events: int = 0,
    ) -> None:
        """
        Let the next calls of *rpc* fail, *times* in total; an empty *rpc* means any.

        A stream fails after *after_events* messages. *retry_after* is in seconds.
        """
        details = encode_status(
            code.value[0], message, reason=reason, violations=tuple(violations), retry_after=retry_after
        )
        self._failures += [ScriptedFailure(code, message, details, rpc, after_events)] * times

    def play_next(self, script: JobScript) -> None:
        """Let the next job follow *script*."""
        self._service.scripts.append(script)

    def _handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        for module in (inference_pb2, adaptation_pb2, checkpoints_pb2):
            for service in module.DESCRIPTOR.services_by_name.values():
                handlers = {method.name: self._handler(method) for method in service.methods}
                yield grpc.method_handlers_generic_handler(service.full_name, handlers)
        health = grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: wrappers_pb2.Int32Value(value=1 if self.serving else 2),
            wrappers_pb2.StringValue.FromString,
            wrappers_pb2.Int32Value.SerializeToString,
        )
        yield grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health})

    def _handler(self, method: Any) -> Any:
        procedure = getattr(self._service, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            request = list(request) if method.client_streaming else request
            fields = list(map(_to_dict, request)) if method.client_streaming else _to_dict(request)
            failure = self._record(method.name, fields, context)
            self._service.promote_candidates()
            try:
                if failure:
                    _abort(context, failure)
                return procedure(request)
            except TwofoldError as error:
                _abort(context, ScriptedFailure.from_error(error))

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            received: list[Any] = []
            fields = received if method.client_streaming else _to_dict(request)
            failure = self._record(method.name, fields, context)
            if method.client_streaming:
                request = _recorded(request, received)
            try:
                for sent, response in enumerate(procedure(request, context.is_active)):
                    if failure and sent >= failure.after_events:
                        _abort(context, failure)
                    yield response
            except TwofoldError as error:
                _abort(context, ScriptedFailure.from_error(error))

        arity = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        return getattr(grpc, f"{arity}_rpc_method_handler")(
            stream if method.server_streaming else unary,
            message_factory.GetMessageClass(method.input_type).FromString,
            message_factory.GetMessageClass(method.output_type).SerializeToString,
        )

    def _record(self, rpc: str, fields: Any, context: grpc.ServicerContext) -> ScriptedFailure | None:
        """Record a request and return its failure, if there is one."""
        with self._lock:
            metadata = {key: str(value) for key, value in context.invocation_metadata()}
            self.requests.append(Request(rpc=rpc, fields=fields, metadata=metadata))
            failure = next((failure for failure in self._failures if failure.rpc in {"", rpc}), None)
            if failure:
                self._failures.remove(failure)
            return failure


def job_script(
    *,
    state: JobState | str | None = JobState.SUCCEEDED,
    reason: str = "New data 41.0 → 87.5; the protected task fell by 0.2 points, within 1.0.",
    report: JobReport | None = None,
    interval: float = 0.0,
) -> JobScript:
    """
    Return a job that validates, trains for four steps and passes or fails the gate.

    It ends in *state*; None means that it runs until it is cancelled. *interval* is the time between two events in seconds.
    """
    state = JobState(state) if state else None
    events = [
        JobEvent(message="The job has started.", payload=JobState.RUNNING),
        JobEvent(phase="validate", message="200 examples.", payload=PhaseEnded(seconds=0.1)),
        JobEvent(phase="baseline", payload=ScoreMeasured(figure="protected", moment="before", metric="f1", value=0.9)),
        JobEvent(phase="baseline", payload=ScoreMeasured(figure="new", moment="before", metric="accuracy", value=0.41)),
        JobEvent(phase="baseline", payload=PhaseEnded(seconds=0.4)),
        JobEvent(phase="train", message="2 annotations do not match token boundaries.", warning=True),
    ]
    for step in range(1, 5):
        progress = StepProgress(stage="heads", step=step, total_steps=4, loss=1 / step, remaining_seconds=4.0 - step)
        events.append(JobEvent(phase="train", payload=progress))
    events.append(JobEvent(phase="train", payload=PhaseEnded(seconds=3.0)))
    if state in {JobState.SUCCEEDED, JobState.REJECTED}:
        passed = state is JobState.SUCCEEDED
        events += [
            JobEvent(phase="gate", payload=ScoreMeasured(figure="new", moment="after", metric="accuracy", value=0.875)),
            JobEvent(phase="gate", payload=ScoreMeasured(figure="protected", moment="after", metric="f1", value=0.898)),
            JobEvent(phase="gate", payload=Verdict.PASS if passed else Verdict.FAIL),
            *([JobEvent(phase="swap", payload=Published(checkpoint_id=""))] if passed else []),
        ]
    if state:
        events.append(JobEvent(message=reason, payload=state))
    return JobScript(events=tuple(events), report=report or JobReport(), interval=interval)


def _abort(context: grpc.ServicerContext, failure: ScriptedFailure) -> None:
    context.set_trailing_metadata(((METADATA_KEY, failure.details),))
    context.abort(failure.code, failure.message)


def _to_dict(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _recorded(requests: Iterator[Any], received: list[Any]) -> Iterator[Any]:
    """Yield the messages of a stream, and record each when it is read."""
    for message in requests:
        received.append(_to_dict(message))
        yield message
