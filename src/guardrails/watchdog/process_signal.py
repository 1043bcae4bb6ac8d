"""A signal for a server's process, which is named by its number or by a pid file."""

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
_CLOCKS_APART = 5.0  # seconds: clocks are coarse, and the file may lie on another host
_FIRST_NAMESPACE = 0xEFFFFFFC
"""The pid namespace of the host, as Linux numbers it."""

_OFTEN_UNCAUGHT = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""What a server is asked by. Who knows nothing of it would end."""

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class ProcessSignal:
    """A signal for a process that is looked up at the moment of sending.

    pid: its number, or the path of a file with nothing but that number. A number means the process
    that has it now, and no later one. The file must belong to root, to us or to the process itself, so
    that nobody can point us at somebody else's process, and be no older than that process.

    name: of the signal, such as "USR1". The arguments are named in errors. Raises ConfigurationError.
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
                    f"{argument}: {pid!r} is not a process that could be meant: write a number above "
                    "1 (or 1 itself in a container), or the path of a pid file"
                )
            self._number, self._start = pid, _start_of(pid)
        else:
            self._path = absolute_path(pid, argument)

    @contextmanager
    def addressed(self) -> Iterator[Callable[[], int]]:
        """Find the process; what is given sends it the signal and returns its number.

        Raises OSError, with a sentence, when there is none that may be signalled.
        """
        number, file = self._number, None
        if self._path is not None:
            number, file = _read_pid_file(self._path)
        if number == os.getpid():
            raise OSError(f"process {number} is the monitor itself")
        with open_process(number) as send:
            # What is found now is true of the process that is held.
            if file is None:
                if _start_of(number) != self._start:
                    raise OSError(
                        f"process {number} is not the one that had this number when the monitor began: "
                        "it is not signalled"
                    )
            elif file.st_uid not in _trusted_owners(number):
                raise OSError(
                    f"{self._path} belongs to uid {file.st_uid}, and process {number} does not: "
                    "it is not signalled"
                )
            elif file.st_mtime < _began(number) - _CLOCKS_APART:
                raise OSError(
                    f"pid file {self._path} is older than process {number} and means an earlier one: "
                    "it is not signalled; if it is the right one, touch the file"
                )
            send(0)
            if self._signal in _OFTEN_UNCAUGHT and not _has_a_use_for(number, self._signal):
                raise OSError(
                    f"process {number} would be ended by SIG{self.name}, as it does not handle it, or "
                    "not yet: it is not signalled"
                )
            yield partial(self._send, send, number)

    def _send(self, send: Callable[[int], None], number: int) -> int:
        send(self._signal)
        return number

    def send(self) -> int:
        """Send it now, and return the process's number. Raises OSError."""
        with self.addressed() as send:
            return send()


def absolute_path(path: object, argument: str) -> Path:
    """The path of a file, independent of the working directory. Raises ConfigurationError."""
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
    """The number in a pid file, and what is known of the file. Raises OSError."""
    try:
        file = os.open(path, _READ)
    except OSError as error:
        raise OSError(f"pid file {path}: {error.strerror}") from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & stat.S_IWOTH:
            raise OSError(f"pid file {path} is no regular file, or everybody may write to it")
        read = os.read(file, _MOST_PID_FILE)
    finally:
        os.close(file)
    text = read.strip()
    cut_off = len(read) == _MOST_PID_FILE and not read[-1:].isspace()
    if not text.isdigit() or cut_off or not _least() <= int(text) < 2**31:
        raise OSError(f"pid file {path} has no number of a process in it")
    return int(text), found


def _least() -> int:
    """The smallest pid that may be meant: a container's first process can be a server."""
    return 2 if pid_namespace() == _FIRST_NAMESPACE else 1


def _has_a_use_for(number: int, signal_number: int) -> bool:
    """Whether a process handles a signal, waits for it or ignores it. True where nobody tells."""
    status = process_status(f"/proc/{number}")
    masks = [int(status[name], 16) for name in ("SigCgt", "SigBlk", "SigIgn") if name in status]
    if not masks or any(mask >> (signal_number - 1) & 1 for mask in masks):
        return True
    # Who waits in sigwait(3) has nothing blocked meanwhile, as far as the masks tell.
    with suppress(OSError):
        return "sigtimedwait" in Path(f"/proc/{number}/wchan").read_text()
    return False


def _start_of(number: int) -> int | None:
    """When a process began, in clock ticks since boot; None where there is none, or nobody tells."""
    facts = process_facts(number)
    return None if facts is None else facts.start


def _began(number: int) -> float:
    """When a process began, as the time of a file is written; minus infinity where nobody tells."""
    start = _start_of(number)
    if start is None:
        return -math.inf
    # Not by /proc/uptime, which may be that of a container, while the start is that of the host.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + start / os.sysconf("SC_CLK_TCK")


def _trusted_owners(number: int) -> set[int]:
    """Who may have written the pid file: root, we, and the process's own users."""
    return {0, os.geteuid(), *map(int, process_status(f"/proc/{number}").get("Uid", "").split())}
