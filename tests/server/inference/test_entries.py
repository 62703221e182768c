"""The choice of the next batch, without a server."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twofold_server.inference.bucketing import PADDING_PARITY_LENGTH, split_into_passes
from twofold_server.inference.entries import QueueEntry, select_batch
from twofold_server.inference.tasks import EmbedTask, PredictTask

COST = 8
PREDICTING = PredictTask()


def entry(lengths, task=PREDICTING):
    """Return an entry of windows of the given lengths."""
    windows = tuple(SimpleNamespace(ids=range(length)) for length in lengths)
    return QueueEntry(SimpleNamespace(windows=windows), None, task, float("inf"), None)


def cost(batch):
    """Return the number of tokens with padding."""
    return sum(encoding.windows for encoding in batch) * max(encoding.longest for encoding in batch)


QUEUES = st.lists(
    st.builds(
        entry,
        st.lists(st.integers(1, 64), min_size=1, max_size=4),
        st.sampled_from([PREDICTING, EmbedTask()]),
    ),
    min_size=1,
    max_size=40,
)


@given(QUEUES, st.integers(1, 512), st.integers(0, 512))
def test_a_batch_keeps_the_rules(queue, budget, tokens):
    """A batch contains the oldest entry, has one task, and is within both limits unless it is a single entry."""
    batch = select_batch(queue, tokens, budget, COST)

    assert queue[0] in batch
    assert {item.task.outputs for item in batch} == {queue[0].task.outputs}
    assert (cost(batch) <= budget and sum(item.tokens for item in batch) <= tokens) or batch == [queue[0]]


@given(QUEUES, st.integers(1, 512), st.integers(0, 512))
def test_batch_after_batch_answers_everything_once(queue, budget, tokens):
    """Taking batches until the queue is empty takes every entry exactly once."""
    left, taken = list(queue), []
    while left:
        batch = select_batch(left, tokens, budget, COST)
        taken += batch
        left = [item for item in left if item not in batch]

    assert len(taken) == len(queue)
    assert set(taken) == set(queue)


def test_similar_lengths_are_batched_if_padding_is_expensive():
    """Entries of similar length are batched together if padding is expensive, that is, with long windows."""
    long = [entry([10]), entry([160]), entry([9]), entry([161]), entry([10])]
    short = [entry([10]), entry([20]), entry([9]), entry([21]), entry([10])]

    assert [encoding.longest for encoding in select_batch(long, 999, 999, COST)] == [10, 10, 9]
    assert [encoding.longest for encoding in select_batch(short, 999, 999, COST)] == [21, 20, 10, 10, 9]


def test_a_batch_has_the_oldest_entries():
    """A batch consists of the oldest entries, even if a later one would fit better."""
    queue = [entry([10]), entry([5]), entry([6]), entry([10])]

    assert select_batch(queue, 21, 999, COST) == [queue[0], queue[2], queue[1]]


def test_a_long_text_does_not_wait_for_ever():
    """The oldest long text is in the next batch, however many short texts follow it."""
    queue = [entry([60]), *(entry([5]) for _ in range(100))]

    assert select_batch(queue, 64, 64, COST) == [queue[0]]


SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 64)), max_size=30)


@given(SIZES, st.integers(1, 256), st.integers(0, 64))
def test_passes_cover_everything_within_the_budget(sizes, budget, cost):
    """Every item is in one pass; a pass of several items is within the budget, and its padding costs at most a pass."""
    cut = split_into_passes(sizes, budget, cost)

    assert sorted(index for batch in cut for index in batch) == list(range(len(sizes)))
    for batch in cut:
        windows, longest = sum(sizes[index][0] for index in batch), max(sizes[index][1] for index in batch)
        padding = sum(sizes[index][0] * (longest - sizes[index][1]) for index in batch)
        assert len(batch) == 1 or (windows * longest <= budget and padding * longest / PADDING_PARITY_LENGTH <= cost)


def test_a_pass_ends_where_padding_costs_more_than_another_pass():
    """Items of very different lengths get separate passes, items of similar lengths share one."""
    assert split_into_passes([(1, 9), (1, 140), (1, 10), (1, 138), (1, 8)], 1000, 8) == [[1, 3], [2, 0, 4]]
