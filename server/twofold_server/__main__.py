"""The command `twofold-server`."""

from __future__ import annotations

import asyncio
import os
import sys

from twofold_server.app import run
from twofold_server.config import read_config
from twofold_server.logs import log_to_stderr


def main() -> None:
    """Read the settings and serve."""
    config = read_config(sys.argv[1:], os.environ)
    log_to_stderr(config.log_level)
    asyncio.run(run(config))


if __name__ == "__main__":
    main()
