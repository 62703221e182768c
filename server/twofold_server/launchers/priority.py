"""The last place in the queue for a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

NICENESS = 19


def put_last(pid: int) -> None:
    """Let a process, which has one thread yet, and all that it will start run on what CPU the others leave.

    Three ways, since each works where another does not: a niceness, everywhere; a policy whose processes give way at
    once, on Linux; and the niceness of the session's group, without which the others count only within the session where
    Linux groups processes by it. What is refused is logged: the process goes on all the same. See ADR 18.
    """
    ways: tuple[Callable[[], object], ...] = (
        lambda: os.setpriority(os.PRIO_PROCESS, pid, NICENESS),
        lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
        lambda: Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS), encoding="ascii"),
    )
    for way in ways:
        try:
            way()
        except (OSError, AttributeError) as error:  # It is gone already, may not be niced, or this is not Linux.
            log.info("the trainer keeps some of its priority", extra={"reason": str(error)})
