"""Run the subcommands of `twofold-server` in this process, and read settings as they do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from twofold_server.__main__ import parse
from twofold_server.config.settings import Config
from twofold_server.config.sources import Resolved


def run_command(*arguments: str) -> int:
    """Run a subcommand and return its exit code."""
    options = parse(arguments, os.environ)
    code: int = options.run(options)
    return code


def resolved_settings(flags: Sequence[str], environment: Mapping[str, str]) -> Resolved:
    """Return the settings of ``twofold-server serve``, with their origins."""
    resolved: Resolved = parse(["serve", *flags], environment).resolved
    return resolved


def read_config(flags: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Return the settings of ``twofold-server serve``."""
    return resolved_settings(flags, environment).config
