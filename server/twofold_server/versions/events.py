"""Job events about the candidate under live traffic."""

from __future__ import annotations

import msgspec
from twofold_checkpoint.manifest import HeadName


class Shadowed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """Progress or result of the shadow test of a candidate. Counts are cumulative, so the last event of a job counts."""

    texts: int
    failed: int
    slow: int
    agreed: dict[HeadName, int]
    comparable: dict[HeadName, int]
    """Comparable texts by head, of which *agreed* had the same prediction."""
    seconds: float

    @property
    def summary(self) -> str:
        """The event as one sentence."""
        heads = "".join(
            f"; the {head} head agrees on {self.agreed[head]} of {n}" for head, n in self.comparable.items()
        )
        return f"Shadow test: {self.texts} live texts were compared in {self.seconds:.0f} s{heads}."


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """The candidate was rolled back after its promotion. The event may follow the end of the job."""

    checkpoint_id: str
    restored_id: str
    cause: str
    reason: str

    @property
    def summary(self) -> str:
        """The event as two sentences."""
        return f"{self.checkpoint_id} was rolled back: {self.reason}. {self.restored_id} is live again."
