"""Who owns a row, whether that process is still there, and what the system knows of it."""

import os
from pathlib import Path
from typing import NamedTuple

_MOST_STATUS = 1 << 16
_DEAD_STATES = (b"Z", b"X", b"x")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Owner(NamedTuple):
    """A process, told apart from a later one with the same pid. 0 where the system does not say."""

    pid: int
    start: int
    namespace: int


class ProcessFacts(NamedTuple):
    """start: in clock ticks since boot.   The rest means what it says."""

    start: int
    parent: int
    cpu_seconds: float
    age_seconds: float
    resident_bytes: int


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


def process_status(folder: str | Path) -> dict[str, str]:
    """What the system tells of a process or task, by its folder in /proc; nothing where it does not."""
    try:
        with Path(folder, "status").open(encoding="ascii", errors="replace") as file:
            lines = file.read(_MOST_STATUS).splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


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


def process_facts(pid: int) -> ProcessFacts | None:
    """What the system knows of a process; None where it does not say, or there is none."""
    stat = _stat(pid)
    if stat is None:
        return None
    fields = _fields(stat)
    return ProcessFacts(
        start=int(fields[19]),
        parent=int(fields[1]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        age_seconds=_age(int(fields[19])),
        resident_bytes=int(fields[21]) * _PAGE,
    )


def limit_numbers() -> dict[str, int]:
    """Every limit that this system has: its number by its name; none where there are none."""
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return {}
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {name.removeprefix("RLIMIT_"): getattr(resource, name) for name in names}


def limits_of(pid: int) -> dict[str, tuple[int, int]]:
    """The limits in force for a process, (soft, hard) by name; -1 is unlimited."""
    numbers = limit_numbers()
    numbers.pop("OFILE", None)  # another name of NOFILE
    if not numbers:
        return {}
    import resource  # noqa: PLC0415 - it is there, as just seen

    if pid == os.getpid():
        return {name: resource.getrlimit(which) for name, which in numbers.items()}
    try:
        return {name: resource.prlimit(pid, which) for name, which in numbers.items()}
    except (OSError, AttributeError, OverflowError):  # not ours, gone, no Linux, or no pid at all
        return {}


def _age(start: int) -> float:
    try:
        uptime = float(Path("/proc/uptime").read_bytes().split()[0])
    except OSError:
        return 0.0
    return max(0.0, uptime - start / _TICKS)


def _state_and_start(pid: int) -> tuple[bytes, int] | None:
    """The state letter and the start time in clock ticks, from /proc; None where there is none."""
    stat = _stat(pid)
    if stat is None:
        return None
    fields = _fields(stat)
    return fields[0], int(fields[19])


def _stat(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None


def _fields(stat: bytes) -> list[bytes]:
    """What follows the command's name, which may hold spaces and brackets."""
    return stat[stat.rindex(b")") + 2 :].split()
