"""Whole jobs: what each freeze mode changes, what it rejects, and how it ends."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_models
from trainer.conftest import MakeJob
from twofold_checkpoint.checkpoint import GRAPH, GRAPH_WEIGHTS, MEMORY, TRAINING_WEIGHTS, Checkpoint
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.manifest import Branch, HeadName
from twofold_checkpoint.memory import normalize_text, read_memory
from twofold_checkpoint.protocol.events import (
    DatasetDescribed,
    Event,
    ExactVerified,
    Finished,
    FrozenVerified,
    GateEvaluated,
    GuardChecked,
    NoteAdded,
    ParityMeasured,
    PhaseStarted,
    PlanMade,
    Published,
    ScoreMeasured,
    StepCompleted,
)
from twofold_checkpoint.protocol.job import PHASES, SERVER_PHASES, Exact, Hyperparameters, Statistical
from twofold_checkpoint.store import Store
from twofold_trainer import adapt as run_module
from twofold_trainer.adapt import run_job
from twofold_trainer.errors import GraftError
from twofold_trainer.planning.plan import make_plan
from twofold_trainer.planning.stages import training_encodings
from twofold_trainer.stop import StopSignal

pytestmark = pytest.mark.slow

QUICK = Hyperparameters(epochs=4, backbone_learning_rate=1e-3, head_learning_rate=1e-2)


PROBE = Hyperparameters(epochs=20, head_learning_rate=3e-2, patience=20)


def phases(events: Iterable[Event]) -> list[str]:
    """Return the names of the phases in order."""
    return [event.phase for event in events if isinstance(event, PhaseStarted)]


def figures(events: Iterable[Event], moment: str) -> dict[str, float]:
    """Return the scores of one moment, without the dev scores."""
    return {
        event.figure: event.value
        for event in events
        if isinstance(event, ScoreMeasured) and event.moment == moment and event.figure != "dev"
    }


def single(events: Iterable[Event], kind: type[Event]):
    """Return the only event of a type."""
    (actual,) = (event for event in events if isinstance(event, kind))
    return actual


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights."""
    return load_file(checkpoint.path / TRAINING_WEIGHTS)


def store_is_as_it_was(store: Store) -> bool:
    """Return whether the store contains only its one checkpoint and nothing unfinished."""
    aliases = store.aliases()
    return len(store.list()) == 1 and aliases.candidate is None and not list((store.root / "staging").iterdir())


def test_two_adaptations_in_a_row(make_job: MakeJob, store: Store) -> None:
    """NER learns a new type, then the classifier two new labels; each time old rows, their order and frozen bytes stay."""
    base = store.get("current")
    first_events, first_end = tiny_models.ending(run_job(make_job("ner", freeze="backbone", hyperparameters=PROBE)))
    assert first_end.outcome == "succeeded", first_end.reason
    first = store.get(single(first_events, Published).checkpoint_id)
    second_events, second_end = tiny_models.ending(
        run_job(
            make_job(
                "classifier",
                base=first.id,
                freeze="head",
                hyperparameters=QUICK,
                protection=Statistical(margin=20),
                retained_margin=30.0,
            )
        )
    )
    assert second_end.outcome == "succeeded", second_end.reason
    assert not [note for note in notes([*first_events, *second_events]) if "exported" in note.message]
    second = store.get(single(second_events, Published).checkpoint_id)
    second.verify()

    assert single(first_events, PlanMade).added_labels == ("people",)
    assert first.manifest.labels.entity_types == ("artist", "city", "date", "people")
    assert first.manifest.labels.labels == base.manifest.labels.labels
    assert second.manifest.labels.labels == ("alarm", "flight", "music", "weather", "recipe", "taxi")
    assert second.manifest.labels.entity_types == first.manifest.labels.entity_types
    assert [example.manifest.parent for example in (base, first, second)] == [None, base.id, first.id]

    for events, head in ((first_events, "ner"), (second_events, "classifier")):
        assert phases(events) == [
            name for name in PHASES if name not in SERVER_PHASES and (name != "train" or head == "classifier")
        ]
        before, after = figures(events, "before"), figures(events, "after")
        assert set(before) == set(after) == {"protected", "retained", "new"}
        assert after["new"] > before["new"] + 0.1
        assert single(events, ParityMeasured).max_error <= 1e-4
        assert single(events, GateEvaluated).verdict == "pass"
        compared = single(events, GateEvaluated).comparisons[0]
        assert 0 < compared.calibration_before < 1
        assert (compared.calibration_before == compared.calibration_after) == (head == "ner")
        assert isinstance(events[-1], Finished)
    assert figures(first_events, "after")["protected"] == figures(first_events, "before")["protected"]

    olds, news = weights(base), weights(first)
    assert {name for name in olds if not torch.equal(olds[name], news[name][: len(olds[name])])} <= {
        "ner.weight",
        "ner.bias",
    }
    assert single(first_events, FrozenVerified).parameters == len(olds) - 2
    olds, news = weights(first), weights(second)
    assert all(torch.equal(olds[name], news[name]) for name in ("ner.weight", "ner.bias"))
    moved = {name for name in olds if name.startswith("backbone.") and not torch.equal(olds[name], news[name])}
    assert moved
    assert single(second_events, FrozenVerified).parameters == 3  # The NER head and the token embeddings.

    memories = [read_memory(checkpoint.path / MEMORY) for checkpoint in (base, first, second)]
    for old, new in itertools.pairwise(memories):
        for part in ("rehearsal", "dev", "gate"):
            texts = {
                name: {normalize_text(example.text) for example in getattr(new, name)}
                for name in ("rehearsal", "dev", "gate")
            }
            assert {normalize_text(example.text) for example in getattr(old, part)} < texts.pop(part)
            assert not {normalize_text(example.text) for example in getattr(old, part)} & set.union(*texts.values())
    assert store.aliases().current == base.id


