"""The training loop: determinism, the best state, undone stages, schedules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_models
from torch.utils._python_dispatch import TorchDispatchMode
from twofold_checkpoint.encoding import Encoder
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HEADS
from twofold_checkpoint.protocol.events import GuardChecked, NoteAdded, ScoreMeasured, StepCompleted
from twofold_trainer import recipe
from twofold_trainer.datasets.batching import TrainingPool
from twofold_trainer.datasets.targets import make_targets
from twofold_trainer.errors import CancelledError
from twofold_trainer.modeling.features import live
from twofold_trainer.modeling.freezing import digest, trainable_groups
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.planning.stage import Stage
from twofold_trainer.protection.guard import Guard
from twofold_trainer.scoring.scorer import Scorer
from twofold_trainer.stop import StopSignal
from twofold_trainer.training.dev_evaluator import DevEvaluator
from twofold_trainer.training.loop import StageRunner
from twofold_trainer.training.objective import Objective
from twofold_trainer.training.optimization import make_optimizer, make_schedule, make_stage_trainer
from twofold_trainer.training.progress import ProgressReporter
from twofold_trainer.training.stage_inputs import StageInputs
from twofold_trainer.training.stage_state import Best
from twofold_trainer.training.stages import train_stages

pytestmark = pytest.mark.slow

LABELS = LabelSet(labels=tuple(sorted(tiny_models.TEMPLATES)), entity_types=("artist", "city", "date"))
RECIPE = recipe.apply_hyperparameters(
    recipe.Hyperparameters(epochs=2, batch_size=16, backbone_learning_rate=1e-3),
    recipe.init_recipe(blocks=2, examples=60, hidden_size=32),
    blocks=2,
)

LEARNING = replace(RECIPE, epochs=4, batch_size=4, head_learning_rate=3e-2, backbone_learning_rate=3e-3)
"""Steps enough for random weights to learn something."""


class World:
    """A tiny model with its data."""

    def __init__(self, directory: Path, *, seed: int = 0) -> None:
        backbone = tiny_models.make_backbone("bert", directory)
        self.encoder = Encoder(backbone.tokenizer, backbone.settings)
        torch.manual_seed(seed)
        self.model = TwofoldModel(backbone.module, LABELS, "mean").eval()
        self.pool = TrainingPool(tuple(make_targets(tiny_models.examples(60), self.encoder, LABELS)))
        dev = tiny_models.examples(30, seed=5)
        self.dev_evaluator = DevEvaluator(tuple(Scorer(dev, head, self.encoder) for head in HEADS), LABELS)
        self.stop = StopSignal()

    def train(self, *, blocks: int = 2, seed: int = 0, settings: recipe.Recipe = RECIPE, guard: Guard | None = None):
        """Run a stage."""
        stage = self.stage(blocks, settings)
        inputs = StageInputs(self.pool, Objective(), live(self.model, 0), guard)
        return self.runner(seed).run(stage, inputs, ProgressReporter(stage.steps))

    def stage(self, blocks: int, settings: recipe.Recipe = RECIPE, *, number: int = 0) -> Stage:
        """Return a stage."""
        return Stage(HEADS, blocks, 2, settings, self.pool, number)

    def runner(self, seed: int = 0) -> StageRunner:
        """Return a stage runner."""
        return StageRunner(self.model, self.dev_evaluator, seed, self.stop)

    def guard(self, *, allowed: float) -> Guard:
        """Return a guard of the classifier, relative to its current score."""
        judge = self.dev_evaluator.scorers[0]
        return Guard(self.model, judge, LABELS, judge.score(self.model, LABELS).value, allowed)

    def digest(self) -> str:
        """Return the digest of all weights."""
        return digest(self.model.state_dict(), self.model.state_dict())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two trainings with the same seed give identical weights, including dropout and shuffling; another seed does not."""
    digests = []
    for number, seed in enumerate((3, 3, 4)):
        world = World(tmp_path / str(number))
        list(world.train(seed=seed, settings=LEARNING))
        digests.append(world.digest())

    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_a_stage_reports_and_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage scores before the first step and after each epoch, counts its steps, and improves the model."""
    monkeypatch.setattr("twofold_trainer.training.progress.REPORT_SECONDS", 0.0)
    world = World(tmp_path)
    events = list(world.train(settings=LEARNING))
    steps = [event for event in events if isinstance(event, StepCompleted)]
    scores = [event.value for event in events if isinstance(event, ScoreMeasured)]

    assert [event.step for event in steps] == list(range(1, 61))
    assert {event.total_steps for event in steps} == {60}
    assert steps[-1].remaining_seconds == 0.0
    assert len(scores) == 5
    assert isinstance(events[0], ScoreMeasured)
    assert world.dev_evaluator.measure(world.model, None).value == max(scores)
    assert max(scores) > scores[0]


def test_the_best_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every epoch lowers the dev score, the stage ends with the weights that it started with."""
    world = World(tmp_path)
    before = world.digest()
    values = iter([0.5, 0.4, 0.3])

    def measure(self, model, cache) -> ScoreMeasured:
        return ScoreMeasured(figure="dev", moment="during", metric="f1", value=next(values), examples=1)

    monkeypatch.setattr(DevEvaluator, "measure", measure)
    list(world.train())

    assert world.digest() == before


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.80, 0.82, 0.84], 2),
        ([0.80, 0.84, 0.83], 2),  # Dev cannot tell the last two apart.
        ([0.80, 0.84, 0.81], 1),
        ([0.80, 0.84, 0.825, 0.81], 2),  # It does not go down step by step: all are held against the best.
        ([0.80, 0.79, 0.75], 1),
        ([0.80, 0.75, 0.70], 0),
    ],
)
def test_the_latest_state_that_dev_cannot_tell_from_the_best_is_kept(scores: list[float], kept: int) -> None:
    """With a noise margin of two points, each state is compared with the best one so far, including the initial state."""
    states = [{"weight": torch.tensor(float(number))} for number in range(len(scores))]
    best = Best(scores[0], states[0], scores[0])
    for score, state in zip(scores[1:], states[1:], strict=True):
        best.update(score, state, passes=True, noise=0.02)

    assert (best.state, best.value) == (states[kept], scores[kept])
    assert best.best_accepted == max(scores[: kept + 1])


