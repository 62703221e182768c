"""What a checkpoint stores (examples, statistics without text, or nothing), and the protection that each allows."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from support import tiny_models
from trainer.conftest import MakeJob
from twofold_checkpoint.checkpoint import MEMORY, STATISTICS, Checkpoint
from twofold_checkpoint.errors import CheckpointCorruptError
from twofold_checkpoint.examples import Example, write_examples
from twofold_checkpoint.golden import read_golden
from twofold_checkpoint.manifest import MemoryMode
from twofold_checkpoint.memory import Memory, read_memory
from twofold_checkpoint.protocol.events import Event, GateEvaluated, NoteAdded, Published
from twofold_checkpoint.protocol.job import Hyperparameters, Statistical
from twofold_checkpoint.store import Store
from twofold_trainer.adapt import run_job
from twofold_trainer.initial_training import train_initial_checkpoint
from twofold_trainer.protection.covariances import load_covariances

pytestmark = pytest.mark.slow

QUICK = Hyperparameters(epochs=2, backbone_learning_rate=1e-3, head_learning_rate=1e-2)
ANNOTATED_FOR_BOTH = [
    Example(text=f"{example.text} both", label="weather", entities=example.entities)
    for example in tiny_models.restaurant(60, seed=5)
]


@pytest.fixture(scope="module", params=["statistics", "none"])
def textless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryMode, Path]:
    """A store whose first checkpoint stores no text, and its memory mode. Tests do not change it."""
    root = tmp_path_factory.mktemp(request.param)
    write_examples(root / "train.jsonl", tiny_models.examples(120))
    backbone = tiny_models.save_backbone("bert", root / "backbone", layers=3)
    rates = Hyperparameters(epochs=2, head_learning_rate=2e-2)
    for _ in train_initial_checkpoint(
        train=str(root / "train.jsonl"),
        backbone=str(backbone),
        out=str(root / "store"),
        hyperparameters=rates,
        memory=request.param,
    ):
        pass
    return request.param, root / "store"


def adapted(events: Iterable[Event], store: Store) -> Checkpoint:
    """Return the checkpoint that a job published."""
    (published,) = (event for event in events if isinstance(event, Published))
    return store.get(published.checkpoint_id)


def holds_any(checkpoint: Checkpoint, texts: Iterable[str]) -> bool:
    """Return whether a file of a checkpoint contains one of the texts."""
    content = b"\n".join(path.read_bytes() for path in checkpoint.path.iterdir())
    return any(text.encode() in content for text in texts)


def test_no_text_is_stored(textless: tuple[MemoryMode, Path]) -> None:
    """No file of the checkpoint contains a training text, and its golden answers are of random texts."""
    mode, root = textless
    checkpoint = Store(root).get("current")

    assert checkpoint.manifest.memory == mode
    assert read_memory(checkpoint.path / MEMORY) == Memory()
    assert not holds_any(checkpoint, [example.text for example in tiny_models.examples(120)])
    assert len({answer.text for answer in read_golden(checkpoint.path / "golden.json")}) == 8
    assert (checkpoint.path / STATISTICS).exists() == (mode == "statistics")
    checkpoint.verify()


def test_examples_are_stored_where_they_may_be(store: Store) -> None:
    """The same search finds texts in a checkpoint that stores examples."""
    base = store.get("current")

    assert base.manifest.memory == "examples"
    assert holds_any(base, [example.text for example in tiny_models.examples(240)])


def test_auto_forks_where_nothing_can_be_proven(
    textless: tuple[MemoryMode, Path], make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without stored examples AUTO keeps the protected path's bytes, and the candidate keeps the memory mode of its base."""
    # A fork is to be seen, whatever it gains.
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: 1.0)
    mode, root = textless
    store = copy(root, tmp_path)
    job = make_job("ner", store=str(store.root), base=store.get("current").id, hyperparameters=QUICK)
    events, end = tiny_models.ending(run_job(job))

    assert "there are no held-out examples of the protected task" in end.reason
    candidate = adapted(events, store)
    assert candidate.manifest.memory == mode
    assert candidate.manifest.branch is not None
    assert not holds_any(candidate, [example.text for example in tiny_models.restaurant(80)])
    if mode == "statistics":
        before, after = (load_covariances(item.path / STATISTICS) for item in (store.get("current"), candidate))
        assert before.keys() == after.keys()
        assert all(after[name].count > before[name].count for name in before)


