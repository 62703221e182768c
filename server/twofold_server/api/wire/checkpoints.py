"""Messages of CheckpointService."""

from __future__ import annotations

import datetime as dt

from google.protobuf.timestamp_pb2 import Timestamp
from twofold.v1 import checkpoints_pb2 as pb
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.store import Aliases

from twofold_server.api.wire.inference import HEAD_NUMBERS
from twofold_server.versions.alias_changes import AliasChange


def write_time(moment: dt.datetime) -> Timestamp:
    """Return a timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def write_checkpoint(checkpoint: Checkpoint, aliases: Aliases) -> pb.Checkpoint:
    """Return the message of a checkpoint, from its manifest and its current aliases."""
    manifest = checkpoint.manifest
    return pb.Checkpoint(
        id=manifest.id,
        parent_id=manifest.parent or "",
        create_time=write_time(dt.datetime.fromisoformat(manifest.created)),
        backbone=manifest.backbone,
        labels=manifest.labels.labels,
        entity_types=manifest.labels.entity_types,
        scores=[
            pb.Score(head=HEAD_NUMBERS[score.head], metric=score.metric, value=score.value, examples=score.examples)
            for score in manifest.scores
        ],
        size_bytes=manifest.size,
        aliases=aliases.names_of(manifest.id),
        job_id=manifest.job_id or "",
    )


def write_alias_change(change: AliasChange) -> pb.AliasChange:
    """Return the message of an alias change."""
    return pb.AliasChange(
        time=write_time(change.time),
        alias=change.alias,
        from_id=change.from_id or "",
        to_id=change.to_id or "",
        actor=change.author.actor,
        reason=change.author.reason,
    )
