"""Null-space training: linear layers change only in directions that protected texts do not activate.

Every linear layer of the chosen blocks gets the weight W + B A^T. A is a fixed orthonormal basis of the complement of the
protected inputs, and only B is trained. Projecting the gradient instead does not work with Adam, which rescales each
coordinate and so rotates the step back into the protected space. Here any update of B stays in the complement. Only the
covariances of the protected activations are needed, not the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.model import TwofoldModel
from twofold_trainer.protection.covariances import Covariance, Covariances, linear_layers
from twofold_trainer.recipe import PROJECTION

MIN_CAPACITY = 0.1
"""Mean capacity below which too little is left to learn with; a fork is the better choice then."""


def eigen_split(covariance: Covariance, energy: float = PROJECTION) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases (d, r) of the protected space and (d, d - r) of its complement, float64.

    The protected space is spanned by the fewest leading eigenvectors that hold the share *energy* of the trace, as in GPM
    (arXiv:2103.09762). An energy of 1 protects every direction with a nonzero eigenvalue, up to float64 rounding. Raises
    RefusedError if the energy or the covariance is invalid.
    """
    if not 0 < energy <= 1:
        raise RefusedError(f"energy {energy} must be above 0 and at most 1; the usual value is {PROJECTION}")
    if not torch.isfinite(covariance.total).all():
        raise RefusedError("the covariance is not finite; collect it again from a model with finite weights")
    values, vectors = torch.linalg.eigh(covariance.total)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    values = torch.where(values > noise, values, 0.0)
    # Ascending order sums the small eigenvalues before large ones could round them away.
    free = int((values.cumsum(0) <= (1 - energy) * values.sum()).sum())
    return vectors[:, free:], vectors[:, :free]


