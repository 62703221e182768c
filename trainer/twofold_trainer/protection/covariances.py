"""Covariances of the inputs of linear layers over protected texts. They replace the texts, which are not stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from twofold_checkpoint.encoding import Encoding, pad

from twofold_trainer.errors import RefusedError
from twofold_trainer.modeling.model import TwofoldModel


@dataclass(frozen=True, slots=True, eq=False)
class Covariance:
    """The uncentred covariance of a layer's inputs: *total* is the sum of x x^T, (d, d) float64, over *count* tokens.

    About ten tokens per dimension are enough; fewer miss many protected directions.
    """

    total: Tensor
    count: int

    def __add__(self, second: Covariance) -> Covariance:
        if self.total.shape != second.total.shape:
            widths = f"{len(self.total)} and {len(second.total)}"
            raise RefusedError(f"covariances of widths {widths} cannot be added; collect both from the same backbone")
        return Covariance(self.total + second.total, self.count + second.count)


Covariances = Mapping[str, Covariance]
"""Covariances of the inputs of linear layers, by layer name."""


def collect_covariances(
    model: TwofoldModel, blocks: Sequence[nn.Module], batches: Iterable[Sequence[Encoding]], pad_id: int
) -> dict[str, Covariance]:
    """Return the covariance of the inputs of every linear layer of the blocks, over all windows of the texts, without padding.

    The model runs in evaluation mode. Raises RefusedError if there are no texts or no linear layers, or if a layer does
    not receive one vector per token.
    """
    known = linear_layers(model)
    layers = {name: known[name] for name in linear_names(model, blocks)}
    if not layers:
        raise RefusedError("the blocks have no linear layers to constrain; use a fork instead")
    sums = {name: torch.zeros(2 * (layer.in_features,), dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)
    real = torch.zeros(0, dtype=torch.bool)

    def accumulate(name: str, _: nn.Module, entered: tuple[Tensor]) -> None:
        rows = entered[0].reshape(-1, entered[0].shape[-1])
        if len(rows) != len(real):
            counted = f"{len(rows)} vectors for {len(real)} tokens"
            raise RefusedError(f"{name} gets {counted} and cannot be constrained; use a fork instead")
        inputs = rows[real].double()
        sums[name].addmm_(inputs.T, inputs)
        counts[name] += len(inputs)

    with torch.no_grad(), ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(accumulate, name)))
        for batch in batches:
            ids, mask = pad([window for encoding in batch for window in encoding.windows], pad_id)
            real = torch.from_numpy(mask).bool().flatten()
            model.hidden(torch.from_numpy(ids), torch.from_numpy(mask))
    if not any(counts.values()):
        raise RefusedError("there are no protected texts; give at least one batch of them")
    if never_called := [name for name, count in counts.items() if not count]:
        raise RefusedError(f"{never_called[0]} was never called and cannot be constrained; use a fork instead")
    return {name: Covariance(sums[name], counts[name]) for name in layers}


def add_covariances(first: Covariances, second: Covariances) -> dict[str, Covariance]:
    """Add covariances layer by layer, which protects the texts of both. Raises RefusedError if the layers differ."""
    if unmatched := sorted(set(first) ^ set(second)):
        raise RefusedError(f"only one side has {unmatched[0]}; collect both from the same blocks")
    return {name: covariance + second[name] for name, covariance in first.items()}


def save_covariances(covariances: Covariances, path: Path) -> None:
    """Write covariances to a safetensors file."""
    tensors = {f"{name}.total": covariance.total.contiguous() for name, covariance in covariances.items()}
    counts = {f"{name}.count": torch.tensor(covariance.count) for name, covariance in covariances.items()}
    save_file(tensors | counts, path)


def load_covariances(path: Path) -> dict[str, Covariance]:
    """Read the file of save_covariances."""
    tensors = load_file(path)
    names = [name.removesuffix(".total") for name in tensors if name.endswith(".total")]
    return {name: Covariance(tensors[f"{name}.total"], int(tensors[f"{name}.count"])) for name in names}


def linear_names(model: nn.Module, blocks: Iterable[nn.Module]) -> list[str]:
    """Return the names of the linear layers in the given blocks."""
    inside = {id(module) for block in blocks for module in block.modules()}
    return [name for name, layer in linear_layers(model).items() if id(layer) in inside]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
