"""The checkpoint store: checkpoints by id, and aliases that point to them."""

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
    """The checkpoint id of each alias. All aliases are in one file, so that they change atomically."""

    current: str | None = None
    previous: str | None = None
    candidate: str | None = None
    approved: str | None = None
    """The last checkpoint that a person made current. Losses are measured against it, so that small losses cannot accumulate."""

    def names_of(self, checkpoint_id: str) -> tuple[Alias, ...]:
        """Return the aliases that name the checkpoint."""
        return tuple(alias for alias in ALIASES if getattr(self, alias) == checkpoint_id)


class AliasUpdate(NamedTuple):
    """The aliases before and after a change."""

    before: Aliases
    after: Aliases


class Store:
    """A directory of checkpoints: ``checkpoints/ID/``, ``aliases.json`` and ``staging/``.

    Publishing is atomic: files are written to staging, flushed and renamed. Several processes may share a store:
    aliases change under a file lock, and a rename replaces the alias file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def create(self) -> Store:
        """Create missing directories."""
        for name in ("checkpoints", "staging"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        return self

    # -- checkpoints --------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield an empty directory for a checkpoint's files. It is removed at the end unless it was published."""
        path = self.root / "staging" / uuid.uuid4().hex
        with self._staging():
            path.mkdir(parents=True)
            try:
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def remove_stale_staging(self) -> bool:
        """Remove unfinished files of dead processes. Return False, without removing any, while another process is staging."""
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
        """Hold the shared staging lock, which prevents cleanup until the block or the process ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "staging.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield

    def publish(self, staged: Path, manifest: Manifest) -> Checkpoint:
        """Publish the staged files as a checkpoint. This method fills in the manifest's file list."""
        self._path(manifest.id)  # Raises if the id is not a plain name.
        files = tuple(digest_file(path) for path in sorted(staged.iterdir()))
        manifest = msgspec.structs.replace(manifest, files=files)
        write_manifest(staged, manifest)
        for path in staged.iterdir():
            flush(path)
        flush(staged)
        target = self._path(manifest.id)
        target.parent.mkdir(exist_ok=True)
        staged.rename(target)
        flush(target.parent)
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
            except CheckpointError:  # A damaged checkpoint must not hide the others; get() reports its error.
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
        """Set "current" to the checkpoint and "previous" to the former current checkpoint.

        With *approve*, a person chose the checkpoint, and "approved" is set to it as well.
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
        """Roll back from a bad checkpoint: set "current" to "previous".

        "previous" is then unset, so that no later rollback restores the bad checkpoint. If the bad checkpoint was approved,
        the restored one becomes approved. Raises CheckpointNotFoundError if the checkpoint is no longer current, or if
        there is no previous checkpoint.
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
        """Set "candidate" to the checkpoint."""

        def move(old: Aliases) -> Aliases:
            self.get(checkpoint_id)
            return msgspec.structs.replace(old, candidate=checkpoint_id)

        return self._move(move)

    def delete(self, checkpoint_id: str) -> AliasUpdate:
        """Remove a checkpoint atomically, even if it is unreadable. Unset "candidate" if it points to the checkpoint.

        Raises CheckpointNotFoundError, or CheckpointInUseError if another alias points to it.
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
                self._write(after)  # Before the rename, so that no alias ever points to a missing checkpoint.
                path.rename(gone)
                flush(path.parent)
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
        """Hold the alias lock: no other process can change aliases or delete checkpoints."""
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
        flush(self.root)


def flush(path: Path) -> None:
    """Flush a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
