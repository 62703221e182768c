"""Store and checkpoint: publishing is atomic, and silent changes are detected."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from twofold_checkpoint.checkpoint import FILES, MANIFEST, Checkpoint
from twofold_checkpoint.decoding import Entity, LabelScore, Prediction
from twofold_checkpoint.encoding import EncoderSettings
from twofold_checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointInUseError,
    CheckpointNotFoundError,
)
from twofold_checkpoint.golden import GoldenAnswer, compare_golden, read_golden, write_golden
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import FORMAT, Manifest, Provenance
from twofold_checkpoint.store import Aliases, Store


def manifest(checkpoint_id: str, created: str = "2026-01-01T00:00:00Z") -> Manifest:
    """Return an arbitrary manifest."""
    return Manifest(
        format=FORMAT,
        id=checkpoint_id,
        parent=None,
        job_id=None,
        created=created,
        backbone="tiny",
        architecture="bert",
        pooling="mean",
        hidden_size=8,
        labels=LabelSet(labels=("a",), entity_types=("x",)),
        encoder=EncoderSettings(max_tokens=16, overlap=4, pad_id=0),
        scores=(),
        provenance=Provenance(seed=0, data_sha256="", settings={}, versions={}),
        files=(),
    )


def publish(store: Store, checkpoint_id: str, created: str = "2026-01-01T00:00:00Z") -> Checkpoint:
    """Publish a checkpoint whose files contain their own names."""
    with store.staging() as staged:
        for name in FILES:
            (staged / name).write_text(name * 10, encoding="utf-8")
        return store.publish(staged, manifest(checkpoint_id, created))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store").create()


def test_a_published_checkpoint_is_whole(store: Store) -> None:
    """A published checkpoint can be opened by id, lists every file, and matches its digests."""
    publish(store, "one")

    checkpoint = store.get("one")

    checkpoint.verify()
    assert {file.name for file in checkpoint.manifest.files} == set(FILES)
    assert checkpoint.manifest.size == sum(len(name) * 10 for name in FILES)
    assert list((store.root / "staging").iterdir()) == []


def test_a_failed_publication_leaves_no_files(store: Store) -> None:
    """A failed publication leaves neither a checkpoint nor staged files."""
    with pytest.raises(RuntimeError), store.staging() as staged:
        (staged / FILES[0]).write_text("half", encoding="utf-8")
        raise RuntimeError

    assert store.list() == []
    assert list((store.root / "staging").iterdir()) == []


def truncate(path: Path) -> None:
    """Cut off the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "message"), [(truncate, "bytes instead of"), (flip, "has changed"), (Path.unlink, "No such file")]
)
def test_any_damage_to_any_file_is_detected(
    store: Store, name: str, damage: Callable[[Path], None], message: str
) -> None:
    """A file that is truncated, changed by one bit or missing is named."""
    checkpoint = publish(store, "one")

    damage(checkpoint.path / name)

    with pytest.raises(CheckpointCorruptError, match=message) as caught:
        checkpoint.verify()
    assert name in str(caught.value)


MANIFESTS = [
    (b"{", CheckpointCorruptError),
    (b"[]", CheckpointCorruptError),
    (b'{"format": 1}', CheckpointCorruptError),
    (b'{"format": 99, "new": true}', CheckpointFormatError),
]


@pytest.mark.parametrize(("content", "error"), MANIFESTS)
def test_a_bad_manifest_is_refused(store: Store, content: bytes, error: type[CheckpointError]) -> None:
    """A manifest that is malformed or from a newer version is rejected, and hides no other checkpoint."""
    publish(store, "good")
    checkpoint = publish(store, "bad")
    (checkpoint.path / MANIFEST).write_bytes(content)

    with pytest.raises(error):
        store.get("bad")
    assert [item.id for item in store.list()] == ["good"]


def test_a_manifest_cannot_point_outside_its_checkpoint(store: Store) -> None:
    """A manifest that lists a path instead of a plain name is rejected."""
    checkpoint = publish(store, "one")
    path = checkpoint.path / MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace('"model.onnx"', '"../../etc/passwd"'), encoding="utf-8")

    with pytest.raises(CheckpointCorruptError, match="outside"):
        store.get("one")


def test_a_manifest_that_forgets_a_file_is_corrupt(store: Store) -> None:
    """A checkpoint without one of the required files does not verify, even if its manifest does not list the file."""
    checkpoint = publish(store, "one")
    files = tuple(file for file in checkpoint.manifest.files if file.name != "memory.jsonl")
    forgetful = Checkpoint(checkpoint.path, msgspec.structs.replace(checkpoint.manifest, files=files))

    with pytest.raises(CheckpointCorruptError, match=r"does not list memory\.jsonl"):
        forgetful.verify()


@pytest.mark.parametrize("name", ["../one", "/etc", "", ".", "..", "a/b", "a\0b", "x" * 101, "-a"])
def test_an_id_cannot_escape_the_store(store: Store, name: str) -> None:
    """An id that is not a plain name is not found, wherever it would lead."""
    with pytest.raises(CheckpointNotFoundError):
        store.get(name)


def test_aliases_move_together(store: Store) -> None:
    """Promotion makes the former current checkpoint the previous one, and a promoted candidate is no longer the candidate."""
    for name in ("one", "two"):
        publish(store, name)

    store.promote("one")
    store.set_candidate("two")
    before = store.aliases()
    after = store.promote("two").after

    assert (before.current, before.previous, before.candidate) == ("one", None, "two")
    assert (after.current, after.previous, after.candidate) == ("two", "one", None)
    assert store.get("current").id == "two"
    assert store.get("previous").id == "one"
    assert after.names_of("two") == ("current",)


