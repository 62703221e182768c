"""The classic methods on a small real model."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models
from twofold_checkpoint.manifest import HEADS, other_head
from twofold_trainer.modeling.features import compute_features
from twofold_trainer.scoring.scorer import Scorer, predict
from twofold_trainer.training.losses import label_nll

from benchmarks.adaptation.classic_methods import ROWS, fisher, plain, project, softened_kl
from benchmarks.adaptation.fine_tuning import all_groups, fine_tune, start, warm_and_fall
from benchmarks.adaptation.hyperparameters import DEFAULT
from benchmarks.adaptation.method_interface import Student
from benchmarks.adaptation.methods import CLASSICS

pytestmark = pytest.mark.slow

Base = Callable[[], Student]
State = dict[str, torch.Tensor]


def state(student: Student) -> State:
    """Copy a student's tensors."""
    return {name: tensor.clone() for name, tensor in student.model.state_dict().items()}


def same(one: State, two: State) -> bool:
    """Tell whether two states have the same bytes."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def drift(before: State, after: State) -> float:
    """Return how far the backbone went."""
    names = [name for name in before if name.startswith("backbone.")]
    return float(sum((after[name] - before[name]).square().sum() for name in names)) ** 0.5


def logits(student: Student, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads' base rows answer to texts."""
    with torch.no_grad():
        found = compute_features(student.model, student.encoder.encode(texts), student.pad_id)
        return student.model.classifier(found.pooled)[:, :4], student.model.ner(found.tokens)[:, :7]


def test_every_classic_row_has_a_method() -> None:
    """The rows that the table names are those that there are."""
    assert tuple(ROWS) == CLASSICS


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("row", CLASSICS)
def test_a_row_learns_and_keeps_old_rows_in_their_places(base: Base, make_task: Callable, row: str, head: str) -> None:
    """Every row answers new texts with new names better than chance, and the names of the base stay first."""
    task = make_task(head, rates={"epochs": 6})
    student = ROWS[row](base(), task).student
    names = {"ner": ("people",), "classifier": ("recipe", "taxi")}[head]
    old = base().labels
    assert student.labels.labels == old.labels + (names if head == "classifier" else ())
    assert student.labels.entity_types == tuple(dict.fromkeys(old.entity_types + (names if head == "ner" else ())))
    score = Scorer(task.train, head, student.encoder).score(student.model, student.labels)
    assert score is not None
    assert score.value > 0.5
    assert not student.model.training


@pytest.mark.parametrize("head", HEADS)
def test_replaced_names_are_gone(base: Base, make_task: Callable, head: str) -> None:
    """Where the new names take the old ones' place, neither the head nor the memory knows the old ones any more."""
    student = ROWS["rehearsal"](base(), make_task(head, replaces=True)).student
    if head == "classifier":
        assert student.labels.labels == ("recipe", "taxi")
        assert student.model.classifier.out_features == 2
        assert {example.label for example in student.memory.rehearsal} == {None, "recipe", "taxi"}
    else:
        assert student.labels.entity_types == ("date", "people")
        assert student.model.ner.out_features == 5
        types = {span.type for example in student.memory.rehearsal for span in example.entities or ()}
        assert types == {"date", "people"}


@pytest.mark.parametrize("head", HEADS)
def test_freezing_a_head_protects_nothing(base: Base, make_task: Callable, head: str) -> None:
    """New data says nothing to the protected head: it stays as it is, frozen or not, and the backbone moves under it."""
    free, frozen = (state(ROWS[row](base(), make_task(head)).student) for row in CLASSICS[:2])
    assert same(free, frozen)
    before = state(base())
    assert all(torch.equal(before[name], frozen[name]) for name in before if name.startswith(f"{other_head(head)}."))
    assert drift(before, frozen) > 0


@pytest.mark.parametrize("row", CLASSICS)
def test_the_same_task_gives_the_same_bytes(base: Base, make_task: Callable, row: str) -> None:
    """Nothing but the seed decides."""
    first, again, another = (state(ROWS[row](base(), make_task(seed=seed)).student) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, another)


