"""The command `twofold-server`, and `twofold-server make-token`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from twofold_server.app import run
from twofold_server.config import read_config
from twofold_server.logs import log_to_stderr
from twofold_server.memory import share_arenas
from twofold_server.tokens import SCOPES, make_token


def main() -> None:
    """Read the settings and serve, or make a token."""
    if sys.argv[1:2] == ["make-token"]:
        print_token(sys.argv[2:])
        return
    share_arenas()
    config = read_config(sys.argv[1:], os.environ)
    log_to_stderr(config.log_level)
    try:
        asyncio.run(run(config))
    except Exception:
        logging.getLogger("twofold_server").exception("the server cannot go on")
        sys.exit(1)


def print_token(arguments: Sequence[str]) -> None:
    """Print a line for the file of tokens to stdout, and the token itself, which is nowhere else, to stderr."""
    parser = argparse.ArgumentParser(
        prog="twofold-server make-token",
        description="Make a bearer token. Append what is printed to stdout to the file that --tokens names.",
    )
    parser.add_argument("name", help="whose token it is: letters, digits, '_' and '-'")
    parser.add_argument("--scopes", required=True, help=f"what it may do, with commas: some of {','.join(SCOPES)}")
    parser.add_argument("--requests-per-second", type=float, help="most requests a second; unlimited without it")
    asked = parser.parse_args(arguments)
    scopes = asked.scopes.split(",")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        parser.error(f"scope {unknown[0]!r} is not known; write some of {','.join(SCOPES)}")
    try:
        token, line = make_token(asked.name, scopes, asked.requests_per_second)
    except ValueError as error:
        parser.error(str(error))
    print(line)
    print(f"Give this to {asked.name}; it is shown this once: {token}", file=sys.stderr)


if __name__ == "__main__":
    main()
