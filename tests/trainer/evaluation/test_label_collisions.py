"""New names that take the answers of old ones are detected on held-out examples, with advice."""

from __future__ import annotations

import pytest
from support import tiny_models
from trainer.conftest import MakeJob
from twofold_checkpoint.decoding import Entity, LabelScore, Prediction
from twofold_checkpoint.examples import Example, Span
from twofold_checkpoint.protocol.events import NoteAdded
from twofold_checkpoint.protocol.job import Hyperparameters, Statistical
from twofold_trainer.adapt import run_job
from twofold_trainer.evaluation.label_collisions import Collision, describe_collisions, find_collisions


def labelled(expected: str, answered: str) -> tuple[Example, Prediction]:
    """Return an example with a label, and an answer."""
    return Example(text="t", label=expected), Prediction(labels=(LabelScore(label=answered, score=0.9),))


def marked(expected: str, answered: str | None, *, end: int = 1) -> tuple[Example, Prediction]:
    """Return an example with one entity, and an answer of another type for it."""
    spans = () if answered is None else (Entity(start=0, end=end, type=answered, score=0.9),)
    known = Example(text="t", entities=(Span(start=0, end=1, type=expected),), annotated_types=("currency", "place"))
    return known, Prediction(entities=spans)


CASES = {
    "a label": ("classifier", [labelled("currency", "exchange")] * 4 + [labelled("currency", "currency")] * 2, 4, 6),
    "a type, though the examples do not know the new one": (
        "ner",
        [marked("currency", "exchange")] * 3 + [marked("currency", None)],
        3,
        4,
    ),
    "too few": ("classifier", [labelled("currency", "exchange")] * 2, None, 0),
    "too small a share": (
        "classifier",
        [labelled("currency", "exchange")] * 3 + [labelled("currency", "currency")] * 13,
        None,
        0,
    ),
    "old for old": ("classifier", [labelled("currency", "place")] * 9, None, 0),
    "another extent": ("ner", [marked("currency", "exchange", end=2)] * 9, None, 0),
    "not annotated": ("classifier", [(Example(text="t", entities=()), labelled("-", "exchange")[1])] * 9, None, 0),
}


@pytest.mark.parametrize(("head", "pairs", "taken", "expected"), CASES.values(), ids=CASES)
def test_collisions(head: str, pairs: list, taken: int | None, expected: int) -> None:
    """A new name collides with an old one if it takes at least three and a fifth of its answers."""
    examples, answers = zip(*pairs, strict=True)
    wanted = [] if taken is None else [Collision("currency", "exchange", taken, expected)]
    assert find_collisions(head, examples, answers, {"exchange"}) == wanted


def test_the_worst_come_first_and_the_rest_is_counted() -> None:
    """The warning names the five worst pairs, counts the rest, and says what to do."""
    values = [pair for number in range(3, 10) for pair in [labelled(f"old {number}", f"new {number}")] * number]
    examples, answers = zip(*values, strict=True)
    note = describe_collisions(find_collisions("classifier", examples, answers, {f"new {n}" for n in range(10)}))
    assert note.warning
    assert "'new 9' for 'old 9' (9 of 9), 'new 8' for 'old 8' (8 of 8)" in note.message
    assert "'new 5' for 'old 5' (5 of 5) and 2 more." in note.message
    assert "use the old one for both" in note.message


def test_a_duplicate_label_is_reported(make_job: MakeJob) -> None:
    """If 'forecast' takes the texts of 'weather', an event names both; other new labels collide with nothing."""
    again = [
        Example(text=f"{example.text}0", label="forecast")
        for example in tiny_models.examples(400, seed=9)
        if example.label == "weather"
    ]
    settings = {
        "freeze": "head",
        "hyperparameters": Hyperparameters(
            epochs=4, backbone_learning_rate=1e-3, head_learning_rate=1e-2, rehearsal_ratio=0.5
        ),
        "protection": Statistical(margin=90),
    }
    message = {}
    for name, parts in {"again": {"train": again[:60], "dev": again[60:]}, "new": {}}.items():
        events, _ = tiny_models.ending(run_job(make_job("classifier", id=name, **parts, **settings)))
        message[name] = [
            event.message
            for event in events
            if isinstance(event, NoteAdded) and "answers new names instead of old ones" in event.message
        ]
    assert len(message["again"]) == 1
    assert "'forecast' for 'weather'" in message["again"][0]
    assert message["new"] == []
