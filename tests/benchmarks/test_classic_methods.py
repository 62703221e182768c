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

from benchmarks.adaptation.classic_methods import METHODS, fisher_information, plain, project, softened_kl
from benchmarks.adaptation.fine_tuning import fine_tune, parameter_groups, prepare, warmup_then_decay
from benchmarks.adaptation.hyperparameters import DEFAULTS
from benchmarks.adaptation.method_interface import Learner
from benchmarks.adaptation.methods import CLASSIC_METHODS

pytestmark = pytest.mark.slow

Base = Callable[[], Learner]
State = dict[str, torch.Tensor]


def state(learner: Learner) -> State:
    """Copy a learner's tensors."""
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def same(left: State, right: State) -> bool:
    """Return whether two states have the same bytes."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def drift(before: State, after: State) -> float:
    """Return the distance that the backbone moved."""
    names = [name for name in before if name.startswith("backbone.")]
    return float(sum((after[name] - before[name]).square().sum() for name in names)) ** 0.5


def logits(learner: Learner, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the base's rows for texts."""
    with torch.no_grad():
        actual = compute_features(learner.model, learner.encoder.encode(texts), learner.pad_id)
        return learner.model.classifier(actual.pooled)[:, :4], learner.model.ner(actual.tokens)[:, :7]


def test_every_classic_method_is_listed() -> None:
    """The names equal the implemented methods."""
    assert tuple(METHODS) == CLASSIC_METHODS


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", CLASSIC_METHODS)
def test_a_row_learns_and_keeps_old_rows_in_their_places(
    base: Base, make_task: Callable, method: str, head: str
) -> None:
    """Every method learns the new names better than chance, and the base's names come first."""
    task = make_task(head, hyperparameters={"epochs": 6})
    learner = METHODS[method](base(), task).learner
    names = {"ner": ("people",), "classifier": ("recipe", "taxi")}[head]
    old = base().labels
    assert learner.labels.labels == old.labels + (names if head == "classifier" else ())
    assert learner.labels.entity_types == tuple(dict.fromkeys(old.entity_types + (names if head == "ner" else ())))
    score = Scorer(task.train, head, learner.encoder).score(learner.model, learner.labels)
    assert score is not None
    assert score.value > 0.5
    assert not learner.model.training


@pytest.mark.parametrize("head", HEADS)
def test_replaced_names_are_removed(base: Base, make_task: Callable, head: str) -> None:
    """If new names replace the old ones, neither the head nor the memory has the old ones."""
    learner = METHODS["rehearsal"](base(), make_task(head, replaces=True)).learner
    if head == "classifier":
        assert learner.labels.labels == ("recipe", "taxi")
        assert learner.model.classifier.out_features == 2
        assert {example.label for example in learner.memory.rehearsal} == {None, "recipe", "taxi"}
    else:
        assert learner.labels.entity_types == ("date", "people")
        assert learner.model.ner.out_features == 5
        types = {span.type for example in learner.memory.rehearsal for span in example.entities or ()}
        assert types == {"date", "people"}


@pytest.mark.parametrize("head", HEADS)
def test_freezing_a_head_protects_nothing(base: Base, make_task: Callable, head: str) -> None:
    """New data does not change the protected head, frozen or not, but the backbone changes under it."""
    free, frozen = (state(METHODS[method](base(), make_task(head)).learner) for method in CLASSIC_METHODS[:2])
    assert same(free, frozen)
    before = state(base())
    assert all(torch.equal(before[name], frozen[name]) for name in before if name.startswith(f"{other_head(head)}."))
    assert drift(before, frozen) > 0


@pytest.mark.parametrize("method", CLASSIC_METHODS)
def test_the_same_task_gives_the_same_bytes(base: Base, make_task: Callable, method: str) -> None:
    """Only the seed affects the result."""
    first, again, another = (state(METHODS[method](base(), make_task(seed=seed)).learner) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, another)


