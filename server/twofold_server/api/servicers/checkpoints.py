"""CheckpointService."""

from __future__ import annotations

import asyncio
from typing import Any

from twofold.v1 import checkpoints_pb2 as pb
from twofold.v1.checkpoints_pb2_grpc import CheckpointServiceServicer
from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.store import ALIASES, Store

from twofold_server.api.wire.checkpoints import write_alias_change, write_checkpoint
from twofold_server.api.wire.pagination import page, page_size, parse_page_token
from twofold_server.errors import InvalidRequestError, Violation
from twofold_server.jobs.repository import JobRepository
from twofold_server.observability.audit import annotate, caller_of
from twofold_server.retention.deletion import Deleter
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.promoter import Promoter


class CheckpointServicer(CheckpointServiceServicer):
    """Lists and deletes checkpoints, and moves aliases."""

    def __init__(self, store: Store, jobs: JobRepository, promoter: Promoter, deleter: Deleter) -> None:
        self._store = store
        self._jobs = jobs
        self._promoter = promoter
        self._deleter = deleter

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> pb.GetCheckpointResponse:  # noqa: ARG002, N802
        """Return one checkpoint by id or alias."""
        checkpoint = await asyncio.to_thread(self._store.get, request.checkpoint or "current")
        return pb.GetCheckpointResponse(checkpoint=await self._write(checkpoint))

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:  # noqa: ARG002, N802
        """Return a page of checkpoints, newest first."""
        checkpoints, aliases = await asyncio.to_thread(lambda: (self._store.list(), self._store.aliases()))
        shown, token = page(checkpoints, lambda entry: entry.id, size=request.page_size, token=request.page_token)
        messages = [write_checkpoint(checkpoint, aliases) for checkpoint in shown]
        return pb.ListCheckpointsResponse(checkpoints=messages, next_page_token=token)

    async def PromoteCheckpoint(  # noqa: N802
        self,
        request: pb.PromoteCheckpointRequest,
        context: Any,
    ) -> pb.PromoteCheckpointResponse:
        """Make a checkpoint live."""
        if not request.checkpoint:
            raise InvalidRequestError(Violation("checkpoint", 'is empty; use an id or an alias, such as "candidate"'))
        annotate(checkpoint=request.checkpoint)
        promotion = await self._promoter.promote(
            request.checkpoint, Author(caller_of(context), "PromoteCheckpoint was called."), approve=True
        )
        annotate(checkpoint=promotion.checkpoint.id)
        return pb.PromoteCheckpointResponse(
            checkpoint=await self._write(promotion.checkpoint),
            replaced_id=promotion.replaced_id,
            swap_seconds=promotion.seconds,
        )

    async def RollBack(self, request: pb.RollBackRequest, context: Any) -> pb.RollBackResponse:  # noqa: ARG002, N802
        """Make the previous checkpoint live again."""
        promotion = await self._promoter.roll_back(Author(caller_of(context), "RollBack was called."))
        annotate(checkpoint=promotion.checkpoint.id)
        return pb.RollBackResponse(
            checkpoint=await self._write(promotion.checkpoint),
            replaced_id=promotion.replaced_id,
            swap_seconds=promotion.seconds,
        )

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> pb.DeleteCheckpointResponse:  # noqa: N802
        """Delete a checkpoint that is not in use."""
        if not request.checkpoint_id:
            raise InvalidRequestError(Violation("checkpoint_id", "is empty; use the id of a checkpoint"))
        if request.checkpoint_id in ALIASES:
            message = f"{request.checkpoint_id!r} is an alias; use the id of a checkpoint"
            raise InvalidRequestError(Violation("checkpoint_id", message))
        annotate(checkpoint=request.checkpoint_id)
        await self._deleter.delete(request.checkpoint_id, Author(caller_of(context), "DeleteCheckpoint was called."))
        return pb.DeleteCheckpointResponse()

    async def ListAliasChanges(self, request: pb.ListAliasChangesRequest, context: Any) -> pb.ListAliasChangesResponse:  # noqa: ARG002, N802
        """Return a page of alias changes, newest first."""
        changes, next_row = await self._jobs.alias_changes(
            page_size(request.page_size), parse_page_token(request.page_token)
        )
        return pb.ListAliasChangesResponse(
            changes=[write_alias_change(entry) for entry in changes],
            next_page_token="" if next_row is None else str(next_row),
        )

    async def _write(self, checkpoint: Checkpoint) -> pb.Checkpoint:
        return write_checkpoint(checkpoint, await asyncio.to_thread(self._store.aliases))
