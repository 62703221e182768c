"""CPU priority of the trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

MAX_NICENESS = 19
"""Maximum niceness."""


def lower_priority(pid: int, niceness: int) -> None:
    """Lower the CPU priority of a process that still has one thread, and of its future children.

    0 changes nothing. Combines three mechanisms: process niceness, added to the server's; on Linux the niceness of the
    session's autogroup, because with autogroups process niceness counts only within a session; and SCHED_IDLE on Linux
    for niceness 19. A refused mechanism is logged and the process continues. See ADR 18.
    """
    for mechanism in _mechanisms(pid, niceness) if niceness else ():
        try:
            mechanism()
        except (OSError, AttributeError) as error:  # The process ended, permission is denied, or this is not Linux.
            log.info("could not fully lower the trainer's priority", extra={"reason": str(error)})


def _mechanisms(pid: int, niceness: int) -> Iterator[Callable[[], object]]:
    total = min(MAX_NICENESS, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    yield lambda: os.setpriority(os.PRIO_PROCESS, pid, total)
    yield lambda: Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
    if niceness == MAX_NICENESS:
        yield lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
