"""One adaptation job from start to end: plan, train, evaluate, export, gate and publish."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from twofold_checkpoint.checkpoint import TRAINING_WEIGHTS
from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import other_head
from twofold_checkpoint.protocol.events import Event, ExactVerified, Finished, PhaseStarted
from twofold_checkpoint.protocol.job import SNAPSHOTS, TrainerJob
from twofold_checkpoint.store import Store

from twofold_trainer.errors import CancelledError, RejectedError, TrainerError
from twofold_trainer.evaluation.evaluator import JobEvaluator, Scores, join_scores
from twofold_trainer.evaluation.findings import directory_of, leave_findings, may_store_text, redact
from twofold_trainer.evaluation.gate import GateResult
from twofold_trainer.evaluation.label_collisions import describe_collisions, find_collisions
from twofold_trainer.evaluation.verdict import evaluate_candidate, gate_event
from twofold_trainer.export.exactness import verify_exact
from twofold_trainer.export.memory import update_memory
from twofold_trainer.export.publish import Candidate, provenance, publish_candidate
from twofold_trainer.modeling.freezing import head_names, is_untouched, verify_frozen
from twofold_trainer.planning.estimate import describe_estimate
from twofold_trainer.planning.plan import Plan, make_plan
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.snapshots import ResumeSnapshots, training_digest
from twofold_trainer.training.stages import StagesResult
from twofold_trainer.training.train import train

log = logging.getLogger(__name__)


def run_job(job: TrainerJob, stop: StopSignal | None = None) -> Iterator[Event]:
    """Run a job and yield its events; the last one is always Finished. Only a candidate that passes the gate is published."""
    try:
        yield from _adapt(job, stop or StopSignal())
    except CancelledError as cancelled:
        yield Finished(outcome="cancelled", reason=f"{cancelled}.")
    except RejectedError as rejected:
        yield Finished(outcome="rejected", reason=f"Not published: {rejected}.")
    except (TrainerError, CheckpointError) as error:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason=f"{error}.")
    except MemoryError:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason="the trainer ran out of memory; use a smaller batch_size.")
    except Exception as error:
        log.exception("the job failed")
        yield Finished(outcome="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}.")


def _adapt(job: TrainerJob, stop: StopSignal) -> Iterator[Event]:
    stop.set_deadline(job.request.max_runtime)
    yield PhaseStarted(phase="validate")
    plan = make_plan(job)
    yield from redact(plan, plan.events())
    if job.request.validate_only:
        yield from describe_estimate(plan)
        yield Finished(outcome="succeeded", reason=f"The job is valid. {plan.summary()}")
        return

    yield PhaseStarted(phase="baseline")
    evaluator = JobEvaluator(plan, stop)
    before = yield from evaluator.measure(plan.model, "before")
    yield from leave_findings(plan, evaluator, before)
    if job.request.freeze == "all":
        scores = ", ".join(f"{name} {100 * score.value:.1f}" for name, score in before.items() if score)
        yield Finished(outcome="succeeded", reason=f"Nothing was trained. Scores on held-out examples: {scores}.")
        return
    yield from _train_and_publish(plan, evaluator, before, stop)


def _train_and_publish(plan: Plan, evaluator: JobEvaluator, before: Scores, stop: StopSignal) -> Iterator[Event]:
    job, head = plan.job, plan.request.head
    approved = evaluator.score_approved(plan.approved_checkpoint())

    def evaluate_now() -> GateResult:
        return evaluate_candidate(plan, before, evaluator.score(plan.model, "after"), approved=approved)

    snapshots = ResumeSnapshots(directory_of(job) / SNAPSHOTS, training_digest(plan), job.snapshot_seconds)
    training = yield from train(plan, stop, evaluate_now, snapshots)
    trained = {*training.names, *head_names(plan.model, [head])}
    exact = is_untouched(plan.model, head, trained)

    yield PhaseStarted(phase="evaluate")
    yield verify_frozen(load_file(plan.base.path / TRAINING_WEIGHTS), plan.model.state_dict(), trained)
    after = yield from evaluator.measure(plan.model, "after")
    yield from leave_findings(plan, evaluator, before, after, approved=approved is not None)
    retained = evaluator.scorers["retained"]
    if collisions := find_collisions(head, retained.examples, evaluator.answers["after"]["retained"], plan.added):
        yield describe_collisions(collisions)

    def gate(staged: Path) -> Generator[Event, None, str]:
        if exact:
            yield _verify_protected(plan, staged, stop)
        yield PhaseStarted(phase="gate")
        was_trained = bool(training.completed_stages)
        result = evaluate_candidate(plan, before, after, approved=approved, trained=was_trained, exact=exact)
        yield gate_event(result, evaluator, quoting=may_store_text(plan))
        reason = f"{result.reason}; training ended because {training.reason}"
        if result.verdict != "pass":
            raise RejectedError(reason)
        return reason

    checkpoint, reason = yield from publish_candidate(
        make_candidate(plan, training, after),
        Store(job.store),
        plan.parts,
        plan.memory,
        stop,
        gate=gate,
        answered=evaluator.by_text("after"),
    )
    yield Finished(outcome="succeeded", reason=f"Published {checkpoint.id}: {reason}.")


def _verify_protected(plan: Plan, staged: Path, stop: StopSignal) -> ExactVerified:
    return verify_exact(
        plan.base.path,
        staged,
        plan.encoder.encode([example.text for example in (*plan.memory.gate, *plan.parts.gate)]),
        other_head(plan.request.head),
        (plan.base.manifest.labels, plan.labels),
        pad_id=plan.encoder.settings.pad_id,
        threads=torch.get_num_threads(),
        stop=stop,
    )


def make_candidate(plan: Plan, stages_result: StagesResult, after: Scores) -> Candidate:
    """Return the candidate with everything that its checkpoint stores."""
    request, manifest = plan.request, plan.base.manifest
    stages = " + ".join(trained.stage.name for trained in stages_result.completed_stages)
    return Candidate(
        model=plan.model,
        tokenizer=plan.base.tokenizer(),
        settings=manifest.encoder,
        labels=plan.labels,
        kept=update_memory(
            plan.remembers,
            plan.model,
            plan.encoder,
            memory=plan.memory,
            parts=plan.parts,
            seed=request.seed,
            statistics=plan.statistics,
        ),
        backbone=manifest.backbone,
        pooling=manifest.pooling,
        provenance=provenance(
            request.seed, plan.parts.train, plan.recipe, head=request.head, freeze=request.freeze, stages=stages
        ),
        scores=join_scores(after),
        base=plan.base,
        job_id=plan.job.id,
    )
