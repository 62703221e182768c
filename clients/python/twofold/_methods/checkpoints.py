"""See the checkpoints, say which one answers, and delete the others."""

from twofold import _rpcs
from twofold._operations import Feed, Flow, Item
from twofold._protobuf import read
from twofold._retry import Context, Retry
from twofold._types.checkpoints import AliasChange, Checkpoint, Promotion
from twofold.v1 import checkpoints_pb2


def checkpoint(context: Context, checkpoint: str = "current", *, timeout: float | None = None) -> Flow[Checkpoint]:
    """Return a checkpoint by id or alias; raise NotFoundError if there is none."""
    request = checkpoints_pb2.GetCheckpointRequest(checkpoint=checkpoint)
    answer = yield from context.call(_rpcs.GET_CHECKPOINT, request, timeout)
    return read(answer.checkpoint, Checkpoint)


def checkpoints(context: Context, *, page_size: int = 50, timeout: float | None = None) -> Feed[Checkpoint]:
    """Iterate over the checkpoints, newest first; *timeout* is for each page."""
    request = checkpoints_pb2.ListCheckpointsRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_CHECKPOINTS, request, timeout)
        for one in page.checkpoints:
            yield Item(read(one, Checkpoint))
        if not page.next_page_token:
            return
        request = checkpoints_pb2.ListCheckpointsRequest(page_size=page_size, page_token=page.next_page_token)


def alias_changes(context: Context, *, page_size: int = 50, timeout: float | None = None) -> Feed[AliasChange]:
    """Iterate over the moves of the aliases, newest first: who promoted what, and why; *timeout* is for each page."""
    request = checkpoints_pb2.ListAliasChangesRequest(page_size=page_size)
    while True:
        page = yield from context.call(_rpcs.LIST_ALIAS_CHANGES, request, timeout)
        for one in page.changes:
            yield Item(read(one, AliasChange))
        if not page.next_page_token:
            return
        request = checkpoints_pb2.ListAliasChangesRequest(page_size=page_size, page_token=page.next_page_token)


def promote(context: Context, checkpoint: Checkpoint | str, *, timeout: float | None = 300.0) -> Flow[Promotion]:
    """
    Make a checkpoint the one that answers; when this returns, it does.

    Raise NotFoundError, or FailedPreconditionError if it cannot be loaded; then nothing changes.
    """
    name = checkpoint if isinstance(checkpoint, str) else checkpoint.id
    request = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name)
    return read((yield from context.call(_rpcs.PROMOTE_CHECKPOINT, request, timeout)), Promotion)


def roll_back(context: Context, *, timeout: float | None = 300.0) -> Flow[Promotion]:
    """
    Make the previous checkpoint the one that answers; raise FailedPreconditionError if there is none.

    It is never retried, because rolling back twice leads forward again.
    """
    request = checkpoints_pb2.RollBackRequest()
    answer = yield from context.call(_rpcs.ROLL_BACK, request, timeout, retry=Retry(attempts=1))
    return read(answer, Promotion)


def delete_checkpoint(context: Context, checkpoint: Checkpoint | str, *, timeout: float | None = None) -> Flow[None]:
    """
    Remove a checkpoint for good, by its id.

    Raise NotFoundError, or FailedPreconditionError that names what needs it; then nothing changes. It is never retried,
    because the second of two would say that there is no such checkpoint.
    """
    name = checkpoint if isinstance(checkpoint, str) else checkpoint.id
    request = checkpoints_pb2.DeleteCheckpointRequest(checkpoint_id=name)
    yield from context.call(_rpcs.DELETE_CHECKPOINT, request, timeout, retry=Retry(attempts=1))
