"""Checkpoints by id, and the aliases that move over them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from twofold_checkpoint.checkpoint import Checkpoint, digest_file, write_manifest
from twofold_checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointInUseError,
    CheckpointNotFoundError,
)
from twofold_checkpoint.manifest import Manifest

Alias = Literal["current", "previous", "candidate", "approved"]
ALIASES: tuple[Alias, ...] = ("current", "previous", "candidate", "approved")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Aliases(msgspec.Struct, frozen=True, kw_only=True):
    """Say which checkpoint each alias names. They live in one file, so that they move together."""

    current: str | None = None
    previous: str | None = None
    candidate: str | None = None
    approved: str | None = None
    """The last one that a person made current. Losses are counted from it, so that small ones cannot add up unseen."""

    def names_of(self, checkpoint_id: str) -> tuple[Alias, ...]:
        """Return the aliases that name the checkpoint."""
        return tuple(alias for alias in ALIASES if getattr(self, alias) == checkpoint_id)


class AliasUpdate(NamedTuple):
    """Where the aliases pointed before a change, and after it."""

    before: Aliases
    after: Aliases


class Store:
    """Hold a directory of checkpoints: ``checkpoints/ID/``, ``aliases.json`` and ``staging/``.

    A checkpoint appears whole or not at all (written to staging, flushed, renamed). Several processes may use one
    store: aliases change under a file lock and are replaced by one rename.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def create(self) -> Store:
        """Make the directories if they are not there."""
        for name in ("checkpoints", "staging"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        return self

    # -- checkpoints --------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give an empty directory to write a checkpoint's files into; what is left of it at the end is removed."""
        path = self.root / "staging" / uuid.uuid4().hex
        with self._staging():
            path.mkdir(parents=True)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def remove_stale_staging(self) -> bool:
        """Remove what processes that died have left half-done; False if one that lives is writing a checkpoint just now."""
        with (self.root / "staging.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            for path in (self.root / "staging").glob("*"):
                shutil.rmtree(path, ignore_errors=True)
        with self._locked():
            (self.root / "aliases.json.new").unlink(missing_ok=True)
        return True

    @contextmanager
    def _staging(self) -> Iterator[None]:
        """Say to all that sweep, until the block or this process ends, that something is being written."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "staging.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def publish(self, staged: Path, manifest: Manifest) -> Checkpoint:
        """Make the staged files a checkpoint. The manifest's file list is filled in here."""
        self._path(manifest.id)  # Refuses an id that is no plain name.
        files = tuple(digest_file(path) for path in sorted(staged.iterdir()))
        manifest = msgspec.structs.replace(manifest, files=files)
        write_manifest(staged, manifest)
        for path in staged.iterdir():
            _flush(path)
        _flush(staged)
        target = self._path(manifest.id)
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
        _flush(target.parent)
        return Checkpoint.open(target)

    def get(self, name: str) -> Checkpoint:
        """Open a checkpoint by id or alias. Raises CheckpointNotFoundError."""
        if name in ALIASES:
            checkpoint_id = getattr(self.aliases(), name)
            if checkpoint_id is None:
                raise CheckpointNotFoundError(f"no checkpoint has the alias {name!r} yet")
            return Checkpoint.open(self._path(checkpoint_id))
        path = self._path(name)
        if not path.is_dir():
            raise CheckpointNotFoundError(f"there is no checkpoint {name!r} in the store")
        return Checkpoint.open(path)

    def list(self) -> list[Checkpoint]:
        """Open all readable checkpoints, newest first."""
        checkpoints = []
        for path in (self.root / "checkpoints").glob("*"):
            try:
                checkpoints.append(Checkpoint.open(path))
            except CheckpointError:  # One damaged directory must not hide the others; opening it by id names the fault.
                continue
        return sorted(checkpoints, key=lambda checkpoint: (checkpoint.manifest.created, checkpoint.id), reverse=True)

    def _path(self, checkpoint_id: str) -> Path:
        if not _ID.fullmatch(checkpoint_id):
            raise CheckpointNotFoundError(
                f"{checkpoint_id[:100]!r} is not a checkpoint id; write letters, digits, '.', '_' and '-'"
            )
        return self.root / "checkpoints" / checkpoint_id

    # -- aliases ------------------------------------------------------------------------------------------------

    def aliases(self) -> Aliases:
        """Read where the aliases point. Raises CheckpointCorruptError."""
        try:
            return msgspec.json.decode((self.root / "aliases.json").read_bytes(), type=Aliases)
        except FileNotFoundError:
            return Aliases()
        except msgspec.DecodeError as error:
            raise CheckpointCorruptError(f"aliases.json: {error}") from error

    def promote(self, checkpoint_id: str, *, approve: bool = False) -> AliasUpdate:
        """Let "current" name the checkpoint and "previous" the one that was current.

        *approve* says that a person chose it: "approved" names it, too.
        """

        def move(old: Aliases) -> Aliases:
            self.get(checkpoint_id)
            approved = checkpoint_id if approve else old.approved
            if old.current == checkpoint_id:
                return msgspec.structs.replace(old, approved=approved)
            return Aliases(
                current=checkpoint_id,
                previous=old.current,
                candidate=None if old.candidate == checkpoint_id else old.candidate,
                approved=approved,
            )

        return self._move(move)

    def undo(self, checkpoint_id: str) -> AliasUpdate:
        """Let "current" name what "previous" does, in the place of a checkpoint that turned out bad.

        Afterwards there is no previous, so that nobody rolls back to the bad one; if it was approved, the restored one
        is instead. Raises CheckpointNotFoundError if it is not current any more, or if there is no previous.
        """

        def move(old: Aliases) -> Aliases:
            if old.current != checkpoint_id:
                raise CheckpointNotFoundError(f"{checkpoint_id} is not current any more; {old.current} is")
            if old.previous is None:
                raise CheckpointNotFoundError('no checkpoint has the alias "previous"')
            self.get(old.previous)
            approved = old.previous if old.approved == checkpoint_id else old.approved
            return msgspec.structs.replace(old, current=old.previous, previous=None, approved=approved)

        return self._move(move)

    def set_candidate(self, checkpoint_id: str) -> AliasUpdate:
        """Let "candidate" name the checkpoint."""

        def move(old: Aliases) -> Aliases:
            self.get(checkpoint_id)
            return msgspec.structs.replace(old, candidate=checkpoint_id)

        return self._move(move)

    def delete(self, checkpoint_id: str) -> AliasUpdate:
        """Remove a checkpoint, readable or not, whole or not at all; if it is the candidate, there is none afterwards.

        Raises CheckpointNotFoundError, or CheckpointInUseError if another alias names it.
        """
        path, gone = self._path(checkpoint_id), self.root / "staging" / uuid.uuid4().hex

        def move(old: Aliases) -> Aliases:
            if not path.is_dir():
                raise CheckpointNotFoundError(f"there is no checkpoint {checkpoint_id!r} in the store")
            if kept := [alias for alias in old.names_of(checkpoint_id) if alias != "candidate"]:
                names = " and ".join(f'"{alias}"' for alias in kept)
                raise CheckpointInUseError(
                    f"{checkpoint_id} is {names}; promote others until it is not, then delete it"
                )
            return msgspec.structs.replace(old, candidate=None) if old.candidate == checkpoint_id else old

        with self._staging():
            with self._locked():
                before = self.aliases()
                after = move(before)
                self._write(after)  # First, so that no alias ever names what is not there.
                path.rename(gone)
                _flush(path.parent)
            shutil.rmtree(gone, ignore_errors=True)
        return AliasUpdate(before, after)

    def _move(self, change: Callable[[Aliases], Aliases]) -> AliasUpdate:
        with self._locked():
            before = self.aliases()
            after = change(before)
            self._write(after)
        return AliasUpdate(before, after)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from moving aliases and from deleting what one is about to name."""
        with (self.root / "aliases.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, aliases: Aliases) -> None:
        temporary = self.root / "aliases.json.new"
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(aliases))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.root / "aliases.json")
        _flush(self.root)


def _flush(path: Path) -> None:
    """Flush a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
