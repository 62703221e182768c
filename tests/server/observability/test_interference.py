"""The slowdown of serving by a job, as the ratio of two moving averages."""

from __future__ import annotations

import pytest
from twofold_server.observability.interference import Interference
from twofold_server.observability.metrics import Metrics

CASES = {
    "nothing": ([], 0.0),
    "only without a job": ([(False, 0.1)] * 5, 0.0),
    "only with a job": ([(True, 0.1)] * 5, 0.0),
    "as fast": ([(False, 0.1), (True, 0.1)], 1.0),
    "three times as slow": ([(False, 0.1)] * 3 + [(True, 0.3)] * 3, 3.0),
    "the job's end changes only what it is compared with": ([(False, 0.1), (True, 0.3), (False, 0.1)], 3.0),
    "one slow batch counts a fiftieth": ([(False, 0.1), (True, 0.1), (True, 5.1)], 2.0),
}


@pytest.mark.parametrize("batches", [case for case, _ in CASES.values()], ids=CASES)
def test_the_ratio_of_the_means(batches: list[tuple[bool, float]], request: pytest.FixtureRequest) -> None:
    """The ratio exists once batches with and without a job were seen, and each average counts its own kind."""
    metrics, runs = Metrics(), []
    watch = Interference(metrics, lambda: runs[-1])
    for with_job, seconds in batches:
        runs.append(with_job)
        watch.batch_finished("a", seconds=seconds, failed=False)

    actual = metrics.registry.get_sample_value("twofold_interference_ratio")
    assert actual == pytest.approx(CASES[request.node.callspec.id][1])
