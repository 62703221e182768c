"""A whole cell on a small world: a sequence of two steps, judged from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from support import exact_scorer, tiny_models
from support.benchmark_runs import TINY_RATES, cell
from twofold_checkpoint.examples import Example, write_examples

from benchmarks.adaptation.classic_methods import ROWS
from benchmarks.adaptation.hyperparameters import Rates
from benchmarks.adaptation.measurement import Run, measure, peak_memory_mib
from benchmarks.adaptation.method_interface import Adapted, Student
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
def run(tmp_path: Path, base: Callable[[], Student]) -> Run:
    """A cell of two steps: restaurants, and then the same again."""
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
    return Run(
        scenario=msgspec.convert(scenario, Scenario),
        row=ROWS["rehearsal"],
        student=base(),
        root=root,
        size=choose_size("full", choose_size("standard", None).step),
        scorer=Scorer(Path(exact_scorer.__file__)),
        work=tmp_path / "work",
        seed=0,
        rates=Rates(**TINY_RATES),
    )


def test_a_sequence_is_measured_step_by_step(run: Run) -> None:
    """Each step begins where the one before ended, and earlier steps are judged again after later ones."""
    first, second = measure(run)
    assert first.protected.after == second.protected.before
    assert first.retained.after == second.retained.before
    assert second.new.before > 0.5  # The second step's texts are like the first one's.
    assert first.new.before < first.new.after
    assert first.earlier == {}
    assert second.earlier.keys() == {"step 1"}
    assert set(first.strict) == {"new", "retained"}
    assert first.seconds > 0
    assert peak_memory_mib() > 100
    measured = msgspec.structs.replace(cell("restaurants", "rehearsal"), steps=(first, second))
    assert summarise(measured).protected.after == pytest.approx(100 * second.protected.after)


def test_a_row_that_does_nothing_changes_nothing(run: Run) -> None:
    """Scores before and after are the same, no answer flips, and what a row notes is kept."""
    noted = {"logit_diff": 0.0}
    found = measure(Run(**{**fields(run), "row": lambda student, task: Adapted(student, "pass", noted)}))
    for step in found:
        assert step.protected.before == step.protected.after > 0.5
        assert step.retained.loss == step.new.loss == 0
        assert (step.negative_flips, step.positive_flips, step.changed) == (0, 0, 0)
        assert (step.verdict, step.more) == ("pass", noted)


def test_types_that_nobody_looked_for_do_not_count(run: Run) -> None:
    """An old type found in new texts is no mistake, unless one is strict."""
    (first, _) = measure(Run(**{**fields(run), "row": lambda student, task: Adapted(student)}))
    assert first.new.after >= first.strict["new"].after


def fields(run: Run) -> dict:
    """Return a run's fields by name."""
    return {name: getattr(run, name) for name in run.__dataclass_fields__}
