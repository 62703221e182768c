"""The classic methods of continual learning, each as hooks that it adds to plain fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F
from twofold_checkpoint.manifest import HeadName
from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import Features, FeatureSource, compute_features

from benchmarks.adaptation.fine_tuning import Batch, HookFactory, MethodHooks, TrainingContext, fine_tune
from benchmarks.adaptation.method_interface import AdaptationResult, Learner, Method, Task


def plain(context: TrainingContext) -> MethodHooks:  # noqa: ARG001 -- the signature of a HookFactory.
    """Add nothing."""
    return MethodHooks()


def lwf(context: TrainingContext) -> MethodHooks:
    """Distil the old model's answers on the new texts into both heads (Li & Hoiem 2016, arXiv:1606.09282)."""
    hyperparameters = context.hyperparameters

    def loss_term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        losses = [
            hyperparameters.weight(head) * softened_kl(new, old, hyperparameters.lwf_temperature)
            for head, new, old in logits_before_and_after(context, batch, features)
        ]
        return hyperparameters.lwf_weight * torch.stack(losses).sum()

    return MethodHooks(loss_term=loss_term)


def rehearsal(context: TrainingContext) -> MethodHooks:
    """Train on as many memory texts as new ones, with the labels of both heads (Chaudhry et al. 2019, arXiv:1902.10486)."""
    memory_batches = context.memory_batches()

    def loss_term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        return context.loss(*_next_batch(memory_batches, source))

    return MethodHooks(loss_term=loss_term)


def derpp(context: TrainingContext) -> MethodHooks:
    """Rehearse, and match the stored logits on a second batch of the memory (Buzzega et al. 2020, arXiv:2004.07211)."""
    hyperparameters = context.hyperparameters
    label_batches, logit_batches = context.memory_batches(), context.memory_batches()

    def loss_term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        squares = [
            hyperparameters.weight(head) * F.mse_loss(new, old)
            for head, new, old in logits_before_and_after(context, *_next_batch(logit_batches, source))
        ]
        labels = context.loss(*_next_batch(label_batches, source))
        return hyperparameters.derpp_beta * labels + hyperparameters.derpp_alpha * torch.stack(squares).sum()

    return MethodHooks(loss_term=loss_term)


def ewc(context: TrainingContext) -> MethodHooks:
    """Pull each weight back in proportion to its Fisher information on the memory (Kirkpatrick et al. 2017, arXiv:1612.00796).

    The information is scaled to a mean of one. A base that fits its texts well has a millionth of the information of a
    base that does not, so one weight could not suit both.
    """
    chosen = context.memory_targets
    if len(chosen) > context.hyperparameters.ewc_texts:
        chosen = tuple(context.rng.sample(chosen, context.hyperparameters.ewc_texts))
    information = fisher_information(context, chosen)
    mean = sum(float(tensor.sum()) for tensor in information.values()) / sum(map(torch.numel, information.values()))
    strength = context.hyperparameters.ewc_weight / mean
    anchors = {name: tensor.detach() for name, tensor in context.old.named_parameters()}

    def edit_gradients(source: FeatureSource) -> None:  # noqa: ARG001
        for name, parameter in context.model.named_parameters():
            if parameter.grad is not None and name in information:
                old = slice(len(anchors[name]))  # Appended rows have no anchor.
                drift = parameter.detach()[old] - anchors[name]
                parameter.grad[old] += strength * information[name] * drift

    return MethodHooks(edit_gradients=edit_gradients)


def agem(context: TrainingContext) -> MethodHooks:
    """Project out the part of the gradient that would raise the loss of a memory batch (Chaudhry et al. 2019, arXiv:1812.00420)."""
    memory_batches = context.memory_batches()

    def edit_gradients(source: FeatureSource) -> None:
        parameters = [parameter for parameter in context.model.parameters() if parameter.requires_grad]
        loss = context.loss(*_next_batch(memory_batches, source))
        if not loss.requires_grad:
            return
        references = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in parameters]
        for parameter, gradient in zip(parameters, project(gradients, references), strict=True):
            parameter.grad = gradient

    return MethodHooks(edit_gradients=edit_gradients)


def project(gradients: list[Tensor], references: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients without their component against the references, both taken as vectors over all tensors."""
    dot = sum(float((gradient * reference).sum()) for gradient, reference in zip(gradients, references, strict=True))
    if dot >= 0:
        return gradients
    scale = dot / sum(float(reference.square().sum()) for reference in references)
    return [gradient - scale * reference for gradient, reference in zip(gradients, references, strict=True)]


def _next_batch(memory_batches: Iterator[list[Target]], source: FeatureSource) -> tuple[list[Target], Features]:
    batch = next(memory_batches)
    return batch, source([target.encoding for target in batch])


def logits_before_and_after(
    context: TrainingContext, batch: Batch, features: Features
) -> Iterator[tuple[HeadName, Tensor, Tensor]]:
    """Yield the new and the old logits of a batch for each head that keeps its old rows, restricted to these rows."""
    with torch.no_grad():
        before = context.frozen_features([target.encoding for target in batch])
    for head in context.retained_heads:
        new, old = (features.pooled, before.pooled) if head == "classifier" else (features.tokens, before.tokens)
        with torch.no_grad():
            logits = context.old.head(head)(old)
        yield head, context.model.head(head)(new)[:, : logits.shape[1]], logits


def softened_kl(logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(old || new) at temperature T, averaged over the rows of (rows, names) logits."""
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, old))
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2


def fisher_information(context: TrainingContext, targets: Batch) -> dict[str, Tensor]:
    """Estimate the old model's diagonal Fisher information by parameter name, for the backbone and the retained heads.

    Labels are sampled from the model's answers: with the true labels the squared gradients would estimate the empirical
    Fisher, a different quantity (Kunstner et al. 2019, arXiv:1905.12558).
    """
    old = context.old
    prefixes = ("backbone", *context.retained_heads)
    named = {name: tensor for name, tensor in old.named_parameters() if name.split(".")[0] in prefixes}
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for target in targets:
        features = compute_features(old, [target.encoding], context.pad_id)
        answers = [
            old.head(head)(features.pooled if head == "classifier" else features.tokens)
            for head in context.retained_heads
        ]
        sampled = [Categorical(logits=logits.detach()).sample() for logits in answers]
        loss = torch.stack(
            [F.cross_entropy(*pair, reduction="sum") for pair in zip(answers, sampled, strict=True)]
        ).sum()
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total.add_(gradient.square())
    return {name: total / len(targets) for name, total in sums.items()}


def make_method(hook_factory: HookFactory, *, frozen: bool = False) -> Method:
    """Make a method of plain fine-tuning with the factory's hooks."""

    def adapt(learner: Learner, task: Task) -> AdaptationResult:
        return AdaptationResult(fine_tune(learner, task, hook_factory, frozen=frozen))

    return adapt


METHODS: dict[str, Method] = {
    "unconstrained": make_method(plain),
    "head_frozen": make_method(plain, frozen=True),
    "lwf": make_method(lwf),
    "rehearsal": make_method(rehearsal),
    "derpp": make_method(derpp),
    "ewc": make_method(ewc),
    "agem": make_method(agem),
}
