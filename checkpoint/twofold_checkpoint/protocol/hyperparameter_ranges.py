"""The valid range of each hyperparameter. The server checks it before a job is queued, the trainer before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class HyperparameterRange:
    """A range of values; *above* excludes its lower end."""

    low: float
    high: float = float("inf")
    above: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a finite value is in the range."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high and value < float("inf")

    def __str__(self) -> str:
        bounds = [f"above {self.low:g}" if self.above else f"at least {self.low:g}"]
        if self.high < float("inf"):
            bounds.append(f"at most {self.high:g}")
        return " and ".join(bounds)


RANGES: Mapping[str, HyperparameterRange] = MappingProxyType(
    {
        "epochs": HyperparameterRange(1, 1000),
        "batch_size": HyperparameterRange(1, 4096),
        "head_learning_rate": HyperparameterRange(0, 1, above=True),
        "backbone_learning_rate": HyperparameterRange(0, 1, above=True),
        "layer_decay": HyperparameterRange(0, 1, above=True),
        "warmup_ratio": HyperparameterRange(0, 1),
        "weight_decay": HyperparameterRange(0, 10),
        "patience": HyperparameterRange(1, 10_000),
        "rehearsal_ratio": HyperparameterRange(0, 100),
        "unfrozen_blocks": HyperparameterRange(0, 10_000),
        "distillation": HyperparameterRange(0, 1000),
        "retention": HyperparameterRange(0, 1000),
        "projection": HyperparameterRange(0, 1),
        "repair": HyperparameterRange(0, 1000),
    }
)
"""Ranges by hyperparameter. Boolean hyperparameters have none."""
