"""A signal for a process of a server, which is named by its pid or by a pid file."""

from __future__ import annotations

import math
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from guardrails.errors import ConfigurationError
from guardrails.store.processes import pid_namespace, process_facts, process_status
from guardrails.watchdog.pidfd import open_process

_MOST_PID_FILE = 64
_CLOCK_TOLERANCE = 5.0
"""Seconds: clocks are coarse, and the pid file may be on the file system of another host."""

_FIRST_NAMESPACE = 0xEFFFFFFC
"""The number of the host's pid namespace on Linux."""

_OFTEN_UNCAUGHT = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""Signals by which servers are asked something. They end a process that does not handle them."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class ProcessSignal:
    """A signal for a process that is looked up at the moment of sending.

    A pid means the process that has it now, and no later one. A pid file must belong to root, to
    this user or to a user of the process, so that no other user can direct the signal. It must also be
    no older than the process.

    Args:
        pid: a pid, or the path of a file that has nothing but a pid.
        name: name of the signal, such as "USR1".
        argument: what errors call `pid`.
        name_argument: what errors call `name`.

    Raises:
        ConfigurationError: the pid, the path or the name is wrong.
    """

    def __init__(
        self,
        pid: int | str | os.PathLike[str],
        name: str,
        argument: str = "master",
        name_argument: str = "signal_name",
    ) -> None:
        self.name, self._signal = _signal_of(name, name_argument)
        self._path: Path | None = None
        self._number = 0
        self._start: int | None = None
        if isinstance(pid, str) and pid.strip().lstrip("+-").isdecimal():
            pid = int(pid) if len(pid) <= _MOST_PID_FILE else -1
        if isinstance(pid, int):
            if isinstance(pid, bool) or not _least() <= pid < 2**31:
                raise ConfigurationError(
                    f"{argument}: {pid!r} is not the pid of a server: write a number above "
                    "1 (or 1 itself in a container), or the path of a pid file"
                )
            self._number, self._start = pid, _start_of(pid)
        else:
            self._path = absolute_path(pid, argument)

    @contextmanager
    def addressed(self) -> Iterator[Callable[[], int]]:
        """Find the process, and give a function that sends it the signal and returns its pid.

        Raises:
            OSError: there is no process that may be signalled. The message is a sentence.
        """
        number, file = self._number, None
        if self._path is not None:
            number, file = _read_pid_file(self._path)
        if number == os.getpid():
            raise OSError(f"process {number} is the monitor itself")
        with open_process(number) as send:
            # What is found from here on is true of the process that gets the signal.
            if file is None:
                if _start_of(number) != self._start:
                    raise OSError(
                        f"process {number} is not the one that had this pid when the monitor began: "
                        "it is not signalled"
                    )
            elif file.st_uid not in _trusted_owners(number):
                raise OSError(
                    f"{self._path} belongs to uid {file.st_uid}, and process {number} does not: "
                    "it is not signalled"
                )
            elif file.st_mtime < _began(number) - _CLOCK_TOLERANCE:
                raise OSError(
                    f"pid file {self._path} is older than process {number}, so it means an earlier "
                    "one: it is not signalled; if it is the right process, touch the file"
                )
            send(0)
            if self._signal in _OFTEN_UNCAUGHT and not _expects(number, self._signal):
                raise OSError(
                    f"SIG{self.name} would end process {number}, which does not handle it, or not yet: "
                    "it is not signalled"
                )
            yield partial(self._send, send, number)

    def _send(self, send: Callable[[int], None], number: int) -> int:
        send(self._signal)
        return number

    def send(self) -> int:
        """Send the signal now, and return the pid. Raises OSError."""
        with self.addressed() as send:
            return send()


def absolute_path(path: object, argument: str) -> Path:
    """Return the path of a file, independent of the working directory. Raises ConfigurationError."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text or Path(text).name in {"", ".."}:
        raise ConfigurationError(
            f"{argument}: {path!r} is not the path of a file: write one, such as /var/log/app/error.log"
        )
    return Path(text).absolute()


def _signal_of(name: object, argument: str) -> tuple[str, signal.Signals]:
    short = name.strip().upper().removeprefix("SIG") if isinstance(name, str) else ""
    try:
        return short, signal.Signals[f"SIG{short}"]
    except KeyError:
        raise ConfigurationError(
            f'{argument}: {name!r} is not the name of a signal: write one, such as "HUP" or "USR1"'
        ) from None


def _read_pid_file(path: Path) -> tuple[int, os.stat_result]:
    """The pid in a pid file, and the status of the file. Raises OSError."""
    try:
        file = os.open(path, _READ)
    except OSError as error:
        raise OSError(f"pid file {path}: {error.strerror}") from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH:
            raise OSError(f"pid file {path} is not a regular file, or every user may write to it")
        read = os.read(file, _MOST_PID_FILE)
    finally:
        os.close(file)
    text = read.strip()
    cut_off = len(read) == _MOST_PID_FILE and not read[-1:].isspace()
    if not text.isdigit() or cut_off or not _least() <= int(text) < 2**31:
        raise OSError(f"pid file {path} has no pid in it")
    return int(text), found


def _least() -> int:
    """The smallest pid that a server can have: in a container it may be the first process."""
    return 2 if pid_namespace() == _FIRST_NAMESPACE else 1


def _expects(number: int, signal_number: int) -> bool:
    """Whether a process handles, awaits or ignores a signal. True where the system does not say."""
    status = process_status(f"/proc/{number}")
    masks = [int(status[name], 16) for name in ("SigCgt", "SigBlk", "SigIgn") if name in status]
    if not masks or any(mask >> (signal_number - 1) & 1 for mask in masks):
        return True
    # The masks of a process that waits in sigwait(3) do not show the signal as blocked.
    with suppress(OSError):
        return "sigtimedwait" in Path(f"/proc/{number}/wchan").read_text()
    return False


def _start_of(number: int) -> int | None:
    """When a process began, in clock ticks since boot; None where that is not known."""
    facts = process_facts(number)
    return None if facts is None else facts.start


def _began(number: int) -> float:
    """When a process began, in seconds as file times are; minus infinity where that is not known."""
    start = _start_of(number)
    if start is None:
        return -math.inf
    # Not by /proc/uptime: that may be the container's, while the start is the host's.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + start / os.sysconf("SC_CLK_TCK")


def _trusted_owners(number: int) -> set[int]:
    """The users who may have written the pid file: root, this user, and those of the process."""
    return {0, os.geteuid(), *map(int, process_status(f"/proc/{number}").get("Uid", "").split())}