def test_rejected_states_do_not_raise_the_bar() -> None:
    """A state that the guard rejects does not prevent a later state from being kept."""
    first, wild, tame = ({"weight": torch.tensor(float(number))} for number in range(3))
    best = Best(0.5, first, 0.5)
    best.update(0.9, wild, passes=False, noise=0.02)
    best.update(0.6, tame, passes=True, noise=0.02)

    assert best.state is tame
    assert best.rejected == (0.9, wild)


def test_patience_ends_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage ends after as many scores without a gain as its patience allows."""
    world = World(tmp_path)
    seen = []

    def measure(self, model, cache) -> ScoreMeasured:
        seen.append(1)
        return ScoreMeasured(figure="dev", moment="during", metric="f1", value=0.5, examples=1)

    monkeypatch.setattr(DevEvaluator, "measure", measure)
    list(world.train(blocks=0, settings=replace(RECIPE, probe_epochs=9, patience=3)))

    assert len(seen) == 1 + 1 + 3


@pytest.mark.parametrize(("examples", "kept"), [(10, True), (50, True), (500, False)])
def test_few_examples_do_not_undo_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, examples: int, kept: bool
) -> None:
    """A stage that seems to lose 1.5 points keeps its state only if the examples are too few to tell."""
    world = World(tmp_path)
    world.dev_evaluator.scorers[0].examples = world.dev_evaluator.scorers[0].examples[:1] * examples
    before = world.digest()
    values = iter([0.9, 0.5, 0.885])

    def measure(self, model, cache) -> ScoreMeasured:
        return ScoreMeasured(figure="dev", moment="during", metric="f1", value=next(values), examples=examples)

    monkeypatch.setattr(DevEvaluator, "measure", measure)
    list(world.train())

    assert (world.digest() != before) == kept


def test_a_useless_stage_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that does not help is undone, and the result says why training ended."""
    world = World(tmp_path)
    monkeypatch.setattr("twofold_trainer.training.dev_evaluator.DevEvaluator.noise_margin", lambda *_: -2.0)
    stages = [world.stage(blocks, number=blocks) for blocks in (0, 1, 2)]
    inputs = StageInputs(world.pool, Objective(), live(world.model, 0))
    running = train_stages(world.runner(), stages, lambda _: inputs)
    digests = []
    try:
        while True:
            event = next(running)
            if isinstance(event, NoteAdded) and '"heads" was kept' in event.message:
                digests.append(world.digest())
    except StopIteration as done:
        stages_result = done.value

    assert [trained.stage.name for trained in stages_result.completed_stages] == ["heads"]
    assert world.digest() == digests[0]
    assert '"top block" did not improve the dev score' in stages_result.reason


