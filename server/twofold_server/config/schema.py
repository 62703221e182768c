"""The flat list of all settings, as flags, variables and file keys name them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from twofold_server.config.group import SettingRange, SettingsGroup
from twofold_server.config.settings import Config

PREFIX = "TWOFOLD_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its flat name, its type without None, and its declaration."""

    name: str
    group: str
    """The attribute of Config that holds the setting's group; empty for a setting of Config itself."""
    attribute: str
    title: str
    """The docstring of the group, as a heading."""
    kind: type
    choices: tuple[str, ...]
    default: Any
    help: str
    range: SettingRange

    @property
    def label(self) -> str:
        """The name in error messages."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """The flag."""
        return f"--{self.label}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return PREFIX + self.name.upper()

    def read(self, config: Config) -> Any:
        """Return the value."""
        return getattr(getattr(config, self.group) if self.group else config, self.attribute)


def build_config(**values: Any) -> Config:
    """Return the settings with the given values, by flat names. Raises ValueError if a value is invalid."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        groups.setdefault(SETTINGS[name].group, {})[SETTINGS[name].attribute] = value
    arguments: dict[str, Any] = groups.pop("", {})
    arguments |= {name: _GROUPS[name](**members) for name, members in groups.items()}
    return Config(**arguments)


def _settings_of(group: type[SettingsGroup], name: str) -> Iterator[Setting]:
    hints = get_type_hints(group)
    for field in (field for field in dataclasses.fields(group) if field.metadata):
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        kind = str if choices else next((part for part in get_args(hint) if part is not NoneType), hint)
        yield Setting(
            name=group.PREFIX + field.name,
            group=name,
            attribute=field.name,
            title=(group.__doc__ or "").rstrip(".") if name else "General",
            kind=kind,
            choices=choices,
            default=field.default,
            **field.metadata,
        )


_GROUPS: dict[str, type[SettingsGroup]] = {"": Config} | {
    field.name: type(field.default) for field in dataclasses.fields(Config) if isinstance(field.default, SettingsGroup)
}
SETTINGS = {setting.name: setting for name, group in _GROUPS.items() for setting in _settings_of(group, name)}
"""All settings by flat name, in the order of the documentation."""