@pytest.mark.parametrize(("method", "weight"), [("lwf", "lwf_weight"), ("ewc", "ewc_weight"), ("derpp", "derpp_alpha")])
def test_a_heavier_weight_holds_more(base: Base, make_task: Callable, method: str, weight: str) -> None:
    """Answers to the rehearsed texts change less with a large weight than with none."""
    held = make_task().train if method == "lwf" else base().memory.rehearsal[:60]
    texts = [example.text for example in held]
    before = logits(base(), texts)
    moved = []
    for value in (0.0, 10.0):
        hyperparameters = {"derpp_beta": 0.0, weight: value}
        after = logits(METHODS[method](base(), make_task(hyperparameters=hyperparameters)).learner, texts)
        moved.append(sum(float((left - right).square().mean()) for left, right in zip(before, after, strict=True)))
    assert moved[1] < 0.7 * moved[0]


def test_no_weight_is_plain_fine_tuning(base: Base, make_task: Callable) -> None:
    """LwF with weight 0 equals fine-tuning, except for the rounding of zero gradients."""
    task = make_task(hyperparameters={"lwf_weight": 0.0})
    texts = [example.text for example in task.train]
    plain, unweighted = (logits(METHODS[method](base(), task).learner, texts) for method in ("unconstrained", "lwf"))
    assert all(torch.allclose(left, right, atol=0.01) for left, right in zip(plain, unweighted, strict=True))


def test_rehearsal_keeps_more_than_plain_fine_tuning(base: Base, make_task: Callable) -> None:
    """With destructive learning rates, rehearsal keeps the protected head's loss on the base task lower."""
    tests, hyperparameters = tiny_models.examples(80, seed=5), {"backbone_learning_rate": 1e-2, "epochs": 6}
    surprise = {}
    for method in ("unconstrained", "rehearsal"):
        learner = METHODS[method](base(), make_task(hyperparameters=hyperparameters)).learner
        answers, _ = logits(learner, [example.text for example in tests])
        labels = torch.tensor([learner.labels.labels.index(example.label) for example in tests])
        surprise[method] = float(label_nll(answers, labels))
    assert surprise["rehearsal"] < 0.5 * surprise["unconstrained"]


def test_a_sequence_continues_with_its_memory(base: Base, make_task: Callable) -> None:
    """After a step the memory has its texts with their annotated types; the next step adds to it."""
    first = METHODS["rehearsal"](base(), make_task()).learner
    retained_heads = {example.text: example for example in first.memory.rehearsal}
    assert all(retained_heads[example.text] == example for example in make_task().train)
    second = METHODS["rehearsal"](first, make_task("classifier")).learner
    assert second.labels.labels[4:] == ("recipe", "taxi")
    assert second.labels.entity_types[-1] == "people"
    assert {example.text for example in second.memory.rehearsal} >= retained_heads.keys()


def test_every_tensor_of_the_backbone_has_one_rate(base: Base) -> None:
    """The top block has the full rate, each block below a lower one, embeddings the lowest, and no tensor is listed twice."""
    model = base().model
    groups = parameter_groups(model, HEADS, DEFAULTS)
    rate_of = {id(param): group["lr"] for group in groups for param in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate_of) == len(list(model.parameters()))
    first, last = (next(block.parameters()) for block in (model.blocks()[0], model.blocks()[-1]))
    embedding = model.token_embeddings()[0]
    rates = [rate_of[id(tensor)] for tensor in (model.ner.weight, last, first, embedding)]
    assert rates == pytest.approx([1e-3, 3e-4, 2.7e-4, 2.43e-4])
    assert all(param.ndim > 1 for group in groups if group["weight_decay"] for param in group["params"])


@given(steps=st.integers(1, 200), share=st.floats(0, 1))
def test_the_rates_rise_and_fall(steps: int, share: float) -> None:
    """They never exceed the full rate, reach it at the end of the warm-up, and fall from there."""
    factors = [warmup_then_decay(step, steps, share) for step in range(steps)]
    top = factors.index(max(factors))
    assert max(factors) == 1
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


