"""Three exact adaptations in a row over gRPC, each of them swapped in, leave the protected answers unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.conftest import BLOCKS, hwu64
from e2e.test_freeze_modes import classifier_examples, ner_examples
from twofold import Client, Exact, Head, Hyperparameters, JobState, Prediction
from twofold_checkpoint.manifest import Branch
from twofold_checkpoint.store import Store

pytestmark = pytest.mark.slow

LEARNS = Hyperparameters(epochs=2, batch_size=4)


def labels_of(predictions: list[Prediction]) -> list[str | None]:
    """Return the label of each prediction."""
    return [prediction.label for prediction in predictions]


def spans_of(predictions: list[Prediction]) -> list[list[tuple[int, int, str]]]:
    """Return the spans of each prediction."""
    return [[(entity.start, entity.end, entity.type) for entity in prediction.entities] for prediction in predictions]


@pytest.mark.timeout(3 * 300)  # Three jobs, of which each has the time of a test.
def test_either_head_adapts_again_and_again_without_touching_the_other(client: Client, store: Path, first: str) -> None:
    """After adaptations of NER, NER again and the classifier, each candidate serves and the other head gives the same answers."""
    client.promote(first)
    train, dev = ner_examples()
    more = train[60:], dev[60:]
    texts = [line["text"] for line in hwu64("test", 150)]
    rounds = [
        (Head.NER, (train[:60], dev[:60]), labels_of),
        (Head.NER, more, labels_of),
        (Head.CLASSIFIER, classifier_examples(), spans_of),
    ]
    base = first
    for head, (given, held_out), protected in rounds:
        before = client.predict(texts)
        job = client.wait(
            client.adapt(
                given, held_out, head=head, protection=Exact(), retained_margin=100, hyperparameters=LEARNS
            ).id,
            timeout=240,
        )
        after = client.predict(texts)

        assert job.state is JobState.SUCCEEDED, job.reason
        assert job.base_checkpoint_id == base
        assert {prediction.checkpoint_id for prediction in after} == {job.candidate_checkpoint_id}
        assert protected(after) == protected(before)
        if protected is labels_of:
            pairs = zip(before, after, strict=True)
            assert all(answer.labels[0].score == pytest.approx(two.labels[0].score, abs=1e-5) for answer, two in pairs)
        assert job.report.protected is not None
        assert job.report.protected.before == job.report.protected.after
        base = job.candidate_checkpoint_id

    branch = Store(store).get(base).manifest.branch
    assert branch is None or branch == Branch(head="ner", blocks=BLOCKS)
