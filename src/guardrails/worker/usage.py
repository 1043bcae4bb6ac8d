"""What a worker has used of what its limits let it have. Successor of BSD::Resource's getrusage."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from guardrails.store.processes import limits_of, process_status

_PROC = Path("/proc/self")


class Usage(NamedTuple):
    """used: in the limit's unit, bytes, seconds or a number; None where the system does not say.

    soft, hard: the limits in force, -1 for unlimited.
    """

    used: float | None
    soft: int
    hard: int

    @property
    def share(self) -> float | None:
        """The part of the soft limit that is used, 1.0 for all of it; None without one."""
        if self.used is None or self.soft < 0:
            return None
        return self.used / self.soft if self.soft else float(self.used > 0)


def usage() -> dict[str, Usage]:
    """What this process has used, beside each limit that the system has, by its name.

    CPU is in seconds, of all threads. Empty where the system has no limits (Windows).
    """
    status = process_status(_PROC)
    found = {}
    for name, (soft, hard) in limits_of(os.getpid()).items():
        used = None
        with suppress(OSError, KeyError, ValueError):
            used = _USED.get(name, _unknown)(status)
        found[name] = Usage(used, soft, hard)
    return found


def _bytes(field: str) -> Callable[[dict[str, str]], float | None]:
    return lambda status: 1024 * int(status[field].split()[0])


def _unknown(_status: dict[str, str]) -> float | None:
    return None


def _files() -> float:
    """How many files are open, without the one that looks; where none can be opened, all of them."""
    try:
        return sum(1 for _ in (_PROC / "fd").iterdir()) - 1
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return limits_of(os.getpid())["NOFILE"][0]


_USED: dict[str, Callable[[dict[str, str]], float | None]] = {
    "AS": _bytes("VmSize"),
    "CPU": lambda _: time.process_time(),
    "DATA": _bytes("VmData"),
    "MEMLOCK": _bytes("VmLck"),
    "NOFILE": lambda _: _files(),
    "RSS": _bytes("VmRSS"),
    "SIGPENDING": lambda status: int(status["SigQ"].split("/")[0]),
    "STACK": _bytes("VmStk"),
}
