"""Train linear layers only where protected texts have no activations, so that what was answered stays answered.

Every linear layer of the chosen blocks gets the weight W + B A^T. A is an orthonormal basis, fixed, of the complement of
the protected inputs, and only B is trained. Projecting the gradient instead does not survive Adam, which scales each
coordinate for itself and so turns the step back into the protected space. Here whatever an optimizer does to B stays in
the complement. Of the protected texts nothing is kept but covariances of activations.
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

ENERGY = 0.999
"""The share of the protected inputs' energy that no update may touch."""

MIN_CAPACITY = 0.1
"""Below this mean capacity there is too little left to learn with, and a fork is the better choice."""


def eigen_split(covariance: Covariance, energy: float = ENERGY) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases (d, r) of the protected space and (d, d - r) of its complement, float64.

    The protected space is spanned by the fewest leading eigenvectors that hold *energy* of the trace, as in GPM
    (arXiv:2103.09762). An energy of 1 protects all directions that have any, as far as float64 can tell.
    """
    if not 0 < energy <= 1:
        raise RefusedError(f"energy {energy} must be above 0 and at most 1; the usual value is {ENERGY}")
    if not torch.isfinite(covariance.total).all():
        raise RefusedError("the covariance is not finite; collect it again from a model whose weights are finite")
    values, vectors = torch.linalg.eigh(covariance.total)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    values = torch.where(values > noise, values, 0.0)
    # Ascending, so that the small energies that are given up are summed before large ones round them away.
    free = int((values.cumsum(0) <= (1 - energy) * values.sum()).sum())
    return vectors[:, free:], vectors[:, :free]


def null_space_basis(covariance: Covariance, energy: float = ENERGY) -> Tensor:
    """Return an orthonormal basis (d, m), float64, of where updates may go; m / d is the layer's capacity."""
    return eigen_split(covariance, energy)[1]


class Update(nn.Module):
    """Add B A^T to a weight (out, d). The basis A is (d, m) and fixed; the coefficients B are (out, m) and begin at 0.

    Low-rank updates with one fixed factor are from InfLoRA (arXiv:2404.00228).
    """

    basis: Tensor

    def __init__(self, weight: Tensor, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis.to(weight.dtype).contiguous(), persistent=False)
        self.coefficients = nn.Parameter(weight.new_zeros(len(weight), basis.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its update, (out, d)."""
        return torch.addmm(weight, self.coefficients, self.basis.T)


@dataclass(frozen=True, slots=True)
class Leakage:
    """Say how well the protected inputs are kept out of the updates of *layers* layers.

    *leak* is the worst layer's |dW U| / |dW| (Frobenius norms, U the protected basis). *excess* is the worst that is left
    when rounding is allowed for, and *layer* is where: a stored number is off by up to half a unit in its last place
    whatever its update, so a tiny update may be mostly rounding. *capacity* is the mean over the layers; it counts
    directions that no text at all has, such as the one that a LayerNorm takes out.
    """

    leak: float
    excess: float
    layer: str
    layers: int
    capacity: float

    def __str__(self) -> str:
        room = f"{100 * self.capacity:.0f} % of the dimensions of {self.layers} layers"
        less = ", which is little: a fork would learn more" if self.exhausted else ""
        return f"updates stayed in {room}{less}; {self.leak:.1e} of them leaked, {self.excess:.1e} beyond rounding"

    @property
    def protected(self) -> float:
        """The mean share of the dimensions that no update may touch, r / d."""
        return 1 - self.capacity

    @property
    def exhausted(self) -> bool:
        """Whether too little capacity is left to learn with."""
        return self.capacity < MIN_CAPACITY


def leak_ratio(change: Tensor, protected: Tensor) -> float:
    """Return |dW U| / |dW| of a change dW (out, d) and a protected basis U (d, r), in float64.

    No change leaks nothing, and one that is not finite leaks wholly: 1.
    """
    change = change.detach().double()
    if not change.any():
        return 0.0
    return float(((change @ protected).norm() / change.norm()).nan_to_num(1.0))


_COEFFICIENTS = ".parametrizations.weight.0.coefficients"


class NullSpaceConstraint:
    """Hold a model's linear layers to their complements until merge or drop. As a context it merges, or drops on errors.

    Only *parameters* are trained, by any optimizer with any settings: weight decay draws the update, not the weight, to
    zero. All else of the model but the heads is frozen meanwhile, because a bias or a norm that moves is a leak, too.
    """

    def __init__(self, model: TwofoldModel, bases: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        known = linear_layers(model)
        self._layers = {name: known[name] for name in bases}
        assert not any(map(parametrize.is_parametrized, self._layers.values())), "Constrained already. This is a bug."
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
        """The mean share of the dimensions in which the layers can still learn."""
        return sum(self.capacities.values()) / len(self.capacities)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of *parameters* in the model."""
        return tuple(f"{name}{_COEFFICIENTS}" for name in self._layers)

    def parameters(self) -> list[nn.Parameter]:
        """Return the coefficients, (out, m) of each layer: all that an optimizer may move but the heads."""
        return [update.coefficients for update in self._updates.values()]

    def leak(self) -> Leakage:
        """Measure the weights as they are, in float64, against those before; after the merge too."""
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
        """Make W + B A^T the plain weights, bit for bit what the model has just answered with."""
        self._release({name: layer.weight.detach().clone() for name, layer in self._layers.items()})

    def drop(self) -> None:
        """Put the weights back as they were."""
        self._release(self._old)

    def _release(self, weights: Mapping[str, Tensor]) -> None:
        assert self._is_active, "The constraint has ended already. This is a bug."
        for name, layer in self._layers.items():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            with torch.no_grad():
                layer.weight.copy_(weights[name])
            if layer.bias is not None:  # The weight comes back last, and parameters have an order.
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
    """Say what named parameters will have moved once constraints are merged: weights, where they are coefficients."""
    return tuple(
        f"{name.removesuffix(_COEFFICIENTS)}.weight" if name.endswith(_COEFFICIENTS) else name for name in names
    )


def constrain(model: TwofoldModel, covariances: Covariances, energy: float = ENERGY) -> NullSpaceConstraint:
    """Hold the updates of the layers to the complements of the inputs that their covariances have seen.

    Raises RefusedError if there is no covariance, or one of a layer that the model has not, or has with another width.
    """
    known = linear_layers(model)
    if not covariances:
        raise RefusedError("there are no covariances, so nothing could be trained; collect them from protected texts")
    for name, covariance in covariances.items():
        width = known[name].in_features if name in known else "no such layer"
        if width != len(covariance.total):
            has = f"{name} with {len(covariance.total)} inputs, but the model has {width}"
            raise RefusedError(f"the covariances are of {has}; collect them again from this model")
    return NullSpaceConstraint(
        model, {name: eigen_split(covariance, energy) for name, covariance in covariances.items()}
    )
