"""Who owns a row, and whether that process is still there."""

import os
from pathlib import Path
from typing import NamedTuple

_DEAD_STATES = (b"Z", b"X", b"x")


class Owner(NamedTuple):
    """A process, told apart from a later one with the same pid. 0 where the system does not say."""

    pid: int
    start: int
    namespace: int


def this_process() -> Owner:
    """The process that calls."""
    pid = os.getpid()
    state = _state_and_start(pid)
    return Owner(pid, state[1] if state else 0, pid_namespace())


def pid_namespace() -> int:
    """The number of this process's pid namespace."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def is_dead(owner: Owner, namespace: int) -> bool:
    """Whether nobody will ever act for that owner again.

    Dead is no such pid, a zombie, or another start time. A process of another pid namespace cannot
    be looked at from here, so it counts as alive.
    """
    if owner.pid <= 0:
        return True
    if owner.namespace != namespace:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # it is there, or no pid at all: /proc knows
        pass
    found = _state_and_start(owner.pid)
    if found is None:
        return False
    state, start = found
    return state in _DEAD_STATES or (owner.start != 0 and start != owner.start)


def _state_and_start(pid: int) -> tuple[bytes, int] | None:
    """The state letter and the start time in clock ticks, from /proc; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command's name may hold spaces and brackets: fields count from its last bracket.
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0], int(fields[19])
