"""The gate: PASS, FAIL and INCONCLUSIVE."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold_trainer.evaluation.gate import Pair, evaluate_gate
from twofold_trainer.scoring.scores import SpanCounts, accuracy, span_f1

NOTHING = Pair(None, None)


def labels(before: str, after: str, *, times: int = 1) -> Pair:
    """Return a pair of accuracies; each character is an example, "+" correct and "-" wrong."""
    return Pair(*(accuracy([int(item == "+") for item in row * times]) for row in (before, after)))


def changed(examples: int, *, lost: int = 0, gained: int = 0) -> Pair:
    """Return a pair in which a number of answers changed."""
    same = examples - lost - gained
    return labels("+" * same + "+" * lost + "-" * gained, "+" * same + "-" * lost + "+" * gained)


BETTER = labels("----++", "--++++", times=20)


@pytest.mark.parametrize(
    ("protected", "margin", "verdict", "reason"),
    [
        (changed(2000, lost=4, gained=4), 1.0, "pass", "fell by less than"),
        (changed(2000, lost=30, gained=4), 1.0, "fail", "fell by 1.3 points, more than the margin of 1"),
        (changed(2000, lost=16, gained=4), 1.0, "inconclusive", "cannot exclude a drop of"),
        (changed(50), 1.0, "inconclusive", "about 299 would be enough"),
        (changed(300), 1.0, "pass", "fell by less than 0.99 points"),
        (changed(298), 1.0, "inconclusive", "about 299 would be enough"),
        (changed(300, lost=3), 1.0, "fail", "fell by 1.0 points, as much as the margin of 1"),
        (changed(300, lost=1), 0.0, "fail", "more than the margin of 0"),
        (changed(300), 0.0, "inconclusive", "more than the margin of 0"),
        (NOTHING, 1.0, "inconclusive", "there are no held-out examples of the protected task"),
    ],
)
def test_the_protected_task_must_be_proven_whole(protected: Pair, margin: float, verdict: str, reason: str) -> None:
    """PASS needs a lower bound above the margin, FAIL a drop beyond it, and everything else is INCONCLUSIVE with a number."""
    judged = evaluate_gate(protected=protected, retained=NOTHING, new=BETTER, margin=margin, retained_margin=None)

    assert judged.verdict == verdict, judged.reason
    assert reason in judged.reason


def test_spans_are_judged_by_the_bootstrap() -> None:
    """A protected NER head passes with many unchanged sentences, but not with fifty."""
    for sentences, verdict in ((2000, "pass"), (50, "inconclusive")):
        score = span_f1([SpanCounts(2, 2, 2)] * sentences)
        judged = evaluate_gate(
            protected=Pair(score, score), retained=NOTHING, new=BETTER, margin=1.0, retained_margin=None
        )

        assert judged.verdict == verdict


def test_exact_protection_needs_no_statistics() -> None:
    """If the path is byte-identical, any number of examples is enough, and one changed answer is a bug."""
    few = evaluate_gate(
        protected=changed(50), retained=NOTHING, new=BETTER, margin=0.0, retained_margin=None, exact=True
    )
    none = evaluate_gate(protected=NOTHING, retained=NOTHING, new=BETTER, margin=0.0, retained_margin=None, exact=True)
    swapped = evaluate_gate(
        protected=changed(5000, lost=1, gained=1),
        retained=NOTHING,
        new=BETTER,
        margin=50,
        retained_margin=None,
        exact=True,
    )

    assert [few.verdict, none.verdict, swapped.verdict] == ["pass", "pass", "fail"]
    assert "This is a bug" in swapped.reason


def test_exact_protection_compares_every_span() -> None:
    """If the path is byte-identical, one text with other spans is a bug, even if F1 is the same."""
    before = span_f1([SpanCounts(1, 2, 2), SpanCounts(2, 2, 2)])
    after = span_f1([SpanCounts(2, 2, 2), SpanCounts(1, 2, 2)])
    judged = evaluate_gate(
        protected=Pair(before, after), retained=NOTHING, new=BETTER, margin=50, retained_margin=None, exact=True
    )

    assert judged.verdict == "fail"


@given(st.integers(0, 6), st.integers(0, 6), st.integers(13, 800), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_needed_number_exceeds_the_examples(gained: int, lost: int, examples: int, margin: float) -> None:
    """If the examples cannot decide, the needed number is larger than theirs; if they can, there is none."""
    judged = evaluate_gate(
        protected=changed(examples, lost=lost, gained=gained),
        retained=NOTHING,
        new=BETTER,
        margin=margin,
        retained_margin=None,
    )
    needed = judged.comparisons[0].needed_examples

    assert (needed is not None) == (judged.verdict == "inconclusive")
    assert needed is None or needed > examples


def test_small_losses_do_not_add_up() -> None:
    """A candidate within the margin of its base is rejected if it is beyond the margin of the approved checkpoint."""
    judged = evaluate_gate(
        protected=changed(3000, lost=6),
        approved=changed(3000, lost=45),
        retained=NOTHING,
        new=BETTER,
        margin=1.0,
        retained_margin=None,
    )

    assert judged.verdict == "fail"
    assert "since a person last approved" in judged.reason
    assert [comparison.against for comparison in judged.comparisons] == ["base", "approved"]


@pytest.mark.parametrize(
    ("retained", "new", "retained_margin", "verdict", "reason"),
    [
        (changed(100, lost=3), BETTER, 3.0, "pass", "retained 100.0 -> 97.0"),
        (changed(100, lost=4), BETTER, 3.0, "fail", "the old labels' score fell by 4.0 points"),
        (changed(100, lost=90), BETTER, None, "pass", "retained 100.0 -> 10.0"),
        (NOTHING, changed(100, lost=1), 3.0, "fail", "the new data's score fell by 1.0 points"),
        (NOTHING, changed(100), 3.0, "pass", "new 100.0 -> 100.0"),
        (NOTHING, NOTHING, 3.0, "inconclusive", "no held-out examples of the new data"),
    ],
)
def test_the_adapted_head_is_judged_too(
    retained: Pair, new: Pair, retained_margin: float | None, verdict: str, reason: str
) -> None:
    """Old labels may lose their margin at most, and the score of the new data may not drop."""
    judged = evaluate_gate(
        protected=changed(1000), retained=retained, new=new, margin=1.0, retained_margin=retained_margin
    )

    assert judged.verdict == verdict
    assert reason in judged.reason


def test_a_candidate_without_training_is_rejected() -> None:
    """A candidate without a completed stage is rejected, whatever its scores."""
    good = changed(1000)

    assert (
        evaluate_gate(protected=good, retained=good, new=good, margin=1, retained_margin=3, trained=False).verdict
        == "fail"
    )


def test_negative_flips_are_named() -> None:
    """The indices of protected examples that became wrong are listed; of spans, those with fewer correct or more wrong ones."""
    by_label = evaluate_gate(
        protected=labels("++-+", "+-++"), retained=NOTHING, new=BETTER, margin=90, retained_margin=None
    )
    before = span_f1([SpanCounts(2, 2, 2), SpanCounts(1, 1, 1), SpanCounts(1, 1, 2), SpanCounts(0, 1, 1)])
    after = span_f1([SpanCounts(1, 2, 2), SpanCounts(1, 2, 1), SpanCounts(2, 2, 2), SpanCounts(0, 0, 1)])
    by_span = evaluate_gate(
        protected=Pair(before, after), retained=NOTHING, new=BETTER, margin=90, retained_margin=None
    )

    assert by_label.negative_flips == (1,)
    assert by_span.negative_flips == (0, 1)
    assert (by_span.comparisons[0].gained, by_span.comparisons[0].lost) == (2, 2)
