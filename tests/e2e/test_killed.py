"""Three points of the kill matrix; `make kill-matrix` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from crash.kill_points import all_points
from crash.scenario import World, make_world, tell
from support import tiny_models
from support.shared_once import once

pytestmark = pytest.mark.slow

POINTS = {point.name: point for point in all_points()}
FEW = (
    "trainer at train on sqlite",
    "both at snapshot, half written on sqlite",
    "server at swap, aliases moved on sqlite",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base store, and the weights of its job without a kill."""
    base = once(tmp_path_factory, "base", tiny_models.make_base_store)
    return make_world(tmp_path_factory.mktemp("world") / "undisturbed", base)


@pytest.mark.parametrize("name", FEW)
def test_a_killed_job_ends_with_the_same_weights(name: str, world: World, tmp_path: Path) -> None:
    """After a kill, the store opens, `current` answers, the job ends with the weights of an undisturbed job, and no files are left over."""
    assert tell(POINTS[name], tmp_path / "point", world).state == "succeeded"


def test_the_matrix_has_every_moment_of_a_job() -> None:
    """The matrix has 84 points with distinct names, 24 of them on PostgreSQL."""
    assert len(POINTS) == len(list(all_points())) == 84
    assert sum(point.database == "postgresql" for point in POINTS.values()) == 24
