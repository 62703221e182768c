"""The history of alias changes, which survives restarts."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from support import tiny_checkpoints
from support.running_server import refusal, running
from support.scripted_trainer import Harness, publish
from support.secured_server import Callers
from twofold.v1 import checkpoints_pb2 as pb
from twofold_checkpoint.store import Aliases, AliasUpdate, Store
from twofold_server.storage.database import Database, DatabaseLocation
from twofold_server.versions.alias_changes import OUTSIDE, Author
from twofold_server.versions.alias_table import AliasTable

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
ANNA = Author("anna", "She says so.")
FIRST = Aliases(current="one")
SECOND = Aliases(current="two", previous="one")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_every_alias_that_moved_is_a_row_that_survives(location: DatabaseLocation) -> None:
    """A promotion changes two aliases, which are listed newest first, in pages, from a database that was opened again."""
    database = Database(location)
    AliasTable(database).write(AliasUpdate(FIRST, SECOND), ANNA, NOW)
    AliasTable(database).write(AliasUpdate(SECOND, SECOND), ANNA, NOW)
    database.close()

    database = Database(location)
    table = AliasTable(database)
    [newest], token = table.page(1, None)
    [oldest], last = table.page(1, token)
    assert [(change.alias, change.from_id, change.to_id) for change in (newest, oldest)] == [
        ("previous", None, "one"),
        ("current", "one", "two"),
    ]
    assert (oldest.author, oldest.time, last) == (ANNA, NOW, None)
    database.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_missed_alias_changes_are_recorded_at_the_next_start(location: DatabaseLocation) -> None:
    """Changes by another process, or before a crash, are recorded at the next start with an outside author."""
    database = Database(location)
    table = AliasTable(database)
    table.write(AliasUpdate(Aliases(), FIRST), ANNA, NOW)

    table.catch_up(SECOND, NOW)
    table.catch_up(SECOND, NOW)

    detected, _ = table.page(9, None)
    assert [(result.alias, result.from_id, result.to_id, result.author.actor) for result in detected] == [
        ("previous", None, "one", OUTSIDE),
        ("current", "one", "two", OUTSIDE),
        ("current", None, "one", "anna"),
    ]
    database.close()


async def history(server: object, **fields: object) -> list[tuple[str, ...]]:
    """Return who changed "current" and "candidate", oldest first."""
    answer = await server.checkpoints.ListAliasChanges(pb.ListAliasChangesRequest(), **fields)
    assert all(change.time.seconds for change in answer.changes)
    return [
        (change.alias, change.from_id, change.to_id, change.actor, change.reason)
        for change in reversed(answer.changes)
        if change.alias in {"current", "candidate"}
    ]


async def test_alias_changes_have_the_name_of_the_token(tmp_path: Path) -> None:
    """Promotion, rollback and deletion record the token's name, also after a restart; an invalid page token is rejected."""
    store = tiny_checkpoints.make_store(tmp_path / "store", "a", "b")
    store.set_candidate("b")
    callers = Callers(tmp_path / "tokens.toml")
    callers.add("admin", "admin")
    admin = {"metadata": callers.metadata("admin")}

    detected = "The change was detected when a server started."
    async with running(store, tokens=callers.path) as server:
        await server.checkpoints.PromoteCheckpoint(pb.PromoteCheckpointRequest(checkpoint="b"), **admin)
        await server.checkpoints.RollBack(pb.RollBackRequest(), **admin)
        tiny_checkpoints.publish(store, tiny_checkpoints.Recipe(tag="c"))
        store.set_candidate("c")
        await server.checkpoints.DeleteCheckpoint(pb.DeleteCheckpointRequest(checkpoint_id="c"), **admin)
    async with running(store, tokens=callers.path) as server:
        wrong = pb.ListAliasChangesRequest(page_token="x")
        assert (await refusal(server.checkpoints.ListAliasChanges(wrong, **admin)))[1].violations
        assert (await history(server, **admin)) == [
            ("current", "", "a", OUTSIDE, detected),
            ("candidate", "", "b", OUTSIDE, detected),
            ("current", "a", "b", "admin", "PromoteCheckpoint was called."),
            ("candidate", "b", "", "admin", "PromoteCheckpoint was called."),
            ("current", "b", "a", "admin", "RollBack was called."),
            ("candidate", "c", "", "admin", "DeleteCheckpoint was called."),
        ]


async def test_alias_changes_of_a_job_have_its_id(harness: Harness) -> None:
    """Aliases that a job sets are recorded with the job as author."""
    harness.play(*publish())
    view = await harness.run()

    assert harness.promoter.authors == [Author(view.id, "The gate passed it.")]
    async with harness.running() as runner:
        detected, _ = await runner.jobs.alias_changes(9, None)
        assert ("candidate", "second", view.id) in [
            (result.alias, result.to_id, result.author.actor) for result in reversed(detected)
        ]
    assert Store(harness.store.root).aliases().current == "second"
