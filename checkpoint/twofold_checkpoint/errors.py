"""Errors of checkpoints, stores and examples.

CheckpointError
├── CheckpointNotFoundError    the id or alias does not exist
├── CheckpointInUseError       the checkpoint is in use and cannot be deleted; names its users
├── CheckpointCorruptError     a file is missing, truncated or modified
├── CheckpointFormatError      written in a format that this version cannot read
└── ExampleError               an example is malformed; names its source, line and field
"""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of all errors of this package."""


class CheckpointNotFoundError(CheckpointError):
    """The store has no checkpoint with this id or alias."""


class CheckpointInUseError(CheckpointError):
    """A checkpoint cannot be deleted, because something needs it."""


class CheckpointCorruptError(CheckpointError):
    """The files of a checkpoint do not match its manifest."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint was written in a format that this version cannot read."""


class ExampleError(CheckpointError):
    """An example is malformed.

    *source* is a file or a request field, *line* counts from 1 (0: the error has no line), *field* is
    a path such as ``entities[0].end``, and *reason* says what is wrong and what to write instead.
    """

    def __init__(self, *, source: str, line: int, field: str, reason: str) -> None:
        location = f"{source}:{line}" if line else source
        super().__init__(f"{location}: {field}: {reason}" if field else f"{location}: {reason}")
        self.source = source
        self.line = line
        self.field = field
        self.reason = reason
