"""Find a backbone's transformer blocks, independent of its architecture, and run a subset of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def find_blocks(backbone: nn.Module, layers: int) -> list[nn.Module]:
    """Return the backbone's list of *layers* modules of one class, under any attribute name.

    Architectures that share or nest their blocks have no such list; the backbone then counts as a single block.
    """
    location = _block_list(backbone, layers)
    return [backbone] if location is None else list(getattr(*location))


def can_divide(backbone: nn.Module, layers: int) -> bool:
    """Return whether the backbone has a list of blocks, so that a subset can run."""
    return _block_list(backbone, layers) is not None


def run_blocks(
    backbone: nn.Module,
    blocks: Sequence[nn.Module],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    layers: int,
    entry: Tensor | None = None,
    keep_input_of: nn.Module | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the backbone with *blocks* instead of its blocks; returns its last hidden state (rows, tokens, hidden).

    *entry* replaces the input of the first block, so that the layers below it do not affect the result. The backbone
    still computes masks and positions, so this works for every architecture.
    The second result is the input of the block *keep_input_of*, or None.
    """
    location = _block_list(backbone, layers)
    assert location is not None, "The backbone has no list of blocks; call can_divide() first. This is a bug."
    captured: list[Tensor] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return ((entry, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entry})

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(args[0] if args else kwargs["hidden_states"])

    with _in_place(*location, blocks):
        hooks = []
        if entry is not None:
            hooks.append(blocks[0].register_forward_pre_hook(enter, with_kwargs=True))
        if keep_input_of is not None:
            hooks.append(keep_input_of.register_forward_pre_hook(capture, with_kwargs=True))
        try:
            hidden = backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
    return hidden, captured[0] if captured else None


def _block_list(backbone: nn.Module, layers: int) -> tuple[nn.Module, str] | None:
    """Return the module that owns the list of blocks, and the list's attribute name."""
    for owner in backbone.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == layers and len({type(block) for block in child}) == 1:
                return owner, name
    return None


@contextmanager
def _in_place(owner: nn.Module, name: str, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Replace the owner's blocks within the context."""
    original = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(blocks))
    try:
        yield
    finally:
        setattr(owner, name, original)
