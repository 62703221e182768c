"""The place in the queue for a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

LAST = 19
"""The greatest niceness there is."""


def step_back(pid: int, niceness: int) -> None:
    """Let a process, which has one thread yet, and all that it will start give way to the others for a CPU.

    0 changes nothing. Ways of which each works where another does not: a niceness, everywhere, on top of our own; the
    niceness of the session's group, without which the others count only within the session where Linux groups processes by
    it; and, for the last place, a policy whose processes give way at once, on Linux. What is refused is logged: the process
    goes on all the same. See ADR 18.
    """
    for way in _ways(pid, niceness) if niceness else ():
        try:
            way()
        except (OSError, AttributeError) as error:  # It is gone already, may not be niced, or this is not Linux.
            log.info("the trainer keeps some of its priority", extra={"reason": str(error)})


def _ways(pid: int, niceness: int) -> Iterator[Callable[[], object]]:
    on_top = min(LAST, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    yield lambda: os.setpriority(os.PRIO_PROCESS, pid, on_top)
    yield lambda: Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
    if niceness == LAST:
        yield lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
