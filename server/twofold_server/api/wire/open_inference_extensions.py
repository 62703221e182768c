"""Messages of Triton's extensions: model configuration, statistics and the model repository, which is the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from prometheus_client import Counter, Histogram
from twofold.open_inference import model_config_pb2 as config_pb
from twofold.open_inference import open_inference_pb2 as pb
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.store import Aliases

from twofold_server.api.wire.open_inference import INPUTS, MODEL, OUTPUTS, PLATFORM
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import MAX_VIOLATIONS, UnknownNameError, Violation, raise_if_invalid
from twofold_server.observability.metrics import Metrics

_UNARY_METHODS = ("Predict", "Embed", "ModelInfer")
"""Unary methods, which statistics count. The duration of a stream depends on its client."""
_TYPES = {"BYTES": config_pb.TYPE_STRING, "FP32": config_pb.TYPE_FP32}


def write_config(limits: LimitSettings) -> config_pb.ModelConfig:
    """Return the model configuration. The texts are the batch, so no tensor has further dimensions."""
    return config_pb.ModelConfig(
        name=MODEL,
        platform=PLATFORM,
        backend="twofold",
        max_batch_size=limits.max_texts,
        input=[config_pb.ModelInput(name=tensor.name, data_type=_TYPES[tensor.datatype]) for tensor in INPUTS],
        output=[config_pb.ModelOutput(name=tensor.name, data_type=_TYPES[tensor.datatype]) for tensor in OUTPUTS],
        dynamic_batching=config_pb.ModelDynamicBatching(),
    )


def write_statistics(metrics: Metrics, version: str) -> pb.ModelStatistics:
    """Return statistics since the server started, read from the metrics."""
    calls = {
        key: n for key, n in _values(metrics.requests, "_total", "method", "code").items() if key[0] in _UNARY_METHODS
    }
    answered = sum(n for (_, code), n in calls.items() if code == "OK")
    seconds = _values(metrics.request_seconds, "_sum", "method")
    texts = _values(metrics.texts, "_total", "method")
    counts = _values(metrics.stage_seconds, "_count", "stage")
    sums = _values(metrics.stage_seconds, "_sum", "stage")
    stages = {stage: _duration(count, sums[stage,]) for (stage,), count in counts.items()}
    return pb.ModelStatistics(
        name=MODEL,
        version=version,
        inference_count=int(sum(texts.values())),
        execution_count=stages["infer"].count,
        inference_stats=pb.InferStatistics(
            success=_duration(answered, sum(seconds.get((method,), 0) for method in _UNARY_METHODS)),
            fail=_duration(sum(calls.values()) - answered, 0),
            queue=stages["queue"],
            compute_input=stages["tokenize"],
            compute_infer=stages["infer"],
            compute_output=stages["decode"],
        ),
    )


def write_index(
    checkpoints: Iterable[Checkpoint], aliases: Aliases, live: str, *, only_ready: bool
) -> pb.RepositoryIndexResponse:
    """Return the repository index. The checkpoint with the id *live* is ready."""
    response = pb.RepositoryIndexResponse()
    for checkpoint in checkpoints:
        if checkpoint.id == live:
            response.models.add(name=MODEL, version=checkpoint.id, state="READY")
        elif not only_ready:
            names = aliases.names_of(checkpoint.id)
            alias_note = f" ({', '.join(names)})" if names else ""
            reason = f"in the store{alias_note}, not live; to promote it, call RepositoryModelLoad with this id as model_name"
            response.models.add(name=MODEL, version=checkpoint.id, state="UNAVAILABLE", reason=reason)
    return response


def check_repository(name: str) -> None:
    """Raise UnknownNameError unless *name* is empty."""
    if name:
        raise UnknownNameError(f"repository_name: unknown repository {name[:100]!r}; leave it empty for the store")


def read_load(request: pb.RepositoryModelLoadRequest) -> str:
    """Return the id or alias of the checkpoint to promote. Raises UnknownNameError or InvalidRequestError."""
    check_repository(request.repository_name)
    parameters: Mapping[str, pb.ModelRepositoryParameter] = request.parameters
    message = "is not supported: a checkpoint is loaded as it was published; leave it out"
    unsupported = (Violation(f"parameters[{name[:100]!r}]", message) for name in parameters if name != "version")
    violations = list(itertools.islice(unsupported, MAX_VIOLATIONS))
    version = parameters["version"].string_param if "version" in parameters else ""
    if "version" in parameters and not version:
        violations.append(
            Violation("parameters['version']", "is empty or not a string; use the id or alias of a checkpoint")
        )
    if version and request.model_name != MODEL:
        violations.append(
            Violation(
                "model_name", f"{request.model_name[:100]!r} is set in addition to parameters['version']; use {MODEL!r}"
            )
        )
    if not version and request.model_name in {"", MODEL}:
        violations.append(
            Violation(
                "model_name",
                f'{request.model_name!r} is not a checkpoint; use an id or alias, such as "candidate"',
            )
        )
    raise_if_invalid(violations)
    return version or request.model_name


def _values(metric: Counter | Histogram, suffix: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return a metric's values by its labels."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name == family.name + suffix
    }


def _duration(count: float, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=int(count), ns=round(seconds * 1e9))