def test_promoting_the_current_checkpoint_changes_nothing(store: Store) -> None:
    """Promoting the current checkpoint again keeps the previous one."""
    for name in ("one", "two"):
        publish(store, name)
        store.promote(name)

    assert store.promote("two") == (store.aliases(), store.aliases())
    assert store.aliases().previous == "one"


@pytest.mark.parametrize("alias", ["current", "previous", "candidate"])
def test_an_unset_alias_is_named(store: Store, alias: str) -> None:
    """An error about an unset alias names the alias."""
    with pytest.raises(CheckpointNotFoundError, match=alias):
        store.get(alias)


def test_a_checkpoint_that_is_not_there_cannot_be_promoted(store: Store) -> None:
    """Promoting an unknown id fails and changes no alias."""
    publish(store, "one")
    store.promote("one")

    with pytest.raises(CheckpointNotFoundError):
        store.promote("two")
    assert store.aliases().current == "one"


@pytest.mark.parametrize("alias", ["current", "previous", "approved"])
def test_a_checkpoint_with_an_alias_is_not_deleted(store: Store, alias: str) -> None:
    """A checkpoint that is current, previous or approved cannot be deleted, and the error says which of them it is."""
    for name in ("one", "two", "three"):
        publish(store, name)
    store.promote("one", approve=True)
    store.promote("two")
    store.promote("three")
    before = store.aliases()
    assert (before.approved, before.previous, before.current) == ("one", "two", "three")

    with pytest.raises(CheckpointInUseError, match=f'is "{alias}"; promote others until it is not'):
        store.delete(getattr(before, alias))

    assert store.aliases() == before
    assert len(store.list()) == 3


def test_deletion_removes_every_trace(store: Store) -> None:
    """A deleted checkpoint disappears from the list, the directory, the aliases and staging."""
    for name in ("one", "two", "three"):
        publish(store, name)
    store.promote("one")
    store.set_candidate("two")

    store.delete("three")
    assert store.aliases().candidate == "two"
    store.delete("two")

    assert store.aliases() == msgspec.convert({"current": "one"}, Aliases)
    assert [path.name for path in (store.root / "checkpoints").iterdir()] == ["one"]
    assert list((store.root / "staging").iterdir()) == []
    for name in ("two", "candidate"):
        with pytest.raises(CheckpointNotFoundError):
            store.get(name)


def test_a_damaged_checkpoint_can_be_deleted(store: Store) -> None:
    """A checkpoint that cannot be opened can be deleted."""
    (publish(store, "bad").path / MANIFEST).unlink()

    store.delete("bad")

    assert not (store.root / "checkpoints" / "bad").exists()


@pytest.mark.parametrize("name", ["two", "", "..", "../checkpoints/one", "current"])
def test_only_a_checkpoint_can_be_deleted(store: Store, name: str) -> None:
    """An invalid id is not found, wherever it would lead."""
    publish(store, "one")

    with pytest.raises(CheckpointNotFoundError):
        store.delete(name)
    assert [checkpoint.id for checkpoint in store.list()] == ["one"]


def test_aliases_survive_concurrent_writers(store: Store) -> None:
    """Concurrent writers of aliases never lose an update or leave a partial file."""
    names = [f"c{number}" for number in range(8)]
    for name in names:
        publish(store, name)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda name: Store(store.root).promote(name).after, names * 3))

    final = store.aliases()
    assert final in results
    assert final.current != final.previous
    assert {final.current, final.previous} <= set(names)


def test_checkpoints_are_listed_newest_first(store: Store) -> None:
    """The list is ordered by creation time, whatever the ids are."""
    publish(store, "b", "2026-01-01T00:00:00Z")
    publish(store, "a", "2026-02-01T00:00:00Z")

    assert [checkpoint.id for checkpoint in store.list()] == ["a", "b"]


ANSWER = Prediction(labels=(LabelScore("a", 0.9),), entities=(Entity(start=0, end=2, type="x", score=0.8),))
ANSWERS = [
    (ANSWER, None),
    (Prediction(labels=(LabelScore("b", 0.9),), entities=ANSWER.entities), "label"),
    (Prediction(labels=ANSWER.labels), "entities"),
    (Prediction(labels=(LabelScore("a", 0.9005),), entities=ANSWER.entities), None),
    (Prediction(labels=(LabelScore("a", 0.95),), entities=ANSWER.entities), "score"),
    (Prediction(labels=(LabelScore("a", float("nan")),), entities=ANSWER.entities), "score"),
]


@pytest.mark.parametrize(("actual", "complaint"), ANSWERS)
def test_a_golden_answer_must_be_given_again(tmp_path: Path, actual: Prediction, complaint: str | None) -> None:
    """Labels and spans must be equal and scores close; NaN is never close."""
    write_golden(tmp_path / "golden.json", [GoldenAnswer(text="t", prediction=ANSWER)])
    [golden] = read_golden(tmp_path / "golden.json")

    result = compare_golden(golden.prediction, actual)

    assert (result is None) if complaint is None else (result is not None and complaint in result)


def test_a_bad_checkpoint_is_undone_for_good(store: Store) -> None:
    """The previous checkpoint becomes current and approved, no alias leads back to the bad one, and undo works only once."""
    for name in ("one", "two"):
        publish(store, name)
        store.promote(name, approve=True)

    before, after = store.undo("two")

    assert (before.current, before.previous, before.approved) == ("two", "one", "two")
    assert (after.current, after.previous, after.approved) == ("one", None, "one")
    assert store.aliases() == after
    for name, says in (
        ("two", "two is not current any more; one is"),
        ("one", 'no checkpoint has the alias "previous"'),
    ):
        with pytest.raises(CheckpointNotFoundError, match=says):
            store.undo(name)