@pytest.mark.parametrize(("row", "weight"), [("lwf", "lwf_weight"), ("ewc", "ewc_weight"), ("derpp", "derpp_logits")])
def test_a_heavier_weight_holds_more(base: Base, make_task: Callable, row: str, weight: str) -> None:
    """The answers to the texts that a method holds on to move less under a large weight than under none."""
    held = make_task().train if row == "lwf" else base().memory.rehearsal[:60]
    texts = [example.text for example in held]
    before = logits(base(), texts)
    moved = []
    for value in (0.0, 10.0):
        rates = {"derpp_labels": 0.0, weight: value}
        after = logits(ROWS[row](base(), make_task(rates=rates)).student, texts)
        moved.append(sum(float((one - two).square().mean()) for one, two in zip(before, after, strict=True)))
    assert moved[1] < 0.7 * moved[0]


def test_no_weight_is_plain_fine_tuning(base: Base, make_task: Callable) -> None:
    """LwF without a weight answers as fine-tuning does, but for what rounding does to gradients of zero."""
    task = make_task(rates={"lwf_weight": 0.0})
    texts = [example.text for example in task.train]
    one, two = (logits(ROWS[row](base(), task).student, texts) for row in ("unconstrained", "lwf"))
    assert all(torch.allclose(plain_, own, atol=0.01) for plain_, own in zip(one, two, strict=True))


def test_rehearsal_keeps_more_than_plain_fine_tuning(base: Base, make_task: Callable) -> None:
    """On texts of the base's task the protected head is surer of the truth after rehearsal, at rates that destroy."""
    tests, rates = tiny_models.examples(80, seed=5), {"backbone": 1e-2, "epochs": 6}
    surprise = {}
    for row in ("unconstrained", "rehearsal"):
        student = ROWS[row](base(), make_task(rates=rates)).student
        answers, _ = logits(student, [example.text for example in tests])
        labels = torch.tensor([student.labels.labels.index(example.label) for example in tests])
        surprise[row] = float(label_nll(answers, labels))
    assert surprise["rehearsal"] < 0.5 * surprise["unconstrained"]


def test_a_sequence_goes_on_from_where_it_was(base: Base, make_task: Callable) -> None:
    """The memory after a step holds its texts, with the types that were looked for in them; the next step adds to it."""
    first = ROWS["rehearsal"](base(), make_task()).student
    kept = {example.text: example for example in first.memory.rehearsal}
    assert all(kept[example.text] == example for example in make_task().train)
    second = ROWS["rehearsal"](first, make_task("classifier")).student
    assert second.labels.labels[4:] == ("recipe", "taxi")
    assert second.labels.entity_types[-1] == "people"
    assert {example.text for example in second.memory.rehearsal} >= kept.keys()


def test_every_tensor_of_the_backbone_has_one_rate(base: Base) -> None:
    """The top block has the full rate, each below it less, embeddings least, and no tensor is named twice."""
    model = base().model
    groups = all_groups(model, HEADS, DEFAULT)
    rate_of = {id(one): group["lr"] for group in groups for one in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate_of) == len(list(model.parameters()))
    first, last = (next(block.parameters()) for block in (model.blocks()[0], model.blocks()[-1]))
    embedding = model.token_embeddings()[0]
    rates = [rate_of[id(one)] for one in (model.ner.weight, last, first, embedding)]
    assert rates == pytest.approx([1e-3, 3e-4, 2.7e-4, 2.43e-4])
    assert all(one.ndim > 1 for group in groups if group["weight_decay"] for one in group["params"])


@given(steps=st.integers(1, 200), share=st.floats(0, 1))
def test_the_rates_rise_and_fall(steps: int, share: float) -> None:
    """They never exceed the full rate, reach it at the end of the warm-up, and fall from there."""
    factors = [warm_and_fall(step, steps, share) for step in range(steps)]
    top = factors.index(max(factors))
    assert max(factors) == 1
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


