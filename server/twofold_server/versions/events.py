"""What live requests showed of a job's candidate, as events of the job."""

from __future__ import annotations

import msgspec
from twofold_checkpoint.manifest import HeadName


class Shadowed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """The candidate has answered a share of the live texts, too, and was compared; nobody got its answers. The last one counts."""

    texts: int
    failed: int
    slow: int
    agreed: dict[HeadName, int]
    comparable: dict[HeadName, int]
    """Texts by head that could be compared, of which *agreed* were answered the same."""
    seconds: float

    @property
    def summary(self) -> str:
        """The whole of it in one sentence."""
        heads = "".join(
            f"; the {head} head agrees on {self.agreed[head]} of {n}" for head, n in self.comparable.items()
        )
        return f"The candidate has answered {self.texts} live texts, too, in {self.seconds:.0f} s{heads}."


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    """The candidate was made live and turned out bad, so the checkpoint before answers again. It may follow the end."""

    checkpoint_id: str
    restored_id: str
    cause: str
    reason: str

    @property
    def summary(self) -> str:
        """The whole of it in two sentences."""
        return f"{self.checkpoint_id} was bad: {self.reason}. {self.restored_id} answers again."