@pytest.mark.parametrize("head", ["ner", "classifier"])
@pytest.mark.parametrize(
    ("freeze", "protection", "unfrozen", "moving"),
    [
        ("backbone", Statistical(), None, 0),
        ("head", Statistical(), 1, 1),
        ("head", Statistical(), None, 3),
        ("staged", Statistical(), None, 3),
    ],
)
def test_frozen_tensors_stay_frozen(
    *,
    head: str,
    freeze: str,
    protection: object,
    unfrozen: int | None,
    moving: int,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every mode the frozen tensors keep their digests, and only the adapted head and the unfrozen blocks change."""
    # Every stage shall be kept here, so that what it may move is seen to move.
    monkeypatch.setattr("twofold_trainer.training.loop._undo_reason", lambda *_: None)
    monkeypatch.setattr("twofold_trainer.training.loop.restore", lambda *_: None)
    settings = msgspec.structs.replace(QUICK, epochs=1, unfrozen_blocks=unfrozen)
    events = tiny_models.until(make_job(head, freeze=freeze, protection=protection, hyperparameters=settings), "export")
    proof = single(events, FrozenVerified)

    in_block, embeddings, heads = 16, 5, 2
    free = heads + moving * in_block + (embeddings - 1 if moving == 3 else 0)
    assert proof.digest_before == proof.digest_after
    assert proof.parameters == embeddings + 3 * in_block + 2 * heads - free


def test_rejected_when_the_protected_task_breaks(
    make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ruins the protected task is REJECTED with figures, and nothing is published."""
    # Without what undoes a bad stage: the gate alone stands here.
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0)
    monkeypatch.setattr("twofold_trainer.training.stage_factory.Guard", lambda *_: None)
    monkeypatch.setattr("twofold_trainer.training.loop.restore", lambda *_: None)
    rough = Hyperparameters(epochs=6, backbone_learning_rate=2e-2, head_learning_rate=2e-2, rehearsal_ratio=0.0)
    events, end = tiny_models.ending(run_job(make_job("ner", freeze="head", hyperparameters=rough)))

    assert end.outcome == "rejected"
    assert "the protected score fell by" in end.reason
    assert "more than the margin of 1" in end.reason
    assert single(events, GateEvaluated).verdict == "fail"
    before, after = figures(events, "before"), figures(events, "after")
    assert after["protected"] < before["protected"] - 0.01
    assert not any(isinstance(event, Published) for event in events)
    assert store_is_as_it_was(store)


ADAPTS = Hyperparameters(epochs=6, backbone_learning_rate=3e-3, head_learning_rate=1e-2)


