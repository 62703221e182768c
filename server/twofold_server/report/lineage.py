"""The lineage of a job's checkpoint."""

from __future__ import annotations

from twofold_checkpoint.errors import CheckpointError
from twofold_checkpoint.manifest import Manifest
from twofold_checkpoint.store import Aliases, Store

from twofold_server.report.document import Ancestor

MAX_CHECKPOINTS = 12
"""Maximum number of checkpoints, the newest first."""


def trace_lineage(store: Store, base: str, candidate: str) -> tuple[Ancestor, ...]:
    """Return the candidate (if one was published), its base and the base's ancestors, newest first.

    The lineage ends at the first checkpoint that no longer exists. The last approved checkpoint is added if it is missing.
    """
    aliases = store.aliases()
    line: list[Ancestor] = []
    if candidate and (manifest := _read(store, candidate)):
        line.append(_ancestor(manifest, aliases, "candidate"))
    next_id: str | None = base
    while next_id and len(line) < MAX_CHECKPOINTS and (manifest := _read(store, next_id)):
        line.append(_ancestor(manifest, aliases, "base" if next_id == base else "ancestor"))
        next_id = manifest.parent
    approved = aliases.approved
    if approved and approved not in {ancestor.id for ancestor in line} and (manifest := _read(store, approved)):
        line.append(_ancestor(manifest, aliases, "approved"))
    return tuple(line)


def _read(store: Store, checkpoint_id: str) -> Manifest | None:
    try:
        return store.get(checkpoint_id).manifest
    except CheckpointError:
        return None


def _ancestor(manifest: Manifest, aliases: Aliases, role: str) -> Ancestor:
    return Ancestor(
        id=manifest.id,
        created=manifest.created,
        job_id=manifest.job_id,
        scores=manifest.scores,
        branch=manifest.branch,
        aliases=tuple(aliases.names_of(manifest.id)),
        role=role,
    )
