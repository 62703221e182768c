"""bf16 in the matrix products of training steps (Micikevicius et al. 2018, arXiv:1710.03740); weights stay fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from twofold_checkpoint.encoding import Encoding

from twofold_trainer.modeling.features import Features, FeatureSource


def has_bf16() -> bool:
    """Return whether this CPU has bf16 matrix instructions. Without them, bf16 works but is slower than fp32."""
    capabilities: Callable[[], Mapping[str, Any]] = getattr(
        torch.cpu, "get_capabilities", dict
    )  # Older releases lack it.
    able = capabilities()
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def in_mixed_precision(source: FeatureSource) -> FeatureSource:
    """Return a source whose blocks multiply in bf16. Its features are fp32, for the heads and the losses."""

    def compute(encodings: Sequence[Encoding]) -> Features:
        with torch.autocast("cpu", torch.bfloat16):
            features = source(encodings)
        return Features(features.pooled.float(), features.tokens.float())

    return compute


def keeping_casts() -> AbstractContextManager[None]:
    """Return a context in which each trained weight is cast to bf16 only once, over all calls of the source.

    Autocast clears its cast cache when its outermost context ends. This context itself casts nothing. Leave it before
    the weights change.
    """
    return torch.autocast("cpu", enabled=False)
