"""The choice of the next batch, without a server."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twofold_server.batcher import Entry, choose
from twofold_server.engine import FEATURE_OUTPUTS, HEAD_OUTPUTS, slices


def entry(lengths, outputs=HEAD_OUTPUTS):
    """Make an entry of windows of these lengths."""
    windows = tuple(SimpleNamespace(ids=range(length)) for length in lengths)
    return Entry(SimpleNamespace(windows=windows), None, outputs, float("inf"), None)


def cost(batch):
    """Count tokens with padding."""
    return sum(one.windows for one in batch) * max(one.longest for one in batch)


QUEUES = st.lists(
    st.builds(
        entry,
        st.lists(st.integers(1, 64), min_size=1, max_size=4),
        st.sampled_from([HEAD_OUTPUTS, FEATURE_OUTPUTS]),
    ),
    min_size=1,
    max_size=40,
)


@given(QUEUES, st.integers(1, 512))
def test_a_batch_keeps_the_rules(queue, budget):
    """The oldest entry is in it, all want the same outputs, and it is within the budget unless it is one entry."""
    batch = choose(queue, budget)

    assert queue[0] in batch
    assert {one.outputs for one in batch} == {queue[0].outputs}
    assert cost(batch) <= budget or batch == [queue[0]]


@given(QUEUES, st.integers(1, 512))
def test_batch_after_batch_answers_everything_once(queue, budget):
    """Taking batches until the queue is empty takes every entry exactly once."""
    left, taken = list(queue), []
    while left:
        batch = choose(left, budget)
        taken += batch
        left = [one for one in left if one not in batch]

    assert len(taken) == len(queue)
    assert set(taken) == set(queue)


def test_neighbours_in_length_go_together():
    """What is added to the oldest is as long as it, not what came next."""
    queue = [entry([10]), entry([60]), entry([9]), entry([61]), entry([10])]

    assert [one.longest for one in choose(queue, 32)] == [10, 9, 10]


def test_a_long_text_does_not_wait_for_ever():
    """However many short texts come after it, the oldest long text is in the next batch."""
    queue = [entry([60]), *(entry([5]) for _ in range(100))]

    assert choose(queue, 64) == [queue[0]]


@given(st.lists(st.integers(1, 64), max_size=30), st.integers(1, 256))
def test_slices_cover_all_windows_within_the_budget(lengths, budget):
    """Every window is in one pass; a pass is within the budget unless it is a single window."""
    cut = slices(lengths, budget)

    assert sorted(index for one in cut for index in one) == list(range(len(lengths)))
    assert all(len(one) == 1 or len(one) * max(lengths[index] for index in one) <= budget for one in cut)
