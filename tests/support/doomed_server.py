"""A server process for tests to kill: it runs one job, queues another, and prints the ids of both.

Run it with `python -m support.doomed_server STORE_PARENT [DATABASE_URL]`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, runs, until
from twofold_server.adaptation import heartbeat
from twofold_server.config.database_url import DatabaseUrl

TESTS = Path(__file__).parents[1]


@asynccontextmanager
async def doomed_server(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """Start this module as a process; yield it, the running job's id and the queued job's id; kill it at the end."""
    command = (sys.executable, "-m", "support.doomed_server", *arguments)
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=TESTS)
    try:
        assert server.stdout
        running_id, queued_id = (await server.stdout.readline()).decode().split()
        yield server, running_id, queued_id
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def _serve(root: Path, database: str | None) -> None:
    harness = Harness(root)
    if database:
        harness.set(database=DatabaseUrl(database))
    harness.play(TRAIN, HANG)
    async with harness.running() as runner:
        running = await runner.submit(SPEC, INLINE)
        queued = await runner.submit(SPEC, INLINE)
        await until(runner, running.id, runs)
        print(running.id, queued.id, flush=True)
        await asyncio.sleep(60)


if __name__ == "__main__":
    heartbeat.HEARTBEAT_SECONDS = 0.05
    asyncio.run(_serve(Path(sys.argv[1]), *sys.argv[2:] or [None]))
