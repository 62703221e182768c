"""bf16 in the matrix products of training steps (Micikevicius et al. 2018, arXiv:1710.03740); weights stay fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from twofold_checkpoint.encoding import Encoding

from twofold_trainer.modeling.features import Features, FeatureSource


def has_bf16() -> bool:
    """Tell whether this CPU has instructions for bf16 products. Without them they work, and are slower than fp32."""
    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # Older releases cannot tell.
    able = ask()
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def in_mixed_precision(source: FeatureSource) -> FeatureSource:
    """Return a source whose blocks multiply in bf16; the features come in fp32, for the heads and the losses."""

    def give(encodings: Sequence[Encoding]) -> Features:
        with torch.autocast("cpu", torch.bfloat16):
            features = source(encodings)
        return Features(features.pooled.float(), features.tokens.float())

    return give


def keeping_casts() -> AbstractContextManager[None]:
    """Return a context in which each trained weight is cast to bf16 once, however often such a source is asked.

    Autocast forgets its casts when the outermost of its contexts ends. This one casts nothing itself. It must end before
    the weights move.
    """
    return torch.autocast("cpu", enabled=False)
