"""How much memory this process has, and how much its cgroup may have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from guardrails.errors import ConfigurationError

_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
_STATM_FIELDS = 7
_NO_LIMIT = 2**60
"""cgroup v1 writes "no limit" as a number near 2**63."""


class Statm:
    """/proc/self/statm, kept open, since opening it costs much more than reading it.

    Args:
        proc: the folder of this process in /proc.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._path = proc / "statm"
        self.descriptor = -1

    def fields(self) -> list[bytes]:
        """Return the seven numbers, even after other code has closed or replaced the descriptor."""
        for _ in range(2):
            if self.descriptor < 0:
                how = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
                self.descriptor = os.open(self._path, how)
            with suppress(OSError):
                fields = os.pread(self.descriptor, 128, 0).split()
                if len(fields) == _STATM_FIELDS and all(map(bytes.isdigit, fields)):
                    return fields
            self.descriptor = -1
        return self._path.read_bytes().split()


def resident_bytes(statm: Statm) -> int:
    """Return the bytes of this process that are in memory, shared or not.

    This reads one line of /proc/self/statm. Without /proc, it asks psutil.

    Args:
        statm: the statm of this process.

    Raises:
        ConfigurationError: there is no /proc, and psutil is not installed; it names the extra.
    """
    try:
        pages = int(statm.fields()[1])
    except OSError:
        return int(_psutil().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")


def unshared_bytes(proc: Path = _PROC) -> int:
    """Return the bytes that no other process has in memory too, from /proc/self/smaps_rollup.

    Pages that a process still shares with its parent after a fork count as shared; statm counts them
    as unshared. The kernel walks all memory of the process, so this is expensive.

    Args:
        proc: the folder of this process in /proc.

    Raises:
        ConfigurationError: there is no /proc, and psutil is not installed; it names the extra.
    """
    try:
        lines = (proc / "smaps_rollup").read_bytes().splitlines()
    except FileNotFoundError:
        if (proc / "statm").exists():  # a kernel before 4.14
            resident, shared = (proc / "statm").read_bytes().split()[1:3]
            return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        return int(_psutil().memory_full_info().uss)
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(b"Private_"))


def cgroup_limit(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Return the bytes that this process's cgroup may have; None where nothing limits them.

    The limit is the smallest of the group and its parents, in version 1 or 2 of cgroups.

    Args:
        proc: the folder of this process in /proc.
        cgroups: where the groups are mounted.
    """
    limits = []
    for version, group in _memory_groups(proc, cgroups):
        if version == 1:
            for each in (group, cgroups / "memory"):
                limits += _limit_in(each / "memory.limit_in_bytes")
                limits += _hierarchical(each / "memory.stat")
        else:
            for each in (group, *group.parents):
                if cgroups in (each, *each.parents):
                    limits += _limit_in(each / "memory.max")
    return min(limits, default=None)


def oom_file(proc: Path, cgroups: Path = _CGROUPS) -> Path | None:
    """Return the file that counts the out-of-memory kills of a process's cgroup; None without one.

    Args:
        proc: the folder of the process in /proc.
        cgroups: where the groups are mounted.
    """
    for version, group in _memory_groups(proc, cgroups):
        file = group / ("memory.oom_control" if version == 1 else "memory.events")
        if file.exists():
            return file
    return None


def oom_kills(file: Path) -> int | None:
    """Return how many processes of a cgroup the kernel has killed for lack of memory.

    Args:
        file: what `oom_file` returned.

    Returns:
        The number; None where the file cannot be read or does not tell.
    """
    for line in _lines(file):
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdecimal():
            return int(count)
    return None


def _memory_groups(proc: Path, cgroups: Path) -> Iterator[tuple[int, Path]]:
    """The groups of a process that account for memory, each with its version of cgroups."""
    for line in _lines(proc / "cgroup"):
        _number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and not controllers:
            yield 2, cgroups / path.lstrip("/")
        elif colon and "memory" in controllers.split(","):
            yield 1, cgroups / "memory" / path.lstrip("/")


def _limit_in(path: Path) -> list[int]:
    text = "".join(_lines(path))
    return [int(text)] if text.isdecimal() and int(text) < _NO_LIMIT else []


def _hierarchical(path: Path) -> list[int]:
    """Return the limit of a group and its parents in version 1."""
    words = [line.split() for line in _lines(path) if line.startswith("hierarchical_memory_limit ")]
    return [int(limit) for _, limit in words if limit.isdecimal() and int(limit) < _NO_LIMIT]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _psutil() -> Any:
    try:
        return import_module("psutil").Process()
    except ImportError:
        raise ConfigurationError(
            "size_limit: this system has no /proc, and psutil is not installed: "
            "pip install wsgi-guardrails[psutil]"
        ) from None