def test_the_guard_restores_then_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first breach the best state is restored and training continues; at the second one the stage ends and is undone."""
    monkeypatch.setattr("twofold_trainer.protection.guard.EARLY_EVERY", 2)
    world = World(tmp_path)
    before = world.digest()
    running = world.train(guard=world.guard(allowed=-2.0))  # No score can be so good: each look is a breach.
    actions = []
    try:
        while True:
            event = next(running)
            if isinstance(event, GuardChecked):
                actions.append(event.action)
    except StopIteration as done:
        trained = done.value

    assert actions == ["restore", "leave"]
    assert world.digest() == before
    assert trained.undo_reason == "never passed the guard"


class Casts(TorchDispatchMode):
    """Counts the conversions of each tensor to another type."""

    def __init__(self, watched: torch.Tensor) -> None:
        super().__init__()
        self.watched = watched
        self.counted = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted += func is torch.ops.aten._to_copy.default and args[0] is self.watched
        return func(*args, **(kwargs or {}))


def test_a_step_casts_a_weight_once_for_all_its_batches(tmp_path: Path) -> None:
    """In mixed precision, the batches of a step share the casts of trained weights, and the next step casts them again."""
    world = World(tmp_path)
    inputs = StageInputs(world.pool, Objective(), live(world.model, 0))
    stage_trainer = make_stage_trainer(world.model, world.stage(2, replace(RECIPE, mixed_precision=True)), inputs)
    weight = max(world.model.blocks()[0].parameters(), key=torch.numel)
    before = weight.detach().clone()
    new = list(world.pool.new)

    for steps in (1, 2):
        with Casts(weight) as casts:
            for _ in range(steps):
                stage_trainer.step([new[:8], new[8:12]])
        assert casts.counted == steps
    assert not torch.equal(weight, before)


def test_an_unbreached_guard_changes_nothing(tmp_path: Path) -> None:
    """A guard without a breach changes nothing: the weights are those of an unguarded stage."""
    free, guarded = World(tmp_path / "a"), World(tmp_path / "b")
    list(free.train())
    list(guarded.train(guard=guarded.guard(allowed=1.0)))

    assert guarded.digest() == free.digest()


def test_cancelling_stops_between_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cancellation, no further step runs."""
    monkeypatch.setattr("twofold_trainer.training.progress.REPORT_SECONDS", 0.0)
    world = World(tmp_path)
    running = world.train()
    next(event for event in running if isinstance(event, StepCompleted))
    world.stop.cancel()

    with pytest.raises(CancelledError):
        next(running)


def test_time_is_a_named_stop(tmp_path: Path) -> None:
    """At the deadline a stage ends without an error, in its best state."""
    world = World(tmp_path)
    world.stop.set_deadline(0.0)
    events = list(world.train())

    assert not any(isinstance(event, StepCompleted) for event in events)
    assert len(events) == 2


def test_rates_rise_and_fall(tmp_path: Path) -> None:
    """Learning rates rise during the warm-up, then fall to zero, and are lower in lower blocks."""
    world = World(tmp_path)
    optimizer = make_optimizer(world.model, trainable_groups(world.model, HEADS, 2), world.stage(2))
    full = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
    top = RECIPE.backbone_learning_rate
    assert full == pytest.approx([RECIPE.head_learning_rate, *(top * RECIPE.layer_decay**depth for depth in range(3))])
    schedule = make_schedule(optimizer, 20, 0.1)
    factors = []
    for _ in range(20):
        factors.append(schedule.get_last_lr()[0] / RECIPE.head_learning_rate)
        optimizer.step()
        schedule.step()

    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert schedule.get_last_lr()[0] == 0.0
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups if group["params"][0].ndim == 1)
