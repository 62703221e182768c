"""The aliases of a fake server, and how they came to be where they are."""

from datetime import UTC, datetime

from twofold._types.checkpoints import AliasChange


class FakeAliases(dict[str, str]):
    """Checkpoint ids by alias, which move and are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[AliasChange] = []

    def move(self, who: str, why: str, **aliases: str) -> None:
        """Let aliases name other checkpoints."""
        for alias, to_id in aliases.items():
            from_id = self.get(alias, "")
            self.changes.append(
                AliasChange(time=datetime.now(UTC), alias=alias, from_id=from_id, to_id=to_id, who=who, why=why)
            )
        self.update(aliases)
