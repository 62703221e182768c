"""The promoter: a checkpoint goes live completely or not at all."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
from support import tiny_checkpoints
from twofold_checkpoint.errors import CheckpointError, CheckpointNotFoundError
from twofold_server.config.settings import EngineSettings, RollbackSettings
from twofold_server.errors import BaseChangedError, FailedPreconditionError, SwapError
from twofold_server.inference.engine import Engine, EngineState
from twofold_server.inference.slot import Slot
from twofold_server.observability.metrics import Metrics
from twofold_server.versions import promoter
from twofold_server.versions.alias_changes import Author
from twofold_server.versions.loader import load_engine
from twofold_server.versions.promoter import Promoter


class Unwatched:
    """Monitors no swap."""

    def begin(self, swap):
        """Do nothing."""

    async def end(self):
        """Do nothing."""


async def unrecorded(update, author):
    """Record nothing."""


ANNA = Author("anna", "A test says so.")


@dataclass
class Scene:
    """A promoter with its collaborators."""

    store: object
    slot: Slot
    metrics: Metrics
    promoter: Promoter
    announced: list

    def count(self, outcome):
        """Return the number of promotions."""
        return self.metrics.registry.get_sample_value("twofold_swaps_total", {"outcome": outcome})


@asynccontextmanager
async def scene(store, *, live="a"):
    """A promoter with a live checkpoint."""
    engine, metrics, announced = EngineSettings(threads=1), Metrics(), []
    slot = Slot(metrics)

    async def on_live():
        announced.append(slot.live.id)

    if live:
        slot.swap(load_engine(store.get(live), engine))
    promoter = Promoter(
        store,
        slot,
        engine,
        RollbackSettings(seconds=0),
        metrics,
        on_live=on_live,
        swap_listener=Unwatched(),
        record=unrecorded,
    )
    try:
        yield Scene(store, slot, metrics, promoter, announced)
    finally:
        await promoter.stop()
        await asyncio.to_thread(slot.drain)


async def test_a_promotion_moves_engine_and_aliases_together(store):
    """After a promotion the new engine is live, "current" names it, "previous" names the old one, and health was updated last."""
    async with scene(store) as setup:
        old = setup.slot.live
        done = await setup.promoter.promote("b", ANNA)

        assert (done.checkpoint.id, done.replaced_id) == ("b", "a")
        assert done.seconds > 0
        assert setup.slot.live.id == "b"
        assert setup.slot.live.state is EngineState.READY
        assert (store.aliases().current, store.aliases().previous) == ("b", "a")
        assert setup.announced == ["b"]
        assert setup.count("succeeded") == 1
        await asyncio.to_thread(setup.slot.drain)
        assert old.state is EngineState.CLOSED


async def test_the_live_checkpoint_needs_no_promotion(store):
    """Promoting the live checkpoint loads and changes nothing."""
    async with scene(store) as setup:
        with mock.patch.object(promoter, "load_engine", side_effect=AssertionError):
            done = await setup.promoter.promote("current", ANNA)

        assert (done.replaced_id, done.seconds) == ("a", 0.0)
        assert store.aliases().previous is None


@pytest.mark.parametrize("kind", tiny_checkpoints.BROKEN)
async def test_a_broken_checkpoint_changes_nothing(kind, store):
    """If a checkpoint is broken, the old engine keeps serving, the aliases stay, no new engine is kept, and the error says why."""
    reason = tiny_checkpoints.BROKEN[kind][2]
    tiny_checkpoints.publish_broken(store, kind)

    async with scene(store) as setup:
        live, before, made = setup.slot.live, store.aliases(), []
        init = Engine.__init__

        def note(engine, *args, **kwargs):
            init(engine, *args, **kwargs)  # Where this fails, there is no session yet.
            made.append(engine)

        with (
            mock.patch.object(Engine, "__init__", note),
            pytest.raises((CheckpointError, SwapError), match=re.escape(reason)),
        ):
            await setup.promoter.promote("x", ANNA)

        assert setup.slot.live is live
        assert live.state is EngineState.READY
        live.check_golden()
        assert store.aliases() == before
        assert setup.announced == []
        assert all(engine.state is EngineState.FAILED for engine in made)
        assert setup.count("failed") == 1


async def test_aliases_that_cannot_be_written_change_nothing(store):
    """If the aliases cannot be written, the new engine is closed and the old one keeps serving."""
    async with scene(store) as setup:
        live = setup.slot.live
        with (
            mock.patch.object(type(store), "promote", side_effect=OSError(28, "No space left on device")),
            pytest.raises(SwapError, match=r"aliases: .*No space left"),
        ):
            await setup.promoter.promote("b", ANNA)

        assert setup.slot.live is live
        assert setup.metrics.registry.get_sample_value("twofold_engines") == 1
        assert setup.count("failed") == 1


async def test_roll_back_returns_and_returns_again(store):
    """A rollback makes the previous checkpoint live, and a second one undoes it."""
    async with scene(store) as setup:
        await setup.promoter.promote("b", ANNA)
        assert (await setup.promoter.roll_back(ANNA)).checkpoint.id == "a"
        assert (store.aliases().current, store.aliases().previous) == ("a", "b")
        assert (await setup.promoter.roll_back(ANNA)).checkpoint.id == "b"


async def test_nothing_to_roll_back_to(store):
    """Without a previous checkpoint, the error is FAILED_PRECONDITION."""
    async with scene(store) as setup:
        with pytest.raises(FailedPreconditionError, match="previous"):
            await setup.promoter.roll_back(ANNA)
        with pytest.raises(CheckpointNotFoundError):
            await setup.promoter.promote("nowhere", ANNA)


async def test_promotions_take_turns(store):
    """Concurrent promotions run one after the other; engine and aliases are those of the last one."""
    async with scene(store) as setup:
        done = await asyncio.gather(*(setup.promoter.promote(name, ANNA) for name in ("b", "a", "b", "a")))

        assert [each.replaced_id for each in done] == ["a", "b", "a", "b"]
        assert (setup.slot.live.id, store.aliases().current) == ("a", "a")


async def test_a_candidate_replaces_only_its_base(store):
    """A candidate is not promoted if another checkpoint became current meanwhile, unless it is the candidate itself."""
    async with scene(store) as setup:
        with pytest.raises(BaseChangedError, match="the current checkpoint is now a"):
            await setup.promoter.promote("b", ANNA, expected_current="c")
        await asyncio.gather(
            setup.promoter.promote("b", ANNA, expected_current="a"),
            setup.promoter.promote("b", ANNA, expected_current="a"),
        )

        assert (setup.slot.live.id, store.aliases().current) == ("b", "b")
        assert setup.count("failed") == 0


async def test_a_cancelled_caller_does_not_interrupt_a_promotion(store):
    """If the caller is cancelled, the promotion is completed, and engine and aliases agree."""
    async with scene(store) as setup:
        call = asyncio.create_task(setup.promoter.promote("b", ANNA))
        await asyncio.sleep(0)  # It has begun, and cannot have ended: its work is on a thread.
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await setup.promoter.stop()

        assert (setup.slot.live.id, store.aliases().current) == ("b", "b")


async def test_a_first_checkpoint_becomes_live_in_an_empty_slot(store):
    """If nothing was live, nothing is reported as replaced."""
    async with scene(store, live="") as setup:
        assert (await setup.promoter.promote("b", ANNA)).replaced_id == ""
        assert setup.announced == ["b"]
