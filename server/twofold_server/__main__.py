"""The command `twofold-server`, with `make-token`, `print-config` and `doctor`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

import msgspec

from twofold_server.app import run
from twofold_server.config.sources import describe, resolve
from twofold_server.doctor import run_checks
from twofold_server.observability.logs import log_to_stderr
from twofold_server.resources.memory import configure_malloc
from twofold_server.security.tokens import SCOPES, make_token


def main() -> None:
    """Run the subcommand, or the server if there is none."""
    match sys.argv[1:]:
        case ["make-token", *arguments]:
            print_token(arguments)
        case ["print-config", *arguments]:
            print_config(arguments)
        case ["doctor", *arguments]:
            sys.exit(diagnose(arguments))
        case arguments:
            start(arguments)


def start(arguments: Sequence[str]) -> None:
    """Run the server until SIGTERM or SIGINT."""
    configure_malloc()
    resolved = resolve(arguments, os.environ)
    log_to_stderr(resolved.config.log_level)
    log = logging.getLogger("twofold_server")
    for warning in resolved.warnings:
        log.warning(warning)
    try:
        asyncio.run(run(resolved.config))
    except Exception:
        log.exception("the server failed")
        sys.exit(1)


def print_config(arguments: Sequence[str]) -> None:
    """Print the effective settings as TOML, with the origin of each and without secrets."""
    resolved = resolve(arguments, os.environ, prog="twofold-server print-config")
    for line in describe(resolved):
        print(line)
    for warning in resolved.warnings:
        print(warning, file=sys.stderr)


def diagnose(arguments: Sequence[str]) -> int:
    """Print the result of each check of the settings and the environment. Return 1 if a check fails."""
    as_json = "--json" in arguments
    settings = [argument for argument in arguments if argument != "--json"]
    resolved = resolve(settings, os.environ, prog="twofold-server doctor")
    failed = False
    for check in run_checks(resolved.config, resolved.warnings):
        failed |= check.state == "failed"
        if as_json:
            print(msgspec.json.encode(check).decode())
        else:
            print(
                f"{check.state:<8} {check.name:<10} {check.message}"
                + (f"\n         → {check.fix}" if check.fix else "")
            )
    return 1 if failed else 0


def print_token(arguments: Sequence[str]) -> None:
    """Print a line for the token file to stdout, and the token to stderr. The token is not stored anywhere."""
    parser = argparse.ArgumentParser(
        prog="twofold-server make-token",
        description="Create a bearer token. Append the line on stdout to the file given by --tokens; the token is on stderr.",
    )
    parser.add_argument("name", help="name of the token's owner: letters, digits, '_' and '-'")
    parser.add_argument("--scopes", required=True, help=f"comma-separated scopes, from {','.join(SCOPES)}")
    parser.add_argument("--requests-per-second", type=float, help="maximum requests per second (default: unlimited)")
    options = parser.parse_args(arguments)
    scopes = options.scopes.split(",")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        parser.error(f"scope {unknown[0]!r} is unknown; use some of {','.join(SCOPES)}")
    try:
        token, line = make_token(options.name, scopes, options.requests_per_second)
    except ValueError as error:
        parser.error(str(error))
    print(line)
    print(f"Token for {options.name}, shown only once: {token}", file=sys.stderr)


if __name__ == "__main__":
    main()