def test_a_shared_backbone_needs_somebody_to_judge_it(
    textless: tuple[MemoryMode, Path], make_job: MakeJob, tmp_path: Path
) -> None:
    """Held-out examples with annotations for both heads score the protected one; without them the job is inconclusive."""
    _, root = textless
    store = copy(root, tmp_path)
    verdicts = []
    for dev in (ANNOTATED_FOR_BOTH, tiny_models.restaurant(60, seed=5)):
        job = make_job(
            "ner",
            store=str(store.root),
            base=store.get("current").id,
            freeze="head",
            train=tiny_models.restaurant(80),
            dev=dev,
            hyperparameters=QUICK,
            protection=Statistical(margin=90),
            retained_margin=100.0,
        )
        events, _ = tiny_models.ending(run_job(job))
        (judged,) = (event for event in events if isinstance(event, GateEvaluated))
        verdicts.append((judged.verdict, bool(judged.comparisons)))
        helped = any(
            "held-out examples helps to judge" in event.message for event in events if isinstance(event, NoteAdded)
        )
        assert helped == (dev is ANNOTATED_FOR_BOTH)

    assert verdicts == [("pass", True), ("inconclusive", False)]


def test_a_job_may_change_the_memory_mode(make_job: MakeJob, store: Store) -> None:
    """A job may request another memory mode: from examples to none, and back to the job's own examples."""
    base = store.get("current")
    events, _ = tiny_models.ending(run_job(make_job("ner", freeze="backbone", memory="none", hyperparameters=QUICK)))
    forgetful = adapted(events, store)
    assert not holds_any(
        forgetful, [example.text for example in (*tiny_models.examples(240), *tiny_models.restaurant(80))]
    )

    job = make_job("ner", base=forgetful.id, freeze="backbone", memory="examples", hyperparameters=QUICK)
    events, _ = tiny_models.ending(run_job(job))
    remembered = read_memory(adapted(events, store).path / MEMORY)
    texts = {example.text for part in ("rehearsal", "dev", "gate") for example in getattr(remembered, part)}
    assert texts
    assert texts <= {example.text for example in (*tiny_models.restaurant(80), *tiny_models.restaurant(80, seed=7))}
    assert read_memory(base.path / MEMORY) != remembered


def test_damaged_statistics_are_detected(make_job: MakeJob, store: Store) -> None:
    """A checkpoint whose statistics have changed since it was published is rejected as a base."""
    events, _ = tiny_models.ending(
        run_job(make_job("ner", freeze="backbone", memory="statistics", hyperparameters=QUICK))
    )
    candidate = adapted(events, store)
    content = bytearray((candidate.path / STATISTICS).read_bytes())
    content[-1] ^= 1
    (candidate.path / STATISTICS).write_bytes(content)

    with pytest.raises(CheckpointCorruptError, match=r"statistics\.safetensors has changed"):
        candidate.verify()


def copy(root: Path, to: Path) -> Store:
    """Copy a store, so that a test may change it."""
    shutil.copytree(root, to / "copied")
    return Store(to / "copied")


def test_the_same_job_twice_gives_the_same_bytes(make_job: MakeJob, store: Store) -> None:
    """Seed, data and base determine every weight, whatever ran before in the process."""
    digests = []
    for _ in range(2):
        job = make_job("ner", freeze="head", hyperparameters=QUICK, protection=Statistical(margin=90))
        events, _ = tiny_models.ending(run_job(job))
        torch.rand(3)
        candidate = adapted(events, store)
        digests.append({file.name: file.sha256 for file in candidate.manifest.files})

    assert digests[0] == digests[1]
