"""A signal for a server's first process, which is named by its pid or by a pid file."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

from guardrails.errors import ConfigurationError
from guardrails.store.processes import process_facts, process_status
from guardrails.watchdog.option_values import absolute_path
from guardrails.watchdog.pidfd import open_process

_MOST_PID_FILE = 64
_CLOCK_TOLERANCE = 5.0
"""Seconds: clocks are coarse, and the pid file may be on the file system of another host."""

_OFTEN_UNCAUGHT = {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals by which servers are asked something. They end a process that does not handle them."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class ProcessSignal:
    """A signal for a process that is looked up at the moment of sending.

    A pid means the process that has it now, and no later one. A pid file must belong to root, to
    this user or to a user of the process, so that no other user can direct the signal. It must also be
    no older than the process.

    Args:
        master: a pid, or the path of a file that has nothing but a pid. None where that is not known
            yet: then there is nothing to signal.
        number: the signal.

    Raises:
        ConfigurationError: the pid or the path is wrong.
    """

    def __init__(self, master: int | str | os.PathLike[str] | None, number: signal.Signals) -> None:
        self._signal = number
        self._master = None if master is None else parsed_master(master)
        self._start = _start_of(self._master) if isinstance(self._master, int) else None

    def __str__(self) -> str:
        return self._signal.name

    def check(self) -> str:
        """Return a warning if the server does not seem to run yet, and an empty text if all is well.

        Raises:
            ConfigurationError: there is no such process or folder, or the file is no pid file.
        """
        try:
            pid, _file = self._found()
            with open_process(pid):
                return ""
        except OSError as error:
            may_come = isinstance(error, FileNotFoundError | ProcessLookupError)
            if may_come and isinstance(self._master, Path) and self._master.parent.is_dir():
                return f"master: {error} yet: until the server runs, {self} cannot be sent"
            raise ConfigurationError(
                f"master: {error}, so {self} cannot be sent: name the server's first process, or its "
                "pid file"
            ) from None

    def send(self) -> int:
        """Send the signal now, and return the pid.

        Raises:
            OSError: there is no process that may be signalled. The message is a sentence.
        """
        pid, file = self._found()
        if pid == os.getpid():
            raise OSError(f"process {pid} is the monitor itself")
        with open_process(pid) as send:
            # What is found from here on is true of the process that gets the signal.
            if file is None:
                if _start_of(pid) != self._start:
                    raise OSError(
                        f"process {pid} is not the one that had this pid when the monitor began: "
                        "it is not signalled"
                    )
            elif file.st_uid not in _trusted_owners(pid):
                raise OSError(
                    f"{self._master} belongs to uid {file.st_uid}, and process {pid} does not: "
                    "it is not signalled"
                )
            elif file.st_mtime < _began(pid) - _CLOCK_TOLERANCE:
                raise OSError(
                    f"pid file {self._master} is older than process {pid}, so it means an earlier "
                    "one: it is not signalled; if it is the right process, touch the file"
                )
            send(0)
            if self._signal in _OFTEN_UNCAUGHT and not _expects(pid, self._signal):
                raise OSError(
                    f"{self} would end process {pid}, which does not handle it, or not yet: "
                    "it is not signalled"
                )
            send(self._signal)
        return pid

    def _found(self) -> tuple[int, os.stat_result | None]:
        """The pid, and the status of the file that it is from. Raises OSError."""
        if self._master is None:
            raise ProcessLookupError("no process is named")
        if isinstance(self._master, int):
            return self._master, None
        return _read_pid_file(self._master)


def parsed_master(master: object) -> int | Path:
    """Return the pid, or the absolute path of the pid file, that `master` names.

    Raises:
        ConfigurationError: it names neither.
    """
    if isinstance(master, str) and master.strip().lstrip("+-").isdecimal():
        master = int(master) if len(master) <= _MOST_PID_FILE else -1
    if isinstance(master, int):
        if isinstance(master, bool) or not 0 < master < 2**31:
            raise ConfigurationError(
                f"master: {master!r} is not the pid of a server: write a number above 0, or the path "
                "of a pid file"
            )
        return master
    return absolute_path(master, "master")


def _read_pid_file(path: Path) -> tuple[int, os.stat_result]:
    try:
        file = os.open(path, _READ)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no pid file {path}") from None
    except OSError as error:
        raise OSError(f"pid file {path}: {error.strerror}") from None
    with os.fdopen(file, "rb", buffering=0) as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH:
            raise OSError(f"pid file {path} is not a regular file, or every user may write to it")
        read = opened.read(_MOST_PID_FILE) or b""
    is_cut_off = len(read) == _MOST_PID_FILE and not read[-1:].isspace()
    text = read.strip()
    if not text.isdigit() or is_cut_off or not 0 < int(text) < 2**31:
        raise OSError(f"pid file {path} has no pid in it")
    return int(text), found


def _expects(pid: int, number: int) -> bool:
    """Whether a process handles, blocks or ignores a signal. True where the system does not say."""
    status = process_status(f"/proc/{pid}")
    masks = [int(status[name], 16) for name in ("SigCgt", "SigBlk", "SigIgn") if name in status]
    return not masks or any(mask >> (number - 1) & 1 for mask in masks)


def _start_of(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where that is not known."""
    facts = process_facts(pid)
    return None if facts is None else facts.start


def _began(pid: int) -> float:
    """When a process began, in seconds as file times are; 0 where that is not known."""
    start = _start_of(pid)
    if start is None:
        return 0.0
    # Not by /proc/uptime: that may be the container's, while the start is the host's.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + start / os.sysconf("SC_CLK_TCK")


def _trusted_owners(pid: int) -> set[int]:
    """The users who may have written the pid file: root, this user, and those of the process."""
    return {0, os.geteuid(), *map(int, process_status(f"/proc/{pid}").get("Uid", "").split())}