vectors = st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6)


@given(own=vectors, reference=vectors)
def test_a_projected_gradient_never_opposes_the_reference(own: list[float], reference: list[float]) -> None:
    """A-GEM's gradient never points against the reference, and stays unchanged if it did not."""
    gradient, against = ([torch.tensor(values[:2]), torch.tensor(values[2:]).view(2, 2)] for values in (own, reference))
    actual = project(gradient, tuple(against))
    dot = float(torch.tensor(own) @ torch.tensor(reference))
    after = sum(float((left * right).sum()) for left, right in zip(actual, against, strict=True))
    assert after >= -1e-4
    if dot >= 1e-3:
        assert all(torch.equal(left, right) for left, right in zip(actual, gradient, strict=True))
    elif dot <= -1e-3:
        assert after == pytest.approx(0, abs=1e-4)


def test_softened_kl_by_hand() -> None:
    """At T = 2, logits (0, 2 ln 3) are (1/4, 3/4); compared with (1/2, 1/2) the loss is 4 (ln 2 - H), in nats."""
    old, new = torch.tensor([[0.0, 2 * torch.log(torch.tensor(3.0))]]), torch.zeros(1, 2)
    quarter, rest = torch.tensor(0.25), torch.tensor(0.75)
    by_hand = 4 * (quarter * (quarter / 0.5).log() + rest * (rest / 0.5).log())
    assert softened_kl(new, old, 2.0) == pytest.approx(float(by_hand), rel=1e-5)
    assert softened_kl(old, old, 2.0) == pytest.approx(0, abs=1e-7)


def test_fisher_information_of_a_bias_is_the_variance_of_its_answer(base: Base, make_task: Callable) -> None:
    """For a softmax, drawing labels from the model gives p (1 - p) for each bias, up to chance."""
    learner = base()
    context, _ = prepare(learner, make_task())
    # The most doubtful text: one that is certain would have no variance to estimate.
    with torch.no_grad():
        actual = compute_features(context.old, [encoding.encoding for encoding in context.new], learner.pad_id)
        chances = context.old.classifier(actual.pooled).softmax(dim=1)
    doubtful = int((chances * (1 - chances)).sum(1).argmax())
    torch.manual_seed(0)
    estimated = fisher_information(context, [context.new[doubtful]] * 600)["classifier.bias"]
    wanted = chances[doubtful] * (1 - chances[doubtful])
    assert float(wanted.max()) > 0.01
    assert torch.allclose(estimated, wanted, atol=0.06)


def test_fisher_information_excludes_replaced_rows(base: Base, make_task: Callable) -> None:
    """Rows whose names are replaced are not constrained."""
    context, _ = prepare(base(), make_task(replaces=True))
    names = {name.split(".")[0] for name in fisher_information(context, context.memory_targets[:2])}
    assert names == {"backbone", "classifier"}


def test_a_text_without_new_words_changes_nothing_that_it_does_not_say(base: Base, make_task: Callable) -> None:
    """New texts without annotation for old types give their rows no target on O tokens."""
    context, labels = prepare(base(), make_task())
    old = [index for index, tag in enumerate(labels.tags) if tag[2:] in ("artist", "city")]
    for target in context.new:
        plain_words = target.allowed[:, 0]
        assert plain_words.any()
        # Only the first sub-word of a word can begin a span; each may be some tag of an old type.
        assert target.allowed[plain_words][:, old].any(axis=1).all()


def test_fine_tuning_without_hooks_is_the_plain_method(base: Base, make_task: Callable) -> None:
    """Plain fine-tuning adds no hooks, and predictions use the new names."""
    learner = fine_tune(base(), make_task(), plain)
    encodings = learner.encoder.encode(["a table for two people today"])
    (answer,) = predict(learner.model, encodings, learner.labels, learner.pad_id, heads=["ner"])
    assert {entity.type for entity in answer.entities} <= set(learner.labels.entity_types)
    assert msgspec.to_builtins(learner.labels)["entity_types"][-1] == "people"
