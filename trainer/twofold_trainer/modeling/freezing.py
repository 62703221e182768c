"""Select the parameters that a stage trains, and verify that no other parameter changed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from twofold_checkpoint.manifest import HeadName, other_head
from twofold_checkpoint.protocol.events import FrozenVerified

from twofold_trainer.errors import FrozenMovedError
from twofold_trainer.modeling.model import TwofoldModel


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a learning rate. *depth* is the distance from the top block; None means a head."""

    names: tuple[str, ...]
    depth: int | None


def trainable_groups(model: TwofoldModel, heads: Sequence[HeadName], blocks: int, *, norms: bool = True) -> list[Group]:
    """Group the parameters that a stage trains: the heads and the top *blocks* blocks of their path.

    Parameters outside the blocks (position embeddings, a final norm) feed both heads, even with a branch. They train
    only if all blocks train, at the lowest rate, and never if the trained path is the branch's.
    Without *norms*, no normalisation layer moves.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [Group(head_names(model, heads), None)]
    path = model.path(heads[0])
    for depth, block in enumerate(reversed(path[len(path) - blocks :] if blocks else [])):
        groups.append(Group(tuple(name_of[id(parameter)] for parameter in block.parameters()), depth))
    own = 0 if model.branch is None else len(model.branch)
    if blocks > own and blocks >= len(path) and heads[0] != model.branch_head:
        taken = {name_of[id(parameter)] for block in all_blocks(model) for parameter in block.parameters()}
        # Token embeddings stay frozen: training them on thousands of texts brings no gain, and
        # AdamW over the whole vocabulary takes a third of the training time.
        taken.update(name_of[id(parameter)] for parameter in model.token_embeddings())
        outside_blocks = tuple(name for name in name_of.values() if name.startswith("backbone.") and name not in taken)
        groups.append(Group(outside_blocks, len(path)))
    return only(groups, set(name_of.values()) - (set() if norms else set(norm_names(model))))


def only(groups: Iterable[Group], names: Collection[str]) -> list[Group]:
    """Restrict the groups to the given names, and drop empty groups."""
    filtered = (Group(tuple(name for name in group.names if name in names), group.depth) for group in groups)
    return [group for group in filtered if group.names]


def head_names(model: TwofoldModel, heads: Iterable[HeadName]) -> tuple[str, ...]:
    """Return the names of the parameters of heads."""
    return tuple(name for head in heads for name, _ in model.head(head).named_parameters(prefix=head))


def norm_names(model: nn.Module) -> list[str]:
    """Return the names of normalisation parameters, recognised by class name: architectures define their own classes."""
    return [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if type(module).__name__.lower().endswith("norm")
        for name, _ in module.named_parameters(recurse=False)
    ]


def freeze_all_but(model: TwofoldModel, names: Iterable[str]) -> None:
    """Enable gradients only for the named parameters, and dropout only in the blocks that contain them."""
    trained = set(names)
    model.eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for block in all_blocks(model):
        block.train(any(parameter.requires_grad for parameter in block.parameters()))


def all_blocks(model: TwofoldModel) -> list[nn.Module]:
    """Return the backbone's blocks and the branch's."""
    return [*model.blocks(), *(model.branch or ())]


def is_untouched(model: TwofoldModel, adapted: HeadName, trained: Collection[str]) -> bool:
    """Return whether the protected head, the blocks on its path and all parameters outside the blocks stayed frozen."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {name_of[id(parameter)] for block in all_blocks(model) for parameter in block.parameters()}
    protected = other_head(adapted)
    path = {name_of[id(parameter)] for block in model.path(protected) for parameter in block.parameters()}
    around = {name for name in name_of.values() if name.startswith("backbone.") and name not in own}
    head = {name_of[id(parameter)] for parameter in model.head(protected).parameters()}
    return not (path | around | head) & set(trained)


def digest(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Return the SHA-256 over the named tensors in order of name: name, dtype, shape and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def verify_frozen(before: Mapping[str, Tensor], after: Mapping[str, Tensor], trained: Iterable[str]) -> FrozenVerified:
    """Verify that all tensors outside *trained* are unchanged. Raises FrozenMovedError naming a changed tensor."""
    frozen = sorted(set(before) - set(trained))
    proof = FrozenVerified(
        parameters=len(frozen), digest_before=digest(before, frozen), digest_after=digest(after, frozen)
    )
    if proof.digest_before != proof.digest_after:
        moved = next(name for name in frozen if digest(before, [name]) != digest(after, [name]))
        raise FrozenMovedError(f"the frozen tensor {moved} has changed; nothing was published. This is a bug.")
    return proof
