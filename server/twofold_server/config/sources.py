"""Sources of settings: a flag, else a variable, else a key of a TOML file, else the default."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

from twofold_server.config.database_url import DatabaseUrl
from twofold_server.config.group import redacted
from twofold_server.config.schema import PREFIX, SETTINGS, Setting, build_config
from twofold_server.config.settings import Config

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    DatabaseUrl: "a URL",
}
_CLIENTS = frozenset({"TWOFOLD_TARGET", "TWOFOLD_TOKEN"})
# Variables that Kubernetes sets in every pod for a Service named twofold.
_KUBERNETES = re.compile(r"TWOFOLD(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")

_Values = dict[str, tuple[Any, str]]
"""Values with their origins, by the flat names of the settings."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, and the origin of each. *warnings* are about variables that set nothing."""

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


class SettingError(ValueError):
    """A setting is invalid. The message names its origin, its value and the fix."""


def resolve(options: argparse.Namespace, unknown: Sequence[str], environment: Mapping[str, str]) -> Resolved:
    """Return every setting with its origin.

    *options* and *unknown* are the result of ``parse_known_args`` of a parser with the flags of ``add_flags``. Raises
    SettingError if a setting is invalid or unknown.
    """
    _reject_unknown(unknown)
    values: _Values = {name: (setting.default, "default") for name, setting in SETTINGS.items()}
    if file := getattr(options, "config", None) or environment.get(f"{PREFIX}CONFIG"):
        values |= _of_file(Path(file))
    values |= _of_environment(environment)
    values |= _of_flags(options)
    origins = {name: origin for name, (_, origin) in values.items()}
    return Resolved(_config(values), origins, tuple(_unknown_variables(environment)))


def to_toml(resolved: Resolved) -> Iterable[str]:
    """Yield the settings as lines of TOML, each with its origin. Secrets are hidden; unset settings are comments."""
    for name, origin in resolved.origins.items():
        value = SETTINGS[name].read(resolved.config)
        key = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        yield f"{key}  # {origin}"


def _toml(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower()
    # Every JSON string without a bare DEL is a valid TOML basic string.
    return json.dumps(redacted(str(value)), ensure_ascii=False).replace("\x7f", "\\u007f")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and the flag of every setting. A flag that is not given is absent from the parsed options."""
    parser.add_argument(
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"TOML file of settings [{PREFIX}CONFIG]"
    )
    for title, settings in itertools.groupby(SETTINGS.values(), lambda setting: setting.title):
        group = parser.add_argument_group(title)
        for setting in settings:
            notes = [setting.variable, f"default {setting.default}", str(setting.range)]
            text = f"{setting.help} [{'; '.join(filter(None, notes))}]".replace("%", "%%")
            if setting.kind is bool:
                action = argparse.BooleanOptionalAction
                group.add_argument(setting.flag, action=action, default=argparse.SUPPRESS, help=text)
            else:
                metavar = "|".join(setting.choices) or setting.name.rpartition("_")[2].upper()
                group.add_argument(setting.flag, metavar=metavar, default=argparse.SUPPRESS, help=text)


def _of_file(path: Path) -> _Values:
    """Read the settings of a TOML file. Unknown keys are rejected."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # Invalid TOML or encoding.
        raise SettingError(f"config {str(path)!r} is not TOML: {error}") from error
    for key in table:
        if key not in SETTINGS:
            raise SettingError(f"{path}: {key} is not a setting; {_suggest(key, attrgetter('name'))}")
    return {key: (_of_toml(SETTINGS[key], value, f"{path}: {key}"), f"file {path}") for key, value in table.items()}


def _of_environment(environment: Mapping[str, str]) -> _Values:
    """Read the settings of environment variables. An empty variable counts as unset."""
    return {
        name: (_of_text(setting, text, setting.variable), f"variable {setting.variable}")
        for name, setting in SETTINGS.items()
        if (text := environment.get(setting.variable))
    }


def _of_flags(options: argparse.Namespace) -> _Values:
    """Read the settings of the flags that were given."""
    return {
        name: (_of_text(setting, getattr(options, name), setting.flag), f"flag {setting.flag}")
        for name, setting in SETTINGS.items()
        if hasattr(options, name)
    }


def _unknown_variables(environment: Mapping[str, str]) -> Iterable[str]:
    """Yield a warning for each TWOFOLD_* variable that is not a setting."""
    known = {setting.variable for setting in SETTINGS.values()} | {f"{PREFIX}CONFIG"} | _CLIENTS
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not _KUBERNETES.fullmatch(name):
            yield f"the variable {name} is not a setting; {_suggest(name.removeprefix(PREFIX), attrgetter('variable'))}"


def _reject_unknown(arguments: Sequence[str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--"):
            raise SettingError(f"{flag} is not a setting; {_suggest(flag[2:], attrgetter('flag'))}")
    if arguments:
        raise SettingError(f"unexpected argument {arguments[0]!r}; write --SETTING VALUE")


def _suggest(name: str, spelling: Callable[[Setting], str]) -> str:
    """Return a hint with the most similar setting, spelt as in that source."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(SETTINGS), n=1)
    return f"did you mean {spelling(SETTINGS[near[0]])}?" if near else "docs/configuration.md lists them all"


def _config(values: _Values) -> Config:
    """Return the Config. If it rejects a setting, the message names the origin."""
    try:
        return build_config(**{name: value for name, (value, _) in values.items()})
    except ValueError as error:
        message = str(error)
        named = [setting for setting in SETTINGS.values() if re.search(rf"(?<![\w-]){setting.label}(?![\w-])", message)]
        origins = [
            f"{setting.label}: {origin}" for setting in named if (origin := values[setting.name][1]) != "default"
        ]
        raise SettingError(f"{message} [{'; '.join(origins)}]" if origins else message) from error


def _of_toml(setting: Setting, value: Any, where: str) -> Any:
    """Convert a typed value of a TOML file."""
    types: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(setting.kind, (str,))
    if not isinstance(value, types) or (isinstance(value, bool) and setting.kind is not bool):
        _reject_value(setting, value, where)
    return value if setting.kind in {bool, int} else _of_text(setting, str(value), where)


def _of_text(setting: Setting, text: str | bool, where: str) -> Any:
    """Convert the text of a flag or variable; a switch is already a bool."""
    if isinstance(text, bool):
        return text
    if setting.choices:
        return text if text in setting.choices else _reject_value(setting, text, where)
    try:
        value = _SWITCH[text.lower()] if setting.kind is bool else setting.kind(text)
    except (KeyError, ValueError) as error:
        if setting.kind is DatabaseUrl:  # An invalid URL may contain a password.
            raise SettingError(f"{where} {error}") from None
        _reject_value(setting, text, where)
    if isinstance(value, float) and not math.isfinite(value):
        _reject_value(setting, text, where)
    return value


def _reject_value(setting: Setting, value: object, where: str) -> NoReturn:
    wanted = f"one of {', '.join(setting.choices)}" if setting.choices else _WANTED[setting.kind]
    example = f", such as {setting.default}" if setting.kind in {int, float} else ""
    shown = redacted(value) if isinstance(value, str) else value
    raise SettingError(f"{where} {shown!r} must be {wanted}{example}")
