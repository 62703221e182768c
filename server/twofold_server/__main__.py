"""The command `twofold-server`, with the subcommands `serve`, `doctor`, `print-config` and `make-token`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import msgspec

from twofold_server.app import run
from twofold_server.config.sources import Resolved, SettingError, add_flags, resolve, to_toml
from twofold_server.doctor import run_checks
from twofold_server.observability.logs import log_to_stderr
from twofold_server.resources.memory import configure_malloc
from twofold_server.security.tokens import SCOPES, make_token


def main() -> None:
    """Run the subcommand that the arguments name, and exit with its code."""
    options = parse(sys.argv[1:], os.environ)
    sys.exit(options.run(options))


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Return the options of a subcommand: its function as ``run``, and its settings, if it has any, as ``resolved``.

    Exits with code 2 and one sentence if a subcommand, an option or a setting is invalid.
    """
    parser = argparse.ArgumentParser(
        prog="twofold-server",
        usage="twofold-server COMMAND [OPTION ...]",
        description="Serve a checkpoint over gRPC, and adapt it in the background.",
        epilog="twofold-server COMMAND --help lists the options of a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        prog="twofold-server", title="commands", metavar="COMMAND [OPTION ...]", required=True
    )
    _add_settings_command(commands, "serve", serve, "run the server until SIGTERM or SIGINT")
    doctor = _add_settings_command(commands, "doctor", diagnose, "check whether the server can run on this machine")
    doctor.add_argument("--json", action="store_true", help="print each check as a line of JSON")
    _add_settings_command(commands, "print-config", print_config, "print the effective settings and their origins")
    _add_make_token(commands)

    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(2)
    if arguments[0].startswith("--") and arguments[0] != "--help":
        parser.error(f"{arguments[0]} needs a command before it; write twofold-server serve {arguments[0]} ...")
    options, unknown = parser.parse_known_args(arguments)
    if options.takes_settings:
        try:
            options.resolved = resolve(options, unknown, environment)
        except SettingError as error:
            options.parser.error(str(error))
    elif unknown:
        options.parser.error(f"{unknown[0]} is not an option of make-token")
    return options


def _add_settings_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add a subcommand that takes every setting as a flag."""
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog="docs/configuration.md describes every setting.",
        usage=f"twofold-server {name} [--config FILE] [--SETTING VALUE ...]; see twofold-server {name} --help",
        allow_abbrev=False,
    )
    parser.set_defaults(run=command, parser=parser, takes_settings=True)
    add_flags(parser)
    return parser


def _add_make_token(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "make-token",
        help="create a bearer token",
        description="Create a bearer token. Append the line on stdout to the file given by --tokens; the token is on stderr.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=print_token, parser=parser, takes_settings=False)
    parser.add_argument("name", help="name of the token's owner: letters, digits, '_' and '-'")
    parser.add_argument("--scopes", required=True, help=f"comma-separated scopes, from {','.join(SCOPES)}")
    parser.add_argument("--requests-per-second", type=float, help="maximum requests per second (default: unlimited)")


def serve(options: argparse.Namespace) -> int:
    """Run the server until SIGTERM or SIGINT. Return 1 if it fails."""
    configure_malloc()
    resolved: Resolved = options.resolved
    log_to_stderr(resolved.config.log_level)
    log = logging.getLogger("twofold_server")
    for warning in resolved.warnings:
        log.warning(warning)
    try:
        asyncio.run(run(resolved.config))
    except Exception:
        log.exception("the server failed")
        return 1
    return 0


def print_config(options: argparse.Namespace) -> int:
    """Print the effective settings as TOML, with the origin of each and without secrets."""
    for line in to_toml(options.resolved):
        print(line)
    for warning in options.resolved.warnings:
        print(warning, file=sys.stderr)
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """Print the result of each check of the settings and the environment. Return 1 if a check fails."""
    failed = False
    for check in run_checks(options.resolved.config, options.resolved.warnings):
        failed |= check.state == "failed"
        if options.json:
            print(msgspec.json.encode(check).decode())
        else:
            print(
                f"{check.state:<8} {check.name:<10} {check.message}"
                + (f"\n         → {check.fix}" if check.fix else "")
            )
    return 1 if failed else 0


def print_token(options: argparse.Namespace) -> int:
    """Print a line for the token file to stdout, and the token to stderr. The token is not stored anywhere."""
    scopes = options.scopes.split(",")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        options.parser.error(f"scope {unknown[0]!r} is unknown; use some of {','.join(SCOPES)}")
    try:
        token, line = make_token(options.name, scopes, options.requests_per_second)
    except ValueError as error:
        options.parser.error(str(error))
    print(line)
    print(f"Token for {options.name}, shown only once: {token}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
