"""A complete run on small data: a sequence of two steps, scored by a separate program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support import exact_scorer, tiny_models
from support.benchmark_runs import TINY_HYPERPARAMETERS, make_run
from twofold_checkpoint.examples import Example, write_examples

from benchmarks.adaptation.classic_methods import METHODS
from benchmarks.adaptation.hyperparameters import Hyperparameters
from benchmarks.adaptation.measurement import RunSetup, measure, peak_memory_mib
from benchmarks.adaptation.method_interface import AdaptationResult, Learner
from benchmarks.adaptation.scenarios import Scenario
from benchmarks.adaptation.scorer import Scorer
from benchmarks.adaptation.sizes import choose_size
from benchmarks.adaptation.summary import summarise

pytestmark = pytest.mark.slow


def lists(root: Path, name: str, examples: list[Example], use: list[str]) -> list[dict]:
    """Write a file and return a list of sources that takes it."""
    write_examples(root / f"{name}.jsonl", examples)
    return [{"file": f"{name}.jsonl", "use": use, "n": len(examples)}]


@pytest.fixture
def setup(tmp_path: Path, base: Callable[[], Learner]) -> RunSetup:
    """A run of two steps with similar data."""
    root = tmp_path / "sets"
    root.mkdir()
    steps = [
        {
            "name": f"step {number}",
            "train": lists(root, f"train-{number}", tiny_models.restaurant(48, seed=number), ["entities"]),
            "dev": [],
            "eval": lists(root, f"eval-{number}", tiny_models.restaurant(30, seed=number + 10), ["entities"]),
        }
        for number in (1, 2)
    ]
    test = tiny_models.examples(40, seed=5)
    scenario = {
        "name": "restaurants",
        "kind": "sequence",
        "protected_head": "classifier",
        "adapted_head": "ner",
        "label_space": "extend",
        "base": {"train": lists(root, "base", tiny_models.examples(160), ["label", "entities"]), "dev": []},
        "steps": steps,
        "eval": {
            "protected": lists(root, "protected", test, ["label"]),
            "retained": lists(root, "retained", test, ["entities"]),
        },
    }
    return RunSetup(
        scenario=msgspec.convert(scenario, Scenario),
        method=METHODS["rehearsal"],
        learner=base(),
        root=root,
        size=choose_size("full", choose_size("standard", None).step),
        scorer=Scorer(Path(exact_scorer.__file__)),
        work=tmp_path / "work",
        seed=0,
        hyperparameters=Hyperparameters(**TINY_HYPERPARAMETERS),
    )


def test_a_sequence_is_measured_step_by_step(setup: RunSetup) -> None:
    """Each step starts from the result of the step before, and earlier steps are scored again after later ones."""
    first, second = measure(setup)
    assert first.protected.after == second.protected.before
    assert first.retained.after == second.retained.before
    assert second.new.before > 0.5  # The second step's texts are like the first one's.
    assert first.new.before < first.new.after
    assert first.earlier == {}
    assert second.earlier.keys() == {"step 1"}
    assert set(first.strict) == {"new", "retained"}
    assert first.seconds > 0
    assert peak_memory_mib() > 100
    measured = msgspec.structs.replace(make_run("restaurants", "rehearsal"), steps=(first, second))
    assert summarise(measured).protected.after == pytest.approx(100 * second.protected.after)


def test_a_method_that_does_nothing_changes_nothing(setup: RunSetup) -> None:
    """Scores before and after are equal, no answer flips, and the method's details are stored."""
    details = {"logit_diff": 0.0}
    scores = measure(
        RunSetup(**{**fields(setup), "method": lambda learner, task: AdaptationResult(learner, "pass", details)})
    )
    for step in scores:
        assert step.protected.before == step.protected.after > 0.5
        assert step.retained.loss == step.new.loss == 0
        assert (step.negative_flips, step.positive_flips, step.changed) == (0, 0, 0)
        assert (step.verdict, step.details) == ("pass", details)


def test_types_without_annotation_do_not_count(setup: RunSetup) -> None:
    """An old type predicted in new texts is an error only in the strict score."""
    (first, _) = measure(RunSetup(**{**fields(setup), "method": lambda learner, task: AdaptationResult(learner)}))
    assert first.new.after >= first.strict["new"].after


def fields(setup: RunSetup) -> dict:
    """Return the fields of a setup by name."""
    return {name: getattr(setup, name) for name in setup.__dataclass_fields__}
