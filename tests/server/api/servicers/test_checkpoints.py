"""CheckpointService over a real port."""

from __future__ import annotations

import grpc
import pytest
from support import tiny_checkpoints
from support.running_server import refusal, running
from twofold.v1 import checkpoints_pb2 as pb


async def test_a_checkpoint_is_described_by_its_manifest(store):
    """A checkpoint is described by id, by alias, or by default as current, with the aliases that name it."""
    async with running(store) as server:
        stub = server.checkpoints
        for name in ("", "a", "current"):
            actual = (await stub.GetCheckpoint(pb.GetCheckpointRequest(checkpoint=name))).checkpoint
            assert actual.id == "a"
            assert list(actual.aliases) == ["current"]
            assert list(actual.labels) == ["a_weather", "a_music", "a_alarm"]
            assert actual.scores[0].value == 0.9
            assert actual.create_time.ToDatetime().year == 2026
            assert actual.size_bytes > 1000


UNKNOWN = [
    ("nowhere", "there is no checkpoint 'nowhere'"),
    ("candidate", "no checkpoint has the alias 'candidate'"),
    ("../../etc", "is not a checkpoint id"),
]


@pytest.mark.parametrize(("name", "says"), UNKNOWN)
async def test_an_unknown_checkpoint_is_not_found(name, says, store):
    """NOT_FOUND quotes the name, and a path is not a name."""
    async with running(store) as server:
        stub = server.checkpoints
        for call in (
            stub.GetCheckpoint(pb.GetCheckpointRequest(checkpoint=name)),
            stub.PromoteCheckpoint(pb.PromoteCheckpointRequest(checkpoint=name)),
        ):
            code, error = await refusal(call)
            assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
            assert says in error.message


async def test_checkpoints_come_in_pages_newest_first(store):
    """Pages follow each other without gaps, and the last one has no token."""
    for number in range(3):
        tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag=f"c{number}"))

    async with running(store) as server:
        stub = server.checkpoints
        seen, token, pages = [], "", 0
        while pages == 0 or token:
            response = await stub.ListCheckpoints(pb.ListCheckpointsRequest(page_size=2, page_token=token))
            seen += [checkpoint.id for checkpoint in response.checkpoints]
            token, pages = response.next_page_token, pages + 1
        assert (seen, pages) == (["c2", "c1", "c0", "b", "a"], 3)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"page_size": -1}, "page_size"), ({"page_size": 501}, "page_size"), ({"page_token": "x"}, "page_token")],
)
async def test_a_wrong_page_is_named(fields, field, store):
    """INVALID_ARGUMENT names the field."""
    async with running(store) as server:
        stub = server.checkpoints
        code, error = await refusal(stub.ListCheckpoints(pb.ListCheckpointsRequest(**fields)))
        assert (code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_promote_and_roll_back(store):
    """The promoted checkpoint is live with its aliases, and a rollback restores the former one."""
    async with running(store) as server:
        stub = server.checkpoints
        code, error = await refusal(stub.RollBack(pb.RollBackRequest()))
        assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE")

        done = await stub.PromoteCheckpoint(pb.PromoteCheckpointRequest(checkpoint="b"))
        assert (done.checkpoint.id, done.replaced_id) == ("b", "a")
        assert list(done.checkpoint.aliases) == ["current", "approved"]
        assert done.swap_seconds > 0
        assert (await server.predict("rain")).predictions[0].label == "b_weather"

        back = await stub.RollBack(pb.RollBackRequest())
        assert (back.checkpoint.id, back.replaced_id) == ("a", "b")
        assert list(back.checkpoint.aliases) == ["current", "approved"]
        assert (await server.predict("rain")).predictions[0].label == "a_weather"


@pytest.mark.parametrize("kind", ["no graph", "truncated weights", "wrong digest", "wrong width", "NaN weights"])
async def test_a_broken_checkpoint_is_refused_and_the_old_one_answers(kind, store):
    """FAILED_PRECONDITION names the fault, and nothing changes."""
    tiny_checkpoints.publish_broken(store, kind)

    async with running(store) as server:
        stub = server.checkpoints
        code, error = await refusal(stub.PromoteCheckpoint(pb.PromoteCheckpointRequest(checkpoint="x")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert tiny_checkpoints.BROKEN[kind][2] in error.message
        assert str(store.root) not in error.message
        assert (await server.predict("rain")).checkpoint_id == "a"
        assert await server.is_serving()
        assert await server.metric("twofold_swaps_total", outcome="failed") == 1
        assert await server.metric("twofold_engines") == 1


async def test_wrong_requests(store):
    """A promotion needs a name, and a deletion an id instead of an alias."""
    async with running(store) as server:
        stub = server.checkpoints
        code, error = await refusal(stub.PromoteCheckpoint(pb.PromoteCheckpointRequest()))
        assert (code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, "checkpoint")
        for name, says in (("", "is empty"), ("candidate", "'candidate' is an alias; use the id")):
            code, error = await refusal(stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id=name)))
            assert (code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, "checkpoint_id")
            assert says in error.message


async def test_a_checkpoint_that_nothing_needs_is_deleted(store):
    """The checkpoint is gone, the others are there, and a second deletion is NOT_FOUND."""
    async with running(store) as server:
        stub = server.checkpoints
        request = pb.DeleteCheckpointRequest(checkpoint_id="b")
        await stub.DeleteCheckpoint(request)
        left = await stub.ListCheckpoints(pb.ListCheckpointsRequest())
        assert [checkpoint.id for checkpoint in left.checkpoints] == ["a"]
        code, error = await refusal(stub.DeleteCheckpoint(request))
        assert (code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
        assert (await server.predict("rain")).checkpoint_id == "a"


async def test_needed_checkpoints_are_not_deleted(store):
    """FAILED_PRECONDITION says why: the checkpoint is live or has an alias. Nothing changes, and a rollback works."""

    async def refused(stub, name):
        code, error = await refusal(stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id=name)))
        assert (code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_IN_USE")
        return error.message

    async with running(store) as server:
        stub = server.checkpoints
        await stub.PromoteCheckpoint(pb.PromoteCheckpointRequest(checkpoint="b"))
        assert "b is live" in await refused(stub, "b")
        assert 'a is "previous"' in await refused(stub, "a")
        assert (await stub.RollBack(pb.RollBackRequest())).checkpoint.id == "a"
        assert (await server.predict("rain")).checkpoint_id == "a"


async def test_the_live_checkpoint_is_not_deleted_without_an_alias(store):
    """If another process changed the aliases, the live checkpoint is still not deleted."""
    tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c"))

    async with running(store) as server:
        stub = server.checkpoints
        store.promote("b")
        store.promote("c")
        assert (await server.predict("rain")).checkpoint_id == "a"
        code, error = await refusal(stub.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id="a")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "a is live" in error.message
