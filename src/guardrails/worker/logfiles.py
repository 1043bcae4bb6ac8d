"""A server's log file kept small: renamed, made again, and the old one compressed.

What holds at every instant, also when this process is killed there:

- No line is lost. Nothing is renamed over anything, and a plain file is removed only when its
  complete .gz is on the disk, its size still is what was compressed, and nobody has it open for
  writing (where the system tells: a lease is asked for and given back at once).
- No link is followed, and every name is looked up in the folder that is open.

One monitor for one log: of two, neither would lose a line, but each would undo the other's work.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import math
import os
import secrets
import signal
import stat
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from guardrails.errors import ConfigurationError
from guardrails.units import parse_count, parse_seconds, parse_size
from guardrails.worker.events import Announce, printable
from guardrails.worker.pressure import megabytes
from guardrails.worker.process_signal import ProcessSignal, absolute_path

MOST_KEPT = 1000
REOPEN_SECONDS = 60.0
"""How long a server has to open its log again after the signal."""

MINUTE = 60.0
TEN_MINUTES = 600.0
HOUR = 3600.0

SLICE = 8 * 2**20
"""Bytes that one look compresses at most, so that a huge log does not keep the monitor busy."""

_PIECE = 2**18
_NO_REPLACE = 1

Identity = tuple[int, int]


class Seldom:
    """Says of each thing at most once in `seconds` that it may be told."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: dict[object, float] = {}

    def __call__(self, now: float, about: object = None) -> bool:
        """Whether `about` may be told now; if so, it was."""
        said = self._said.get(about)
        if said is not None and now - said < self._seconds:
            return False
        self._said = {thing: at for thing, at in self._said.items() if now - at < self._seconds}
        self._said[about] = now
        return True


class Growth:
    """How fast something grows, from looks at irregular times. Time is an argument."""

    def __init__(self) -> None:
        self._total = 0
        self._looks: deque[tuple[float, int]] = deque()

    def add(self, now: float, written: int) -> int:
        """Note bytes that came since the last look; returns the bytes of the last minute."""
        self._total += written
        if not self._looks or now >= self._looks[-1][0] + 0.5:
            self._looks.append((now, self._total))
        while len(self._looks) > 1 and self._looks[1][0] <= now - MINUTE:
            self._looks.popleft()
        since, before = self._looks[0]
        return round((self._total - before) * MINUTE / max(MINUTE, now - since))


