"""What a dry run estimates: time, memory and the provable margin."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from trainer.conftest import MakeJob
from twofold_checkpoint.protocol.job import Exact, Freeze, Hyperparameters
from twofold_trainer.planning.estimate import (
    OVERHEAD_SECONDS,
    Work,
    count_work,
    describe_provable,
    estimate_memory_mib,
    estimate_seconds,
)
from twofold_trainer.planning.plan import make_plan


def test_seconds_count_every_pass() -> None:
    """Cached and scored texts cost one forward pass each, trained texts three."""
    assert estimate_seconds(Work(cached=100, trained=200.0, scored=50), 0.01) == pytest.approx(OVERHEAD_SECONDS + 7.5)


def test_only_stages_that_move_blocks_train(make_job: MakeJob) -> None:
    """A probe runs on cached features, a third of the blocks costs a third, and a refit of the head runs all texts once more."""
    requested = Hyperparameters(epochs=4, unfrozen_blocks=1)
    probe = make_plan(make_job("ner", freeze="backbone", hyperparameters=requested))
    shared = make_plan(make_job("ner", freeze="head", hyperparameters=requested))
    _, blocks, _, upper = shared.stages
    pools = [stage.pool for stage in (blocks, upper)]

    assert count_work(probe).trained == 0
    epochs = zip((4, 3), pools, strict=True)
    assert count_work(shared).trained == pytest.approx(
        sum(n * (len(pool.new) + pool.rehearsed_per_epoch) / 3 for n, pool in epochs)
    )
    assert count_work(shared).scored > count_work(probe).scored
    assert count_work(probe).cached >= len(shared.new) + len(shared.rehearsed)
    assert count_work(shared).cached == 2 * count_work(probe).cached


@pytest.mark.parametrize("freeze", ["auto", "head"])
def test_the_plan_states_the_rehearsed_texts(make_job: MakeJob, freeze: Freeze) -> None:
    """The plan states the largest number of rehearsed texts per epoch of its stages."""
    plan = make_plan(make_job("ner", freeze=freeze, hyperparameters=Hyperparameters(rehearsal_ratio=100.0)))
    drawn = [stage.pool.rehearsed_per_epoch for stage in plan.all_stages]

    assert 0 < max(drawn) <= len(plan.rehearsed)
    assert f"up to {max(drawn)} rehearsed examples per epoch" in plan.summary()


def test_copies_and_moments_take_memory(make_job: MakeJob) -> None:
    """A fork of all blocks takes more memory than a probe."""
    probe = make_plan(make_job("ner", freeze="backbone"))
    fork = make_plan(make_job("ner", protection=Exact()))

    assert estimate_memory_mib(fork) > estimate_memory_mib(probe) > 50


def test_only_features_that_are_kept_take_memory(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe caches two sets of features, or none if they exceed CACHE_BYTES."""
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=0))
    probe = make_plan(make_job("ner", freeze="backbone"))
    kept = estimate_memory_mib(probe)
    monkeypatch.setattr("twofold_trainer.modeling.features.CACHE_BYTES", probe.feature_bytes - 1)

    assert kept - estimate_memory_mib(probe) == pytest.approx(2 * probe.feature_bytes / 2**20)


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        (0, "There are no held-out examples"),
        # (1.645 + 0.842) * sqrt(0.01 / n), in points.
        (
            700,
            "With 700 protected examples, the smallest margin that can be proven for a shared backbone is 0.9 points",
        ),
        (100, " is 2.5 points, if one answer in 100 changes."),
    ],
)
def test_provable_margins(examples: int, says: str) -> None:
    """The provable margin is that of the gate's own test if one answer in a hundred changes."""
    assert says in describe_provable(examples)
