"""The rotated logs of a server: they are renumbered and compressed, and the oldest is removed."""

from __future__ import annotations

import logging
import math
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from guardrails.once import Once
from guardrails.watchdog import safe_files
from guardrails.watchdog.events import Notify, printable

SLICE = 8 * 2**20
"""Bytes that one look compresses at most, so that a huge log does not delay the monitor."""

_PIECE = 2**18
_MOST_IN_USE = 64  # numbers beyond a gap that logs in use may have reached
_REPEAT_SECONDS = 600.0
_RETRY_SECONDS = 60.0


class RotatedLogs:
    """The files path.1, path.2 and so on, each plain or a .gz.

    Args:
        path: the log.
        notify: is called with each event.
        backups: how many of them are kept at most.
        wait: seconds for which the size of one must stay the same before it is compressed.
    """

    def __init__(self, path: Path, notify: Notify, backups: int, wait: float) -> None:
        self._name = path.name
        self._shown = printable(str(path))
        self._notify = notify
        self._backups = backups
        self._wait = wait
        self._still: dict[safe_files.Identity, tuple[tuple[int, int], float]] = {}
        self._work: Generator[None] | None = None
        self._retry = -math.inf
        self._first_time_failure = Once(_REPEAT_SECONDS)

    def make_room(self, folder: int) -> None:
        """Rename each to the next number, and remove the oldest. Raises OSError.

        If a number is missing, as after a kill, only the files before it are renamed. A file that a
        process still writes to is kept beyond `backups`, since its lines would be lost with it.
        """
        gap = next(number for number in count(1) if not self._files(number, folder))
        for number in range(gap - 1, 0, -1):
            for file in self._files(number, folder):
                if number >= self._backups and not self._is_in_use(file, folder):
                    os.unlink(file, dir_fd=folder)
                else:
                    suffix = ".gz" if file.endswith(".gz") else ""
                    safe_files.rename(file, f"{self._name}.{number + 1}{suffix}", folder)
        for number in range(max(gap, self._backups) + 1, gap + _MOST_IN_USE):
            for file in self._files(number, folder):
                if not self._is_in_use(file, folder):  # by now
                    os.unlink(file, dir_fd=folder)

    def is_written_to(self, folder: int) -> bool | None:
        """Return whether a process has path.1 open for writing; None where that is not known."""
        return self._is_in_use(f"{self._name}.1", folder)

    def _is_in_use(self, name: str, folder: int) -> bool | None:
        try:
            with safe_files.opened(name, folder) as file:
                return safe_files.has_writer(file)
        except FileNotFoundError:
            return False
        except OSError:
            return None

    def look(self, folder: int, now: float, *, reopened: bool) -> None:
        """Compress a slice of what is due.

        Args:
            folder: descriptor of the log's folder.
            now: monotonic seconds.
            reopened: whether the server no longer writes to path.1.
        """
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
            self._retry = now + _RETRY_SECONDS
            text = error_text(error)
            if self._first_time_failure(text, now=now):
                self._notify(
                    "log-not-compressed",
                    f"{self._shown}: an old log is not compressed ({text}); tried again in a minute",
                    logging.WARNING,
                    path=self._shown,
                    error=text,
                )

    def _files(self, number: int, folder: int) -> list[str]:
        plain = f"{self._name}.{number}"
        return [name for name in (plain, f"{plain}.gz") if safe_files.look_up(name, folder) is not None]

    def _plain(self, folder: int) -> Iterator[tuple[str, os.stat_result]]:
        for number in range(1, self._backups + 1):
            name = f"{self._name}.{number}"
            found = safe_files.look_up(name, folder)
            if found is not None and stat.S_ISREG(found.st_mode):
                yield name, found

    def _due(self, folder: int, now: float, *, reopened: bool) -> list[str]:
        """The plain files whose size has stayed the same for long enough."""
        still: dict[safe_files.Identity, tuple[tuple[int, int], float]] = {}
        due = []
        for name, found in self._plain(folder):
            if not reopened and name == f"{self._name}.1":
                continue
            content, since = self._still.get(safe_files.identity(found), (None, now))
            if content != safe_files.content(found):
                since = now
            still[safe_files.identity(found)] = (safe_files.content(found), since)
            if now - since >= self._wait:
                due.append(name)
        self._still = still
        return due

    def _begin(self, due: list[str], folder: int) -> Generator[None] | None:
        """Begin to compress the oldest that no process writes to. Raises OSError."""
        trouble = None
        for name in reversed(due):
            try:
                with safe_files.opened(name, folder) as file:
                    before = os.fstat(file)
                    if safe_files.has_writer(file):
                        continue
                if self._is_twin(f"{name}.gz", before, folder):
                    os.unlink(name, dir_fd=folder)
                else:
                    return self._compress(name, folder)
            except OSError as error:
                trouble = trouble or error  # the other files have their turn all the same
        if trouble is not None:
            raise trouble
        return None

    def _compress(self, name: str, folder: int) -> Generator[None]:
        """Compress one file, a slice at each step. When it raises OSError, nothing has changed."""
        with ExitStack() as stack:
            folder = os.dup(folder)
            stack.callback(os.close, folder)
            source = stack.enter_context(safe_files.opened(name, folder))
            before = os.fstat(source)
            self._sweep(folder)
            partial, target = stack.enter_context(safe_files.hidden(self._name, folder))
            yield from _pack(source, target)
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
            safe_files.resemble(target, before)
            os.fsync(target)
            after = os.fstat(source)
            if safe_files.content(after) != safe_files.content(before) or safe_files.has_writer(source):
                return
            # Meanwhile the file may have another number, or it was removed as the oldest.
            for plain, found in self._plain(folder):
                if safe_files.identity(found) == safe_files.identity(after):
                    safe_files.rename(partial, f"{plain}.gz", folder)
                    os.fsync(folder)
                    os.unlink(plain, dir_fd=folder)

    def _is_twin(self, name: str, plain: os.stat_result, folder: int) -> bool:
        """Whether the complete .gz of this file exists, as after a kill just before its removal."""
        if safe_files.look_up(name, folder) is None:
            return False
        with safe_files.opened(name, folder) as file:
            found = os.fstat(file)
            length = int.from_bytes(os.pread(file, 4, max(0, found.st_size - 4)), "little")
        if (found.st_mtime_ns, length) != (plain.st_mtime_ns, plain.st_size & 0xFFFFFFFF):
            raise FileExistsError(f"{name} exists already, and is of another log")
        return True

    def _sweep(self, folder: int) -> None:
        """Remove the incomplete files of killed monitors."""
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            if safe_files.is_hidden_for(self._name, name):
                safe_files.remove(name, folder)


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


def error_text(error: OSError) -> str:
    """Return an error as a short, printable text."""
    return printable(str(error))[:300]
