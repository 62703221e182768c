"""The command `twofold-server`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from twofold_server.app import run
from twofold_server.config import read_config
from twofold_server.logs import log_to_stderr
from twofold_server.memory import share_arenas


def main() -> None:
    """Read the settings and serve."""
    share_arenas()
    config = read_config(sys.argv[1:], os.environ)
    log_to_stderr(config.log_level)
    try:
        asyncio.run(run(config))
    except Exception:
        logging.getLogger("twofold_server").exception("the server cannot go on")
        sys.exit(1)


if __name__ == "__main__":
    main()
