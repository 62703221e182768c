"""Every freeze mode over gRPC on a part of HWU64: what changes, what stays frozen, and what is rejected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from e2e.conftest import BASE_TYPES, examples, hwu64, of_types
from safetensors.numpy import load_file
from twofold import (
    Client,
    Exact,
    Example,
    Freeze,
    Head,
    Hyperparameters,
    InvalidArgumentError,
    Job,
    JobState,
    Span,
    Statistical,
    Verdict,
)
from twofold_checkpoint.store import Store

pytestmark = pytest.mark.slow

NEW_TYPES = ("event_name", "person")
QUICK = Hyperparameters(epochs=2, batch_size=4)
ANY_LOSS = Statistical(margin=100)
"""These tests are about which tensors move, not about how well a minute of training does."""


def ner_examples() -> tuple[list[Example], list[Example]]:
    """Return training and held-out examples with new entity types, which the first checkpoint has not seen."""
    lines = of_types(hwu64("train", 4000), NEW_TYPES)[400:]
    actual = examples([line for line in lines if line["entities"]], only="entities")
    return actual[:120], actual[120:240]


def classifier_examples() -> tuple[list[Example], list[Example]]:
    """Return training and held-out examples with two new labels, which the first checkpoint has not seen."""
    lines = hwu64("train", 640)[400:]
    marked = [{**line, "label": "short" if len(line["text"]) < 30 else "long"} for line in lines]
    actual = examples(marked, only="label")
    return actual[:80], actual[80:160]


@dataclass(frozen=True)
class Case:
    """An adaptation, the groups of tensors that must change, and those that must not."""

    head: Head
    freeze: Freeze
    moves: tuple[str, ...]
    stays: tuple[str, ...]
    protection: Exact | Statistical = ANY_LOSS


CASES = {
    "backbone, ner": Case(Head.NER, Freeze.BACKBONE, ("ner.",), ("backbone.", "classifier.")),
    "backbone, classifier": Case(Head.CLASSIFIER, Freeze.BACKBONE, ("classifier.",), ("backbone.", "ner.")),
    "exact": Case(Head.NER, Freeze.AUTO, ("ner.",), ("backbone.", "classifier."), Exact()),
    "head, ner": Case(Head.NER, Freeze.HEAD, ("ner.", "backbone."), ("classifier.",)),
    "head, classifier": Case(Head.CLASSIFIER, Freeze.HEAD, ("classifier.", "backbone."), ("ner.",)),
    "staged": Case(Head.NER, Freeze.STAGED, ("ner.",), ("classifier.",)),
    "auto": Case(Head.NER, Freeze.AUTO, ("ner.",), ("classifier.",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mode_changes_only_its_tensors(client: Client, store: Path, first: str, name: str) -> None:
    """Frozen tensors keep their bytes, trained tensors change, new labels follow the old ones, and the report says so."""
    case = CASES[name]
    train, dev = ner_examples() if case.head is Head.NER else classifier_examples()

    job = client.wait(
        client.adapt(
            train,
            dev,
            head=case.head,
            freeze=case.freeze,
            protection=case.protection,
            retained_margin=100,
            hyperparameters=QUICK,
            base_checkpoint=first,
        ).id,
        timeout=240,
    )

    assert job.state is JobState.SUCCEEDED, job.reason
    check_tensors(case, job, store)
    check_labels(case, job, store)
    assert client.model().checkpoint_id == job.candidate_checkpoint_id
    assert job.report.frozen is not None
    assert job.report.frozen.parameters > 0
    assert job.report.frozen.digest_before == job.report.frozen.digest_after != ""
    for figure in (job.report.protected, job.report.retained, job.report.new):
        assert figure is not None
        assert None not in {figure.before, figure.after}
        assert figure.examples > 0


def check_tensors(case: Case, job: Job, store: Path) -> None:
    """Assert that the right tensors changed between base and candidate."""
    before, after = (
        load_file(Store(store).get(item).path / "weights.safetensors")
        for item in (job.base_checkpoint_id, job.candidate_checkpoint_id)
    )
    assert before.keys() <= after.keys()
    assert all(key.startswith("branch.") for key in after.keys() - before.keys())
    moved = {key for key in before if before[key].shape != after[key].shape or np.any(before[key] != after[key])}
    for prefix in case.moves:
        assert any(key.startswith(prefix) for key in moved), f"nothing of {prefix} moved"
    for prefix in case.stays:
        assert not [key for key in moved if key.startswith(prefix)]


def check_labels(case: Case, job: Job, store: Path) -> None:
    """Assert that the adapted head has new rows at its end and the other head has none."""
    before, after = (
        Store(store).get(item).manifest.labels for item in (job.base_checkpoint_id, job.candidate_checkpoint_id)
    )
    assert after.labels[: len(before.labels)] == before.labels
    assert after.entity_types[: len(before.entity_types)] == before.entity_types
    if case.head is Head.NER:
        assert set(NEW_TYPES) <= set(after.entity_types)
        assert after.labels == before.labels
    else:
        assert {"long", "short"} <= set(after.labels)
        assert after.entity_types == before.entity_types


def test_freezing_all_reports_and_publishes_nothing(client: Client) -> None:
    """FREEZE_ALL scores the checkpoint on the given data; the same checkpoint keeps serving."""
    before = client.model().checkpoint_id
    train, dev = ner_examples()

    job = client.wait(client.adapt(train, dev, head=Head.NER, freeze=Freeze.ALL).id, timeout=120)

    assert job.state is JobState.SUCCEEDED, job.reason
    assert job.candidate_checkpoint_id == ""
    assert job.report.new is not None
    assert job.report.new.before is not None
    assert client.model().checkpoint_id == before


def test_a_dry_run_plans_and_trains_nothing(client: Client, first: str) -> None:
    """A job with validate_only ends with the statistics of the data and a plan, and publishes nothing."""
    train, dev = ner_examples()

    job = client.wait(
        client.adapt(train, dev, head=Head.NER, validate_only=True, base_checkpoint=first).id, timeout=120
    )

    assert job.state is JobState.SUCCEEDED, job.reason
    assert job.candidate_checkpoint_id == ""
    assert job.report.plan
    assert job.report.dataset is not None
    assert job.report.dataset.train_examples == len(train)


def test_a_candidate_that_fell_is_rejected(client: Client, first: str) -> None:
    """With all protection switched off the protected score falls, the job is REJECTED, and the old checkpoint keeps serving."""
    before = client.model().checkpoint_id
    text = "wake me up at seven tomorrow"
    answer = client.predict([text])[0]
    train, dev = ner_examples()

    job = client.wait(
        client.adapt(
            train,
            dev,
            head=Head.NER,
            freeze=Freeze.HEAD,
            retained_margin=100,
            hyperparameters=Hyperparameters(
                epochs=3,
                batch_size=16,
                distillation=0.0,
                rehearsal_ratio=0.0,
                guard=False,
            ),
            base_checkpoint=first,
        ).id,
        timeout=240,
    )

    assert job.state is JobState.REJECTED, job.reason
    assert job.report.verdict in {Verdict.INCONCLUSIVE, Verdict.FAIL}
    assert job.candidate_checkpoint_id == ""
    assert job.report.exact is None
    assert [item.against for item in job.report.gate][:1] == ["base"]
    assert job.report.gate[0].lower_bound <= -0.01
    assert job.report.protected is not None
    assert (job.report.protected.after or 0) < (job.report.protected.before or 0)
    assert client.model().checkpoint_id == before
    assert client.predict([text])[0] == answer


BAD = [
    (Example(text="meet Bob", entities=(Span(start=5, end=9, type="person"),)), "entities[0].end"),
    (
        Example(text="Bob", entities=(Span(start=0, end=2, type="person"), Span(start=1, end=3, type="person"))),
        "entities[1].start",
    ),
    (Example(text=" ", entities=()), "text"),
]


@pytest.mark.parametrize(("bad", "field"), BAD)
def test_bad_examples_are_refused_by_line_and_field(client: Client, bad: Example, field: str) -> None:
    """One invalid example rejects the whole call; the error names the example and its field, and no job is created."""
    train, _ = ner_examples()
    jobs = len(list(client.jobs()))

    with pytest.raises(InvalidArgumentError) as caught:
        client.adapt([*train[:3], bad, *train[3:5]], head=Head.NER)

    assert f"train[3].{field}" in str(caught.value)
    assert len(list(client.jobs())) == jobs


def test_new_names_are_refused_where_labels_are_fixed(client: Client) -> None:
    """LABEL_POLICY_FIXED rejects an entity type that the checkpoint does not have; the error names the type."""
    novel = Example(text="play chess", entities=(Span(start=5, end=10, type="board_game"),))

    with pytest.raises(InvalidArgumentError, match="board_game"):
        client.adapt([novel], head=Head.NER, label_policy="fixed")


def test_the_model_keeps_its_first_entity_types(client: Client) -> None:
    """After all adaptations, the model still has the entity types of the first checkpoint."""
    model = client.model()

    assert model.entity_types[: len(BASE_TYPES)] == tuple(sorted(BASE_TYPES))
