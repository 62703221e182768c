"""File lock on the job queue of a store."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from twofold_server.errors import FailedPreconditionError


def lock_queue(path: Path, *, shared: bool) -> IO[str]:
    """Lock a store's job queue for the life of this process: exclusively, or shared between servers of one database.

    Raises FailedPreconditionError if another server holds a conflicting lock or the store is not writable.
    """
    try:
        file = path.open("a+")
    except OSError as error:
        raise FailedPreconditionError(
            f"{path} cannot be written: {error.strerror}; use a store that the server may write to"
        ) from error
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise FailedPreconditionError(
            f"another server uses the job queue of this store ({path} is locked); stop it, or run both with the same "
            "--database"
        ) from error
    return file