class Update(nn.Module):
    """Adds B A^T to a weight (out, d). The basis A is (d, m) and fixed; the coefficients B are (out, m) and start at 0.

    Low-rank updates with one fixed factor are from InfLoRA (arXiv:2404.00228).
    """

    basis: Tensor

    def __init__(self, weight: Tensor, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis.to(weight.dtype).contiguous(), persistent=False)
        self.coefficients = nn.Parameter(weight.new_zeros(len(weight), basis.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, (out, d)."""
        return torch.addmm(weight, self.coefficients, self.basis.T)


@dataclass(frozen=True, slots=True)
class Leakage:
    """How much of the updates of *layers* layers lies in the protected space.

    *leak* is the largest |dW U| / |dW| of a layer (Frobenius norms, U the protected basis). *excess* is the largest leak
    beyond rounding, and *layer* is its layer: a stored number is off by up to half a unit in its last place, so a tiny
    update may be mostly rounding. *capacity* is the mean over the layers; it includes directions that no text activates,
    such as the one that a LayerNorm removes.
    """

    leak: float
    excess: float
    layer: str
    layers: int
    capacity: float

    def __str__(self) -> str:
        room = f"{100 * self.capacity:.0f} % of the dimensions of {self.layers} layers"
        less = " (few: a fork would learn more)" if self.exhausted else ""
        leak = f"at most {self.leak:.1e} of an update leaked into protected dimensions"
        return f"updates used {room}{less}; {leak}, {self.excess:.1e} beyond rounding"

    @property
    def exhausted(self) -> bool:
        """Whether the capacity is too small to learn with."""
        return self.capacity < MIN_CAPACITY


def leak_ratio(change: Tensor, protected: Tensor) -> float:
    """Return |dW U| / |dW| of a change dW (out, d) and a protected basis U (d, r), in float64.

    Zero for no change, and 1 for a change that is not finite.
    """
    change = change.detach().double()
    if not change.any():
        return 0.0
    return float(((change @ protected).norm() / change.norm()).nan_to_num(1.0))


_COEFFICIENTS = ".parametrizations.weight.0.coefficients"


class NullSpaceConstraint:
    """Restricts a model's linear layers to their null spaces until merge() or drop().

    As a context manager it merges on success and drops on errors. Train *parameters* with any optimizer: weight decay pulls
    the update, not the weight, to zero. Everything else but the heads is frozen meanwhile, because a bias or a norm that
    changes would leak too.
    """

    def __init__(self, model: TwofoldModel, bases: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        known = linear_layers(model)
        self._layers = {name: known[name] for name in bases}
        assert not any(map(parametrize.is_parametrized, self._layers.values())), (
            "The layers are already constrained. This is a bug."
        )
        self._protected = {name: protected for name, (protected, _) in bases.items()}
        self._old = {name: layer.weight.detach().clone() for name, layer in self._layers.items()}
        heads = {id(parameter) for head in (model.classifier, model.ner) for parameter in head.parameters()}
        body = [parameter for parameter in model.parameters() if id(parameter) not in heads]
        self._unfrozen = [parameter for parameter in body if parameter.requires_grad]
        for parameter in body:
            parameter.requires_grad_(False)
        self._updates = {name: Update(self._old[name], free) for name, (_, free) in bases.items()}
        for name, layer in self._layers.items():
            parametrize.register_parametrization(layer, "weight", self._updates[name])
        self.capacities = {name: free.shape[1] / len(free) for name, (_, free) in bases.items()}

    @property
    def capacity(self) -> float:
        """Mean share of the dimensions that the layers can still use."""
        return sum(self.capacities.values()) / len(self.capacities)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of *parameters* in the model."""
        return tuple(f"{name}{_COEFFICIENTS}" for name in self._layers)

    def parameters(self) -> list[nn.Parameter]:
        """Return the coefficients, (out, m) per layer: the only trainable parameters besides the heads."""
        return [update.coefficients for update in self._updates.values()]

    def leak(self) -> Leakage:
        """Compare the current weights with the old ones in float64. Also works after the merge."""
        leaks, excesses = {}, {}
        with torch.no_grad():
            for name, layer in self._layers.items():
                weight, old = layer.weight.double(), self._old[name].double()
                leaks[name] = leak_ratio(weight - old, self._protected[name])
                rounding = torch.finfo(layer.weight.dtype).eps / 2 * weight.norm() / (weight - old).norm()
                excesses[name] = leaks[name] - rounding.clamp(max=leaks[name]).nan_to_num(0.0).item()
        worst = max(excesses, key=lambda name: excesses[name])
        return Leakage(max(leaks.values()), excesses[worst], worst, len(leaks), self.capacity)

    def merge(self) -> None:
        """Replace the weights with W + B A^T, bit for bit the ones that the forward pass used."""
        self._release({name: layer.weight.detach().clone() for name, layer in self._layers.items()})

    def drop(self) -> None:
        """Restore the old weights."""
        self._release(self._old)

    def _release(self, weights: Mapping[str, Tensor]) -> None:
        assert self._is_active, "The constraint has already ended. This is a bug."
        for name, layer in self._layers.items():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            with torch.no_grad():
                layer.weight.copy_(weights[name])
            if layer.bias is not None:  # Restores the parameter order, in which the weight comes first.
                layer.register_parameter("bias", layer._parameters.pop("bias"))  # noqa: SLF001
        for parameter in self._unfrozen:
            parameter.requires_grad_()

    @property
    def _is_active(self) -> bool:
        return all(parametrize.is_parametrized(layer, "weight") for layer in self._layers.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_active:
            self.drop() if kind else self.merge()


def merged_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that parameters have after the merge: coefficients become the weights of their layers."""
    return tuple(
        f"{name.removesuffix(_COEFFICIENTS)}.weight" if name.endswith(_COEFFICIENTS) else name for name in names
    )


def constrain(model: TwofoldModel, covariances: Covariances, energy: float = PROJECTION) -> NullSpaceConstraint:
    """Constrain the layers that have covariances to the null spaces of their protected inputs.

    Raises RefusedError if there are no covariances, or if they do not match the layers of the model.
    """
    known = linear_layers(model)
    if not covariances:
        raise RefusedError("there are no covariances, so no layer could be trained; collect them from protected texts")
    for name, covariance in covariances.items():
        width = known[name].in_features if name in known else "no such layer"
        if width != len(covariance.total):
            has = f"{name} with {len(covariance.total)} inputs, but the model has {width}"
            raise RefusedError(f"the covariances belong to {has}; collect them again from this model")
    return NullSpaceConstraint(
        model, {name: eigen_split(covariance, energy) for name, covariance in covariances.items()}
    )