class LogFile:
    """Keeps the log file of a server small.

    path: the log. It may be missing, and anybody else may replace it.

    most: a log larger than this (default "100M") is renamed to path.1, the older ones before it to
    path.2 and so on; at most `keep` (default 5) old ones stay.

    reopen_pid: the server's process or pid file. It gets USR1 and has a minute to open its log again,
    which is there already, with the old one's owner, group and mode: of a server that root started,
    the workers could not open one of root's. If it does not, event "log-not-reopened". Without
    reopen_pid nothing is renamed, since copying and cutting a log loses lines: event "log-too-large",
    once an hour. Errors call it master, as its option is called.

    compress_after: an old log whose size has stood still for so long (default "10s"), and which nobody
    has open for writing, becomes path.1.gz, with the log's owner, mode and time.

    growth: more than this (default "50M") within a minute is event "log-explodes", at most once in 10
    minutes.

    A log with a line in it has been opened again, an empty one when nobody has path.1 open for writing.
    Where the system does not tell of writers, it takes that line.

    Nothing is compressed on a full disk: "log-not-compressed", and again after a minute. What cannot be
    renamed is "log-not-rotated". Links and what is no regular file are refused, "log-refused", once.
    Sizes are in bytes, or texts such as "100M" (powers of 1024). Raises ConfigurationError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        announce: Announce,
        *,
        most: int | str = "100M",
        keep: int = 5,
        reopen_pid: int | str | os.PathLike[str] | None = None,
        compress_after: float | str = "10s",
        growth: int | str = "50M",
    ) -> None:
        whole = absolute_path(path, "log")
        self._folder, self._name = whole.parent, whole.name
        self._shown = printable(str(whole))
        self._announce = announce
        self._most = positive_size(most, "most")
        self._keep = parse_count(keep, "keep", most=MOST_KEPT)
        self._most_growth = positive_size(growth, "growth")
        self._reopen = None if reopen_pid is None else ProcessSignal(reopen_pid, "USR1")
        wait = parse_seconds(compress_after, "compress_after")
        self._old = _OldLogs(whole, announce, self._keep, wait)
        self._growth = Growth()
        self._sizes: dict[Identity, int] = {}
        self._asked: float | None = None  # when the server was asked to open its log again
        self._lost = False  # it was said that the server did not
        self._missing = False
        self._refused = False
        self._first = True
        self._retry = -math.inf
        # Whoever may write to the folder can bring these about as often as he likes.
        self._tell_missing = Seldom(TEN_MINUTES)
        self._tell_refused = Seldom(TEN_MINUTES)
        self._tell_large = Seldom(HOUR)
        self._tell_growth = Seldom(TEN_MINUTES)
        self._tell_failure = Seldom(TEN_MINUTES)

    def look(self, now: float) -> None:
        """Do what there is to do. `now`: monotonic seconds."""
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._say_missing(now)
            return
        try:
            found = _stat(self._name, folder)
            if found is not None and not stat.S_ISREG(found.st_mode):
                self._refuse(found, now)
                return
            self._refused = False
            self._measure(folder, found, now)
            self._missing = self._missing and found is None
            if found is None or not self._is_reopened(folder):
                self._await(folder, found, now)
            else:
                self._asked, self._lost = None, False
                if found.st_size > self._most:
                    self._too_large(folder, found, now)
            self._first = False
            if self._reopen is not None:
                self._old.look(folder, now, reopened=self._is_reopened(folder))
        finally:
            os.close(folder)

    def _tell(self, event: str, message: str, level: int = logging.WARNING, **facts: object) -> None:
        self._announce(event, f"{self._shown}: {message}", level, path=self._shown, **facts)

    def _refuse(self, found: os.stat_result, now: float) -> None:
        told, self._refused = self._refused, True
        if not told and self._tell_refused(now):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no regular file"
            self._tell("log-refused", f"it is {kind}, so it is left alone: name the file itself")

    def _say_missing(self, now: float) -> None:
        told, self._missing = self._missing or self._lost, True
        if not told and self._tell_missing(now):
            self._tell("log-missing", "there is no such file yet, or no longer", logging.INFO)

    def _measure(self, folder: int, found: os.stat_result | None, now: float) -> None:
        """How fast the log grows, in its old name too while the server has not let go of it."""
        before, self._sizes = self._sizes, {}
        renamed = _stat(f"{self._name}.1", folder)
        written = 0
        for file in (found, renamed):
            if file is None or (file is renamed and _identity(file) not in before):
                continue
            self._sizes[_identity(file)] = file.st_size
            # A file that somebody else put there has not been written within this minute.
            start = before.get(_identity(file), 0 if self._asked is not None else file.st_size)
            written += file.st_size - start if file.st_size >= start else file.st_size
        per_minute = self._growth.add(now, written)
        if per_minute > self._most_growth and self._tell_growth(now):
            size = sum(self._sizes.values())
            self._tell(
                "log-explodes",
                f"{megabytes(per_minute)} were written within a minute, and it is {megabytes(size)}: "
                "see what it is full of",
                size=size,
                per_minute=per_minute,
            )

    def _is_reopened(self, folder: int) -> bool:
        """Whether the server writes to the log, and not to the old one only."""
        found = _stat(self._name, folder)
        return found is not None and (found.st_size > 0 or self._old.is_written_to(folder) is False)

    def _too_large(self, folder: int, found: os.stat_result, now: float) -> None:
        size = found.st_size
        if self._reopen is None:
            if self._tell_large(now):
                self._tell(
                    "log-too-large",
                    f"it is {megabytes(size)}, and {megabytes(self._most)} is the most: give "
                    "--master, the server's pid or its pid file, so that it can be rotated, or let "
                    "logrotate do it",
                    size=size,
                )
        elif now >= self._retry:
            self._rotate(self._reopen, folder, found, now)

    def _rotate(self, reopen: ProcessSignal, folder: int, found: os.stat_result, now: float) -> None:
        size = found.st_size
        self._retry = now + MINUTE
        try:
            with reopen.addressed() as send, _successor(self._name, found, folder) as put_in_place:
                self._old.make_room(folder)
                rename(self._name, f"{self._name}.1", folder)
                try:
                    put_in_place()
                except OSError:
                    rename(f"{self._name}.1", self._name, folder)
                    raise
                self._retry = -math.inf
                self._tell("log-rotated", f"renamed at {megabytes(size)}", logging.INFO, size=size)
                self._ask(send, now)
        except OSError as error:
            text = _said(error)
            if self._tell_failure(now, text):
                self._tell(
                    "log-not-rotated",
                    f"it is {megabytes(size)} and cannot be rotated: {text}; it is tried again in a "
                    "minute",
                    size=size,
                    error=text,
                )

    def _ask(self, send: Callable[[], int], now: float) -> None:
        self._asked = now
        try:
            send()
        except OSError as error:
            self._not_reopened(_said(error))

    def _await(self, folder: int, found: os.stat_result | None, now: float) -> None:
        """The log is not there, or nobody has opened it: it was renamed, or there is none."""
        if self._asked is not None:
            if now - self._asked >= REOPEN_SECONDS:
                self._not_reopened("it had a minute since the signal")
        elif self._first and self._reopen is not None and self._old.is_written_to(folder):
            # Whoever renamed it, perhaps we before we were killed, did not come to the signal.
            try:
                with self._reopen.addressed() as send:
                    if found is None:
                        old = os.stat(f"{self._name}.1", dir_fd=folder, follow_symlinks=False)
                        with _successor(self._name, old, folder) as put_in_place:
                            put_in_place()
                    self._ask(send, now)
            except OSError as error:
                self._not_reopened(_said(error))
        elif found is None:
            self._say_missing(now)

    def _not_reopened(self, error: str) -> None:
        self._asked = None
        self._lost = True
        self._tell(
            "log-not-reopened",
            f"the server has not opened it again ({error}), and may go on writing to "
            f"{printable(self._name)}.1: see that --master is the server's pid or its pid file and "
            "that it reopens its logs at USR1, or restart it",
            error=error,
        )


class _OldLogs:
    """The files path.1, path.2 and so on, each plain or a .gz. wait: seconds."""

    def __init__(self, path: Path, announce: Announce, keep: int, wait: float) -> None:
        self._name = path.name
        self._shown = printable(str(path))
        self._announce = announce
        self._keep = keep
        self._wait = wait
        self._still: dict[Identity, tuple[tuple[int, int], float]] = {}
        self._work: Generator[None] | None = None
        self._retry = -math.inf
        self._tell_failure = Seldom(TEN_MINUTES)

    def make_room(self, folder: int) -> None:
        """Rename each to the next number and remove the oldest. Raises OSError.

        A gap, as a kill half-way leaves one, is closed and nothing behind it moved.
        """
        gap = next(number for number in count(1) if not self._files(number, folder))
        for number in range(gap - 1, 0, -1):
            for file in self._files(number, folder):
                if number >= self._keep:
                    os.unlink(file, dir_fd=folder)
                else:
                    suffix = ".gz" if file.endswith(".gz") else ""
                    rename(file, f"{self._name}.{number + 1}{suffix}", folder)

    def is_written_to(self, folder: int) -> bool | None:
        """Whether somebody has path.1 open for writing; None where the system does not tell."""
        try:
            with _opened(f"{self._name}.1", folder) as file:
                return _has_writer(file)
        except FileNotFoundError:
            return False
        except OSError:
            return None

    def look(self, folder: int, now: float, *, reopened: bool) -> None:
        """Compress a bit of what is due. reopened: the server no longer writes to path.1."""
        due = self._due(folder, now, reopened=reopened)
        if now < self._retry:
            return
        try:
            if self._work is None:
                self._work = self._begin(due, folder)
            for _slice in self._work or ():
                return
            self._work = None
        except OSError as error:
            self._work = None
            self._retry = now + MINUTE
            text = _said(error)
            if self._tell_failure(now, text):
                self._announce(
                    "log-not-compressed",
                    f"{self._shown}: an old log stays as it is, and is tried again in a minute: {text}",
                    logging.WARNING,
                    path=self._shown,
                    error=text,
                )

    def _files(self, number: int, folder: int) -> list[str]:
        plain = f"{self._name}.{number}"
        return [name for name in (plain, f"{plain}.gz") if _stat(name, folder) is not None]

    def _plain(self, folder: int) -> Iterator[tuple[str, os.stat_result]]:
        for number in range(1, self._keep + 1):
            name = f"{self._name}.{number}"
            found = _stat(name, folder)
            if found is not None and stat.S_ISREG(found.st_mode):
                yield name, found

    def _due(self, folder: int, now: float, *, reopened: bool) -> list[str]:
        """The plain files whose size has stood still for long enough."""
        still: dict[Identity, tuple[tuple[int, int], float]] = {}
        due = []
        for name, found in self._plain(folder):
            if not reopened and name == f"{self._name}.1":
                continue
            content, since = self._still.get(_identity(found), (None, now))
            if content != _content(found):
                since = now
            still[_identity(found)] = (_content(found), since)
            if now - since >= self._wait:
                due.append(name)
        self._still = still
        return due

    def _begin(self, due: list[str], folder: int) -> Generator[None] | None:
        """Compress the oldest that nobody writes to. Raises OSError."""
        for name in reversed(due):
            with _opened(name, folder) as file:
                if not _has_writer(file):
                    return self._compress(name, folder)
        return None

    def _compress(self, name: str, folder: int) -> Generator[None]:
        """Compress one file, a slice at each step. Raises OSError, and then nothing has changed."""
        with ExitStack() as stack:
            folder = os.dup(folder)
            stack.callback(os.close, folder)
            source = stack.enter_context(_opened(name, folder))
            before = os.fstat(source)
            if self._is_twin(f"{name}.gz", before, folder):
                os.unlink(name, dir_fd=folder)
                return
            self._sweep(folder)
            partial, target = stack.enter_context(_partial(self._name, folder))
            yield from _pack(source, target)
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
            _resemble(target, before)
            os.fsync(target)
            after = os.fstat(source)
            if _content(after) != _content(before) or _has_writer(source):
                return
            # It may have got another number meanwhile, or been removed as the oldest.
            for plain, found in self._plain(folder):
                if _identity(found) == _identity(after):
                    rename(partial, f"{plain}.gz", folder)
                    os.fsync(folder)
                    os.unlink(plain, dir_fd=folder)

    def _is_twin(self, name: str, plain: os.stat_result, folder: int) -> bool:
        """Whether the complete .gz of this plain file is there: who made it was killed just then."""
        if _stat(name, folder) is None:
            return False
        with _opened(name, folder) as file:
            found = os.fstat(file)
            length = int.from_bytes(os.pread(file, 4, max(0, found.st_size - 4)), "little")
        if (found.st_mtime_ns, length) != (plain.st_mtime_ns, plain.st_size & 0xFFFFFFFF):
            raise FileExistsError(f"{name} is there already, and of another log")
        return True

    def _sweep(self, folder: int) -> None:
        """Remove what killed monitors left half-made."""
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if name.startswith(f".{self._name}.") and name.endswith(_PARTIAL):
                _remove(name, folder)


_PARTIAL = ".guardrails-partial"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def positive_size(value: object, argument: str) -> int:
    """Bytes, at least one. Raises ConfigurationError."""
    size = parse_size(value, argument)
    if size == 0:
        raise ConfigurationError(
            f'{argument}: {value!r} would be passed at once: write a size above 0, such as "100M"'
        )
    return size


def rename(old: str, new: str, folder: int) -> None:
    """Rename within an open folder, and never over anything. Raises FileExistsError and OSError."""
    if _renameat2 is not None:
        if not _renameat2(folder, os.fsencode(old), folder, os.fsencode(new), _NO_REPLACE):
            return
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(error, os.strerror(error), old, None, new)
    # This file system cannot, or this system: another monitor, or a server that makes its log at
    # this very moment, could come in between.
    if _stat(new, folder) is not None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def _rename_of_libc() -> Any:
    with suppress(OSError, AttributeError):
        function = ctypes.CDLL(None, use_errno=True).renameat2
        function.argtypes = (*(ctypes.c_int, ctypes.c_char_p) * 2, ctypes.c_uint)
        return function
    return None


_renameat2 = _rename_of_libc()


@contextmanager
def _opened(name: str, folder: int) -> Iterator[int]:
    """A regular file, open for reading and not by a link. Raises OSError."""
    file = os.open(name, _READ, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{name} is no regular file")
        yield file
    finally:
        os.close(file)


@contextmanager
def _partial(name: str, folder: int) -> Iterator[tuple[str, int]]:
    """A new file that only we can read, and its hidden name; removed unless it got another one."""
    partial = f".{name}.{secrets.token_hex(4)}{_PARTIAL}"
    target = os.open(partial, _CREATE, 0o600, dir_fd=folder)
    try:
        yield partial, target
    finally:
        _remove(partial, folder)
        os.close(target)


@contextmanager
def _successor(name: str, log: os.stat_result, folder: int) -> Iterator[Callable[[], None]]:
    """An empty file with a log's owner, group and mode; what is given puts it in the log's place.

    A log that the server made just then stays. Where we may not give a file away, the server makes
    it. Raises OSError.
    """
    with _partial(name, folder) as (partial, target):
        ours = _resemble(target, log)

        def put_in_place() -> None:
            if ours:
                with suppress(FileExistsError):
                    rename(partial, name, folder)

        yield put_in_place


def _pack(source: int, target: int) -> Generator[None]:
    packer = zlib.compressobj(wbits=31)  # 31: a .gz of its own
    done = 0
    while piece := os.read(source, _PIECE):
        _write(target, packer.compress(piece))
        done += len(piece)
        if done >= SLICE:
            done = 0
            yield
    _write(target, packer.flush())


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _resemble(target: int, log: os.stat_result) -> bool:
    """Give a file the owner, group and mode of the log, and never more readers than it had.

    Returns whether it has all of them.
    """
    mode = stat.S_IMODE(log.st_mode) & 0o777
    whole = False
    try:
        os.fchown(target, log.st_uid, log.st_gid)
        whole = True
    except PermissionError:
        try:
            os.fchown(target, -1, log.st_gid)
        except PermissionError:
            mode &= 0o700
    os.fchmod(target, mode)
    return whole


def _has_writer(file: int) -> bool | None:
    """Whether anybody has the file open for writing; None where the system does not tell.

    A read lease is given for a file only without writers. Should one come just then, SIGURG is what
    we would get, which is ignored unless somebody asked for it.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except AttributeError:
        return None
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def _stat(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _identity(found: os.stat_result) -> Identity:
    return (found.st_dev, found.st_ino)


def _content(found: os.stat_result) -> tuple[int, int]:
    return (found.st_size, found.st_mtime_ns)


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _said(error: OSError) -> str:
    return printable(str(error))[:300]
