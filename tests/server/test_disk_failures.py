"""Full and read-only disks, and two servers over one store: clear errors, and serving continues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support import tiny_checkpoints
from support.running_server import config_of, running
from support.small_disk import small_disk
from twofold import AsyncClient, Example, FailedPreconditionError, Head, OverloadedError
from twofold_server import errors
from twofold_server.app import serve

EXAMPLES = [Example(text=f"rain {number}", label="a_weather") for number in range(20)]
CALLS: dict[str, tuple[Callable[[AsyncClient], Awaitable[object]], type[Exception]]] = {
    "upload": (lambda client: client.upload_dataset(EXAMPLES), OverloadedError),
    "adapt": (lambda client: client.adapt(EXAMPLES, head=Head.CLASSIFIER, validate_only=True), OverloadedError),
    "promote": (lambda client: client.promote("b"), FailedPreconditionError),
}


@pytest.mark.slow
async def test_a_full_disk_rejects_writes_and_keeps_serving(tmp_path: Path) -> None:
    """On a full disk, uploads, jobs and promotions fail with the reason and leave no files; with free space they work."""
    with small_disk(tmp_path / "disk", 16) as disk:
        store = tiny_checkpoints.make_store(disk.path / "store", "a", "b")

        async with running(store) as server, AsyncClient(server.target) as client:
            disk.fill()
            for call, error in CALLS.values():
                with pytest.raises(error, match="No space left on device"):
                    await asyncio.wait_for(call(client), 30)  # It is not waited for until there is room.
                assert (await server.predict("rain")).checkpoint_id == "a"
            assert store.aliases().current == "a"
            assert [path.name for name in ("jobs", "uploads", "staging") for path in store.root.glob(f"{name}/*")] == []
            disk.free()
            for call, _ in CALLS.values():
                await call(client)
            assert (await server.predict("rain")).checkpoint_id == "b"


async def test_a_store_that_is_read_only_is_named(tmp_path: Path) -> None:
    """On a read-only disk the server does not start, and names the path and the reason."""
    with small_disk(tmp_path / "disk", 16) as disk:
        store = tiny_checkpoints.make_store(disk.path / "store", "a")
        disk.make_read_only()

        with pytest.raises(
            errors.FailedPreconditionError, match=r"jobs.lock cannot be written: Read-only file system; use a store"
        ):
            async with serve(config_of(store)):
                raise AssertionError


async def test_a_second_server_on_a_store_is_refused_and_the_first_one_answers_on(tmp_path: Path) -> None:
    """A second server over a store is rejected, because it would take over the first one's jobs."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a")

    async with running(store) as first:
        with pytest.raises(errors.FailedPreconditionError, match="another server uses the job queue of this store"):
            async with serve(config_of(store)):
                raise AssertionError
        assert (await first.predict("rain")).checkpoint_id == "a"
        assert await first.is_serving()
