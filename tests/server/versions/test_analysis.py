"""Analysis of a swap: no false alarm, and every bad checkpoint is detected."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_checkpoints
from twofold_checkpoint.decoding import Entity, LabelScore, Prediction
from twofold_checkpoint.labels import LabelSet
from twofold_server.config.settings import RollbackSettings
from twofold_server.versions.agreement import SharedNames, agreements
from twofold_server.versions.analysis import Rate, SwapStats, exceeds_limit, find_regression, reject_reason

LIMITS = RollbackSettings(
    min_samples=50, max_error_rate=0.02, max_slowdown=3.0, min_agreement=0.8, min_adapted_agreement=0.4
)


def heads(classifier=Rate(), ner=Rate()):  # noqa: B008 -- it is frozen.
    """Return a value per head."""
    return {"classifier": classifier, "ner": ner}


CASES = [
    (SwapStats(), None, None),
    (SwapStats(passes=Rate(10, 10)), None, None),
    (SwapStats(passes=Rate(50, 50)), "errors", "50 of 50 passes failed (limit 2.0%)"),
    (SwapStats(passes=Rate(2, 100)), None, None),
    (SwapStats(passes=Rate(12, 100)), "errors", "12 of 100 passes"),
    (SwapStats(texts=Rate(30, 60)), "errors", "30 of 60 texts failed"),
    (SwapStats(slow=Rate(3, 60)), None, None),
    (SwapStats(slow=Rate(20, 60)), "latency", "20 of 60 texts took more than 3 times as long as before (limit 5%)"),
    (SwapStats(differing=heads(Rate(12, 60))), None, None),
    (
        SwapStats(differing=heads(Rate(30, 60))),
        "agreement",
        "the classifier head agrees on 30 of 60 texts (minimum 80%)",
    ),
    (SwapStats(differing=heads(ner=Rate(30, 60))), None, None),
    (SwapStats(differing=heads(ner=Rate(55, 60))), "agreement", "the ner head agrees on 5 of 60 texts (minimum 40%)"),
    (SwapStats(passes=Rate(50, 50), slow=Rate(60, 60)), "errors", "passes"),
]


@pytest.mark.parametrize(("seen", "cause", "says"), CASES)
def test_a_verdict_names_its_cause(seen, cause, says):
    """A proven regression is reported with figures; few requests, or few failures, decide nothing."""
    actual = find_regression(seen, LIMITS, "ner")

    assert (actual and actual.cause) == cause
    assert says is None or says in actual.message


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (
            SwapStats(differing=heads(Rate(21, 100))),
            "the classifier head agrees on 79 of 100 texts (minimum 80%)",
        ),
        (SwapStats(differing=heads(Rate(20, 100))), None),
        (SwapStats(differing=heads(Rate(21, 40))), None),
        (SwapStats(differing=heads(ner=Rate(60, 100))), None),
        (SwapStats(differing=heads(ner=Rate(61, 100))), "the ner head agrees on 39 of 100 texts (minimum 40%)"),
        (SwapStats(texts=Rate(60, 60)), "60 of 60 texts failed"),
    ],
)
def test_before_it_is_live_the_proof_is_the_candidate_s(seen, says):
    """A candidate in shadow is rejected if it agrees too little on enough texts, even without proof."""
    actual = reject_reason(seen, LIMITS, "ner")

    assert (actual is None) == (says is None)
    assert says is None or says in actual.message


def test_an_unknown_head_may_change_as_an_adapted_one():
    """If nobody knows which head was adapted, both have the wide limit."""
    seen = SwapStats(differing=heads(Rate(30, 60), Rate(30, 60)))

    assert find_regression(seen, LIMITS, None) is None
    assert find_regression(seen, LIMITS, "ner").cause == "agreement"


@given(bad=st.integers(0, 400), good=st.integers(0, 400), limit=st.floats(0, 1))
def test_no_share_within_its_limit_is_proven_above_it(bad, good, limit):
    """A rate within its limit is never proven above it, and more failures only add evidence."""
    seen = Rate(bad, bad + good)
    proven = exceeds_limit(seen, limit)

    if seen.total and bad / seen.total <= limit:
        assert not proven
    if proven:
        assert exceeds_limit(seen + True, limit)


def first_proof(share, limit, looks, chance, alpha):
    """Return after how many observations the proof came, testing after each; None without a proof."""
    seen = Rate()
    for number in range(looks):
        seen += chance.random() < share
        if exceeds_limit(seen, limit, alpha):
            return number
    return None


def test_to_look_after_each_does_not_add_up():
    """At the limit itself, of 200 checkpoints that are tested 300 times each, at most one in twenty is called bad."""
    chance = random.Random(1)
    wrong = [first_proof(0.2, 0.2, 300, chance, 0.05) for _ in range(200)]

    assert sum(item is not None for item in wrong) <= 0.05 * 200 + 8


@pytest.mark.parametrize(("share", "limit", "within"), [(0.5, 0.2, 60), (0.1, 0.02, 250), (1.0, 0.05, 5)])
def test_bad_checkpoints_are_detected(share, limit, within):
    """Far above the limit, a few dozen observations are enough for all of 50 checkpoints."""
    chance = random.Random(2)
    actual = [first_proof(share, limit, 1000, chance, 1e-3) for _ in range(50)]

    assert None not in actual
    assert sorted(actual)[25] <= within


SHARED = SharedNames.of(
    LabelSet(labels=("x", "y", "old"), entity_types=("city", "gone")),
    LabelSet(labels=("x", "y", "new"), entity_types=("city", "fresh")),
)


def answer_of(label="x", *spans):
    """Return an answer with entities such as "city" at 0, or ("city", 3)."""
    entities = [(span, 0) if isinstance(span, str) else span for span in spans]
    return Prediction(
        labels=(LabelScore(label, 0.9),),
        entities=tuple(Entity(start=start, end=start + 2, type=name, score=0.5) for name, start in entities),
    )


@pytest.mark.parametrize(
    ("item", "second", "actual"),
    [
        (answer_of("x"), answer_of("x"), {"classifier": True}),
        (answer_of("x"), answer_of("y"), {"classifier": False}),
        (answer_of("old"), answer_of("x"), {}),
        (answer_of("x"), answer_of("new"), {}),
        (answer_of("x", "city"), answer_of("x", "city"), {"classifier": True, "ner": True}),
        (answer_of("x", "city"), answer_of("x"), {"classifier": True, "ner": False}),
        (answer_of("x", "city"), answer_of("x", ("city", 1)), {"classifier": True, "ner": False}),
        (answer_of("x", "city"), answer_of("x", "city", ("fresh", 5)), {"classifier": True, "ner": True}),
        (answer_of("x", "gone"), answer_of("x", "fresh"), {"classifier": True}),
        (Prediction(), Prediction(), {}),
    ],
)
def test_answers_are_compared_by_shared_names(item, second, actual):
    """Names that only one checkpoint has, and texts without entities in both answers, do not count."""
    assert agreements(item, second, SHARED) == actual


def test_a_checkpoint_agrees_with_itself():
    """On real answers, a checkpoint agrees with itself in every comparable head."""
    shared = SharedNames.of(tiny_checkpoints.label_set("a"), tiny_checkpoints.label_set("a"))
    for text in tiny_checkpoints.TEXTS:
        assert set(agreements(tiny_checkpoints.answer(text), tiny_checkpoints.answer(text), shared).values()) == {True}
