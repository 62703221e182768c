"""The classic methods against forgetting, each as what it adds to plain fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional as F
from twofold_checkpoint.manifest import HeadName
from twofold_trainer.datasets.targets import Target
from twofold_trainer.modeling.features import Features, FeatureSource, compute_features

from benchmarks.adaptation.fine_tuning import Aid, Batch, Course, Method, fine_tune
from benchmarks.adaptation.method_interface import Adapted, Row, Student, Task


def plain(course: Course) -> Aid:  # noqa: ARG001 -- a method like the others.
    """Add nothing."""
    return Aid()


def lwf(course: Course) -> Aid:
    """Hold both heads to the old model's answers on the new texts (Li & Hoiem 2016, arXiv:1606.09282)."""
    rates = course.rates

    def term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        held = [
            rates.weight(head) * softened_kl(now, then, rates.lwf_temperature)
            for head, now, then in compare(course, batch, features)
        ]
        return rates.lwf_weight * torch.stack(held).sum()

    return Aid(term=term)


def rehearsal(course: Course) -> Aid:
    """Train on as many remembered texts as new ones, with both heads' labels (Chaudhry et al. 2019, arXiv:1902.10486)."""
    remembered = course.rehearsals()

    def term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        return course.loss(*_draw(remembered, source))

    return Aid(term=term)


def derpp(course: Course) -> Aid:
    """Rehearse, and hold a second draw of the memory to the logits kept with it (Buzzega et al. 2020, arXiv:2004.07211)."""
    rates, labelled, kept = course.rates, course.rehearsals(), course.rehearsals()

    def term(batch: Batch, features: Features, source: FeatureSource) -> Tensor:  # noqa: ARG001
        squares = [
            rates.weight(head) * F.mse_loss(now, then) for head, now, then in compare(course, *_draw(kept, source))
        ]
        labels = course.loss(*_draw(labelled, source))
        return rates.derpp_labels * labels + rates.derpp_logits * torch.stack(squares).sum()

    return Aid(term=term)


def ewc(course: Course) -> Aid:
    """Pull each weight back by its Fisher information on the memory (Kirkpatrick et al. 2017, arXiv:1612.00796).

    The information is scaled to a mean of one: a base that fits its texts well has a millionth of the information of
    one that does not, and no one weight would do for both.
    """
    chosen = course.remembered
    if len(chosen) > course.rates.ewc_texts:
        chosen = tuple(course.chance.sample(chosen, course.rates.ewc_texts))
    information = fisher(course, chosen)
    mean = sum(float(one.sum()) for one in information.values()) / sum(one.numel() for one in information.values())
    strength = course.rates.ewc_weight / mean
    anchors = {name: tensor.detach() for name, tensor in course.old.named_parameters()}

    def edit(source: FeatureSource) -> None:  # noqa: ARG001
        for name, parameter in course.model.named_parameters():
            if parameter.grad is not None and name in information:
                old = slice(len(anchors[name]))  # Rows that were appended have no anchor.
                drift = parameter.detach()[old] - anchors[name]
                parameter.grad[old] += strength * information[name] * drift

    return Aid(edit=edit)


def agem(course: Course) -> Aid:
    """Take out of the gradient what would raise the loss of a memory batch (Chaudhry et al. 2019, arXiv:1812.00420)."""
    remembered = course.rehearsals()

    def edit(source: FeatureSource) -> None:
        parameters = [parameter for parameter in course.model.parameters() if parameter.requires_grad]
        loss = course.loss(*_draw(remembered, source))
        if not loss.requires_grad:
            return
        references = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        for parameter, gradient in zip(parameters, project(own, references), strict=True):
            parameter.grad = gradient

    return Aid(edit=edit)


def project(gradients: list[Tensor], references: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients without their part against the reference ones, if they have one, as vectors over all tensors."""
    dot = sum(float((own * reference).sum()) for own, reference in zip(gradients, references, strict=True))
    if dot >= 0:
        return gradients
    share = dot / sum(float(reference.square().sum()) for reference in references)
    return [own - share * reference for own, reference in zip(gradients, references, strict=True)]


def _draw(remembered: Iterator[list[Target]], source: FeatureSource) -> tuple[list[Target], Features]:
    batch = next(remembered)
    return batch, source([target.encoding for target in batch])


def compare(course: Course, batch: Batch, features: Features) -> Iterator[tuple[HeadName, Tensor, Tensor]]:
    """Yield the logits of a batch now and as they were, for each head that keeps its old rows, of these rows."""
    with torch.no_grad():
        before = course.frozen([target.encoding for target in batch])
    for head in course.kept:
        now, then = (features.pooled, before.pooled) if head == "classifier" else (features.tokens, before.tokens)
        with torch.no_grad():
            old = course.old.head(head)(then)
        yield head, course.model.head(head)(now)[:, : old.shape[1]], old


def softened_kl(logits: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Return the mean over rows of T^2 KL(old || new) of (rows, names) logits at temperature T."""
    now, then = (F.log_softmax(some / temperature, dim=1) for some in (logits, old))
    return F.kl_div(now, then, log_target=True, reduction="batchmean") * temperature**2


def fisher(course: Course, targets: Batch) -> dict[str, Tensor]:
    """Estimate the diagonal Fisher information of the old model, by name of the parameter.

    It is that of the backbone and of the heads whose old rows are kept. Labels are drawn from the model's own answers:
    squared gradients of the true labels would be another quantity (Kunstner et al. 2019, arXiv:1905.12558).
    """
    old = course.old
    named = {name: one for name, one in old.named_parameters() if name.split(".")[0] in ("backbone", *course.kept)}
    sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for target in targets:
        features = compute_features(old, [target.encoding], course.pad_id)
        answers = [old.head(head)(features.pooled if head == "classifier" else features.tokens) for head in course.kept]
        drawn = [Categorical(logits=logits.detach()).sample() for logits in answers]
        loss = torch.stack([F.cross_entropy(*pair, reduction="sum") for pair in zip(answers, drawn, strict=True)]).sum()
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            total.add_(gradient.square())
    return {name: total / len(targets) for name, total in sums.items()}


def row(method: Method, *, frozen: bool = False) -> Row:
    """Make a method a row of the table."""

    def adapt(student: Student, task: Task) -> Adapted:
        return Adapted(fine_tune(student, task, method, frozen=frozen))

    return adapt


ROWS: dict[str, Row] = {
    "unconstrained": row(plain),
    "head_frozen": row(plain, frozen=True),
    "lwf": row(lwf),
    "rehearsal": row(rehearsal),
    "derpp": row(derpp),
    "ewc": row(ewc),
    "agem": row(agem),
}
