"""Measure one cell, in this process: adapt step by step, answer every test set, and let the scorer judge."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from twofold_checkpoint.manifest import HeadName

from benchmarks.adaptation.hyperparameters import Rates
from benchmarks.adaptation.method_interface import Row, Student, Task
from benchmarks.adaptation.runs import StepScores
from benchmarks.adaptation.scenarios import Scenario, Sources, Step, gather
from benchmarks.adaptation.scorer import Scorer
from benchmarks.adaptation.sizes import Size
from benchmarks.adaptation.test_set import Exam


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Say which cell is measured, on what and with what. *work* is a directory of the cell's own."""

    scenario: Scenario
    row: Row
    student: Student
    root: Path
    size: Size
    scorer: Scorer
    work: Path
    seed: int
    rates: Rates

    def exam(self, name: str, head: HeadName, test: Sources, taught: Sources) -> Exam:
        """Write a test set down, with what was taught for it."""
        examples = gather(self.root, test, self.size.step.eval_first)
        return Exam.write(head, examples, self.work / name, self.scorer, taught=gather(self.root, taught))

    def task(self, step: Step) -> Task:
        """Gather what a step has to teach."""
        work = self.work / "row"
        work.mkdir(parents=True, exist_ok=True)
        return Task(
            head=self.scenario.adapted_head,
            replaces=self.scenario.label_space == "replace",
            train=gather(self.root, step.train, self.size.step.train_first),
            dev=gather(self.root, step.dev, self.size.step.dev_first),
            work=work,
            seed=self.seed,
            rates=self.rates.adapting(self.scenario.adapted_head),
        )


def measure(run: Run) -> tuple[StepScores, ...]:
    """Run a row through a scenario's steps. Each builds on the model and the memory of the one before."""
    scenario = run.scenario
    tests, taught = scenario.eval, scenario.base.train
    lasting = {"protected": run.exam("protected", scenario.protected_head, tests.protected, taught)}
    if tests.retained:
        lasting["retained"] = run.exam("retained", scenario.adapted_head, tests.retained, taught)
    student = run.student
    _answer(lasting, student, 0)
    learnt: dict[str, Exam] = {}
    steps = []
    for moment, step in enumerate(scenario.steps, 1):
        new = run.exam(f"step-{moment}", scenario.adapted_head, step.eval, step.train)
        new.answer(student, moment - 1)
        task = run.task(step)
        begun, used = time.monotonic(), _cpu_seconds()
        adapted = run.row(student, task)
        seconds, cpu_seconds = time.monotonic() - begun, _cpu_seconds() - used
        student = adapted.student
        _answer({**lasting, **learnt, step.name: new}, student, moment)
        scores = _judge({**lasting, "new": new}, moment)
        steps.append(
            msgspec.structs.replace(
                scores,
                name=step.name,
                earlier={name: exam.score(moment) for name, exam in learnt.items()},
                verdict=adapted.verdict,
                seconds=round(seconds, 2),
                cpu_seconds=round(cpu_seconds, 2),
                more=dict(adapted.more),
            )
        )
        learnt[step.name] = new
    return tuple(steps)


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process, or of one that it waited for."""
    return max(resource.getrusage(who).ru_maxrss for who in _WHO) / 1024


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, _WHO))


def _answer(exams: Mapping[str, Exam], student: Student, moment: int) -> None:
    for exam in exams.values():
        exam.answer(student, moment)


def _judge(exams: Mapping[str, Exam], moment: int) -> StepScores:
    """Let the scorer compare a moment with the one before it."""
    protected, retained, new = exams["protected"], exams.get("retained"), exams["new"]
    negative, positive = protected.flips(moment)
    own = {"new": new} if retained is None else {"new": new, "retained": retained}
    return StepScores(
        new=new.change(moment),
        protected=protected.change(moment),
        retained=None if retained is None else retained.change(moment),
        negative_flips=negative,
        positive_flips=positive,
        changed=protected.changed(moment),
        strict={name: exam.change(moment, strict=True) for name, exam in own.items() if exam.head == "ner"},
    )