@pytest.mark.parametrize(
    ("head", "requested", "blocks"), [("classifier", None, 3), ("classifier", 2, 2), ("ner", None, 3), ("ner", 1, 1)]
)
def test_auto_forks_if_the_margin_cannot_be_proven(
    make_job: MakeJob,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    head: HeadName,
    requested: int | None,
    blocks: int,
) -> None:
    """If the margin cannot be proven, AUTO forks all blocks, or as many as requested, and no protected bit or answer changes."""
    settings = msgspec.structs.replace(ADAPTS, unfrozen_blocks=requested)
    # How much so small a model gains from its own blocks is chance; here they are kept.
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0)
    base = store.get("current")
    events, end = tiny_models.ending(run_job(make_job(head, hyperparameters=settings, retained_margin=30.0)))
    assert end.outcome == "succeeded", end.reason
    forked = store.get(single(events, Published).checkpoint_id)

    assert "cannot prove a margin below" in end.reason
    assert f"so the {head} head got a " in end.reason
    assert forked.manifest.branch == Branch(head=head, blocks=blocks)
    assert phases(events) == [name for name in PHASES if name not in SERVER_PHASES]
    assert single(events, FrozenVerified).parameters == len(weights(base)) - 2
    exact = single(events, ExactVerified)
    assert exact.texts >= 60
    assert exact.max_error <= 1e-5
    before, after = figures(events, "before"), figures(events, "after")
    assert after["protected"] == before["protected"]
    assert after["new"] > before["new"]


