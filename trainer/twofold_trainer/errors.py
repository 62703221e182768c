"""What can stop a training, each with a sentence that a person can act on.

TrainerError
├── RefusedError             the job or its examples cannot be trained as they are
├── BackboneError            no place has the backbone, or what it has cannot be used
├── FrozenMovedError         a tensor that had to stay as it was has changed
├── GraftError               the base's graph cannot be made the candidate's; the model has to be exported
├── SnapshotError            a snapshot of a training that was broken off cannot be used
├── ParityError              the exported graph does not compute what the trained model does
└── CancelledError           somebody asked the trainer to stop
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all errors of this package."""


class RefusedError(TrainerError):
    """A job or its examples cannot be trained as they are; the message says what to change."""


class BackboneError(TrainerError):
    """A backbone was not found or cannot be used."""


class FrozenMovedError(TrainerError):
    """A frozen tensor has changed."""


class GraftError(TrainerError):
    """The base's graph cannot be made the candidate's; the model has to be exported."""


class SnapshotError(TrainerError):
    """A snapshot is damaged, or of another training."""


class ParityError(TrainerError):
    """The exported graph and the trained model differ."""


class CancelledError(TrainerError):
    """The training was asked to stop."""
