"""List, promote, roll back and delete checkpoints."""

from twofold import _rpcs
from twofold._context import ClientContext
from twofold._operations import Emit, Flow, StreamFlow
from twofold._protobuf import from_proto
from twofold._retry import Retry
from twofold._types.checkpoints import AliasChange, Checkpoint, Promotion
from twofold.v1 import checkpoints_pb2

_NEVER = Retry(attempts=1)


def checkpoint(
    context: ClientContext, checkpoint: str = "current", *, timeout: float | None = None
) -> Flow[Checkpoint]:
    """Return a checkpoint by id or alias; raise NotFoundError if it does not exist."""
    request = checkpoints_pb2.GetCheckpointRequest(checkpoint=checkpoint)
    response = yield from context.call(_rpcs.GET_CHECKPOINT, request, timeout)
    return from_proto(response.checkpoint, Checkpoint)


def checkpoints(context: ClientContext, *, page_size: int = 50, timeout: float | None = None) -> StreamFlow[Checkpoint]:
    """Iterate over the checkpoints, newest first; *timeout* applies to each page."""
    request = checkpoints_pb2.ListCheckpointsRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_CHECKPOINTS, request, timeout)
        for message in page.checkpoints:
            yield Emit(from_proto(message, Checkpoint))
        if not page.next_page_token:
            return
        request = checkpoints_pb2.ListCheckpointsRequest(page_size=page_size, page_token=page.next_page_token)


def alias_changes(
    context: ClientContext, *, page_size: int = 50, timeout: float | None = None
) -> StreamFlow[AliasChange]:
    """Iterate over who moved which alias, when and why, newest first; *timeout* applies to each page."""
    request = checkpoints_pb2.ListAliasChangesRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_ALIAS_CHANGES, request, timeout)
        for message in page.changes:
            yield Emit(from_proto(message, AliasChange))
        if not page.next_page_token:
            return
        request = checkpoints_pb2.ListAliasChangesRequest(page_size=page_size, page_token=page.next_page_token)


def promote(context: ClientContext, checkpoint: Checkpoint | str, *, timeout: float | None = 300.0) -> Flow[Promotion]:
    """
    Make a checkpoint live; it is live when this returns.

    Raise NotFoundError, or FailedPreconditionError if the checkpoint cannot be loaded; then nothing changes.
    """
    request = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=_name_of(checkpoint))
    return from_proto((yield from context.call(_rpcs.PROMOTE_CHECKPOINT, request, timeout)), Promotion)


def roll_back(context: ClientContext, *, timeout: float | None = 300.0) -> Flow[Promotion]:
    """
    Make the previous checkpoint live; raise FailedPreconditionError if there is none.

    The call is never retried, because a second rollback would undo the first.
    """
    request = checkpoints_pb2.RollBackRequest()
    return from_proto((yield from context.call(_rpcs.ROLL_BACK, request, timeout, retry=_NEVER)), Promotion)


def delete_checkpoint(
    context: ClientContext, checkpoint: Checkpoint | str, *, timeout: float | None = None
) -> Flow[None]:
    """
    Delete a checkpoint permanently, by its id.

    Raise NotFoundError, or FailedPreconditionError that names what needs the checkpoint; then nothing changes. The call is
    never retried, because a second deletion would fail with NotFoundError.
    """
    request = checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=_name_of(checkpoint))
    yield from context.call(_rpcs.DELETE_CHECKPOINT, request, timeout, retry=_NEVER)


def _name_of(checkpoint: Checkpoint | str) -> str:
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id
