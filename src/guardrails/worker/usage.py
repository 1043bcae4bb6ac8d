"""How much of each resource limit this process has used. Successor of BSD::Resource's getrusage."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guardrails.store.processes import limits_of, process_status

_PROC = Path("/proc/self")

Gauge = Callable[[dict[str, str]], float | None]
"""Returns what is used of a limit, from the fields of /proc/self/status."""


class Usage(NamedTuple):
    """What a process has used of one limit.

    Attributes:
        used: in the unit of the limit: bytes, seconds or a number. None where the system does not say.
        soft: the soft limit in force; -1 is unlimited.
        hard: the hard limit in force; -1 is unlimited.
    """

    used: float | None
    soft: int
    hard: int

    @property
    def share(self) -> float | None:
        """The part of the soft limit that is used: 1.0 is all of it. None without a soft limit."""
        if self.used is None or self.soft < 0:
            return None
        return self.used / self.soft if self.soft else float(self.used > 0)


def usage() -> dict[str, Usage]:
    """Return what this process has used of each limit that the system has.

    Returns:
        A `Usage` by the name of the limit, such as "CPU" (seconds, of all threads), "DATA" (bytes) or
        "NOFILE" (open files). Empty where the system has no limits (Windows).
    """
    status = process_status(_PROC)
    usages = {}
    for name, (soft, hard) in limits_of(os.getpid()).items():
        used = None
        with suppress(OSError, KeyError, ValueError):
            used = _GAUGES.get(name, _unknown)(status)
        usages[name] = Usage(used, soft, hard)
    return usages


def _bytes(field: str) -> Gauge:
    return lambda status: 1024 * int(status[field].split()[0])


def _unknown(_status: dict[str, str]) -> float | None:
    return None


def open_files() -> int:
    """Return how many files are open, without the descriptor that lists them."""
    try:
        return sum(1 for _ in (_PROC / "fd").iterdir()) - 1
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return limits_of(os.getpid())["NOFILE"][0]  # none is left, not even for the list


def threads() -> int:
    """Return how many threads this process has, those that Python does not know included."""
    try:
        return sum(1 for _ in (_PROC / "task").iterdir())
    except OSError:
        return threading.active_count()


_GAUGES: dict[str, Gauge] = {
    "AS": _bytes("VmSize"),
    "CPU": lambda _: time.process_time(),
    "DATA": _bytes("VmData"),
    "MEMLOCK": _bytes("VmLck"),
    "NOFILE": lambda _: open_files(),
    "RSS": _bytes("VmRSS"),
    "SIGPENDING": lambda status: int(status["SigQ"].split("/")[0]),
    "STACK": _bytes("VmStk"),
}
