"""Groups of settings: dataclasses whose fields have a default, a help text and a range."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class SettingRange:
    """The values that a number may take."""

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most and value > self.above

    def __str__(self) -> str:
        if self.at_most < math.inf:
            return f"from {self.at_least:g} to {self.at_most:g}"
        if self.above > -math.inf:
            return f"above {self.above:g}"
        return f"at least {self.at_least:g}" if self.at_least > -math.inf else ""


def setting(default: Any, text: str, **bounds: float) -> Any:
    """Declare a setting with its default, its help text, and the bounds of its SettingRange if it is a number."""
    return field(default=default, metadata={"help": text, "range": SettingRange(**bounds)})


def fraction(default: float, text: str) -> Any:
    """Declare a setting between 0 and 1."""
    return setting(default, text, at_least=0, at_most=1)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SettingsGroup:
    """Settings of one part of the server. The docstring of a group is its title in the help.

    The flat name of a setting is PREFIX and the name of its field. Raises ValueError if a value is invalid.
    """

    PREFIX: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, int | float) and value not in (allowed := entry.metadata["range"]):
                raise ValueError(f"{(self.PREFIX + entry.name).replace('_', '-')} {value} must be {allowed}")
        self._validate()

    def _validate(self) -> None:
        """Raise ValueError if a value is invalid for another reason than its range."""

    def __repr__(self) -> str:
        values = ((entry.name, getattr(self, entry.name)) for entry in dataclasses.fields(self))
        pairs = (f"{name}={redacted(value) if isinstance(value, str) else value!r}" for name, value in values)
        return f"{type(self).__name__}({', '.join(pairs)})"


def redacted(text: str) -> str:
    """Return a value for display, with the password of a URL hidden."""
    text = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&]*", r"\1***", text)
