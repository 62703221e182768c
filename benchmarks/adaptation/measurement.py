"""Measure one run in this process: adapt step by step, predict every test set, and score the predictions."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from twofold_checkpoint.manifest import HeadName

from benchmarks.adaptation.hyperparameters import Hyperparameters
from benchmarks.adaptation.method_interface import Learner, Method, Task
from benchmarks.adaptation.runs import StepScores
from benchmarks.adaptation.scenarios import Scenario, Sources, Step, gather
from benchmarks.adaptation.scorer import Scorer
from benchmarks.adaptation.sizes import Size
from benchmarks.adaptation.test_set import HeadTestSet


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """Hold what a run needs. *work* is a private directory of the run."""

    scenario: Scenario
    method: Method
    learner: Learner
    root: Path
    size: Size
    scorer: Scorer
    work: Path
    seed: int
    hyperparameters: Hyperparameters

    def write_test_set(self, name: str, head: HeadName, test: Sources, train: Sources) -> HeadTestSet:
        """Write a test set; *train* is its training data."""
        examples = gather(self.root, test, self.size.step.eval_first)
        return HeadTestSet.write(head, examples, self.work / name, self.scorer, train=gather(self.root, train))

    def make_task(self, step: Step) -> Task:
        """Gather the data of a step."""
        work = self.work / "method"
        work.mkdir(parents=True, exist_ok=True)
        return Task(
            head=self.scenario.adapted_head,
            replaces=self.scenario.label_space == "replace",
            train=gather(self.root, step.train, self.size.step.train_first),
            dev=gather(self.root, step.dev, self.size.step.dev_first),
            work=work,
            seed=self.seed,
            hyperparameters=self.hyperparameters.for_head(self.scenario.adapted_head),
        )


def measure(setup: RunSetup) -> tuple[StepScores, ...]:
    """Run a method through a scenario's steps. Each step starts from the model and the memory of the step before."""
    scenario = setup.scenario
    tests, train = scenario.eval, scenario.base.train
    test_sets = {"protected": setup.write_test_set("protected", scenario.protected_head, tests.protected, train)}
    if tests.retained:
        test_sets["retained"] = setup.write_test_set("retained", scenario.adapted_head, tests.retained, train)
    learner = setup.learner
    _predict(test_sets, learner, 0)
    earlier: dict[str, HeadTestSet] = {}
    scores = []
    for number, step in enumerate(scenario.steps, 1):
        new = setup.write_test_set(f"step-{number}", scenario.adapted_head, step.eval, step.train)
        new.predict(learner, number - 1)
        task = setup.make_task(step)
        started_at, cpu_before = time.monotonic(), _cpu_seconds()
        result = setup.method(learner, task)
        seconds, cpu_seconds = time.monotonic() - started_at, _cpu_seconds() - cpu_before
        learner = result.learner
        _predict({**test_sets, **earlier, step.name: new}, learner, number)
        scores.append(
            msgspec.structs.replace(
                _score({**test_sets, "new": new}, number),
                name=step.name,
                earlier={name: test_set.score(number) for name, test_set in earlier.items()},
                verdict=result.verdict,
                seconds=round(seconds, 2),
                cpu_seconds=round(cpu_seconds, 2),
                details=dict(result.details),
            )
        )
        earlier[step.name] = new
    return tuple(scores)


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process, or of a finished child."""
    return max(resource.getrusage(scope).ru_maxrss for scope in _SCOPES) / 1024


_SCOPES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _SCOPES))


def _predict(test_sets: Mapping[str, HeadTestSet], learner: Learner, step: int) -> None:
    for test_set in test_sets.values():
        test_set.predict(learner, step)


def _score(test_sets: Mapping[str, HeadTestSet], step: int) -> StepScores:
    """Score the predictions before and after a step."""
    protected, retained, new = test_sets["protected"], test_sets.get("retained"), test_sets["new"]
    negative, positive = protected.flips(step)
    adapted = {"new": new} if retained is None else {"new": new, "retained": retained}
    return StepScores(
        new=new.change(step),
        protected=protected.change(step),
        retained=None if retained is None else retained.change(step),
        negative_flips=negative,
        positive_flips=positive,
        changed=protected.changed(step),
        strict={
            name: test_set.change(step, strict=True) for name, test_set in adapted.items() if test_set.head == "ner"
        },
    )
