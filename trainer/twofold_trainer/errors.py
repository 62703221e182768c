"""Errors of the trainer. Each message says what to change."""

from __future__ import annotations


class TrainerError(Exception):
    """Base class of the errors of this package."""


class RefusedError(TrainerError):
    """A job or its examples cannot be trained as they are; the message says what to change."""


class BackboneError(TrainerError):
    """A backbone was not found or cannot be used."""


class FrozenMovedError(TrainerError):
    """A frozen tensor has changed."""


class GraftError(TrainerError):
    """The base's graph cannot be reused for the candidate; export the model instead."""


class RejectedError(TrainerError):
    """The gate rejected the candidate; the message gives its reason."""


class SnapshotError(TrainerError):
    """A snapshot is damaged, or belongs to another training."""


class ParityError(TrainerError):
    """The exported graph and the trained model differ."""


class CancelledError(TrainerError):
    """The training was cancelled."""
