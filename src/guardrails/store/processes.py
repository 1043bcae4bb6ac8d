"""What the system knows of a process: whether it is alive, its start, its resources, its limits."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_MOST_STATUS = 1 << 16
_DEAD_STATES = (b"Z", b"X", b"x")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Owner(NamedTuple):
    """A process, told apart from a later one with the same pid.

    Attributes:
        pid: its process id.
        start: when it was started, in clock ticks since boot; 0 where the system does not tell.
        namespace: its pid namespace; 0 likewise.
    """

    pid: int
    start: int
    namespace: int


class ProcessFacts(NamedTuple):
    """What the system tells of a process.

    Attributes:
        start: when it was started, in clock ticks since boot.
        parent: the process id of its parent.
        cpu_seconds: the CPU time that it has used, in seconds.
        age_seconds: the time since its start, in seconds.
        resident_bytes: its resident memory, in bytes.
        is_waiting: whether its first thread waits, for a connection or for anything else.
    """

    start: int
    parent: int
    cpu_seconds: float
    age_seconds: float
    resident_bytes: int
    is_waiting: bool


def this_process() -> Owner:
    """Return this process."""
    pid = os.getpid()
    state = _state_and_start(pid)
    return Owner(pid, state[1] if state else 0, pid_namespace())


def pid_namespace() -> int:
    """Return the number of this process's pid namespace; 0 where the system does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def process_status(folder: str | Path) -> dict[str, str]:
    """Return the fields of `status` in a folder of /proc, by name.

    Args:
        folder: the folder of a process or of a task.

    Returns:
        The fields; nothing if they cannot be read.
    """
    try:
        with Path(folder, "status").open(encoding="ascii", errors="replace") as file:
            lines = file.read(_MOST_STATUS).splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def is_dead(owner: Owner, namespace: int) -> bool:
    """Return whether a process is dead.

    It is dead if there is no such pid, if it is a zombie, or if the pid now has another start time. A
    process of another pid namespace cannot be examined, so it counts as alive.

    Args:
        owner: the process.
        namespace: the pid namespace of this process.
    """
    if owner.pid <= 0:
        return True
    if owner.namespace != namespace:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # it exists, or is no pid at all: /proc decides
        pass
    found = _state_and_start(owner.pid)
    if found is None:
        return False
    state, start = found
    return state in _DEAD_STATES or (owner.start != 0 and start != owner.start)


def process_facts(pid: int) -> ProcessFacts | None:
    """Return what the system tells of a process; None if it tells nothing, or there is none."""
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
        is_waiting=fields[0] == b"S",
    )


def children_of(pid: int) -> set[int]:
    """Return the pids of a process's children; nothing where the system does not tell."""
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children.update(map(int, path.read_bytes().split()))
    return children


def limit_numbers() -> dict[str, int]:
    """Return the numbers of this system's resource limits, by name without the prefix RLIMIT_."""
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return {}
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {name.removeprefix("RLIMIT_"): getattr(resource, name) for name in names}


def limits_of(pid: int) -> dict[str, tuple[int, int]]:
    """Return a process's limits as name -> (soft, hard), -1 for unlimited; empty if unreadable."""
    numbers = limit_numbers()
    numbers.pop("OFILE", None)  # another name of NOFILE
    if not numbers:
        return {}
    import resource  # noqa: PLC0415 - limit_numbers() could import it

    if pid == os.getpid():
        return {name: resource.getrlimit(which) for name, which in numbers.items()}
    try:
        return {name: resource.prlimit(pid, which) for name, which in numbers.items()}
    except (OSError, AttributeError, OverflowError):  # not permitted, gone, no Linux, or no pid at all
        return {}


def _age(start: int) -> float:
    try:
        uptime = float(Path("/proc/uptime").read_bytes().split()[0])
    except OSError:
        return 0.0
    return max(0.0, uptime - start / _TICKS)


def _state_and_start(pid: int) -> tuple[bytes, int] | None:
    """The state letter and the start time in clock ticks, from /proc; None if there is no process."""
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
    """The fields after the command's name, which can contain spaces and parentheses."""
    return stat[stat.rindex(b")") + 2 :].split()