vectors = st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6)


@given(own=vectors, reference=vectors)
def test_a_projected_gradient_does_no_harm(own: list[float], reference: list[float]) -> None:
    """A-GEM's gradient never points against the reference, and one that did not already stays as it is."""
    mine, other_ = ([torch.tensor(some[:2]), torch.tensor(some[2:]).view(2, 2)] for some in (own, reference))
    found = project(mine, tuple(other_))
    dot = float(torch.tensor(own) @ torch.tensor(reference))
    after = sum(float((one * two).sum()) for one, two in zip(found, other_, strict=True))
    assert after >= -1e-4
    if dot >= 1e-3:
        assert all(torch.equal(one, two) for one, two in zip(found, mine, strict=True))
    elif dot <= -1e-3:
        assert after == pytest.approx(0, abs=1e-4)


def test_softened_kl_by_hand() -> None:
    """At T = 2 logits (0, 2 ln 3) are (1/4, 3/4); against (1/2, 1/2) that is 4 (ln 2 - H), summed in nats."""
    old, new = torch.tensor([[0.0, 2 * torch.log(torch.tensor(3.0))]]), torch.zeros(1, 2)
    quarter, rest = torch.tensor(0.25), torch.tensor(0.75)
    by_hand = 4 * (quarter * (quarter / 0.5).log() + rest * (rest / 0.5).log())
    assert softened_kl(new, old, 2.0) == pytest.approx(float(by_hand), rel=1e-5)
    assert softened_kl(old, old, 2.0) == pytest.approx(0, abs=1e-7)


def test_fisher_information_of_a_bias_is_the_variance_of_its_answer(base: Base, make_task: Callable) -> None:
    """For a softmax, drawing labels from the model gives p (1 - p) for each bias, up to chance."""
    student = base()
    course, _ = start(student, make_task())
    # The most doubtful text: one that is certain would have no variance to estimate.
    with torch.no_grad():
        found = compute_features(course.old, [one.encoding for one in course.new], student.pad_id)
        chances = course.old.classifier(found.pooled).softmax(dim=1)
    doubtful = int((chances * (1 - chances)).sum(1).argmax())
    torch.manual_seed(0)
    estimated = fisher(course, [course.new[doubtful]] * 600)["classifier.bias"]
    wanted = chances[doubtful] * (1 - chances[doubtful])
    assert float(wanted.max()) > 0.01
    assert torch.allclose(estimated, wanted, atol=0.06)


def test_fisher_information_leaves_out_a_head_that_starts_anew(base: Base, make_task: Callable) -> None:
    """Rows whose names are replaced are not held to what they were."""
    course, _ = start(base(), make_task(replaces=True))
    names = {name.split(".")[0] for name in fisher(course, course.remembered[:2])}
    assert names == {"backbone", "classifier"}


def test_a_text_without_new_words_changes_nothing_that_it_does_not_say(base: Base, make_task: Callable) -> None:
    """New data that was not searched for the old types gives their rows no target on its O tokens."""
    course, labels = start(base(), make_task())
    old = [index for index, tag in enumerate(labels.tags) if tag[2:] in ("artist", "city")]
    for target in course.new:
        plain_words = target.allowed[:, 0]
        assert plain_words.any()
        # Only the first sub-word of a word can begin a span; each may be some tag of an old type.
        assert target.allowed[plain_words][:, old].any(axis=1).all()


def test_fine_tuning_without_aid_is_the_plain_row(base: Base, make_task: Callable) -> None:
    """The row is the method and nothing more; scoring answers with the grown names."""
    student = fine_tune(base(), make_task(), plain)
    encodings = student.encoder.encode(["a table for two people today"])
    (answer,) = predict(student.model, encodings, student.labels, student.pad_id, heads=["ner"])
    assert {entity.type for entity in answer.entities} <= set(student.labels.entity_types)
    assert msgspec.to_builtins(student.labels)["entity_types"][-1] == "people"