def test_auto_that_forks_at_once_is_exact(make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a shared backbone could prove nothing, AUTO equals EXACT: no guard runs, and the weights have the same bytes."""
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0)
    ended = {}
    for name, protection in {"auto": Statistical(), "exact": Exact()}.items():
        job = make_job("ner", id=name, hyperparameters=ADAPTS, protection=protection, retained_margin=90.0)
        plan = make_plan(job)
        assert not any(stage.moves_protected for stage in plan.all_stages)
        events, end = tiny_models.ending(run_job(job))
        assert end.outcome == "succeeded", end.reason
        ended[name] = weights(store.get(single(events, Published).checkpoint_id))
    assert ended["auto"].keys() == ended["exact"].keys()
    assert all(torch.equal(tensor, ended["exact"][name]) for name, tensor in ended["auto"].items())


def test_after_a_fork_each_head_adapts_without_touching_the_other(
    make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked head retrains its own blocks, and then the other head trains its own; each time the other path is unchanged."""
    # Every stage shall be kept here, so that what it may move is seen to move.
    monkeypatch.setattr("twofold_trainer.training.loop._undo_reason", lambda *_: None)
    monkeypatch.setattr("twofold_trainer.training.loop.restore", lambda *_: None)
    names = {"base": store.get("current").id}
    upper = msgspec.structs.replace(ADAPTS, unfrozen_blocks=2)  # The block below them stays everybody's.
    jobs = [
        ("first", {"head": "ner"}),
        (
            "second",
            {"head": "ner", "train": tiny_models.restaurant(60, seed=21), "dev": tiny_models.restaurant(60, seed=22)},
        ),
        ("third", {"head": "classifier"}),
    ]
    last = "base"
    for name, settings in jobs:
        events, end = tiny_models.ending(
            run_job(
                make_job(**settings, base=names[last], hyperparameters=upper, protection=Exact(), retained_margin=20.0)
            )
        )
        assert end.outcome == "succeeded", end.reason
        assert single(events, ExactVerified).max_error <= 1e-5
        names[name] = single(events, Published).checkpoint_id
        last = name

    loaded = {name: weights(store.get(checkpoint_id)) for name, checkpoint_id in names.items()}

    def moved(old: str, new: str) -> set[str]:
        shared = loaded[old].keys() & loaded[new].keys()
        return {
            name.split(".")[0]
            for name in shared
            if not torch.equal(loaded[old][name], loaded[new][name][: len(loaded[old][name])])
        }

    assert {store.get(names[name]).manifest.branch for name in ("first", "second", "third")} == {
        Branch(head="ner", blocks=2)
    }
    assert moved("base", "first") == {"ner"}
    assert moved("first", "second") <= {"branch", "ner"}
    assert "branch" in moved("first", "second")
    assert moved("second", "third") == {"backbone", "classifier"}
    trunk = [name for name in loaded["base"] if name.startswith(("backbone.embeddings.", "backbone.encoder.layer.0."))]
    assert len(trunk) == 5 + 16
    assert all(torch.equal(loaded["base"][name], loaded["third"][name]) for name in trunk)


def test_unrehearsed_texts_are_not_encoded(make_job: MakeJob, store: Store) -> None:
    """Remembered texts without annotations for the adapted head are rehearsed only where shared blocks train."""
    events, _ = tiny_models.ending(run_job(make_job("classifier", freeze="backbone", hyperparameters=PROBE)))
    job = make_job("ner", base=single(events, Published).checkpoint_id, protection=Exact())
    shared_request = msgspec.structs.replace(job.request, freeze="head", protection=Statistical())
    exact, shared = make_plan(job), make_plan(msgspec.structs.replace(job, request=shared_request))
    teaching = [target for target in exact.rehearsed if target.has_labels_for("ner")]

    assert 0 < len(teaching) < len(exact.rehearsed)
    for plan, rehearsed in ((exact, teaching), (shared, shared.rehearsed)):
        assert training_encodings(plan.all_stages) == [target.encoding for target in (*plan.new, *rehearsed)]


def test_losses_are_counted_from_the_approved_checkpoint(make_job: MakeJob, store: Store) -> None:
    """After an unapproved adaptation, the gate also compares with the approved checkpoint, and says so."""
    first_events, _ = tiny_models.ending(run_job(make_job("ner", freeze="backbone", hyperparameters=PROBE)))
    approved, first = store.get("approved"), single(first_events, Published).checkpoint_id
    job = make_job(
        "ner",
        base=first,
        freeze="head",
        hyperparameters=QUICK,
        protection=Statistical(margin=60),
        retained_margin=100.0,
    )
    events, _ = tiny_models.ending(run_job(job))

    judged = single(events, GateEvaluated)
    assert approved.id == store.get("current").id != first
    assert [compared.against for compared in judged.comparisons] == ["base", "approved"]
    assert len({compared.examples for compared in judged.comparisons}) == 1


def test_auto_keeps_a_shared_backbone_that_passes(
    make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a provable margin, AUTO trains shared blocks under the guard, and says why it kept or left them."""
    monkeypatch.setattr("twofold_trainer.protection.guard.EARLY_EVERY", 2)
    job = make_job("ner", hyperparameters=ADAPTS, protection=Statistical(margin=40), retained_margin=100.0)
    events, end = tiny_models.ending(run_job(job))

    assert end.outcome == "succeeded", end.reason
    assert any(isinstance(event, GuardChecked) for event in events)
    shared = store.get(single(events, Published).checkpoint_id).manifest.branch is None
    assert ("the shared backbone passed the gate" in end.reason) == shared


def test_auto_gives_a_ruined_backbone_up(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard undoes shared blocks that a ruinous learning rate broke, and the following fork leaves the protected score alone."""
    monkeypatch.setattr("twofold_trainer.protection.guard.EARLY_EVERY", 2)
    rough = Hyperparameters(epochs=6, backbone_learning_rate=0.2, head_learning_rate=2e-2, rehearsal_ratio=0.0)
    events = tiny_models.until(make_job("ner", hyperparameters=rough, protection=Statistical(margin=40)), "export")

    actions = [event.action for event in events if isinstance(event, GuardChecked)]
    assert "restore" in actions
    assert any("Abandoned the shared backbone" in note.message for note in notes(events))
    assert figures(events, "before")["protected"] == figures(events, "after")["protected"]


@pytest.mark.parametrize("head", ["ner", "classifier"])
def test_replaced_labels_are_forgotten(head: str, make_job: MakeJob, store: Store) -> None:
    """REPLACE keeps only the new names, measures no retained score, and removes old annotations from the memory."""
    base = store.get("current").manifest.labels
    events, end = tiny_models.ending(
        run_job(make_job(head, label_policy="replace", freeze="backbone", hyperparameters=PROBE))
    )
    assert end.outcome == "succeeded", end.reason
    checkpoint = store.get(single(events, Published).checkpoint_id)
    memory = read_memory(checkpoint.path / MEMORY)
    labels = checkpoint.manifest.labels

    assert set(figures(events, "after")) == {"protected", "new"}
    if head == "ner":
        assert labels.labels == base.labels
        assert set(labels.entity_types) == set(single(events, PlanMade).added_labels)
        assert "artist" not in labels.entity_types
        assert not any(span.type == "artist" for example in memory.rehearsal for span in example.entities or ())
    else:
        assert labels.entity_types == base.entity_types
        assert labels.labels == ("recipe", "taxi") == single(events, PlanMade).added_labels
        assert {example.label for example in memory.rehearsal} == {None, "recipe", "taxi"}


def notes(events: Iterable[Event]) -> list[NoteAdded]:
    """Return the notes."""
    return [event for event in events if isinstance(event, NoteAdded)]


def test_measuring_only(make_job: MakeJob, store: Store) -> None:
    """FREEZE_ALL reports the three scores of the base; it trains and publishes nothing."""
    events, end = tiny_models.ending(run_job(make_job("ner", freeze="all")))

    assert end.outcome == "succeeded"
    assert phases(events) == ["validate", "baseline"]
    assert set(figures(events, "before")) == {"protected", "retained", "new"}
    assert store_is_as_it_was(store)


def test_validating_only(make_job: MakeJob, store: Store) -> None:
    """A dry run describes the data and the plan, resolves all hyperparameters, and estimates the cost and the provable margin."""
    events, end = tiny_models.ending(
        run_job(make_job("classifier", validate_only=True, dev=tiny_models.intents(40, seed=8)))
    )

    assert end.outcome == "succeeded"
    assert phases(events) == ["validate"]
    described = single(events, DatasetDescribed)
    assert described.label_counts.keys() == {"recipe", "taxi"}
    assert described.dev_examples + described.gate_examples >= 35
    assert single(events, PlanMade).added_labels == ("recipe", "taxi")
    assert single(events, PlanMade).hyperparameters.epochs
    notes = "\n".join(event.message for event in events if isinstance(event, NoteAdded))
    assert re.search(r"takes about [1-9]\d* seconds and [1-9]\d+ MiB", notes)
    assert re.search(r"With \d+ protected examples, the smallest margin .* is \d+\.\d points", notes)
    assert not any(isinstance(event, StepCompleted) for event in events)
    assert store_is_as_it_was(store)


OSLO = (Span(start=3, end=7, type="city"),)


UNSCORED = "so no score covers it; add dev examples."


@pytest.mark.parametrize(
    ("head", "dev", "missing"),
    [
        ("ner", tiny_models.restaurant(40, seed=8), None),
        ("ner", [example for example in tiny_models.examples(40, seed=8) if example.label == "weather"], "people"),
        ("classifier", tiny_models.examples(40, seed=8), "recipe, taxi"),
        ("classifier", [intent for intent in tiny_models.intents(40, seed=8) if intent.label == "taxi"], "recipe"),
    ],
)
def test_new_names_without_held_out_examples_are_reported(
    make_job: MakeJob, head: str, dev: list[Example], missing: str | None
) -> None:
    """A warning names new labels without held-out examples, because no score would show whether they were learned."""
    events, _ = tiny_models.ending(run_job(make_job(head, validate_only=True, dev=dev)))

    message = [
        event.message
        for event in events
        if isinstance(event, NoteAdded) and event.warning and "no score covers" in event.message
    ]
    assert message == ([] if missing is None else [f"No held-out example has {missing}, {UNSCORED}"])


@pytest.mark.parametrize(
    ("head", "settings", "reason"),
    [
        ("ner", {"protection": Exact(), "freeze": "head"}, "exact protection excludes freeze mode 'head'"),
        ("ner", {"protection": Exact(), "freeze": "staged"}, "use freeze mode 'backbone' or 'auto'"),
        ("ner", {"protection": Statistical(margin=-1)}, "protection.margin: -1 must be from 0 to 100"),
        ("ner", {"label_policy": "fixed"}, "the entity type 'people' is new"),
        ("classifier", {"label_policy": "fixed"}, "the label 'recipe' is new"),
        ("classifier", {"train": [Example(text="in Oslo", entities=OSLO)]}, "no training example has label"),
        ("ner", {"train": [Example(text="in Oslo", label="x")]}, "no training example has entities"),
        ("ner", {"annotated_types": ("date",)}, "of type 'people', which is not listed"),
        ("ner", {"hyperparameters": Hyperparameters(epochs=0)}, "epochs: 0 must be at least 1 and at most 1000"),
        ("ner", {"hyperparameters": Hyperparameters(head_learning_rate=0.0)}, "0 must be above 0 and at most 1"),
        ("ner", {"hyperparameters": Hyperparameters(repair=float("nan"))}, "hyperparameters.repair: nan must be"),
        ("ner", {"max_runtime": 0.0}, "max_runtime: 0 s must be above 0"),
        ("ner", {"seed": -1}, "seed: -1 is negative"),
        ("ner", {"base": "nothing"}, "there is no checkpoint 'nothing'"),
        ("ner", {"train": [Example(text=" ")]}, "train.jsonl:1: text: is empty"),
    ],
)
def test_refused_in_validation(head: str, settings: dict, reason: str, make_job: MakeJob, store: Store) -> None:
    """A job that cannot be trained fails in the first phase with a sentence that names the cause."""
    events, end = tiny_models.ending(run_job(make_job(head, **settings)))

    assert end.outcome == "failed"
    assert reason in end.reason
    assert phases(events) == ["validate"]
    assert store_is_as_it_was(store)


def test_ignored_annotations_are_noted(make_job: MakeJob) -> None:
    """Notes count ignored examples, ignored annotations of the other head, and spans inside words."""
    given = [
        *tiny_models.restaurant(40),
        *tiny_models.intents(7),
        Example(text="fly to paris", label="flight", entities=(Span(start=7, end=10, type="city"),)),
    ]
    events, _ = tiny_models.ending(run_job(make_job("ner", train=given, validate_only=True)))
    notes = [event.message for event in events if isinstance(event, NoteAdded)]

    assert any("7 of 48 examples have no entities and were ignored" in note for note in notes)
    assert any("The label of 1 examples was not used" in note for note in notes)
    assert any("city 'par' in 'fly to paris'" in note for note in notes)
    assert single(events, DatasetDescribed).unaligned_annotations == 1


@pytest.mark.parametrize("phase", [*(name for name in PHASES if name not in {*SERVER_PHASES, "parity", "gate"})])
def test_cancelled_at_every_phase(phase: str, make_job: MakeJob, store: Store) -> None:
    """A job that is cancelled in any phase ends as cancelled and leaves the store unchanged."""
    stop = StopSignal()
    events: list[Event] = []
    for event in run_job(make_job("ner", freeze="head", hyperparameters=QUICK), stop):
        events.append(event)
        if isinstance(event, PhaseStarted) and event.phase == phase:
            stop.cancel()

    end = events[-1]
    assert isinstance(end, Finished)
    assert end.outcome == "cancelled"
    assert store_is_as_it_was(store)


def test_time_over_judges_the_best_so_far(make_job: MakeJob) -> None:
    """A job that runs out of time is evaluated in its best state, and does not fail."""
    events = tiny_models.until(make_job("ner", max_runtime=0.5, hyperparameters=Hyperparameters(epochs=1000)), "export")

    assert phases(events)[-1] == "evaluate"
    assert not any(isinstance(event, Finished) for event in events)


def test_a_surprise_ends_with_a_sentence(make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error ends the job as failed, with its type and message in one line, and leaves nothing unfinished."""

    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("disk\nfull")

    monkeypatch.setattr("twofold_trainer.export.publish.write_candidate", explode)
    _, end = tiny_models.ending(run_job(make_job("ner", freeze="backbone", hyperparameters=QUICK)))

    assert (end.outcome, end.reason) == ("failed", "RuntimeError: disk full.")
    assert store_is_as_it_was(store)


def test_the_same_job_twice_trains_the_same(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same job gives byte-identical weights."""
    seen = []
    monkeypatch.setattr(run_module, "make_candidate", lambda plan, *_: seen.append(plan.model.state_dict()))
    for _ in range(2):
        tiny_models.until(make_job("ner", freeze="head", hyperparameters=QUICK), "export")

    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


@pytest.mark.parametrize("failing", ["graft", "parity"])
def test_a_graph_that_cannot_be_used_again_is_exported(
    failing: str, make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the base's graph cannot be reused or gives other results, the model is exported, and a note says so."""

    def refuse(*_: object) -> None:
        raise GraftError("it is too old")

    def copy_the_base(base: Path, _: object, __: object, directory: Path) -> None:
        for name in (GRAPH, GRAPH_WEIGHTS):
            shutil.copy(base / name, directory / name)

    monkeypatch.setattr("twofold_trainer.export.publish.graft", refuse if failing == "graft" else copy_the_base)
    events, end = tiny_models.ending(run_job(make_job("ner", freeze="backbone", hyperparameters=PROBE)))

    assert end.outcome == "succeeded", end.reason
    [note] = [example.message for example in notes(events) if "exported" in example.message]
    assert ("it is too old" if failing == "graft" else "the shapes of the exported graph") in note
    assert phases(events)[-4:] == ["evaluate", "export", "parity", "gate"]
