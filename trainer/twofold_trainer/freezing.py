"""Which parameters a stage trains, and the proof that it trained no other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from twofold_checkpoint.events import FrozenProven
from twofold_checkpoint.manifest import HeadName

from twofold_trainer.errors import FrozenMovedError
from twofold_trainer.model import TwofoldModel


@dataclass(frozen=True, slots=True)
class Group:
    """Name parameters that share a rate. *depth* is the distance from the top block; None means a head."""

    names: tuple[str, ...]
    depth: int | None


def trainable_groups(model: TwofoldModel, heads: Iterable[HeadName], blocks: int) -> list[Group]:
    """Group what a stage trains: the heads, the top *blocks* blocks, and with all of them the rest of the backbone.

    What stands outside the blocks (embeddings, a final norm) moves only when every block does, at the lowest rate.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        Group(tuple(name_of[id(parameter)] for head in heads for parameter in model.head(head).parameters()), None)
    ]
    all_blocks = model.blocks()
    taken: set[str] = set()
    for depth, block in enumerate(reversed(all_blocks[len(all_blocks) - blocks :] if blocks else [])):
        names = tuple(name_of[id(parameter)] for parameter in block.parameters())
        taken.update(names)
        groups.append(Group(names, depth))
    if blocks and blocks >= len(all_blocks):
        # The token embeddings stay: a first training on thousands of texts gains nothing from moving them, and
        # AdamW over the whole vocabulary takes a third of its time.
        taken.update(name_of[id(parameter)] for parameter in model.token_embeddings())
        rest = tuple(name for name in name_of.values() if name.startswith("backbone.") and name not in taken)
        groups.append(Group(rest, len(all_blocks)))
    return [group for group in groups if group.names]


def freeze_all_but(model: TwofoldModel, names: Iterable[str]) -> None:
    """Let only the named parameters have gradients, and only the blocks that hold them use dropout."""
    trained = set(names)
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for block in model.blocks():
        block.train(any(parameter.requires_grad for parameter in block.parameters()))


def digest(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256 over the named tensors in order of name: name, dtype, shape and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def prove_frozen(before: Mapping[str, Tensor], after: Mapping[str, Tensor], trained: Iterable[str]) -> FrozenProven:
    """Compare everything that was not trained. Raises FrozenMovedError that names a tensor that moved."""
    frozen = sorted(set(before) - set(trained))
    proof = FrozenProven(
        parameters=len(frozen), digest_before=digest(before, frozen), digest_after=digest(after, frozen)
    )
    if proof.digest_before != proof.digest_after:
        moved = next(name for name in frozen if digest(before, [name]) != digest(after, [name]))
        raise FrozenMovedError(f"the frozen tensor {moved} has changed; nothing was published. This is a bug.")
    return proof
