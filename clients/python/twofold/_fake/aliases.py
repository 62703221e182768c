"""The aliases of a fake server and their history."""

from datetime import UTC, datetime

from twofold._types.checkpoints import AliasChange


class FakeAliases(dict[str, str]):
    """Checkpoint ids by alias, with the history of their changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[AliasChange] = []

    def move(self, actor: str, reason: str, **aliases: str) -> None:
        """Let *aliases* name other checkpoints and record the changes."""
        for alias, to_id in aliases.items():
            change = AliasChange(
                time=datetime.now(UTC),
                alias=alias,
                from_id=self.get(alias, ""),
                to_id=to_id,
                actor=actor,
                reason=reason,
            )
            self.changes.append(change)
        self.update(aliases)
