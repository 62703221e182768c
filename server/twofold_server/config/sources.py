"""Sources of settings: a flag, else a variable, else a key of a TOML file, else the default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from twofold_server.config.database_url import DatabaseUrl
from twofold_server.config.settings import Config, redacted

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    DatabaseUrl: "a URL",
}
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_PREFIX = "TWOFOLD_"
_CLIENTS = frozenset({"TWOFOLD_TARGET", "TWOFOLD_TOKEN"})
# Variables that Kubernetes sets in every pod for a Service named twofold.
_KUBERNETES = re.compile(r"TWOFOLD(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


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
    flags = {name: value for name, value in vars(options).items() if name in _FIELDS}
    values: dict[str, tuple[Any, str]] = {name: (field.default, "default") for name, field in _FIELDS.items()}
    if file := getattr(options, "config", None) or environment.get(f"{_PREFIX}CONFIG"):
        values |= _of_file(Path(file))
    values |= _of_environment(environment)
    values |= {name: (_of_text(name, raw, flag_of(name)), f"flag {flag_of(name)}") for name, raw in flags.items()}
    origins = {name: origin for name, (_, origin) in values.items()}
    return Resolved(_config(values), origins, tuple(_unknown_variables(environment)))


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return _PREFIX + name.upper()


def describe(resolved: Resolved) -> Iterable[str]:
    """Yield the settings as lines of TOML, each with its origin. Secrets are hidden; unset settings are comments."""
    for name, origin in resolved.origins.items():
        value = getattr(resolved.config, name)
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
        "--config", metavar="FILE", default=argparse.SUPPRESS, help=f"TOML file of settings [{_PREFIX}CONFIG]"
    )
    for name, field in _FIELDS.items():
        text = f"{field.metadata['help']} [{variable_of(name)}; default {field.default}]".replace("%", "%%")
        if _kind(name) is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag_of(name), action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = "|".join(_choices(name)) or name.rpartition("_")[2].upper()
            parser.add_argument(flag_of(name), metavar=metavar, default=argparse.SUPPRESS, help=text)


def _of_file(path: Path) -> dict[str, tuple[Any, str]]:
    """Read the settings of a TOML file. Unknown keys are rejected."""
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # Invalid TOML or encoding.
        raise SettingError(f"config {str(path)!r} is not TOML: {error}") from error
    for key in written:
        if key not in _FIELDS:
            raise SettingError(f"{path}: {key} is not a setting; {_suggest(key, str)}")
    return {key: (_of_toml(key, value, f"{path}: {key}"), f"file {path}") for key, value in written.items()}


def _of_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """Read the settings of environment variables. An empty variable counts as unset."""
    set_ = {name: environment[variable_of(name)] for name in _FIELDS if environment.get(variable_of(name))}
    return {
        name: (_of_text(name, raw, variable_of(name)), f"variable {variable_of(name)}") for name, raw in set_.items()
    }


def _unknown_variables(environment: Mapping[str, str]) -> Iterable[str]:
    """Yield a warning for each TWOFOLD_* variable that is not a setting."""
    known = {variable_of(name) for name in _FIELDS} | {f"{_PREFIX}CONFIG"}
    for name in sorted(environment):
        if name.startswith(_PREFIX) and name not in known | _CLIENTS and not _KUBERNETES.fullmatch(name):
            yield f"the variable {name} is not a setting; {_suggest(name.removeprefix(_PREFIX), variable_of)}"


def _reject_unknown(arguments: Sequence[str]) -> None:
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--"):
            raise SettingError(f"{flag} is not a setting; {_suggest(flag[2:], flag_of)}")
    if arguments:
        raise SettingError(f"{arguments[0]!r} belongs to no setting; write --SETTING VALUE")


def _suggest(name: str, spell: Callable[[str], str]) -> str:
    """Return a hint with the most similar setting, spelt as in that source."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(_FIELDS), n=1)
    return f"did you mean {spell(near[0])}?" if near else "docs/configuration.md has all of them"


def _config(values: Mapping[str, tuple[Any, str]]) -> Config:
    """Return the Config. If it rejects a setting, the message names the origin."""
    try:
        return Config(**{name: value for name, (value, _) in values.items()})
    except ValueError as error:
        message = str(error)
        named = [name for name in values if re.search(rf"(?<![\w-]){name.replace('_', '-')}(?![\w-])", message)]
        origins = [f"{name.replace('_', '-')}: {values[name][1]}" for name in named if values[name][1] != "default"]
        raise SettingError(f"{message} [{'; '.join(origins)}]" if origins else message) from error


def _of_toml(name: str, value: Any, where: str) -> Any:
    """Convert a typed value of a TOML file."""
    kind = _kind(name)
    types: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(kind, (str,))
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        _wrong(name, value, where)
    return value if kind in {bool, int} else _of_text(name, str(value), where)


def _of_text(name: str, raw: str | bool, where: str) -> Any:
    """Convert the text of a flag or variable; a switch is already a bool."""
    kind = _kind(name)
    if isinstance(raw, bool):
        return raw
    if choices := _choices(name):
        return raw if raw in choices else _wrong(name, raw, where)
    try:
        value = _SWITCH[raw.lower()] if kind is bool else kind(raw)
    except (KeyError, ValueError) as error:
        if kind is DatabaseUrl:  # An invalid URL may contain a password.
            raise SettingError(f"{where} {error}") from None
        _wrong(name, raw, where)
    if isinstance(value, float) and not math.isfinite(value):
        _wrong(name, raw, where)
    return value


def _wrong(name: str, value: object, where: str) -> NoReturn:
    choices, default = _choices(name), _FIELDS[name].default
    wanted = f"one of {', '.join(choices)}" if choices else _WANTED[_kind(name)]
    example = f", such as {default}" if _kind(name) in {int, float} else ""
    shown = redacted(value) if isinstance(value, str) else value
    raise SettingError(f"{where} {shown!r} must be {wanted}{example}")


def _choices(name: str) -> tuple[str, ...]:
    kind = _HINTS[name]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _kind(name: str) -> Any:
    """Return the type of a setting without None."""
    hint = _HINTS[name]
    if get_origin(hint) is Literal:
        return str
    return next((argument for argument in get_args(hint) if argument is not NoneType), hint)


_HINTS = get_type_hints(Config)
