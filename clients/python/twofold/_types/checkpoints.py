"""Checkpoints, promotions and alias changes."""

from dataclasses import dataclass
from datetime import datetime

from twofold._types.inference import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score on held-out examples, from 0 to 1."""

    head: Head | None = None
    metric: str = ""
    value: float = 0.0
    examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One immutable version of the model, and the aliases that name it now."""

    id: str
    parent_id: str = ""
    create_time: datetime | None = None
    backbone: str = ""
    labels: tuple[str, ...] = ()
    entity_types: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    size_bytes: int = 0
    aliases: tuple[str, ...] = ()
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """
    One move of an alias from a checkpoint to another; an empty id means none.

    *actor* is the name of a token or certificate, the id of a job, "server" for automatic changes, or "outside" for changes
    by another process; *reason* is one sentence.
    """

    time: datetime | None = None
    alias: str = ""
    from_id: str = ""
    to_id: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A completed promotion: the live checkpoint, the one that it replaced, and the duration of the swap."""

    checkpoint: Checkpoint
    replaced_id: str = ""
    swap_seconds: float = 0.0
